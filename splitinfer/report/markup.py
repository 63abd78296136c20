"""HTML and SVG as text in which everything is escaped unless it was made here."""

from __future__ import annotations

from html import escape
from typing import Any

_VOID = ("br", "col", "hr", "link", "meta")


class Markup(str):
    """Text that is markup already; any other text is escaped before it becomes part of one."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: Any) -> Markup:
    """An element. Attributes: `class_` is class, `aria_label` is aria-label; None is left out, True stands alone."""
    start = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items() if value is not None)}>"
    return Markup(start if name in _VOID else f"{start}{''.join(map(_escaped, children))}</{name}>")


def joined(*parts: str) -> Markup:
    """Elements, and texts to be escaped, behind each other."""
    return Markup("".join(map(_escaped, parts)))


def shortened(text: str, most: int, keep_end: bool = True) -> str:
    """A text that is too long without its beginning, because names of layers differ at their end; or without its end."""
    if len(text) <= most:
        return text
    return f"…{text[len(text) - most + 1 :].lstrip('.')}" if keep_end else f"{text[: most - 1]}…"


def _escaped(text: str) -> str:
    if isinstance(text, Markup):
        return text
    # A name from a JSON file may hold half a surrogate pair, which no encoding can write.
    return escape(text.encode("utf-8", "replace").decode("utf-8"), quote=True)


def _attribute(key: str, value: Any) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {name}="{_escaped(shown)}"'
