"""The same model in plain SimPy: a process for each request, a resource for each machine and each wire. The oracle, and the rival."""

import simpy

from cluster.topology import Topology
from splitinfer.simulator.steps import Parallel, Program


class SimpyModel:
    """Requests that all do `program`, as clients of a fleet like the simulator's; no queue limits, batches or failures."""

    def __init__(self, program: Program, topology: Topology, clients=1, machines=None, workers=None):
        self.env, self.program = simpy.Environment(), program
        self.latencies = {}
        names = [tier.name for tier in topology.tiers]
        counts = [clients, *((machines or {}).get(name, 1) for name in names[1:])]
        specs = dict(zip(names, topology.links, strict=False))
        self.rates, owned = {}, {}
        for name, spec in specs.items():
            low, high = spec.between
            self.rates |= {f"{low}:{high}": (spec.up_bytes_per_s, spec.latency_s), f"{high}:{low}": (spec.down_bytes_per_s, spec.latency_s)}
            owned[name] = (f"{low}:{high}", f"{high}:{low}")
        used = set(program.resources)
        pools = {}
        for name, count in zip(names, counts, strict=True):
            for resource in {name, *owned.get(name, ())} & used:
                capacity = (workers or {}).get(name, 1) if resource == name else 1
                pools[resource] = [simpy.Resource(self.env, capacity) for _ in range(count)]
        self.places = []
        for client in range(clients):
            mine, place = {}, client
            for tier, (name, count) in enumerate(zip(names, counts, strict=True)):
                place = place * count // counts[tier - 1] if tier else client
                mine |= {resource: pools[resource][place] for resource in {name, *owned.get(name, ())} & used}
            self.places.append(mine)

    def run(self, arrivals):
        """Latency of each of the arrivals, (time in s, client)."""
        self.env.process(self.source(arrivals))
        self.env.run()
        return [self.latencies[number] for number in range(len(self.latencies))]

    def source(self, arrivals):
        for number, (time_s, client) in enumerate(arrivals):
            yield self.env.timeout(time_s - self.env.now)
            self.env.process(self.request(number, self.places[client]))

    def request(self, number, places):
        start_s = self.env.now
        if self.program.delay_s:
            yield self.env.timeout(self.program.delay_s)
        yield from self.sequence(self.program.steps, places)
        self.latencies[number] = self.env.now - start_s

    def sequence(self, steps, places):
        for step in steps:
            if isinstance(step, Parallel):
                yield simpy.AllOf(self.env, [self.env.process(self.sequence(branch, places)) for branch in step.branches])
                continue
            resource = places[step.resource]
            later_s = step.after_s
            with resource.request() as turn:
                idle = resource.count <= resource.capacity and turn.triggered
                yield turn
                if step.resource in self.rates:
                    rate, latency_s = self.rates[step.resource]
                    yield self.env.timeout(step.nbytes / rate)
                    later_s += latency_s
                else:
                    yield self.env.timeout(step.layers_s + step.coding_s + (step.wake_s if idle else 0.0))
            if later_s:
                yield self.env.timeout(later_s)
