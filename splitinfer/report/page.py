"""Findings as one HTML page: pictures in SVG, tables behind them, the numbers as JSON, and nothing from elsewhere.

The page forbids itself, by a Content-Security-Policy, all scripts and styles but its own two, by their hashes, and all
loading. So even text from a file that escaped the escaping could run nothing.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from importlib.resources import files

from splitinfer.plans import Cost, Plan
from splitinfer.report import tables
from splitinfer.report.bars import gantt, part_bars
from splitinfer.report.compare import Comparison, parts_of
from splitinfer.report.curves import front_points, latency_curves
from splitinfer.report.figures import UNITS, counted, difference, mbps, ms, nbytes, percent
from splitinfer.report.findings import Findings
from splitinfer.report.fronts import TradeOff
from splitinfer.report.graph import plan_graph
from splitinfer.report.markup import Markup, joined, tag
from splitinfer.report.sweep import Sweep


def page(found: Findings) -> str:
    """The whole document."""
    style, script = (Markup(files("splitinfer.report").joinpath(name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    title = f"{found.plan.model}: {' → '.join(stage.tier for stage in found.plan.stages)}"
    head = tag(
        "head", tag("meta", charset="utf-8"), tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"), tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"), tag("title", title), tag("style", style),
    )  # fmt: skip
    sections = list(_sections(found))
    links = [tag("li", tag("a", heading, href=f"#{name}")) for name, heading, _ in sections]
    body = tag(
        "body", tag("header", tag("h1", title), *_summary(found)), tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", *(_section(*each) for each in sections)), _footer(found),
        tag("script", _data(found), type="application/json", id="data"), tag("script", script),
    )  # fmt: skip
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode('utf-8')).digest()).decode('ascii')}"


def _data(found: Findings) -> Markup:
    """JSON in which no text can end the element that holds it."""
    return Markup(json.dumps(found.to_dict()).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _section(name: str, heading: str, content: Markup) -> Markup:
    return tag("section", tag("h2", heading, id=f"{name}-heading"), content, id=name, aria_labelledby=f"{name}-heading")


def _sections(found: Findings) -> Iterator[tuple[str, str, Markup]]:
    """Name, heading and content of each part."""
    plan = found.plan
    yield "plan", "The plan", _plan(found)
    if found.comparison.columns:
        yield "clocks", "Predicted, simulated, measured", _clocks(found.comparison)
    if found.comparison.simulated or found.comparison.measured:
        yield "request", "One request in time", _request(found.comparison)
    if plan.cost is not None and plan.baselines:
        yield "rivals", "Against the other plans", _rivals(plan, plan.cost)
    if found.sweep:
        yield "bandwidth", "Latency against bandwidth", _bandwidth(found.sweep)
    yield "trade-offs", "Trade-offs", _trade_offs(found.trade_offs)


def _summary(found: Findings) -> Iterator[Markup]:
    plan = found.plan
    proof = f", {plan.certificate.get('status')} by {plan.certificate.get('strategy')}" if plan.certificate else ""
    yield tag("p", f"Objective: {plan.objective}{proof}.")
    cards = [(column.name, ms(column.latency_s)) for column in found.comparison.columns]
    if found.comparison.columns:
        cards.append(("sent up", nbytes(found.comparison.columns[-1].up_nbytes)))
    cards += [(f"{of} against {against}", _share(share)) for of, against, share in found.comparison.differences]
    yield tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in cards), class_="cards")


def _plan(found: Findings) -> Markup:
    whole = tag("details", tag("summary", "The plan as text"), tag("div", tag("pre", str(found.plan)), class_="wide", tabindex="0"))
    shown = tables.behind(tables.stages(found.plan), tables.blocks(found.plan), tables.crossings(found.plan))
    return joined(plan_graph(found.plan, found.topology), shown, whole)


def _clocks(found: Comparison) -> Markup:
    rows = [(column.name, column.latency_s, column.parts) for column in found.columns]
    apart = [tag("li", f"{of} against {against}: ", tag("strong", _share(share))) for of, against, share in found.differences]
    notes = list(found.notes)
    if found.slept_share is not None:
        rest = _error_of_rest(found)
        notes.append(f"{percent(found.slept_share)} of the measured latency is declared sleep: paced links and stretched work{rest}.")
    return joined(
        part_bars("clocks-bars", "The latency in its parts, by each clock", rows),
        tag("ul", *apart, class_="differences") if apart else "", *(tag("p", note, class_="note") for note in notes), tables.clocks(found),
    )  # fmt: skip


def _error_of_rest(found: Comparison) -> str:
    first, last = found.columns[0], found.columns[-1]
    if not first.rest_s or not last.rest_s:
        return ""
    return f"; of the rest alone, {first.name} {ms(first.rest_s)} is {difference(first.rest_s, last.rest_s)} against {ms(last.rest_s)}"


def _request(found: Comparison) -> Markup:
    known = (("measured", "its first span", found.measured), ("simulated", "its arrival", found.simulated))
    shown = [(name, since, request) for name, since, request in known if request]
    ends = [bar.end_s for _, _, request in shown for bar in request.bars]
    span_s = max([*ends, *(request.latency_s for _, _, request in shown)])
    parts = []
    for name, since, request in shown:
        title = f"One request, {name}: {ms(request.latency_s)}"
        parts += [tag("h3", title), gantt(f"gantt-{name}", title, request, span_s, since), tables.behind(tables.bars_of(name, request))]
    return joined(*parts)


def _rivals(plan: Plan, cost: Cost) -> Markup:
    rows = [("this plan", cost.latency_s, parts_of(cost))]
    rows += [(each.name, each.cost.latency_s, parts_of(each.cost)) for each in plan.baselines if each.cost is not None]
    return joined(part_bars("rivals-bars", "Predicted latency of every plan weighed", rows), tables.rivals(plan))


def _bandwidth(sweep: Sweep) -> Markup:
    words = (
        f"The best plan at each rate from {sweep.link[0]} to {sweep.link[1]}, with codecs {', '.join(sweep.codecs)}; its letter stands "
        f"over the rates where it wins. All else stays as declared, the way back too; the link's own rate is {mbps(sweep.declared)}."
    )
    return joined(tag("p", words), latency_curves(sweep), tables.winners(sweep), tables.behind(tables.latencies(sweep)))


def _trade_offs(found: tuple[TradeOff, ...]) -> Markup:
    if not found:
        return tag("p", "The topology declares no power, energy or prices, so there is nothing to trade the latency for.")
    parts: list[Markup] = []
    for each in found:
        sure = f"; there may be more: {each.unproved}" if each.unproved else ", proved to be all"
        told = f"{counted(len(each.points), 'plan')} that no other beats in both latency and {each.cost}{sure}."
        source = f" In {UNITS[each.cost]}, from figures that the topology declares."
        parts += [tag("h3", f"Latency against {each.cost}"), tag("p", told, source), front_points(each), tables.behind(tables.front(each))]
    return joined(*parts)


def _footer(found: Findings) -> Markup:
    words = f"Graph {found.plan.fingerprint}. This file loads nothing; the numbers behind it are in its element 'data' as JSON."
    return tag("footer", tag("p", words))


def _share(share: float) -> str:
    return difference(1 + share, 1.0)
