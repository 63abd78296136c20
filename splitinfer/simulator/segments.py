"""A planned block as segments: runs of layers that are computed without a word between the machines, except for sums.

A plan's block may be several of these behind each other::

    rows       |conv conv pool|conv conv|       | neighbours fetch the rows that they lack
    channels   |fc1 act fc2|norm fc3|           | everybody comes to hold all

Its file names the borders of rows, and the shares there. For channels and heads it names the shares behind each layer that opens
an axis, but neither the borders nor which way of a layer was taken: of all readings that fit, the fastest counts, as in a plan of
least latency; shares that the file does not name are in proportion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise, product
from math import lcm

from splitinfer.errors import PlanError
from splitinfer.plans import PlannedBlock
from splitinfer.profiles import LayerLayout, Profile

_MOST_FORMS = 256  # of one piece, as many as the search that makes plans looks at
_KEPT = 16  # readings on the way: most layers have one way, and few have two


@dataclass(frozen=True)
class Segment:
    """Layers in the order of the data, with the way in which each is shared out."""

    layers: tuple[str, ...]
    ways: tuple[LayerLayout, ...]
    shares: tuple[int, ...]
    """Of the last layer for rows, of all that is divided for channels and heads."""
    leaves: str = "whole"
    """``whole``, at the host; ``divided``, rows that stay where they are; ``replicated``, with all who have a share, and the host."""

    @property
    def by_rows(self) -> bool:
        """Whether it is divided by rows."""
        return self.ways[-1].axis == "rows"

    @property
    def units(self) -> int:
        """What the shares add up to."""
        return sum(self.shares)

    @property
    def group(self) -> tuple[int, ...]:
        """Who has a share."""
        return tuple(worker for worker, share in enumerate(self.shares) if share)


def segments(block: PlannedBlock, profile: Profile, seconds: Callable[[Sequence[Segment]], float]) -> tuple[Segment, ...]:
    """The reading of a block; `seconds` says how long one takes. Raises PlanError where there is none."""
    if not block.shares or sum(block.shares) < 1 or len(block.shares) != len(block.workers):
        raise PlanError(f"the block from '{block.layers[0]}' has shares {list(block.shares)} for {len(block.workers)} machines; plan again")
    readings = _by_rows(block, profile) if block.axis == "rows" else _by_units(block, profile, seconds)
    if not readings:
        raise PlanError(f"the profile has no way to share the layers from '{block.layers[0]}' to '{block.layers[-1]}' by {block.axis}")
    return min(readings, key=seconds)


def apportioned(units: int, shares: Sequence[int], granularity: int = 1) -> tuple[int, ...]:
    """Units in proportion to shares, by largest remainder; what is left below the granularity goes to the last with a share."""
    chunks, total = units // granularity, sum(shares)
    whole = [chunks * share // total for share in shares]
    order = sorted(range(len(shares)), key=lambda worker: (-(chunks * shares[worker] % total), worker))
    for worker in order[: chunks - sum(whole)]:
        whole[worker] += 1
    made = [granularity * count for count in whole]
    made[max((worker for worker, share in enumerate(shares) if share), default=0)] += units - sum(made)
    return tuple(made)


def _by_rows(block: PlannedBlock, profile: Profile) -> list[tuple[Segment, ...]]:
    borders = [place for place, layer in enumerate(block.layers[:-1], 1) if layer in block.exchange_after]
    made = []
    for begin, end in pairwise([0, *borders, len(block.layers)]):
        layers, last = block.layers[begin:end], end == len(block.layers)
        ways = [_ways(profile, layer, "rows") for layer in layers]
        if not all(ways):
            return []
        shares = block.shares if last else block.exchange_after[layers[-1]]
        if sum(shares) != ways[-1][0].units:
            return []
        made.append(Segment(layers, tuple(way[0] for way in ways), shares, "whole" if last else "divided"))
    return [tuple(made)]


def _by_units(block: PlannedBlock, profile: Profile, seconds: Callable[[Sequence[Segment]], float]) -> list[tuple[Segment, ...]]:
    """Piece by piece between the layers over which no tensor jumps, in each way that its layers have; the fastest few are kept."""
    readings: list[tuple[Segment, ...]] = [()]
    for begin, end in pairwise([0, *_borders(block.layers, profile), len(block.layers)]):
        forms = _forms(block.layers[begin:end], profile, block.axis)
        more = [each for reading in readings for form in forms for each in _longer(reading, block.layers[begin:end], form, block, profile)]
        readings = [reading for reading in more if all(_fits(segment, block) for segment in reading[:-1])]
        readings = readings if len(readings) <= _KEPT else sorted(readings, key=seconds)[:_KEPT]
    ended = [(*reading[:-1], replace(reading[-1], leaves="whole")) for reading in readings if _fits(reading[-1], block)]
    return [reading for reading in ended if _ends_as_planned(reading, block)]


def _fits(segment: Segment, block: PlannedBlock) -> bool:
    """Whether it divides something, all that it divides alike, and as planned where the plan says how."""
    planned = {tuple(block.inner_shares[layer]) for layer in segment.layers if layer in block.inner_shares}
    divided = [way for way in segment.ways if way.gives != "whole"]
    round_ = _round(segment, lcm(*(way.granularity for way in divided)))
    return round_ and {way.units for way in divided} == {segment.units} and planned <= {segment.shares}


def _ends_as_planned(reading: Sequence[Segment], block: PlannedBlock) -> bool:
    """The block's shares are those of the last segment of its axis."""
    last = next((segment for segment in reversed(reading) if segment.ways[-1].axis == block.axis), None)
    return last is not None and last.shares == tuple(block.shares)


def _longer(
    reading: tuple[Segment, ...], piece: tuple[str, ...], ways: tuple[LayerLayout, ...], block: PlannedBlock, profile: Profile
) -> Iterator[tuple[Segment, ...]]:
    """With a piece as a segment of its own, or, where it takes what the last one gives split, as part of that."""
    yield (*reading, _segment(piece, ways, block))
    if reading and reading[-1].ways[-1].axis == ways[-1].axis and _carries_on(reading[-1], piece, ways, profile):
        yield (*reading[:-1], _segment(reading[-1].layers + piece, reading[-1].ways + ways, block))


def _segment(layers: tuple[str, ...], ways: tuple[LayerLayout, ...], block: PlannedBlock) -> Segment:
    divided = [way for way in ways if way.gives != "whole"]
    units, multiple = max((way.units for way in divided), default=sum(block.shares)), lcm(*(way.granularity for way in divided))
    named = next((tuple(block.inner_shares[layer]) for layer in layers if layer in block.inner_shares), None)
    segment = Segment(layers, ways, named or tuple(block.shares), "replicated")
    if named or (segment.units == units and _round(segment, multiple)):
        return segment
    return replace(segment, shares=apportioned(units, block.shares, multiple))


def _round(segment: Segment, multiple: int) -> bool:
    """Whether the shares are multiples, that of the last machine excepted."""
    return all(segment.shares[worker] % multiple == 0 for worker in segment.group[:-1])


def _carries_on(before: Segment, piece: Sequence[str], ways: Sequence[LayerLayout], profile: Profile) -> bool:
    users = {user for tensor in profile.tensors if tensor.producer == before.layers[-1] for user in tensor.consumers}
    return before.ways[-1].gives == "split" and all(way.takes == "split" for layer, way in zip(piece, ways, strict=True) if layer in users)


def _borders(layers: Sequence[str], profile: Profile) -> list[int]:
    place = {layer: number for number, layer in enumerate(layers)}
    spans = [
        (place.get(tensor.producer, -1), max(place[user] for user in tensor.consumers if user in place))
        for tensor in profile.tensors if place.keys() & set(tensor.consumers)
    ]  # fmt: skip
    return [cut for cut in range(1, len(layers)) if not any(one < cut - 1 and two >= cut for one, two in spans)]


def _forms(piece: Sequence[str], profile: Profile, axis: str) -> list[tuple[LayerLayout, ...]]:
    """A block by heads may hold layers that are divided by channels."""
    axes = dict.fromkeys((axis, "channels"))
    return [form for name in axes for form in islice(product(*(_ways(profile, layer, name) for layer in piece)), _MOST_FORMS)]


def _ways(profile: Profile, layer: str, axis: str) -> list[LayerLayout]:
    return [way for way in profile.layouts.get(layer, ()) if way.axis == axis]
