"""The solutions of a line's Problem as parts of a Plan: stages, crossings and the predicted cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import partitioners as p
from splitinfer.line_problem import IN_PIECES, LineProblem, seconds_per_byte
from splitinfer.plans import INPUT, Cost, Crossing, PlannedStage
from splitinfer.vertical import planned_blocks


class LineModel(LineProblem):
    """One line as a Problem, and its solutions as parts of a Plan."""

    def tier_of(self, solution: p.Solution) -> dict[str, str]:
        """Layer -> tier."""
        return {layer.name: solution.placement[self.op_of[layer.name]] for layer in self.profile.layers}

    def stages(self, solution: p.Solution) -> tuple[PlannedStage, ...]:
        """One stage for each tier that has layers."""
        tier_of = self.tier_of(solution)
        used = [tier for tier in self.line.tiers if tier in tier_of.values()]
        made = []
        for number, tier in enumerate(used):
            layers = [layer for layer in self.profile.layers if tier_of[layer.name] == tier]
            place = self.line.tiers.index(tier)
            seconds = self.times[place].seconds
            made.append(
                PlannedStage(
                    f"stage{number}",
                    tier,
                    tuple(layer.name for layer in layers),
                    sum(seconds[layer.name] for layer in layers) + self._wake_s(place) - self._saved_s(solution, tier),
                    sum(layer.weight_nbytes for layer in layers),
                    planned_blocks(solution.blocks, self._layers_of, self.machines[place], self.profile.layouts),
                )
            )
        return tuple(made)

    @cached_property
    def _layers_of(self) -> dict[str, list[str]]:
        """Op -> its layers, in the order of the profile."""
        found: dict[str, list[str]] = {}
        for layer in self.profile.layers:
            found.setdefault(self.op_of[layer.name], []).append(layer.name)
        return found

    def _saved_s(self, solution: p.Solution, tier: str) -> float:
        """By how much the slowest machine's share of a tier's blocks computes shorter than the tier alone would."""
        blocks = tuple(block for block in solution.blocks if block.tier == tier)
        if not blocks:
            return 0.0
        alone, shared = (p.evaluate(self.problem, solution.placement, None, blocks=held)[0].compute_s for held in ((), blocks))
        return alone - shared

    def crossings(self, solution: p.Solution) -> tuple[Crossing, ...]:
        """What leaves its tier, with physical links."""
        hops: dict[str, list[p.Crossing]] = {}
        for crossing in solution.codecs:
            if crossing.tensor in self.specs:
                hops.setdefault(crossing.tensor, []).append(crossing)
        made = []
        for tensor, (first, *_) in hops.items():
            links = [link for crossing in hops[tensor] for link in self._physical(crossing.link)]
            spec = self.specs[tensor]
            streamed = first.codec.endswith(IN_PIECES)
            codec = first.codec.removesuffix(IN_PIECES)
            made.append(Crossing(tensor, spec.producer, codec, tuple(links), spec.nbytes, first.nbytes, streamed))
        return tuple(made)

    def _physical(self, hop: int) -> range:
        return range(self.line.used[hop], self.line.used[hop + 1])

    def cost(self, solution: p.Solution) -> Cost:
        """The predicted cost with the framework's share taken out of compute and links."""
        cost = solution.cost
        share = self._shares(solution)
        sent = {hop: cost.link_nbytes[hop] + reach * self.profile.packet_nbytes for hop, reach in share["up"].items()}
        back = {hop: self._returned(solution)[hop] + reach * self.profile.packet_nbytes for hop, reach in share["down"].items()}
        pieces = self._piece_nbytes(solution)
        wire = sum(self._wire(hop, nbytes - pieces.get(hop, 0.0), "up", share["up"][hop]) for hop, nbytes in sent.items())
        home = sum(self._wire(hop, nbytes, "down", share["down"][hop]) for hop, nbytes in back.items())
        compute = self._computing(solution)
        places = {layer: self.line.tiers.index(tier) for layer, tier in self.tier_of(solution).items()}
        encode = cost.encode_s + sum(self.passing.layer(layer) * self._results_s(layer, place) for layer, place in places.items())
        decode = cost.decode_s + (self._received_s() if 0 in places.values() else 0.0)
        latency = cost.latency_s + (self._waking(solution) + self._forwarding(cost, pieces) if self.steady else 0.0)
        return Cost(
            latency, compute, encode, wire, decode, home,
            latency - compute - encode - decode - wire - home - cost.transfer_s - cost.exchange_s,
            transfer_s=cost.transfer_s, exchange_s=cost.exchange_s,
            up_nbytes=sum(nbytes * len(self.line.hops[hop]) for hop, nbytes in sent.items()),
            return_nbytes=sum(nbytes * len(self.line.hops[hop]) for hop, nbytes in back.items()),
            interval_s=self._interval(cost), critical_path_s=cost.critical_path_s,
            energy_j=cost.energy_j, money=cost.money, error=cost.error,
        )  # fmt: skip

    def _piece_nbytes(self, solution: p.Solution) -> dict[int, float]:
        """Expected bytes on each hop of what travels in pieces: its time is in the transfer."""
        reach = {tensor.name: tensor.reach for tensor in self.problem.tensors}
        nbytes: dict[int, float] = {}
        for crossing in solution.codecs:
            if crossing.codec.endswith(IN_PIECES):
                nbytes[crossing.link] = nbytes.get(crossing.link, 0.0) + reach[crossing.tensor] * crossing.nbytes
        return nbytes

    def _waking(self, solution: p.Solution) -> float:
        """What a single request, after a pause, pays on top of a steady stream's."""
        used = {self.line.tiers.index(stage.tier): self._reached(stage.layers) for stage in self.stages(solution)}
        return sum(reach * (self.profile.framework.call_s + self._wake_s(place)) for place, reach in used.items())

    def _forwarding(self, cost: p.Cost, pieces: Mapping[int, float]) -> float:
        """What a single request pays for links beside the slowest of their hop."""
        total = 0.0
        for hop, links in enumerate(self.line.hops):
            for nbytes, way in ((cost.link_nbytes[hop] - pieces.get(hop, 0.0), "up"), (cost.return_nbytes[hop], "down")):
                total += nbytes * (seconds_per_byte(links, way) - seconds_per_byte(links, way, steady=True))
        return total

    def _reached(self, layers: Sequence[str]) -> float:
        """Share of the requests that get to some of these layers."""
        return max(self.passing.layer(name) for name in layers)

    def _computing(self, solution: p.Solution) -> float:
        """Expected seconds of the layers, and of waking up."""
        total = 0.0
        for stage in self.stages(solution):
            place = self.line.tiers.index(stage.tier)
            total += self._reached(stage.layers) * self._wake_s(place) - self._saved_s(solution, stage.tier)
            total += sum(self.passing.layer(name) * self.times[place].seconds[name] for name in stage.layers)
        return total

    def _shares(self, solution: p.Solution) -> dict[str, dict[int, float]]:
        """Share of the requests that use each hop in use, up and down, as the Problem counts its latency."""
        reach = {tensor.name: tensor.reach for tensor in self.problem.tensors}
        shares: dict[str, dict[int, float]] = {"up": {}, "down": {}}
        for crossing in solution.codecs:
            shares["up"][crossing.link] = max(shares["up"].get(crossing.link, 0.0), reach[crossing.tensor])
        for tensor in self.problem.tensors:
            if tensor.returned:
                for hop in range(self.line.tiers.index(solution.placement[tensor.producer])):
                    shares["down"][hop] = max(shares["down"].get(hop, 0.0), tensor.reach)
        return shares

    def _interval(self, cost: p.Cost) -> float:
        """The largest load, each physical link by itself."""
        loads = list(cost.tier_load_s.values())
        for nbytes, direction in ((cost.link_nbytes, "up"), (cost.return_nbytes, "down")):
            for hop, links in enumerate(self.line.hops):
                loads += [nbytes[hop] * (seconds_per_byte([link], direction) + self.profile.framework.s_per_byte) for link in links]
        return max(loads)

    def _wire(self, hop: int, nbytes: float, direction: str, share: float) -> float:
        links = self.line.hops[hop]
        return nbytes * seconds_per_byte(links, direction) + share * sum(link.latency_s for link in links)

    def _returned(self, solution: p.Solution) -> dict[int, float]:
        """Expected bytes of results on each hop on the way back."""
        tier_of = self.tier_of(solution)
        back: dict[int, float] = {}
        for tensor in self.profile.tensors:
            if tensor.returned and tensor.producer != INPUT:
                for hop in range(self.line.tiers.index(tier_of[tensor.producer])):
                    share = self.passing.layer(tensor.producer) * self.passing.returned(tensor)
                    back[hop] = back.get(hop, 0.0) + share * tensor.sent_nbytes.get("raw", tensor.nbytes)
        return back
