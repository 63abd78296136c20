"""The search over blocks against all plans there are; fused blocks against all ways to cut; and what hybrid plans are for."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
from shared_problems import EveryPlan, conv_chain, limited, phones, shared_problem

from partitioners import Infeasible, Objective, PartitionerError, Problem, check, evaluate, fused_blocks, solution, solve
from partitioners.division import AT_HOST, Division, Held, Leaves, active
from partitioners.hybrid import Search
from partitioners.placement import Block
from partitioners.problem import Layout, Link, Op, Tensor, Tier, Worker
from partitioners.row_sizing import RowSizing
from partitioners.rows import input_rows
from partitioners.sizing import Options, Sizing
from partitioners.space import Space
from partitioners.walk import recompute
from partitioners.walk_blocks import Team

OBJECTIVES = ("latency", "interval", "latency + 0.2*energy", "latency + interval")


def against_every_plan(seeds: range) -> Counter[str]:
    seen = Counter[str]()
    for seed in seeds:
        objective = Objective.of(OBJECTIVES[seed % 4])
        problem = shared_problem(seed)
        problem = limited(problem, seed) if seed // 4 % 2 else problem
        space = Space(problem)
        found, true = Search(space, objective).least(), EveryPlan(problem).least(objective)
        assert (found is None) == (true is None), seed
        if found is None:
            seen["infeasible"] += 1
            continue
        assert found.value == pytest.approx(true, rel=1e-9), seed
        answer = solution(problem, found.placement, "hybrid", found.value, objective, found.codecs, found.blocks)
        assert answer.value == pytest.approx(found.value, rel=1e-9), seed
        verdict = check(problem, answer)
        assert verdict, (seed, str(verdict))
        relaxed = Search(space, objective, relaxed=True).least()
        assert relaxed is not None, seed
        assert relaxed.value <= found.value * (1 + 1e-9), seed
        seen.update({block.axis for block in found.blocks} | {block.leaves for block in found.blocks})
        seen["crossed"] += bool(found.blocks and found.codecs)
    return seen


def test_against_every_plan() -> None:
    seen = against_every_plan(range(100))
    # The problems are worth the trouble: every axis, every way to leave tensors, hybrids proper and hopeless cases occur.
    assert seen.keys() >= {"rows", "channels", "heads", "whole", "divided", "replicated", "crossed", "infeasible"}, seen


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_against_every_plan_at_length() -> None:
    against_every_plan(range(1000, 2000))


def test_auto_is_the_better_of_hybrid_and_no_division() -> None:
    for seed in range(300, 320):
        problem, objective = shared_problem(seed), OBJECTIVES[seed % 2]
        answer = solve(problem, objective=objective)
        assert check(problem, answer), seed
        assert check(problem, answer.to_json()), seed
        assert answer.certificate.status == "optimal", seed
        undivided = solve(problem, "exhaustive", objective)
        divided = EveryPlan(problem).least(Objective.of(objective))
        assert divided is not None
        assert answer.value == pytest.approx(min(undivided.value, divided), rel=1e-9), seed
        for name, value in answer.baselines.items():
            assert isinstance(value, str) or value >= answer.value * (1 - 1e-9), (seed, name)


# -- fused blocks


def every_cut(problem: Problem, ops: list[str]) -> float:
    """All 2^(n-1) ways to cut a chain, each block with all its ways to share it."""
    place = problem.tiers[0]
    best = float("inf")
    for cuts in product([False, True], repeat=len(ops) - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(ops)]
        total = 0.0
        for i, j in pairwise(edges):
            form = problem.ops[problem.op_index[ops[j - 1]]].layouts[0]
            ways = [s for s in product(range(form.units + 1), repeat=len(place.workers)) if sum(s) == form.units]
            ways = [s for s in ways if not any(n % form.granularity for n in [n for n in s if n][:-1])]
            blocks = [Block(tuple(ops[i:j]), place.name, "rows", s) for s in ways]
            total += min(max(share.compute_s + share.exchange_s for share in Team(problem, b, None).shares().values()) for b in blocks)
        best = min(best, total)
    return best


def fused(seeds: range) -> None:
    for seed in seeds:
        problem = conv_chain(seed)
        ops = [op.name for op in problem.ops[1:]]
        seconds, blocks = fused_blocks(problem, problem.tiers[0].name, ops)
        assert seconds == pytest.approx(every_cut(problem, ops), rel=1e-9), seed
        cost, _ = evaluate(problem, {op.name: problem.tiers[0].name for op in problem.ops}, blocks=blocks)
        assert cost.latency_s == pytest.approx(seconds, rel=1e-9), seed


def test_fused_blocks_against_all_cuts() -> None:
    fused(range(100))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fused_blocks_against_all_cuts_at_length() -> None:
    fused(range(1000, 2000))


def test_fused_blocks_need_a_chain_by_rows() -> None:
    problem = conv_chain(1)
    with pytest.raises(Infeasible, match="no layout by rows"):
        fused_blocks(problem, "t0", ["o0", "o1"])
    with pytest.raises(Infeasible, match="does not take from"):
        fused_blocks(problem, "t0", ["o2", "o1"])


# -- halos


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding", "height"),
    [(3, 1, 1, 1, 9), (3, 2, 1, 1, 9), (2, 2, 1, 0, 8), (3, 1, 2, 2, 9), (7, 2, 1, 3, 15)],
)
def test_input_rows_are_those_that_the_taps_touch(kernel: int, stride: int, dilation: int, padding: int, height: int) -> None:
    units = (height + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    form = Layout("t", "rows", units, (1.0,), kernel=kernel, stride=stride, dilation=dilation, padding=padding, input_units=height)
    for begin in range(units):
        for end in range(begin + 1, units + 1):
            taps = {r * stride - padding + dilation * k for r in range(begin, end) for k in range(kernel)}
            between = set(range(min(taps), max(taps) + 1)) & set(range(height))  # a tile has no gaps
            assert input_rows(form, begin, end) == (min(between), max(between) + 1)  # type: ignore[arg-type]


def test_a_fused_block_computes_its_halo_twice() -> None:
    """Two convolutions of three rows on eight: of the first, each half computes one row of the other's too."""
    problem = phones(2, [3, 3], 8)
    division = Division(problem, 0, ["o1", "o2"], [problem.ops[i].layouts[0] for i in (1, 2)])
    assert division.price((4, 4), AT_HOST, "whole").compute_s == 5 + 4
    assert division.price((8, 0), AT_HOST, "whole").compute_s == 8 + 8


def test_rows_that_stay_divided_fetch_their_halo_alone() -> None:
    """Eight rows of one byte each, four a worker: the second block needs one row of the neighbour's, at a byte a second."""
    problem = phones(2, [3, 3], 8, bytes_per_s=1.0, nbytes=8.0)
    blocks = [Block(("o1",), "device", "rows", (4, 4), leaves="divided"), Block(("o2",), "device", "rows", (4, 4))]
    cost, _ = evaluate(problem, dict.fromkeys(["o0", "o1", "o2"], "device"), blocks=blocks)
    assert cost.compute_s == 4 + 4
    assert cost.exchange_s == 5 + (1 + 4)  # five rows scattered; one fetched, four gathered


# -- what the plans are for


def mlp(limit: float | None = None, rate: float = 100.0) -> Problem:
    """Columns, then rows: one all-reduce, or a reduce to the host. Each layer holds 96 bytes of weights."""
    device = Tier("device", workers=(Worker("w0", memory_bytes=limit), Worker("w1", rate, latency_s=0.01, memory_bytes=limit)))
    up = Layout("device", "channels", 48, (0.02, 0.02), weight_bytes_per_unit=2, takes="whole", gives="split")
    act = Layout("device", "channels", 48, (0.0, 0.0))
    down = Layout("device", "channels", 48, (0.02, 0.02), weight_bytes_per_unit=2, gives="partial")
    ops = (Op("in", (0.0,)), Op("up", (0.96,), memory_bytes=96, layouts=(up,)), Op("act", (0.0,), layouts=(act,)),
           Op("down", (0.96,), memory_bytes=96, layouts=(down,)))  # fmt: skip
    tensors = (Tensor("in", ("up",), 4), Tensor("up", ("act",), 16), Tensor("act", ("down",), 16), Tensor("down", (), 4, True))
    return Problem((device,), (), ops, tensors)


def test_columns_then_rows_are_one_block() -> None:
    answer = solve(mlp())
    (block,) = answer.blocks
    assert (block.ops, block.axis, block.takes) == (("up", "act", "down"), "channels", ("whole", "split", "split"))
    sent = 2 * (4 / 100 + 0.01)  # the input to the one, its part of the sum back
    assert answer.value == pytest.approx(max(0.04 * block.shares[0], sent + 0.04 * block.shares[1]))
    assert sum(block.shares) == 48
    assert answer.baselines["no division"] == pytest.approx(1.92)


def test_a_layer_too_large_for_any_worker_is_made_to_fit() -> None:
    with pytest.raises(Infeasible):
        solve(mlp(limit=100), "milp")
    answer = solve(mlp(limit=100))
    assert check(mlp(limit=100), answer)
    held = answer.cost.worker_memory_bytes["device"]
    assert max(held) <= 100
    assert sum(held) == 192
    with pytest.raises(Infeasible):
        solve(mlp(limit=95))


def test_never_worse_than_a_fixed_layout_and_each_has_its_bandwidth() -> None:
    """From nothing to plenty: first the host alone, then long blocks that send little, then short ones that compute little."""
    lengths = []
    for exponent in range(-4, 7):
        problem = phones(3, [3, 3, 3, 3], 12, bytes_per_s=2.0**exponent, nbytes=12.0)
        best = solve(problem)
        places = dict.fromkeys([op.name for op in problem.ops], "device")
        whole, _ = evaluate(problem, places)
        one, _ = evaluate(problem, places, blocks=[Block(("o1", "o2", "o3", "o4"), "device", "rows", (4, 4, 4))])
        each, _ = evaluate(problem, places, blocks=[Block((f"o{i}",), "device", "rows", (4, 4, 4)) for i in range(1, 5)])
        assert best.value <= min(whole.latency_s, one.latency_s, each.latency_s) * (1 + 1e-9)
        lengths.append(len(best.blocks))
    assert lengths[0] == 0
    assert sorted(lengths) == lengths
    assert lengths[-1] > 1


def test_a_faster_link_or_another_worker_never_hurts() -> None:
    values = [solve(phones(3, [3, 3], 9, bytes_per_s=rate, nbytes=9.0)).value for rate in (0.1, 1.0, 10.0, 100.0)]
    assert sorted(values, reverse=True) == values
    values = [solve(phones(workers, [3, 3], 9, bytes_per_s=5.0, nbytes=9.0)).value for workers in (1, 2, 3, 4)]
    assert sorted(values, reverse=True) == values


def test_without_workers_the_answer_is_that_of_version_1() -> None:
    problem = phones(2, [3, 3], 8)
    plain = replace(
        problem, tiers=tuple(replace(tier, workers=()) for tier in problem.tiers), ops=tuple(replace(op, layouts=()) for op in problem.ops)
    )
    assert solve(problem, "milp").placement == solve(plain, "milp").placement
    assert solve(plain).blocks == ()


def test_a_host_has_its_own_limit_where_nothing_is_divided() -> None:
    """The tier has room for both ops on its two workers, but whole ops run on the host."""
    device = Tier("device", workers=(Worker("w0", memory_bytes=5), Worker("w1", 1.0, memory_bytes=5)))
    ops = (Op("a", (1.0, 9.0), "device"), Op("b", (1.0, 9.0), memory_bytes=6))
    problem = Problem((device, Tier("cloud")), (Link(1.0, 0.0),), ops, (Tensor("a", ("b",), 1.0),))
    assert solve(problem).placement == solve(problem, "chain").placement == {"a": "device", "b": "cloud"}


def test_many_rows_are_bounded_where_not_every_way_is_tried() -> None:
    problem = phones(3, [3, 5, 3, 3], 60, bytes_per_s=20.0, nbytes=60.0)
    answer = solve(problem, "hybrid")
    assert answer.certificate.status == "within"
    assert answer.certificate.gap is not None
    assert 0 < answer.certificate.gap < 0.5
    assert check(problem, answer)
    seconds, _ = fused_blocks(problem, "device", ["o1", "o2", "o3", "o4"])
    assert answer.value <= seconds * (1 + 1e-9)


def test_what_is_no_sum_along_the_data_is_refused_and_solved_whole() -> None:
    problem = phones(2, [3, 3], 8)
    with pytest.raises(PartitionerError, match="critical path"):
        solve(problem, "hybrid", "critical_path")
    assert solve(problem, objective="critical_path").blocks == ()
    with pytest.raises(PartitionerError, match="two_way"):
        solve(replace(problem, two_way=True), "hybrid")


# -- the rules of blocks


PLACES = dict.fromkeys(["o0", "o1", "o2", "o3"], "device")
ROWS = Block(("o1", "o2"), "device", "rows", (4, 4))


@pytest.mark.parametrize(("blocks", "message"), [
    ([replace(ROWS, shares=(4, 3))], "add up to 7"),
    ([replace(ROWS, shares=(4, 4, 0))], "one, zero or more"),
    ([replace(ROWS, shares=(9, -1))], "one, zero or more"),
    ([replace(ROWS, axis="heads")], "no layout by heads"),
    ([replace(ROWS, ops=("o2", "o1"))], "wanted by 'o3'"),
    ([replace(ROWS, ops=("o1", "o3"))], "takes from|wanted by"),
    ([replace(ROWS, ops=("o1", "nobody"))], "name ops of the problem"),
    ([replace(ROWS, ops=())], "no ops"),
    ([replace(ROWS, takes=("split",))], "2 ops and 1 takes"),
    ([replace(ROWS, leaves="replicated")], "choose whole or divided"),
    ([replace(ROWS, leaves="divided")], "must all go to one block by rows"),
    ([replace(ROWS, tier="cloud")], "no layout by rows"),
    ([ROWS, Block(("o2",), "device", "rows", (4, 4))], "in two blocks"),
    ([ROWS, Block(("o3",), "device", "rows", (4, 4), leaves="divided")], "must all go"),
])  # fmt: skip
def test_a_block_that_breaks_a_rule_is_refused_by_cost_and_checker_alike(blocks: list[Block], message: str) -> None:
    problem = phones(2, [3, 3, 3], 8)
    with pytest.raises(Infeasible, match=message):
        evaluate(problem, PLACES, blocks=blocks)
    answer = solution(problem, PLACES, "hybrid", blocks=[ROWS]).to_dict()
    assert check(problem, answer)
    verdict = check(problem, answer | {"blocks": [vars(block) for block in blocks]})
    assert any(refutation.field.startswith("blocks[") for refutation in verdict.refuted), str(verdict)


def test_an_op_in_a_block_must_be_on_its_tier() -> None:
    problem = phones(2, [3, 3, 3], 8)
    elsewhere = PLACES | {"o2": "cloud", "o3": "cloud"}
    with pytest.raises(Infeasible, match="'o2' is on 'cloud'"):
        evaluate(problem, elsewhere, blocks=[ROWS])


@pytest.mark.parametrize("blocks", [None, 3, [3], [{}], [{"ops": 3}], [vars(ROWS) | {"shares": [4.5, 3.5]}], [vars(ROWS) | {"axis": None}]])
def test_malformed_blocks_are_refuted_never_raised(blocks: Any) -> None:
    problem = phones(2, [3, 3, 3], 8)
    answer = solution(problem, PLACES, "hybrid", blocks=[ROWS]).to_dict()
    assert not check(problem, answer | {"blocks": blocks})


def test_the_checker_recomputes_every_part() -> None:
    problem = phones(2, [3, 3, 3], 8, 4.0, 8.0)
    answer = solve(problem)
    assert answer.blocks
    data = answer.to_dict()
    for name in ("exchange_s", "compute_s", "latency_s", "interval_s", "critical_path_s"):
        assert not check(problem, data | {"cost": data["cost"] | {name: data["cost"][name] + 0.1}}), name
    wrong = {"worker_memory_bytes": {"device": (1.0, 1.0)}}
    assert not check(problem, data | {"cost": data["cost"] | wrong})
    assert not check(problem, data | {"blocks": []})


def test_cost_and_walk_agree_on_the_critical_path() -> None:
    for seed in range(60):
        problem = shared_problem(seed)
        found = Search(Space(problem), Objective.of("latency")).least()
        assert found is not None
        cost, crossings = evaluate(problem, found.placement, found.codecs, blocks=found.blocks)
        true = recompute(problem, found.placement, crossings, found.blocks)
        for name, value in cost.to_dict().items():
            for key, one in value.items() if isinstance(value, dict) else [(None, value)]:
                assert (true[name] if key is None else true[name][key]) == pytest.approx(one, rel=1e-9), (seed, name)


# -- where not every way to share is tried


def test_the_fastest_shares_are_found_without_trying_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each block of many problems: by bisection and min-max programmes as by trying all."""
    compared = Counter[str]()
    for seed in range(60):
        space = Space(shared_problem(seed))
        monkeypatch.setattr("partitioners.sizing.EVERY", 0)
        for _, sizing in space.runs:
            quick = Sizing(sizing.division, False, sizing.fair)
            assert sizing.complete
            assert not quick.complete
            leavings: tuple[Leaves, ...] = ("whole", "replicated")
            for held, leaves in product((AT_HOST, Held(frozenset({0, 1}))), leavings):
                for group in every_group(sizing.workers) if leaves == "replicated" else (None,):
                    times = [least_seconds(each.options(held, leaves), group) for each in (sizing, quick)]
                    assert times[1] == pytest.approx(times[0], rel=1e-12), (seed, sizing.division.form)
                    compared[sizing.division.axis] += 1
        for rows in [blocks.sizing for ending in space.by_rows for blocks in ending]:
            fast = RowSizing(rows.ending, scarce=False)
            assert rows.complete
            assert not fast.complete
            for whole in (AT_HOST.whole, frozenset({0, 1})):
                assert fast.gathered(whole).seconds == pytest.approx(rows.gathered(whole).seconds, rel=1e-12), seed
                compared["rows"] += rows.blocks
        monkeypatch.undo()
    assert min(compared.values()) > 100


def test_a_block_costs_what_it_costs_by_itself() -> None:
    """All blocks of a chain are sized in one pass; each, taken out of it, has the same seconds and weights."""
    compared = 0
    for seed in range(60):
        space = Space(shared_problem(seed))
        for blocks in [blocks for ending in space.by_rows for blocks in ending]:
            chain = next(run.chain for run in space.pieces.by_rows if (run.tier, run.begin) == (blocks.tier, blocks.begin))
            options = blocks.sizing.gathered(AT_HOST.whole)
            for i, begin in enumerate(range(blocks.begin, blocks.end)):
                ops = [op for piece in space.pieces.ops[begin : blocks.end] for op in piece]
                alone = Division(space.problem, blocks.tier, ops, [chain.form[op] for op in ops])
                priced = alone.price(options.shares[i, 0].tolist(), AT_HOST, "whole")
                assert priced.compute_s + priced.exchange_s == pytest.approx(options.seconds[i, 0], rel=1e-12), seed
                assert priced.memory_bytes.tolist() == pytest.approx(options.memory_bytes[i, 0].tolist()), seed
                compared += 1
    assert compared > 100


def every_group(workers: int) -> list[frozenset[int]]:
    """Who may hold everything: the host, and any of the others."""
    return [frozenset({0, *(w for w in range(1, workers) if bits >> w & 1)}) for bits in range(0, 2**workers, 2)]


def least_seconds(options: Options, group: frozenset[int] | None) -> float:
    seconds = [s for s, shares in zip(options.seconds, options.shares, strict=True) if group in (None, {0, *active(shares.tolist())})]
    return min(seconds, default=float("inf"))


def test_narrowed_searches_are_never_below_the_best_nor_their_bound_above(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("partitioners.sizing.EVERY", 0)
    monkeypatch.setattr("partitioners.hybrid.LABELS", 2)
    exact = 0
    for seed in range(500, 560):
        problem = limited(shared_problem(seed), seed) if seed % 2 else shared_problem(seed)
        objective = Objective.of(OBJECTIVES[seed % 4])
        true = EveryPlan(problem).least(objective)
        search = Search(Space(problem), objective)
        found, bound = search.least(), Search(search.space, objective, relaxed=True).least()
        assert true is None or (bound is not None and bound.value <= true * (1 + 1e-9)), seed
        if found is not None:
            assert true is not None
            assert found.value >= true * (1 - 1e-9), seed
            exact += found.value <= true * (1 + 1e-9)
    assert exact > 40


def test_nothing_is_proved_where_some_choices_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layouts of a piece, or the sets of workers with the fastest links: both were once called optimal."""
    plain, narrowed = Counter[str](), Counter[str]()
    for seed in range(40):
        plain[solve(shared_problem(seed), "hybrid").certificate.status] += 1
        monkeypatch.setattr("partitioners.pieces.FORMS", 1)
        answer = solve(shared_problem(seed), "hybrid")
        monkeypatch.undo()
        assert check(shared_problem(seed), answer), seed
        narrowed[answer.certificate.status] += 1
    assert plain.keys() == {"optimal"}
    assert narrowed["feasible"] > 10
    workers = (Worker("w0"), *(Worker(f"w{w}", 10.0 * w) for w in range(1, 8)))
    form = Layout("device", "channels", 64, tuple(1.0 + w for w in range(8)), takes="whole", gives="split")
    ops = (Op("o0", (0.0,)), Op("o1", (64.0,), layouts=(form,)), Op("o2", (64.0,), layouts=(form,)))
    tensors = (Tensor("o0", ("o1",), 1.0), Tensor("o1", ("o2",), 1.0), Tensor("o2", (), 1.0, True))
    problem = Problem((Tier("device", workers=workers),), (), ops, tensors)
    answer = solve(problem, "hybrid")
    assert answer.blocks
    assert (answer.certificate.status, answer.certificate.bound) == ("feasible", None)


def test_many_layers_are_made_to_fit_unequal_memories() -> None:
    """Six layers of 4,096 columns: a third of the weights on the host, two thirds on a slower worker, or nowhere."""
    total = 6 * 4096
    device = Tier("device", workers=(Worker("w0", memory_bytes=total * 0.35), Worker("w1", 1e6, memory_bytes=total * 0.66)))
    form = Layout("device", "channels", 4096, (1e-4, 3e-4), weight_bytes_per_unit=1, takes="whole", gives="split")
    ops = (Op("o0", (0.0,)), *(Op(f"o{i}", (0.4,), memory_bytes=4096, layouts=(form,)) for i in range(1, 7)))
    tensors = tuple(Tensor(f"o{i}", (f"o{i + 1}",) if i < 6 else (), 100.0) for i in range(7))
    problem = Problem((device,), (), ops, tensors)
    answer = solve(problem)
    assert check(problem, answer)
    assert len(answer.blocks) == 6
    assert answer.value == pytest.approx(total * 0.65 * 3e-4, rel=0.02)  # what the host cannot hold, the worker computes
