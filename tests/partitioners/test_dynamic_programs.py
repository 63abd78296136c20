"""The strategies chain, blocks and critical_path: against all plans, against each other, against closed forms."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import pytest
from line_problems import numbered

from partitioners import Codec, Crossing, Infeasible, Link, Objective, Op, PartitionerError, Problem, Solution, Tensor, Tier, blocks, labels
from partitioners.blocks import by_blocks
from partitioners.chain import by_chain
from partitioners.cost import evaluate, violations
from partitioners.critical_path import by_critical_path
from partitioners.hops import hops
from partitioners.mincut import by_mincut

Solver = Callable[[Problem, Objective], Solution]
LATENCY, INTERVAL, PATH = Objective.of("latency"), Objective.of("interval"), Objective.of("critical_path")
SUMS = ("latency", "energy", "money", "latency + 0.5*energy + 2*error")
MOST_PLANS = 3000  # of one instance: a second


def plans(problem: Problem) -> Iterator[tuple[dict[str, str], list[Crossing]]]:
    """Every placement that keeps pins and direction, with every choice of codecs."""
    tiers = [tier.name for tier in problem.tiers]
    for chosen in product(*([op.pinned] if op.pinned else tiers for op in problem.ops)):
        placement = dict(zip(problem.op_index, chosen, strict=True))
        tier = {name: problem.tier_index[where] for name, where in placement.items()}
        if any(tier[user] < tier[t.producer] for t in problem.tensors for user in t.consumers):
            continue
        sent = [
            (t, start, stops) for t in problem.tensors for start, stops in hops(problem, tier[t.producer], [tier[u] for u in t.consumers])
        ]
        for codecs in product(*(t.ways for t, _, _ in sent)):
            yield (
                placement,
                [
                    Crossing(t.name, j, codec.name, codec.nbytes)
                    for (t, start, stops), codec in zip(sent, codecs, strict=True)
                    for j in range(start, max(stops))
                ],
            )


def least(problem: Problem, objective: Objective) -> float | None:
    """The least value of all plans that keep the limits; None if none does."""
    best = None
    for count, (placement, codecs) in enumerate(plans(problem)):
        if count == MOST_PLANS:
            pytest.skip(f"more than {MOST_PLANS} plans")
        cost, _ = evaluate(problem, placement, codecs)
        if not violations(problem, cost) and (best is None or objective.value(cost) < best):
            best = objective.value(cost)
    return best


def check(solver: Solver, problem: Problem, objective: Objective) -> None:
    best = least(problem, objective)
    if best is None:
        with pytest.raises(Infeasible):
            solver(problem, objective)
    else:
        assert_optimal(solver(problem, objective), best)


def assert_optimal(found: Solution, best: float) -> None:
    assert found.value == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert found.certificate.status == "optimal"


def chain_instance(seed: int) -> tuple[Problem, Objective]:
    text = (*SUMS, "interval", "interval", "3*interval")[seed % 7]
    problem = numbered(seed, text, most_ops=5, chain=True, two_way=False, budget=False, within=False)
    twins = tuple(replace(t, name="", nbytes=t.nbytes + 1) for t in problem.tensors[:: 3 + seed % 3])  # two from one op to the next
    return replace(problem, tensors=problem.tensors + twins), Objective.of(text)


def graph_instance(seed: int) -> tuple[Problem, Objective]:
    text = (*SUMS, "interval", "2*latency + interval", "money + 0.5*interval")[seed % 7]
    problem = numbered(seed, text, most_ops=5, two_way=False)
    within = {name: limit for name, limit in problem.within.items() if name != "critical_path_s"}
    return replace(problem, within=within), Objective.of(text)


def path_instance(seed: int) -> tuple[Problem, Objective]:
    return numbered(seed, "latency", 2, most_ops=7, two_way=False, memory=False, budget=False, within=False), PATH


INSTANCES: dict[Solver, Callable[[int], tuple[Problem, Objective]]] = {
    by_chain: chain_instance, by_blocks: graph_instance, by_critical_path: path_instance,
}  # fmt: skip


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("solver", INSTANCES)
def test_equals_the_best_of_all_plans(solver: Solver, seed: int) -> None:
    check(solver, *INSTANCES[solver](seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 1100))
@pytest.mark.parametrize("solver", INSTANCES)
def test_equals_the_best_of_all_plans_again(solver: Solver, seed: int) -> None:
    check(solver, *INSTANCES[solver](seed))


@pytest.mark.parametrize("seed", range(40))
def test_blocks_with_a_narrow_first_run_and_small_chunks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, objective = graph_instance(seed)
    monkeypatch.setattr(blocks, "BEAM", 2)
    monkeypatch.setattr(blocks, "CHUNK", 2)
    monkeypatch.setattr(labels, "CHUNK", 2)
    check(by_blocks, problem, objective)


# -- larger ones, against each other


def line(n: int, relay: str, seed: int, codecs: int = 3) -> Problem:
    """A chain from an input on the device; the first tiers hold a third of it, all links have latency, the result returns."""
    rng = random.Random(seed)
    ops = [Op("in", (0.0,) * 3, "t0")]
    ops += [Op(f"op{i}", tuple(rng.uniform(0.5, 1.5) / 3**j for j in range(3)), memory_bytes=rng.randint(1, 9)) for i in range(1, n)]
    tensors = []
    for i, op in enumerate(ops):
        nbytes = rng.uniform(5, 15) * (1 - 0.9 * i / n)
        ways = tuple(Codec(f"c{c}", nbytes / (c + 1), (nbytes * c / 40,) * 3, (nbytes * c / 80,) * 3, c / 100) for c in range(codecs))
        users = (f"op{i + 1}",) if i + 1 < n else ()
        tensors.append(Tensor(op.name, users, nbytes, returned=not users, codecs=ways, reach=rng.choice([1, 0.5])))
    tiers = tuple(Tier(f"t{i}", (5 * n / 3, 5 * n / 3, None)[i], watts=4.0**i) for i in range(3))
    return Problem(tiers, (Link(1.0, 0.5), Link(2.0, 0.25)), tuple(ops), tuple(tensors), relay)


def residual(blocks_: int, relay: str, seed: int, **problem: object) -> Problem:
    """in -> blocks of x -> a -> b -> add(x, b) -> next x."""
    rng = random.Random(seed)
    ops, users = [Op("in", (0.0,) * 3, "t0")], {"in": []}
    at = "in"
    for i in range(blocks_):
        names = [f"{kind}{i}" for kind in ("a", "b", "add")]
        for name in names:
            ops.append(Op(name, tuple(rng.uniform(0.5, 1.5) / 3**j for j in range(3)), memory_bytes=rng.randint(1, 9)))
            users[name] = []
        users[at] += [names[0], names[2]]
        users[names[0]].append(names[1])
        users[names[1]].append(names[2])
        at = names[2]
    tensors = []
    for i, (name, to) in enumerate(users.items()):
        nbytes = rng.uniform(5, 15) * (1 - 0.9 * i / len(users))
        ways = tuple(Codec(f"c{c}", nbytes / (c + 1), (nbytes * c / 40,) * 3, (nbytes * c / 80,) * 3, c / 100) for c in range(3))
        tensors.append(Tensor(name, tuple(to), nbytes, returned=name == at, codecs=ways))
    tiers = tuple(Tier(f"t{i}", watts=4.0**i) for i in range(3))
    return Problem(tiers, (Link(1.0, 0.5), Link(2.0, 0.25)), tuple(ops), tuple(tensors), relay, **problem)


@pytest.mark.parametrize("relay", ["transcode", "forward"])
@pytest.mark.parametrize("objective", ["latency", "interval", "energy + 2*latency"])
def test_chain_and_blocks_agree_on_a_chain_of_60(objective: str, relay: str) -> None:
    problem = line(60, relay, seed=1)
    assert_optimal(by_blocks(problem, Objective.of(objective)), by_chain(problem, Objective.of(objective)).value)


@pytest.mark.parametrize("objective", ["latency", "energy + 2*latency"])
def test_blocks_and_the_minimum_cut_agree_on_a_residual_graph(objective: str) -> None:
    problem = residual(100, "transcode", seed=1)
    assert_optimal(by_blocks(problem, Objective.of(objective)), by_mincut(problem, Objective.of(objective)).value)


def test_blocks_keeps_limits_on_a_residual_graph() -> None:
    free = by_blocks(residual(50, "forward", seed=2), LATENCY)
    problem = residual(50, "forward", seed=2, error_budget=free.cost.error / 2, within={"energy_j": free.cost.energy_j * 0.9})
    problem = replace(problem, tiers=tuple(replace(t, memory_bytes=m) for t, m in zip(problem.tiers, (200, 400, 500), strict=True)))
    held = by_blocks(problem, LATENCY)
    assert not violations(problem, held.cost)
    assert held.value > free.value
    # What a limit allows exactly is allowed, and a hair less is not.
    exact = replace(problem, within={"energy_j": held.cost.energy_j})
    assert_optimal(by_blocks(replace(exact, within={**exact.within, "latency_s": held.value}), LATENCY), held.value)
    with pytest.raises(Infeasible, match="latency_s is at least"):
        by_blocks(replace(exact, within={**exact.within, "latency_s": held.value * (1 - 1e-6)}), LATENCY)


@pytest.mark.slow
def test_ten_thousand_ops() -> None:
    problem = residual(3333, "transcode", seed=3)
    assert_optimal(by_blocks(problem, LATENCY), by_mincut(problem, LATENCY).value)


@pytest.mark.parametrize("seed", range(5))
def test_on_a_chain_nothing_overlaps_so_the_critical_path_is_the_latency(seed: int) -> None:
    problem = line(60, "forward", seed)
    tensors = tuple(replace(t, reach=1.0) for t in problem.tensors)
    ops = tuple(replace(op, seconds=op.seconds[:2]) for op in problem.ops)
    ways = tuple(replace(t, codecs=tuple(replace(c, encode_s=c.encode_s[:2], decode_s=c.decode_s[:2]) for c in t.ways)) for t in tensors)
    two = Problem((Tier("t0"), Tier("t1")), problem.links[:1], ops, ways)
    assert_optimal(by_critical_path(two, PATH), by_chain(two, LATENCY).value)


# -- closed forms


def tiers(count: int, **first: float) -> tuple[Tier, ...]:
    return (Tier("t0", **first), *(Tier(f"t{i}") for i in range(1, count)))


@pytest.mark.parametrize("solver", [by_chain, by_blocks])
def test_a_skipped_tier_decodes_and_encodes_again_only_if_it_transcodes(solver: Solver) -> None:
    # f(0,1) + f(1,2) = 2 encodings, f(0,2) = 1: what makes "forward" no minimum cut.
    ops = (Op("a", (0, 0, 0), "t0"), Op("b", (0, 0, 0), "t2"))
    sent = Tensor("a", ("b",), 9, codecs=(Codec("c", 0, encode_s=(3, 5, 7), decode_s=(10, 20, 40)),))
    problem = Problem(tiers(3), (Link(1, 0), Link(1, 0)), ops, (sent,))
    assert_optimal(solver(problem, LATENCY), 3 + 20 + 5 + 40)
    assert_optimal(solver(problem, INTERVAL), 40)
    assert_optimal(solver(replace(problem, relay="forward"), LATENCY), 3 + 40)


def test_a_forwarded_tensor_is_decoded_once_on_each_tier_that_wants_it() -> None:
    ops = (Op("a", (0, 0, 0), "t0"), Op("b", (0, 0, 0), "t1"), Op("c", (0, 0, 0), "t2"), Op("d", (0, 0, 0), "t2"))
    sent = Tensor("a", ("b", "c", "d"), 9, codecs=(Codec("c", 6, encode_s=(3, 5, 7), decode_s=(10, 20, 40)),))
    problem = Problem(tiers(3), (Link(1, 0), Link(2, 0)), ops, (sent,), "forward")
    assert_optimal(by_blocks(problem, LATENCY), 3 + 6 + 20 + 3 + 40)
    assert_optimal(by_blocks(replace(problem, relay="transcode"), LATENCY), 3 + 6 + 20 + 5 + 3 + 40)


@pytest.mark.parametrize("branches", [1, 5, 12])
def test_blocks_cuts_every_branch_at_its_waist(branches: int) -> None:
    """A stem of 1000 bytes, branches whose waist is one byte, a concatenation: no single cut vertex is worth cutting at."""
    ops, tensors = [Op("stem", (0, 0), "t0")], [Tensor("stem", tuple(f"a{i}" for i in range(branches)), 1000)]
    for i in range(branches):
        ops += [Op(f"a{i}", (1 / 64, 0)), Op(f"b{i}", (4, 1 / 8))]
        tensors += [Tensor(f"a{i}", (f"b{i}",), 1), Tensor(f"b{i}", ("concat",), 1000)]
    problem = Problem(tiers(2), (Link(64, 0.25),), (*ops, Op("concat", (4, 1 / 8))), tuple(tensors))
    assert_optimal(by_blocks(problem, LATENCY), branches * (1 / 64 + 1 / 64 + 1 / 8) + 1 / 4 + 1 / 8)
    assert_optimal(by_critical_path(problem, PATH), 1 / 64 + 1 / 64 + 1 / 4 + 1 / 8 + 1 / 8)


def test_a_tensor_with_eight_consumers_is_sent_once() -> None:
    users = tuple(f"u{i}" for i in range(8))
    ops = (Op("a", (0, 0), "t0"), *(Op(name, (9, 1)) for name in users))
    problem = Problem(tiers(2), (Link(1, 0),), ops, (Tensor("a", users, 16),))
    assert_optimal(by_blocks(problem, LATENCY), 16 + 8 * 1)
    assert_optimal(by_blocks(problem, INTERVAL), 16)


@pytest.mark.parametrize("solver", [by_chain, by_blocks])
def test_a_link_is_paid_once_for_the_largest_reach(solver: Solver) -> None:
    ops = (Op("a", (0, 0), "t0"), Op("b", (0, 0), "t1"))
    sent = tuple(Tensor("a", ("b",), 0, reach=reach) for reach in (0.25, 0.5))
    back = Tensor("b", (), 0, returned=True, reach=0.125)
    assert_optimal(solver(Problem(tiers(2), (Link(1, 8),), ops, (*sent, back)), LATENCY), 8 * 0.5 + 8 * 0.125)


@pytest.mark.parametrize("solver", [by_chain, by_blocks])
def test_a_chain_that_is_not_pinned_begins_where_it_likes(solver: Solver) -> None:
    ops = (Op("a", (9, 1, 9)), Op("b", (9, 1, 9)))
    tensors = (Tensor("a", ("b",), 100), Tensor("b", (), 4, returned=True))
    problem = Problem(tiers(3), (Link(1, 2), Link(1, 2)), ops, tensors)
    assert_optimal(solver(problem, LATENCY), 1 + 1 + 4 + 2)  # nothing goes up, so nobody pays for the link up


# -- limits


@pytest.mark.parametrize("solver", [by_chain, by_blocks])
@pytest.mark.parametrize(("text", "free", "held"), [("latency", 4, 11), ("interval", 4, 5), ("energy", 4, 8)])
def test_memory_moves_ops_off_a_tier(solver: Solver, text: str, free: float, held: float) -> None:
    ops = tuple(Op(f"o{i}", (1, 5), "t0" if i == 0 else None, memory_bytes=10) for i in range(4))
    tensors = tuple(Tensor(f"o{i}", (f"o{i + 1}",), 3) for i in range(3))
    problem = Problem(tiers(2), (Link(1, 0),), ops, tensors)
    power = tuple(replace(t, watts=1) for t in problem.tiers)
    assert_optimal(solver(replace(problem, tiers=power), Objective.of(text)), free)
    tight = (replace(power[0], memory_bytes=39.5), replace(power[1], memory_bytes=15))
    found = solver(replace(problem, tiers=tight), Objective.of(text))
    assert Counter(found.placement.values()) == {"t0": 3, "t1": 1}
    assert_optimal(found, held)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"error_budget": 0.25}, "error is at least 0.5, 0.25 over the limit of 0.25"),
        ({"within": {"latency_s": 2}}, "latency_s is at least 3, 1 over the limit of 2"),
        ({"within": {"interval_s": 1.5}}, "interval_s is at least 2, 0.5 over the limit of 1.5"),
        ({"error_budget": 0.5, "within": {"latency_s": 4}}, "with latency_s at most 4, error is at least 2, 1.5 over the limit of 0.5"),
    ],
)
def test_blocks_says_which_limit_cannot_be_kept(limits: dict[str, object], message: str) -> None:
    ops = (Op("a", (0, 0), "t0"), Op("b", (0, 0), "t1"))
    sent = Tensor("a", ("b",), 9, codecs=(Codec("fine", 7, error=0.5), Codec("coarse", 2, (1, 0), error=2)))
    with pytest.raises(Infeasible) as caught:
        by_blocks(Problem(tiers(2), (Link(1, 0),), ops, (sent,), **limits), Objective.of("energy"))
    assert str(caught.value) == message


def test_both_say_where_memory_is_missing() -> None:
    ops = tuple(Op(f"o{i}", (1, 1), memory_bytes=100) for i in range(5))
    tensors = tuple(Tensor(f"o{i}", (f"o{i + 1}",), 3) for i in range(4))
    problem = Problem((Tier("t0", 190), Tier("t1", 250)), (Link(1, 0),), ops, tensors)
    with pytest.raises(Infeasible, match="tier 't1' holds 300 bytes, 50 over the limit of 250"):
        by_chain(problem, INTERVAL)  # 3 on t1 exceed it by 50; 3 on t0 would by 110
    with pytest.raises(Infeasible, match="with memory_bytes of tier 't0' at most 190, memory_bytes of tier 't1' is at least 400, 150 over"):
        by_blocks(problem, INTERVAL)


@pytest.mark.parametrize("solver", INSTANCES)
def test_pins_against_the_data_are_infeasible(solver: Solver) -> None:
    ops = (Op("a", (0, 0), "t1"), Op("b", (0, 0), "t0"))
    objective = PATH if solver is by_critical_path else LATENCY
    with pytest.raises(Infeasible, match="'b' is pinned to 't0' but takes data from 'a'"):
        solver(Problem(tiers(2), (Link(1, 0),), ops, (Tensor("a", ("b",), 1),)), objective)


# -- what they refuse

PAIR = Problem(tiers(2), (Link(1, 0),), (Op("a", (0, 0)), Op("b", (0, 0))), (Tensor("a", ("b",), 1),))
FORK = Problem(tiers(2), (Link(1, 0),), (*PAIR.ops, Op("c", (0, 0))), (Tensor("a", ("b", "c"), 1),))
MEET = replace(FORK, tensors=(Tensor("a", ("c",), 1), Tensor("b", ("c",), 1)))
THREE = Problem(tiers(3), (Link(1, 0),) * 2, (Op("a", (0, 0, 0)),), ())
NINE = Problem(tiers(9), (Link(1, 0),) * 8, (Op("a", (0,) * 9),), ())
MANY = replace(PAIR, tensors=(Tensor("a", ("b",), 1, codecs=tuple(Codec(f"c{i}", 1) for i in range(9))),) * 3)
WIDE = Problem(
    tiers(2),
    (Link(1, 0),),
    (*(Op(f"o{i}", (0, 0)) for i in range(40)), Op("sum", (0, 0))),
    tuple(Tensor(f"o{i}", ("sum",), 1) for i in range(40)),
)


@pytest.mark.parametrize(
    ("solver", "problem", "objective", "message"),
    [
        (by_chain, FORK, "latency", "'a' sends data to 2 ops.*blocks"),
        (by_chain, MEET, "latency", "'c' takes data from 2 ops.*blocks"),
        (by_chain, replace(PAIR, tensors=()), "latency", "'a', 'b' begin 2 chains"),
        (by_chain, PAIR, "latency + interval", "'latency \\+ interval' is neither.*milp"),
        (by_chain, PAIR, "critical_path", "'critical_path' is neither"),
        (by_chain, replace(PAIR, error_budget=0.5), "latency", "error 0.5.*milp"),
        (by_chain, replace(PAIR, two_way=True), "latency", "two_way.*mincut"),
        (by_chain, MANY, "interval", "after 'a' 3 tensors have 729 choices, the limit is 64.*blocks"),
        (by_blocks, PAIR, "critical_path", "critical path is no sum.*critical_path"),
        (by_blocks, replace(PAIR, within={"critical_path_s": 1}), "latency", "critical path is no sum"),
        (by_blocks, replace(PAIR, two_way=True), "latency", "two_way.*mincut"),
        (by_blocks, NINE, "latency", "there are 9"),
        (by_blocks, WIDE, "latency", "32 are at '.*', the limit is 31 on 2 tiers.*mincut"),
        (by_critical_path, PAIR, "latency + critical_path", "alone, not 'latency \\+ critical_path'.*milp"),
        (by_critical_path, THREE, "critical_path", "the problem has 3.*milp"),
        (by_critical_path, replace(PAIR, two_way=True), "critical_path", "two_way"),
        (by_critical_path, replace(PAIR, within={"latency_s": 2}), "critical_path", "the problem has latency_s 2"),
        (by_critical_path, replace(PAIR, tiers=tiers(2, memory_bytes=1024)), "critical_path", "1,024 bytes on 't0'"),
    ],
)
def test_refuses(solver: Solver, problem: Problem, objective: str, message: str) -> None:
    with pytest.raises(PartitionerError, match=f"(?s){message}") as caught:
        solver(problem, Objective.of(objective))
    assert not isinstance(caught.value, Infeasible)


def test_too_wide_a_block_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    ops = [
        Op("in", (0.0, 0.0), "t0"),
        Op("stem", (0.5, 0.1)),
        *(Op(f"b{i}", (rng.random(), rng.random() / 4)) for i in range(12)),
        Op("sum", (1, 0.1)),
    ]
    tensors = [Tensor("in", ("stem",), 9), Tensor("stem", tuple(f"b{i}" for i in range(12)), 1)]
    tensors += [Tensor(f"b{i}", ("sum",), rng.random()) for i in range(12)]
    problem = Problem(tiers(2), (Link(1, 0),), tuple(ops), tuple(tensors))
    monkeypatch.setattr(blocks, "COMPARISONS", 10**5)
    with pytest.raises(PartitionerError, match=r"in the block from 'stem' to 'sum', with \d+ tensors alive, it came to [\d,]+ comparisons"):
        by_blocks(problem, LATENCY)
    monkeypatch.setattr(blocks, "LABELS", 50)
    monkeypatch.setattr(blocks, "COMPARISONS", 10**9)
    with pytest.raises(PartitionerError, match=r"to 'sum', with 1\d tensors alive, it came to [\d,]+ labels, the limit is 50"):
        by_blocks(problem, LATENCY)


# -- the same again


@pytest.mark.parametrize("solver", [by_chain, by_blocks])
@pytest.mark.parametrize("objective", [LATENCY, INTERVAL])
def test_the_answer_does_not_depend_on_the_run_nor_its_value_on_the_order(solver: Solver, objective: Objective) -> None:
    problem = line(30, "forward", seed=7)
    found = solver(problem, objective)
    assert solver(problem, objective) == found
    turned = replace(problem, ops=problem.ops[::-1], tensors=problem.tensors[::-1])
    assert_optimal(solver(turned, objective), found.value)
