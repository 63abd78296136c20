"""Plans in virtual time: queues, batches, fleets, links that vary, failures (docs/simulation.md). Needs no torch.

    from splitinfer import simulator

    found = splitinfer.simulate(plan, profile, topology, simulator.Poisson(20.0), requests=10_000)
    print(found)

The same plan that the runtime executes runs here from its JSON file, the profile's and the topology, by events.
"""

from cluster.traces import Trace
from splitinfer.simulator.arrivals import Bursts, ClosedLoop, Given, Periodic, Poisson
from splitinfer.simulator.places import Batching
from splitinfer.simulator.replanning import Replanning
from splitinfer.simulator.results import Simulation
from splitinfer.simulator.simulation import simulate
from splitinfer.simulator.system import Conditions, Failure, System

__all__ = [
    "Batching", "Bursts", "ClosedLoop", "Conditions", "Failure", "Given", "Periodic", "Poisson", "Replanning", "Simulation", "System",
    "Trace", "simulate",
]  # fmt: skip
