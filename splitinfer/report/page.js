// The page is complete without this. It shows what pictures say when pointed at under a finger too, where browsers show no titles.
"use strict";
(() => {
  const root = document.documentElement;
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);

  for (const title of document.querySelectorAll("svg > * title")) {
    const about = title.parentElement;
    about.dataset.tip = title.textContent;
    title.remove();  // else the browser would show it beside ours
  }

  const show = (event) => {
    const about = event.target.closest("[data-tip]");
    tip.hidden = !about;
    if (!about) return;
    tip.textContent = about.dataset.tip;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(event.clientX + 12, innerWidth - width - 8))}px`;
    tip.style.top = `${event.clientY + 20 + height > innerHeight ? event.clientY - height - 12 : event.clientY + 20}px`;
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);

  const everything = document.createElement("button");
  everything.type = "button";
  everything.textContent = "Open all tables";
  everything.addEventListener("click", () => {
    for (const each of document.querySelectorAll("details")) each.open = true;
  });
  document.querySelector("nav").append(everything);

  root.dataset.clocks = JSON.parse(document.getElementById("data").textContent).clocks.length;
})();
