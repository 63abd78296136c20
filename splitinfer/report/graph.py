"""The plan as a graph: tiers as columns, stages with their layers in groups, what crosses between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise

from cluster.topology import LinkSpec, Topology
from splitinfer.plans import Crossing, Plan, PlannedBlock, PlannedStage
from splitinfer.report.chart import CHARACTER, box, line, picture, text
from splitinfer.report.figures import counted, mbps, ms, nbytes, percent
from splitinfer.report.markup import Markup, joined, shortened, tag

_COLUMN, _GAP, _EDGE, _LINE = 220.0, 210.0, 8.0, 18.0
_MOST_GROUPS, _MOST_CROSSINGS = 9, 4
_TOP = 66.0


def plan_graph(plan: Plan, topology: Topology) -> Markup:
    """The whole picture."""
    columns = [_column(plan, tier, _EDGE + place * (_COLUMN + _GAP)) for place, tier in enumerate(plan.tiers)]
    gaps = [_gap(plan, topology, place) for place in range(len(plan.tiers) - 1)]
    height = max(bottom for _, bottom in (*columns, *gaps)) + _EDGE
    width = 2 * _EDGE + len(plan.tiers) * _COLUMN + (len(plan.tiers) - 1) * _GAP
    frames = [
        box(_EDGE + place * (_COLUMN + _GAP), 4, _COLUMN, height - 8, "tier" if _used(plan, tier) else "tier unused", rx=8.0)
        for place, tier in enumerate(plan.tiers)
    ]
    arrow = tag("marker", tag("path", d="M0 0L8 4L0 8z", class_="arrowhead"), id="arrowhead", viewBox="0 0 8 8", refX=7, refY=4,
                markerWidth=8, markerHeight=8, orient="auto")  # fmt: skip
    where = " → ".join(f"{stage.tier} ({counted(len(stage.layers), 'layer')})" for stage in plan.stages)
    drawn = [tag("defs", arrow), *frames, *(part for part, _ in (*columns, *gaps))]
    return picture("graph", f"Where {plan.model} runs", f"{where}; {counted(len(plan.crossings), 'tensor')} cross", width, height, *drawn)


def layer_groups(layers: Sequence[str], most: int = _MOST_GROUPS) -> list[tuple[str, int]]:
    """Neighbours that share the beginning of their names, as deep as gives at most so many groups: name and how many layers."""
    names = [name.split(".") for name in layers]
    for depth in range(max(map(len, names)), 0, -1):
        found = [(name, len(list(group))) for name, group in groupby(".".join(name[:depth]) for name in names)]
        if len(found) <= most:
            return found
    return [*found[: most - 1], ("…", sum(count for _, count in found[most - 1 :]))]


def _used(plan: Plan, tier: str) -> bool:
    return any(stage.tier == tier for stage in plan.stages)


def _column(plan: Plan, tier: str, x: float) -> tuple[Markup, float]:
    """A tier with its stages, and where it ends."""
    drawn: list[str] = [text(x + _COLUMN / 2, 28, tier, "title", "middle", _COLUMN - 20, name=True)]
    source = plan.times_from.get(tier, "")
    if source:
        drawn.append(text(x + _COLUMN / 2, 48, source, "tick", "middle", _COLUMN))
    y = _TOP
    for stage in (stage for stage in plan.stages if stage.tier == tier):
        part, y = _stage(stage, x + 10, y)
        drawn.append(part)
    if not _used(plan, tier):
        drawn.append(text(x + _COLUMN / 2, y + 20, "no layers", "tick", "middle"))
    return joined(*drawn), y + 30


def _stage(stage: PlannedStage, x: float, y: float) -> tuple[Markup, float]:
    width = _COLUMN - 20
    room = width - 20
    lines = [
        text(x + 10, y + 22, f"{stage.name}: {counted(len(stage.layers), 'layer')}", "strong", room=room),
        text(x + 10, y + 40, f"{ms(stage.seconds)}, {stage.weight_nbytes / 1e6:.2f} MB", "tick", room=room),
    ]
    at = y + 62
    for name, count in layer_groups(stage.layers):
        times = f" x{count}" if count > 1 else ""
        short = shortened(name, int((room - CHARACTER * len(times)) / CHARACTER))
        tip = f"{name}: {counted(count, 'layer')}"
        lines.append(text(x + 10, at, f"{short}{times}", "layer", tip=tip))
        at += _LINE
    for block in stage.blocks:
        part, at = _block(block, x + 10, at + 6, room)
        lines.append(part)
    return joined(box(x, y, width, at - y, "stage", rx=6.0), *lines), at + 12


def _block(block: PlannedBlock, x: float, y: float, width: float) -> tuple[Markup, float]:
    """A run of layers that several machines share: a bar divided like their shares."""
    total = sum(block.shares) or 1
    lines = [text(x, y + 12, f"{counted(len(block.layers), 'layer')} shared by {block.axis}", "strong", room=width)]
    at = x
    for place, (share, worker) in enumerate(zip(block.shares, block.workers, strict=False)):
        wide = width * share / total
        tip = f"{worker}: {share} of {total} {block.axis}, {percent(share / total)}"
        lines.append(box(at, y + 20, wide, 14, f"share share-{place % 4}", tip))
        lines.append(box(x, y + 42 + place * _LINE, 10, 10, f"share share-{place % 4}"))
        lines.append(text(x + 16, y + 51 + place * _LINE, f"{worker}: {share} ({percent(share / total)})", "tick", room=width - 16))
        at += wide
    end = y + 42 + len(block.workers) * _LINE
    lines.append(text(x, end + 9, f"messages: {block.codec}", "tick", room=width))
    return joined(*lines), end + 22


def _gap(plan: Plan, topology: Topology, place: int) -> tuple[Markup, float]:
    """What crosses one link of the line."""
    x = _EDGE + _COLUMN + place * (_COLUMN + _GAP)
    middle, room = x + _GAP / 2, _GAP - 16
    crossing = sorted((c for c in plan.crossings if place in c.links), key=lambda c: -c.nbytes)
    drawn: list[str] = []
    spec = _link(plan, topology, place)
    if spec is not None:
        drawn.append(text(middle, 28, f"{mbps(spec.up_bytes_per_s)} up", "tick", "middle", room))
        drawn.append(text(middle, 46, f"{mbps(spec.down_bytes_per_s)} down, {ms(spec.latency_s)}", "tick", "middle", room))
    y = _TOP + 18
    for each in crossing[:_MOST_CROSSINGS]:
        drawn += _arrow(each, x, y, room)
        y += 66
    rest = crossing[_MOST_CROSSINGS:]
    if rest:
        drawn.append(text(middle, y, f"and {len(rest)} more: {nbytes(sum(c.nbytes for c in rest))}", "tick", "middle", room))
        y += 24
    if any(plan.tiers.index(stage.tier) > place for stage in plan.stages):
        drawn.append(text(middle, y, "results, raw", "tick", "middle", room))
        drawn.append(line(x + _GAP - 4, y + 10, x + 4, y + 10, "arrow back", marker_end="url(#arrowhead)"))
        y += 30
    elif not crossing:
        drawn.append(text(middle, y, "nothing crosses", "tick", "middle"))
    return joined(*drawn), y


def _arrow(crossing: Crossing, x: float, y: float, room: float) -> list[Markup]:
    """A tensor: its name, the codec, the bytes."""
    middle = x + _GAP / 2
    codec = f"{crossing.codec}{' in pieces' if crossing.streamed else ''}"
    share = f" ({percent(crossing.nbytes / crossing.raw_nbytes)})" if crossing.raw_nbytes else ""
    tip = f"{crossing.tensor} of {crossing.producer}, {codec}: {nbytes(crossing.nbytes)} of {nbytes(crossing.raw_nbytes)} raw"
    return [
        text(middle, y, crossing.tensor, "strong", "middle", room, tip=tip, name=True),
        line(x + 4, y + 10, x + _GAP - 4, y + 10, "arrow", marker_end="url(#arrowhead)"),
        text(middle, y + 28, f"{codec}: {nbytes(crossing.nbytes)}{share}", "tick", "middle", room, tip=tip),
    ]


def _link(plan: Plan, topology: Topology, place: int) -> LinkSpec | None:
    lower, higher = list(pairwise(plan.tiers))[place]
    return next((s for s in (*topology.links, *filter(None, [topology.direct])) if s.between == (lower, higher)), None)
