"""What a stage consists of: whole runs of layers, and blocks that its tier shares with peers; and how they travel.

A stage is divided behind its early exits, and each of these pieces into parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import msgpack

from splitinfer.codecs.block import Buffer
from splitinfer.errors import PlanError
from splitinfer.graph import Graph
from splitinfer.groups import BlockPart
from splitinfer.plans import Plan, PlannedBlock, PlannedStage
from splitinfer.routing import pieces
from splitinfer.shards import ShardedBlock, divide
from splitinfer.stagefile import dump_stage, load_stage
from splitinfer.stages import Stage, carve

Carved = Stage | ShardedBlock
"""A part as the deployer holds it."""
Loaded = Stage | BlockPart
"""A part as a stage's own machine holds it."""


def carved(graph: Graph, plan: Plan) -> list[list[tuple[Carved, ...]]]:
    """For each stage and each of its pieces the parts, in the order in which they run.

    Raises PlanError for a block that a piece does not hold whole, ShardError for one that cannot be divided.
    """
    return [
        [_parts(graph, planned, layers) for layers in within]
        for planned, within in zip(plan.stages, pieces(graph, plan), strict=True)
    ]  # fmt: skip


def _parts(graph: Graph, planned: PlannedStage, layers: Sequence[str]) -> tuple[Carved, ...]:
    block_of = {layer: number for number, block in enumerate(planned.blocks) for layer in block.layers}
    parts: list[Carved] = []
    for number, run in groupby(layers, key=block_of.get):
        names = tuple(run)
        if number is None:
            parts.append(carve(graph, names, planned.name))
            continue
        block = planned.blocks[number]
        if set(names) != set(block.layers):
            raise PlanError(
                f"block '{block.layers[0]}' .. '{block.layers[-1]}' of stage '{planned.name}' must run in one piece; "
                f"'{names[0]}' .. '{names[-1]}' stands alone, divided by an early exit or by layers between"
            )
        parts.append(divided(graph, block))
    return tuple(parts)


def divided(graph: Graph, block: PlannedBlock) -> ShardedBlock:
    """A planned block, divided. Raises ShardError."""
    return divide(graph, block.layers, block.axis, block.shares, exchange_after=block.exchange_after, inner_shares=block.inner_shares)


def weight_nbytes(parts: Sequence[Sequence[Carved]], worker: int = 0) -> int:
    """Bytes of the weights that a stage's own machine holds, or one of the workers of its blocks."""
    total = 0
    for part in (part for within in parts for part in within):
        if isinstance(part, Stage):
            total += part.weight_nbytes if worker == 0 else 0
        elif worker in part.programs:
            total += part.programs[worker].weight_nbytes
    return total


def dump_parts(parts: Sequence[Sequence[Carved]], names: Mapping[int, str]) -> tuple[bytes, list[bytes]]:
    """A stage for its own machine: what its parts are, and their files. `names`: ``id`` of a block -> its name."""
    plain: list[list[Any]] = []
    files: list[bytes] = []
    for within in parts:
        row: list[Any] = []
        for part in within:
            if isinstance(part, Stage):
                row.append(None)
                files.append(dump_stage(part))
            else:
                data, own = BlockPart.of(part, names[id(part)]).dump()
                row.append([data, len(own)])
                files += own
        plain.append(row)
    packed: bytes = msgpack.packb(plain)
    return packed, files


def load_parts(data: bytes, files: Sequence[Buffer], device: str) -> list[list[Loaded]]:
    """The inverse of :func:`dump_parts`, weights on `device`. Raises PlanError or PacketError for what is malformed."""
    left = list(files)
    loaded: list[list[Loaded]] = []
    try:
        for row in msgpack.unpackb(data):
            within: list[Loaded] = []
            for entry in row:
                if entry is None:
                    within.append(load_stage(left.pop(0), device))
                else:
                    plain, count = entry
                    within.append(BlockPart.load(plain, [left.pop(0) for _ in range(count)], device))
            loaded.append(within)
    except (ValueError, TypeError, IndexError) as error:
        raise PlanError(f"malformed parts of a stage: {error}") from error
    return loaded
