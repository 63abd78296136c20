"""Examines the blocks of an answer: every rule that ops, layouts and shares must keep, without a word of `sharing`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any

from partitioners.placement import Block
from partitioners.problem import AXES, Problem

LEAVES = {"rows": ("whole", "divided"), "channels": ("whole", "replicated"), "heads": ("whole", "replicated")}
Complaint = tuple[str, Any, str]
"""The field, what is claimed there, and what is wrong."""


def read_blocks(problem: Problem, given: Any, at: Mapping[str, int]) -> tuple[list[Block], list[Complaint]]:
    """Return the blocks, and what is wrong with them; blocks can be priced only if nothing is. `at` is op -> tier."""
    if not isinstance(given, list | tuple):
        return [], [("blocks", given, "must be a list")]
    read = [_block(entry) for entry in given]
    fields = "must have ops, tier, axis, shares, takes and leaves"
    bad: list[Complaint] = [(f"blocks[{i}]", given[i], fields) for i, block in enumerate(read) if block is None]
    blocks = [block for block in read if block is not None]
    if bad:
        return blocks, bad
    owner: dict[str, int] = {}
    for i, block in enumerate(blocks):
        path = f"blocks[{i}]"
        bad += [(f"{path}.{field}", claimed, why) for field, claimed, why in _form(problem, block, at)]
        bad += [(f"{path}.ops", name, "is in another block too") for name in block.ops if owner.setdefault(name, i) != i]
    if not bad:
        for i, block in enumerate(blocks):
            bad += [(f"blocks[{i}].{field}", claimed, why) for field, claimed, why in _ties(problem, block, blocks)]
    return blocks, bad


def _block(entry: Any) -> Block | None:
    if not isinstance(entry, Mapping):
        return None
    ops, shares, takes = (entry.get(name) for name in ("ops", "shares", "takes"))
    texts = [entry.get("tier"), entry.get("axis"), entry.get("leaves")]
    if not all(isinstance(each, list | tuple) for each in (ops, shares, takes)):
        return None
    if not ops or not all(isinstance(each, str) for each in (*texts, *ops, *takes)):  # type: ignore[misc]
        return None
    if not all(isinstance(share, Integral) and not isinstance(share, bool) for share in shares):  # type: ignore[union-attr]
        return None
    return Block(tuple(ops), texts[0], texts[1], tuple(map(int, shares)), tuple(takes), texts[2])  # type: ignore[arg-type]


def _form(problem: Problem, block: Block, at: Mapping[str, int]) -> Iterator[Complaint]:
    """Examine one block by itself: ops, layouts, shares."""
    tier = problem.tier_index.get(block.tier)
    if tier is None or not problem.tiers[tier].workers:
        yield "tier", block.tier, "is no tier with workers"
        return
    if block.axis not in AXES or block.leaves not in LEAVES[block.axis]:
        yield "leaves", (block.axis, block.leaves), f"choose from {LEAVES}"
        return
    takes = block.takes or ("split",) * len(block.ops)
    if len(takes) != len(block.ops):
        yield "takes", block.takes, f"{len(block.ops)} ops need one each"
        return
    layouts = []
    for name, take in zip(block.ops, takes, strict=True):
        found = [each for op in problem.ops if op.name == name for each in op.layouts]
        found = [each for each in found if (each.tier, each.axis, each.takes) == (block.tier, block.axis, take)]
        if not found or at[name] != tier:
            yield "ops", name, "has no such layout, or is not on this tier"
            return
        layouts += found
    divided = [each for each in layouts if each.gives != "whole"] if block.axis != "rows" else layouts[-1:]
    units = {each.units for each in divided}
    if len(units) != 1 or sum(block.shares) not in units:
        yield "shares", block.shares, f"must add up to the units, {sorted(units)}"
    if len(block.shares) != len(problem.tiers[tier].workers) or min(block.shares, default=0) < 0:
        yield "shares", block.shares, "one, zero or more, for each worker is needed"
    some = [share for share in block.shares if share]
    for each in divided:
        if any(share % each.granularity for share in some[:-1]):
            yield "shares", block.shares, f"all but the last must be multiples of {each.granularity}"


def _ties(problem: Problem, block: Block, blocks: list[Block]) -> Iterator[Complaint]:
    """Examine what a block has to do with the ops around it."""
    sources, last = set(), block.ops[-1]
    for tensor in problem.tensors:
        takers = [name for name in tensor.consumers if name in block.ops]
        if tensor.producer not in block.ops:
            sources |= {tensor.producer} if takers else set()
            continue
        if tensor.producer != last and (tensor.returned or len(takers) < len(tensor.consumers)):
            yield "ops", tensor.producer, f"is inside, but {tensor.name!r} is wanted outside"
        if any(block.ops.index(name) <= block.ops.index(tensor.producer) for name in takers):
            yield "ops", block.ops, f"do not stand in the order in which {tensor.name!r} is made and taken"
    if len(sources) > 1:
        yield "ops", sorted(sources), "more than one op stands before the block"
    for name in block.ops[:-1]:
        if not any(tensor.consumers for tensor in problem.tensors if tensor.producer == name):
            yield "ops", name, "nobody takes what it makes"
    if block.leaves == "divided":
        out = [tensor for tensor in problem.tensors if tensor.producer == last]
        users = {name for tensor in out for name in tensor.consumers}
        follower = [other for other in blocks if users and users <= set(other.ops) and (other.tier, other.axis) == (block.tier, "rows")]
        if not follower or any(tensor.returned for tensor in out):
            yield "leaves", block.leaves, "its rows must all go to one block by rows on the same tier"
