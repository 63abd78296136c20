"""Prices the blocks of a plan one after the other, after checking every rule that they must keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from partitioners.division import AT_HOST, Division, Held, Priced, active
from partitioners.errors import Infeasible
from partitioners.placement import Block
from partitioners.problem import Layout, Problem


@dataclass(frozen=True)
class Shared:
    """The blocks of a plan, priced."""

    member: dict[str, str] = field(default_factory=dict)
    """Each op of a block -> the last op of its block."""
    price: dict[str, Priced] = field(default_factory=dict)
    """By the last op of each block."""


def share(problem: Problem, placement: Mapping[str, str], blocks: Iterable[Block]) -> Shared:
    """Price the blocks in the order of the data; raises `Infeasible` naming the block that breaks a rule."""
    made, divided = Shared(), list[tuple[Block, Division]]()
    for block in blocks:
        divided.append((block, divide(problem, block)))
        for name in block.ops:
            if name in made.member:
                raise Infeasible(f"{name!r} is in two blocks; an op is shared once")
            if placement[name] != block.tier:
                raise Infeasible(f"{name!r} is on {placement[name]!r}, and in a block that {block.tier!r} shares")
            made.member[name] = block.ops[-1]
    if not divided:
        return made
    place = {name: i for i, name in enumerate(problem.predecessors)}
    block_of = {block.ops[-1]: block for block, _ in divided}
    for block, division in sorted(divided, key=lambda pair: place[pair[0].ops[-1]]):
        if block.leaves == "divided":
            _followed_by_rows(block, division, made, block_of)
        held = _entering(block, division, made, block_of)
        made.price[block.ops[-1]] = division.price(block.shares, held, block.leaves)
    return made


def divide(problem: Problem, block: Block) -> Division:
    """Return the block without its shares; raises `Infeasible` where ops, layouts and shares do not fit together."""
    if not block.ops or len(set(block.ops)) < len(block.ops) or not problem.op_index.keys() >= set(block.ops):
        raise Infeasible(f"a block of {', '.join(map(repr, block.ops)) or 'no ops'}: name ops of the problem, each once")
    takes = block.takes or ("split",) * len(block.ops)
    if len(takes) != len(block.ops):
        raise Infeasible(f"{_named(block)} has {len(block.ops)} ops and {len(takes)} takes; each op needs one")
    forms = [_form(problem, name, block, each) for name, each in zip(block.ops, takes, strict=True)]
    division = Division(problem, problem.tier_index[block.tier], block.ops, forms)
    if reason := _open(problem, block) or division.fault or _misfit(block, division):
        raise Infeasible(f"{_named(block)} cannot be shared: {reason}")
    return division


def _named(block: Block) -> str:
    return f"the block from {block.ops[0]!r} to {block.ops[-1]!r} by {block.axis}"


def _form(problem: Problem, name: str, block: Block, takes: str) -> Layout:
    layouts = problem.ops[problem.op_index[name]].layouts
    found = [each for each in layouts if (each.tier, each.axis, each.takes) == (block.tier, block.axis, takes)]
    if not found:
        raise Infeasible(f"{name!r} has no layout by {block.axis} that takes {takes!r} on {block.tier!r}")
    return found[0]


def _open(problem: Problem, block: Block) -> str | None:
    """Say what ties the ops to others, apart from one op before them and the last one's tensors."""
    inside = {name: i for i, name in enumerate(block.ops)}
    sources = {tensor.producer for name in block.ops for tensor in problem.inputs_of[name]} - inside.keys()
    if len(sources) > 1:
        return f"it takes from {' and '.join(map(repr, sorted(sources)))}; one op may stand before a block"
    for name in block.ops[:-1]:
        for tensor in problem.outputs_of[name]:
            if tensor.returned:
                return f"{tensor.name!r}, made inside, is returned"
            for user in tensor.consumers:
                if user not in inside:
                    return f"{tensor.name!r}, made inside, is wanted by {user!r}"
                if inside[user] < inside[name]:
                    return f"{user!r} stands before {name!r}, whose tensor it takes"
    last = next((user for tensor in problem.outputs_of[block.ops[-1]] for user in tensor.consumers if user in inside), None)
    return f"{last!r} stands before {block.ops[-1]!r}, whose tensor it takes" if last else None


def _misfit(block: Block, division: Division) -> str | None:
    """Say what is wrong with the shares, or with what the block leaves."""
    workers, total = len(division.workers), sum(block.shares)
    if len(block.shares) != workers or min(block.shares) < 0:
        return f"its shares are {block.shares}; one, zero or more, for each of {workers} workers is needed"
    if total != division.units:
        return f"its shares add up to {total}, its units are {division.units}"
    odd = [block.shares[w] for w in active(block.shares)[:-1] if block.shares[w] % division.granularity]
    if odd:
        return f"a share of {odd[0]} is no multiple of {division.granularity}"
    kinds = ("whole", "divided") if division.by_rows else ("whole", "replicated")
    return None if block.leaves in kinds else f"it leaves its tensors {block.leaves!r}; by {block.axis} choose {' or '.join(kinds)}"


def _entering(block: Block, division: Division, made: Shared, block_of: Mapping[str, Block]) -> Held:
    """Return who holds what enters: the host, unless the block before left it elsewhere on the same tier."""
    source = next((tensor.producer for tensor in division.entry), None)
    if source not in made.price or block_of[source].tier != block.tier:
        return AT_HOST
    return made.price[source].left


def _followed_by_rows(block: Block, division: Division, made: Shared, block_of: Mapping[str, Block]) -> None:
    """Rows that stay divided serve one block by rows on the same tier, and nobody else."""
    users = {made.member.get(name) for tensor in division.exit for name in tensor.consumers}
    after = block_of.get(next(iter(users), None) or "")
    if len(users) != 1 or after is None or (after.tier, after.axis) != (block.tier, "rows"):
        raise Infeasible(f"{_named(block)} leaves its rows divided; its tensors must all go to one block by rows on {block.tier!r}")
    if any(tensor.returned for tensor in division.exit):
        raise Infeasible(f"{_named(block)} leaves its rows divided, but a tensor of {block.ops[-1]!r} is returned")
