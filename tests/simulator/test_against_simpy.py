"""Request by request, the latencies are those of SimPy on the same arrivals."""

from random import Random

import pytest
from random_plans import a_topology, random_profile
from simpy_model import SimpyModel

from splitinfer.planner import plan
from splitinfer.simulator import Given, System, simulate
from splitinfer.simulator.engine import Engine, Request
from splitinfer.simulator.fleet import Fleet
from splitinfer.simulator.replanning import idle_s
from splitinfer.simulator.steps import Compute, Parallel, Program, Transfer
from splitinfer.simulator.work import Work


def some_arrivals(chance, count, clients, rate):
    times, now_s = [], 0.0
    for _ in range(count):
        now_s += chance.expovariate(rate)
        times.append((now_s, chance.randrange(clients)))
    return times


@pytest.mark.parametrize("seed", range(25))
def test_fleets_at_random(seed):
    chance = Random(seed)
    profile, _ = random_profile(chance)
    count = chance.randint(2, 3)
    links = [(10 ** chance.uniform(4, 6), 10 ** chance.uniform(4, 6), chance.uniform(0, 0.05)) for _ in range(count - 1)]
    topology = a_topology([chance.uniform(1, 5) for _ in range(count)], links)
    made = plan(profile, topology, codecs=["raw", "int8"], exits=[])
    clients = chance.randint(1, 6)
    machines = {"t1": chance.randint(1, clients)}
    workers = {tier.name: chance.randint(1, 3) for tier in topology.tiers}
    work = Work(made, profile, topology)
    program = work.programs()[0]
    alone_s = idle_s(program, lambda link, _: (1e5, 0.0))
    arrivals = some_arrivals(chance, 300, clients, chance.uniform(0.5, 2) * clients / alone_s)
    found = simulate(
        made, profile, topology, Given(tuple(arrivals)), requests=300, system=System(clients=clients, machines=machines, workers=workers)
    )
    oracle = SimpyModel(program, topology, clients, machines, workers).run(arrivals)
    by_arrival = dict(zip(found.requests.arrival_s.tolist(), found.requests.latency_s.tolist(), strict=True))
    assert [by_arrival[time_s] for time_s, _ in arrivals] == pytest.approx(oracle, rel=1e-9)
    assert max(oracle) > 1.2 * min(oracle)  # they did meet each other


def a_tree(chance, depth=2):
    """A random sequence of steps, some of them parallel; but none begins with a parallel one, where the two order ties differently."""
    steps = []
    for _ in range(chance.randint(1, 3)):
        kind = chance.random()
        if kind < 0.3 and depth and steps:
            steps.append(Parallel(tuple(a_tree(chance, depth - 1) for _ in range(chance.randint(2, 3)))))
        elif kind < 0.65:
            steps.append(Transfer(chance.choice(["t0:t1", "t1:t0", "t1:t2"]), chance.randint(0, 2000), after_s=chance.choice([0, 0.003])))
        else:
            steps.append(Compute(chance.choice(["t0", "t1", "t2"]), "work", chance.uniform(0, 0.02), 0.0, chance.choice([0, 0.005])))
    return tuple(steps)


@pytest.mark.parametrize("seed", range(25))
def test_programs_with_parallel_steps_at_random(seed):
    chance = Random(seed)
    topology = a_topology([1, 1, 1], [(1e5, 1e5, 0.01), (1e6, 1e6, 0.002)])
    program = Program(a_tree(chance), delay_s=0.001)
    arrivals = some_arrivals(chance, 200, 1, 20)
    ended = {}
    engine = Engine(lambda request, outcome, resource: ended.update({request.index: engine.now_s - request.arrived_s}))
    fleet = Fleet(engine, topology, System(workers={"t1": 2}), program.resources, Random(0))
    for index, (time_s, _) in enumerate(arrivals):
        request = Request(program.steps, fleet.places[0], program, time_s, 0, 0, index)
        engine.at(time_s, engine.begin, request, program.delay_s)
    engine.run()
    oracle = SimpyModel(program, topology, workers={"t1": 2}).run(arrivals)
    assert [ended[index] for index in range(len(arrivals))] == pytest.approx(oracle, rel=1e-9)
