"""The tables behind the pictures."""

from __future__ import annotations

from collections.abc import Sequence

from splitinfer.plans import Cost, Plan
from splitinfer.report.bars import named
from splitinfer.report.compare import Comparison
from splitinfer.report.figures import NONE, UNITS, amount, difference, mbps, ms, nbytes, number, percent
from splitinfer.report.fronts import TradeOff
from splitinfer.report.markup import Markup, joined, tag
from splitinfer.report.request import PARTS, Request
from splitinfer.report.sweep import Sweep


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> Markup:
    """A table whose first `words` columns are text and the others numbers."""
    heads = [tag("th", cell, scope="col", class_=None if place < words else "number") for place, cell in enumerate(head)]
    body = [tag("tr", *(_cell(place, cell, words) for place, cell in enumerate(row))) for row in rows]
    inner = tag("table", tag("caption", caption), tag("thead", tag("tr", *heads)), tag("tbody", *body))
    return tag("div", inner, class_="wide", tabindex="0", role="region", aria_label=f"{caption} (table)")


def behind(*tables: Markup, summary: str = "The same as a table") -> Markup:
    """Tables that open on request, without a script."""
    return tag("details", tag("summary", summary), *tables)


def stages(plan: Plan) -> Markup:
    """What runs where."""
    rows = [
        [s.name, s.tier, s.layers[0], s.layers[-1], str(len(s.layers)), ms(s.seconds), f"{s.weight_nbytes / 1e6:.2f} MB"]
        for s in plan.stages
    ]
    return table("Stages", ["stage", "tier", "first layer", "last layer", "layers", "compute", "weights"], rows, 4)


def blocks(plan: Plan) -> Markup:
    """Layers that several machines share."""
    rows = [
        [stage.name, _run(block.layers), block.axis, worker, block.codec, str(share), percent(share / (sum(block.shares) or 1))]
        for stage in plan.stages for block in stage.blocks for worker, share in zip(block.workers, block.shares, strict=False)
    ]  # fmt: skip
    head = ["stage", "layers", "axis", "machine", "codec", "units", "share"]
    return table("Layers that several machines share", head, rows, 5) if rows else joined()


def crossings(plan: Plan) -> Markup:
    """What leaves its tier."""
    rows = [
        [" → ".join(plan.tiers[c.links[0] : c.links[-1] + 2]), c.tensor, c.producer, f"{c.codec}{' in pieces' if c.streamed else ''}",
         nbytes(c.raw_nbytes), nbytes(c.nbytes), percent(c.nbytes / c.raw_nbytes) if c.raw_nbytes else NONE]
        for c in plan.crossings
    ]  # fmt: skip
    return table("Tensors that cross", ["links", "tensor", "of layer", "codec", "raw", "sent", "of raw"], rows, 4) if rows else joined()


def clocks(found: Comparison) -> Markup:
    """Each part by each clock, and by how much the others differ from the last."""
    columns, last = found.columns, found.columns[-1]
    head = ["", *(column.name for column in columns), *(f"{column.name} against {last.name}" for column in columns[:-1])]
    rows = [
        [named(part), *(ms(c.parts.get(part, 0.0)) for c in columns),
         *(difference(c.parts.get(part, 0.0), last.parts.get(part, 0.0)) for c in columns[:-1])]
        for part in PARTS if any(c.parts.get(part) for c in columns)
    ]  # fmt: skip
    rows.append(["latency", *(ms(c.latency_s) for c in columns), *(difference(c.latency_s, last.latency_s) for c in columns[:-1])])
    rows.append(["bytes up", *(nbytes(c.up_nbytes) for c in columns), *(difference(c.up_nbytes, last.up_nbytes) for c in columns[:-1])])
    if any(c.rest_s for c in columns):
        apart = [difference(c.rest_s, last.rest_s) for c in columns[:-1]]
        rows.append(["without declared sleep", *(ms(c.rest_s) for c in columns), *apart])
    return table("Three clocks", head, rows)


def bars_of(name: str, request: Request) -> Markup:
    """What one request did when."""
    rows = [[b.lane, named(b.kind), ms(b.start_s), ms(b.seconds), nbytes(b.nbytes) if b.nbytes else NONE] for b in request.bars]
    return table(f"One request, {name}", ["where", "what", "from", "for", "bytes"], rows, 2)


def rivals(plan: Plan) -> Markup:
    """This plan and what it was weighed against."""
    assert plan.cost is not None  # the section is there only then
    rows = [["this plan", *_priced(plan.cost), NONE]]
    for each in plan.baselines:
        if each.cost is None:
            rows.append([f"{each.name}: {(each.why_not.splitlines() or ['not possible'])[0]}", *[NONE] * 5])
        else:
            rows.append([each.name, *_priced(each.cost), difference(each.cost.latency_s, plan.cost.latency_s)])
    head = ["plan", "latency", "bytes up", *(f"{name}, {unit}" for name, unit in UNITS.items()), "latency against this plan"]
    return table("Plans weighed", head, rows)


def _priced(cost: Cost) -> list[str]:
    return [ms(cost.latency_s), nbytes(cost.up_nbytes), number(cost.energy_j), number(amount("money", cost.money))]


def winners(sweep: Sweep) -> Markup:
    """Which plan wins where."""
    rows = [[r.name, r.shape, r.codecs, r.first_cut or NONE, mbps(r.low), mbps(r.high)] for r in sweep.regimes]
    head = ["", "layers on each tier", "codecs", "last layer on the first tier", "from", "to"]
    return table("The best plan at each rate", head, rows, 4)


def latencies(sweep: Sweep) -> Markup:
    """The curves."""
    rows = [[mbps(rate), *(ms(curve[place]) for curve in sweep.curves.values())] for place, rate in enumerate(sweep.rates)]
    return table("Latency at each rate", ["rate", *sweep.curves], rows)


def front(found: TradeOff) -> Markup:
    """The points of a front."""
    unit = UNITS[found.cost]
    rows = [[p.shape, p.codecs, ms(p.latency_s), f"{number(amount(found.cost, p.other))} {unit}"] for p in found.points]
    return table(f"Latency against {found.cost}", ["ops on each tier", "codecs", "latency", found.cost], rows, 2)


def _run(layers: Sequence[str]) -> str:
    return f"{layers[0]} ... {layers[-1]}" if len(layers) > 1 else "".join(layers)


def _cell(place: int, cell: str, words: int) -> Markup:
    if place == 0:
        return tag("th", cell, scope="row")
    return tag("td", cell, class_=None if place < words else "number")
