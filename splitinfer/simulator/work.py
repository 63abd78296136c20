"""Plan + profile + topology -> programs: what a request does on each tier and each link, from the plan's files alone.

This computes each stage's work by itself, in the order in which the runtime does it. It shares no code with the planner's
cost function, so that their agreement means something.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from cluster.topology import Topology
from splitinfer.calibrations import Calibration
from splitinfer.errors import PlanError, ProfileError
from splitinfer.plans import INPUT, Plan, PlannedExit, PlannedStage
from splitinfer.profiles import Profile, TensorProfile
from splitinfer.simulator.segments import Segment, segments
from splitinfer.simulator.shared import Sharing
from splitinfer.simulator.steps import Compute, Parallel, Program, Step, Transfer

_SOURCE = -1
"""The caller's place before stage 0; it stands on the first tier."""
_Slot = tuple[int, int, int]
"""The place of a step among all that any request may do; equal slots are the same piece of work. Way up or back; stage; and
there 0 for its work, from 1 on what goes on in pieces, from `_PACKET` on the packet's links."""
_PACKET = 1000


@dataclass
class _Stage:
    """What a stage does beside its layers."""

    decode_s: float = 0.0
    encode_s: float = 0.0
    """Of what goes on to the next stage."""
    sent: dict[str, float] = field(default_factory=dict)
    """Tensor -> bytes in the packet to the next stage, what is only passed on included."""
    streamed: list[Step] = field(default_factory=list)
    """What goes to the next stage in pieces ahead of the packet: one group for each tensor."""


class Work:
    """The programs of a plan. Raises PlanError or ProfileError where the three do not fit each other."""

    def __init__(self, plan: Plan, profile: Profile, topology: Topology, calibration: Calibration | None = None) -> None:
        """`calibration`: where times of codecs come from that the profile did not measure."""
        if plan.fingerprint != profile.fingerprint:
            raise PlanError(
                f"the plan was made for {plan.model} {plan.fingerprint}, the profile is of {profile.model} {profile.fingerprint}; "
                f"profile and plan again"
            )
        self.plan, self.profile, self.calibration = plan, profile, calibration
        known = {tier.name for tier in topology.tiers}
        for name in plan.tiers:
            if name not in known:
                raise PlanError(f"the plan uses tier '{name}'; the topology has {', '.join(sorted(known))}")
        self._times = {name: profile.times(topology.tier(name)) for name in plan.tiers}
        self._home = [plan.tiers.index(stage.tier) for stage in plan.stages]
        self._stage_of = {layer: place for place, stage in enumerate(plan.stages) for layer in stage.layers} | {INPUT: _SOURCE}
        unknown = sorted(set(self._stage_of) - {INPUT, *(layer.name for layer in profile.layers)})
        if unknown:
            raise PlanError(f"the plan runs a layer '{unknown[0]}', which the profile does not have")
        self._levels = exit_levels(profile, plan.exits)
        self._stages = {place: _Stage() for place in range(_SOURCE, len(plan.stages))}
        for tensor in profile.tensors:
            self._route(tensor)
        self._sharing = {stage.tier: Sharing(profile, topology, stage.tier, self._stage_of) for stage in plan.stages if stage.blocks}
        self._segments = {place: self._read(stage) for place, stage in enumerate(plan.stages) if stage.blocks}

    def programs(self) -> tuple[Program, ...]:
        """One for each way a request can end, the exits in order and then the whole; their shares add up to 1."""
        return tuple(
            _program(self._steps(outcome), share, self.plan.exits[outcome].layer if outcome < len(self.plan.exits) else "")
            for outcome, share in enumerate(self._shares())
        )

    def expected(self) -> Program:
        """One program whose every step has its expected seconds and bytes over all ways a request can end."""
        total: dict[_Slot, Step] = {}
        for outcome, share in enumerate(self._shares()):
            for slot, step in self._steps(outcome).items():
                mine = step.scaled(share)
                total[slot] = total[slot].joined(mine) if slot in total else mine  # type: ignore[arg-type]
        return _program(total, 1.0, "")

    # -- what the stages do

    def _route(self, tensor: TensorProfile) -> None:
        """Book where a tensor is encoded, carried and decoded. It stays raw on its own tier and is encoded once, where it leaves.

        An input that leaves as raw as the first stage got it is counted like any other, as in the plan, though it is only passed on.
        """
        if tensor.producer not in self._stage_of:
            return  # the head of an exit that the plan leaves out
        born = self._stage_of[tensor.producer]
        home = self._tier(born)
        users = {self._stage_of[name] for name in tensor.consumers if name in self._stage_of} - {born}
        if users and min(users) < born:
            raise PlanError(f"tensor '{tensor.name}' flows back from stage {born} to stage {min(users)}; data flows up the line only")
        decoders, streamed = set(users), tensor.producer != INPUT and self.plan.streams(tensor.name)
        for place in range(born, max(users, default=born)):
            leaves = self._tier(place) == home != self._tier(place + 1)
            codec = self._codec(tensor) if self._tier(place + 1) != home else "raw"
            if streamed and self._tier(place + 1) != home:
                decoders |= {place} - {born} if leaves else set()
                self._stages[place].streamed.append(self._in_pieces(tensor.name, codec, place, leaves, place + 1 in users))
                continue
            if leaves or place == born:
                decoders |= {place} - {born}
                # Handing raw tensors to a stage on the same tier is the framework's work where the caller does it.
                if place != _SOURCE or leaves:
                    self._stages[place].encode_s += self._coding_s(tensor.name, codec, home, decode=False)
            self._stages[place].sent[tensor.name] = self._nbytes(tensor, codec)
        for place in decoders:
            here = self._tier(place) == home
            if streamed and not here:
                continue  # piece by piece, above
            codec = "raw" if here else self._codec(tensor)
            self._stages[place].decode_s += self._coding_s(tensor.name, codec, self._tier(place), decode=True)

    def _in_pieces(self, tensor: str, codec: str, place: int, encode: bool, decode: bool) -> Step:
        """One piece is encoded while those before it travel and are decoded, each by one machine at a time::

            encode  1 2 3
            link      1 1 2 2 3 3
            decode        1   2   3

        The links' latencies are left to the packet that follows.
        """
        lower, higher = (self.plan.tiers[self._tier(end)] for end in (place, place + 1))
        ends = [self._times[name] for name in (lower, higher)]
        made, read = (self.profile.pieces(times, tensor, codec) for times in ends)
        if not made or not read:
            raise ProfileError(f"'{tensor}' travels in pieces, and the profile has no times of them with '{codec}'; profile again")
        links = [f"{a}:{b}" for a, b in pairwise(self.plan.tiers[self._tier(place) : self._tier(place + 1) + 1])]
        rest: tuple[Step, ...] = ()
        for (encode_s, nbytes, _), (_, _, decode_s) in reversed(list(zip(made, read, strict=True))):
            held_s = self.profile.framework.s_per_byte * nbytes
            onward: tuple[Step, ...] = tuple(Transfer(link, nbytes, 0.0, held_s=held_s * (link == links[-1])) for link in links)
            if decode:
                onward = (*onward, Compute(higher, f"decode {tensor}", coding_s=decode_s))
            work = Compute(lower, f"encode {tensor}", coding_s=encode_s) if encode else None
            following = Parallel((onward, rest)) if rest else Parallel((onward,))
            rest = (work, following) if work else (following,)
        return Parallel((rest,))

    def _tier(self, place: int) -> int:
        return 0 if place == _SOURCE else self._home[place]

    def _codec(self, tensor: TensorProfile) -> str:
        found = next((crossing for crossing in self.plan.crossings if crossing.tensor == tensor.name), None)
        if found is None:
            raise PlanError(f"tensor '{tensor.name}' leaves its tier, and the plan has no crossing for it; plan again")
        return found.codec

    def _nbytes(self, tensor: TensorProfile, codec: str) -> float:
        planned = [crossing.nbytes for crossing in self.plan.crossings if crossing.tensor == tensor.name and crossing.codec == codec]
        return planned[0] if planned else tensor.sent_nbytes.get(codec, tensor.nbytes)

    def _coding_s(self, tensor: str, codec: str, tier: int, *, decode: bool) -> float:
        """Seconds to encode or decode on a tier. A codec that does not apply to this tensor takes none, as when it was planned."""
        times = self._times[self.plan.tiers[tier]]
        pair = times.base.codec_s[tensor].get(codec)
        if pair is None and self.calibration and codec in self.calibration.rows.get(tensor, {}):
            row = self.calibration.rows[tensor][codec]
            pair = row.encode_s, row.decode_s
        if pair is None and codec not in (*self.profile.codecs, "raw"):
            raise ProfileError(f"the profile has no times of codec '{codec}' on '{tensor}'; give the calibration of the plan")
        return times.scale * pair[decode] if pair else 0.0

    # -- one request

    def _shares(self) -> list[float]:
        reach = [1.0, *(each.reach for each in self.plan.exits), 0.0]
        for one, two, each in zip(reach, reach[1:], [*self.plan.exits, None], strict=False):
            if each and not 0 <= two <= one:
                raise PlanError(f"{two:g} of the requests go on behind '{each.layer}'; {one:g} get there: exits go in order")
        return [one - two for one, two in pairwise(reach)]

    def _steps(self, outcome: int) -> dict[_Slot, Step]:
        """What a request does that ends at an exit, counted from 0, or, one further, at the end."""
        exits, framework = self.plan.exits, self.profile.framework
        last = self._stage_of[exits[outcome].layer] if outcome < len(exits) else len(self.plan.stages) - 1
        made: dict[_Slot, Step] = {}
        source = self._stages[_SOURCE]
        if self._home[0]:
            made[0, _SOURCE, 0] = Compute(self.plan.tiers[0], "source", coding_s=source.encode_s)
        else:
            delay_s = 0.0 if self._called_beside else self._called_s()
            made[0, _SOURCE, 0] = Compute("", "", after_s=delay_s)  # no work: `_program` makes it the delay before the first step
        for place in range(last + 1):
            if place or self._home[0]:
                self._carry(made, place - 1, place)
            made[0, place, 0] = self._compute(place, outcome, onward=place < last)
        back = [sum(t.sent_nbytes.get("raw", t.nbytes) for t in self._results(outcome, place)) for place in range(last + 1)]
        for place in range(last, _SOURCE, -1):
            nbytes = sum(back[above] for above in range(place, last + 1)) + self.profile.packet_nbytes
            tiers = self.plan.tiers[self._tier(place - 1) : self._home[place] + 1][::-1]
            for step, (one, two) in enumerate(pairwise(tiers)):
                after_s = framework.s_per_byte * nbytes if step == len(tiers) - 2 else 0.0
                made[1, -place, step] = Transfer(f"{one}:{two}", nbytes, after_s=after_s)
        return made

    def _carry(self, made: dict[_Slot, Step], one: int, two: int) -> None:
        """The packet from one stage to the next, and the call there. A skipped tier stores and forwards."""
        nbytes = sum(self._stages[one].sent.values()) + self.profile.packet_nbytes
        delay_s = self.profile.framework.call_s + self.profile.framework.s_per_byte * nbytes
        tiers = self.plan.tiers[self._tier(one) : self._tier(two) + 1]
        for number, group in enumerate(self._stages[one].streamed, 1):
            made[0, one, number] = group
        for step, (lower, higher) in enumerate(pairwise(tiers), 1):
            made[0, one, _PACKET + step] = Transfer(f"{lower}:{higher}", nbytes, after_s=delay_s if step == len(tiers) - 1 else 0.0)
        if len(tiers) == 1:
            work: Any = made[0, one, 0]
            made[0, one, 0] = replace(work, after_s=work.after_s + delay_s)

    def _compute(self, place: int, outcome: int, *, onward: bool) -> Compute:
        stage, planned, times = self._stages[place], self.plan.stages[place], self._times[self.plan.stages[place].tier]
        shared = {name for block in planned.blocks for name in block.layers}
        layers_s = sum(times.seconds[name] for name in planned.layers if name not in shared and self._levels.get(name, 0) <= outcome)
        coding_s, wake_s = stage.decode_s + (stage.encode_s if onward else 0.0), times.scale * times.base.wake_s
        beside: dict[str, float] = {}
        for tensor in self._results(outcome, place):
            result_s = self._coding_s(tensor.name, "raw", self._home[place], decode=False)
            if tensor.producer in shared:
                beside[tensor.producer] = beside.get(tensor.producer, 0.0) + result_s
            else:
                coding_s += result_s
        if place == 0 and self._called_beside:
            first, received_s = planned.blocks[0].layers[0], self._received_s()
            beside[first] = beside.get(first, 0.0) + self._called_s() + wake_s + received_s
            coding_s, wake_s = coding_s - received_s, 0.0
        groups = tuple(
            group
            for block in self._segments.get(place, ()) if self._levels.get(block[0].layers[0], 0) <= outcome
            for group in self._sharing[planned.tier].groups(block, beside)
        )  # fmt: skip
        return Compute(planned.tier, "\n".join(planned.layers), layers_s, coding_s, wake_s, groups=groups)

    @property
    def _called_beside(self) -> bool:
        """Whether a block takes the model's inputs. The plan then counts the call, waking up and decoding as the host's part of it."""
        blocks = self.plan.stages[0].blocks if not self._home[0] else ()
        users = {user for tensor in self._inputs for user in tensor.consumers}
        return bool(blocks) and not users.isdisjoint(blocks[0].layers)

    @property
    def _inputs(self) -> list[TensorProfile]:
        return [tensor for tensor in self.profile.tensors if tensor.producer == INPUT]

    def _called_s(self) -> float:
        """The call of the first stage, and handing the inputs over."""
        return self.profile.framework.call_s + self.profile.framework.s_per_byte * sum(tensor.nbytes for tensor in self._inputs)

    def _received_s(self) -> float:
        """Decoding the raw inputs on the first tier."""
        return sum(self._coding_s(tensor.name, "raw", 0, decode=True) for tensor in self._inputs)

    def _read(self, stage: PlannedStage) -> list[tuple[Segment, ...]]:
        """The blocks of a stage. Raises PlanError where they do not fit the topology or the profile."""
        sharing = self._sharing[stage.tier]
        for block in stage.blocks:
            if block.workers != sharing.names:
                raise PlanError(
                    f"a block of stage '{stage.name}' is shared by {list(block.workers)}; the topology gives '{stage.tier}' the machines "
                    f"{list(sharing.names)}. Plan again."
                )
        return [segments(block, self.profile, sharing.seconds_of) for block in stage.blocks]

    def _results(self, outcome: int, place: int) -> list[TensorProfile]:
        """What a stage returns: its results, or the answer of the exit that is taken there; they return raw."""
        heads = {each.layer for each in self.plan.exits}
        taken = self.plan.exits[outcome] if outcome < len(self.plan.exits) else None
        made = [t for t in self.profile.tensors if t.returned and self._stage_of.get(t.producer) == place]
        if taken is not None:
            return [t for t in made if t.name == taken.answer]
        return [t for t in made if t.producer not in heads]


def exit_levels(profile: Profile, exits: tuple[PlannedExit, ...]) -> Mapping[str, int]:
    """Layer -> how many exits a request must pass before it gets there. Raises PlanError for an exit that is not in the profile."""
    users: dict[str, set[str]] = {}
    for tensor in profile.tensors:
        users.setdefault(tensor.producer, set()).update(tensor.consumers)
    levels: dict[str, int] = {}
    for place, each in enumerate(exits, 1):
        source = next((tensor for tensor in profile.tensors if each.layer in tensor.consumers), None)
        if source is None:
            raise PlanError(f"the profile has no exit '{each.layer}'; apply the exits to the graph before it is profiled")
        pending = set(source.consumers) - {other.layer for other in exits}
        while pending:
            name = pending.pop()
            if levels.get(name, 0) < place:
                levels[name] = place
                pending |= users.get(name, set())
    return levels


def _program(steps: Mapping[_Slot, Step], share: float, name: str) -> Program:
    """The steps in their order; the ones of no resource are delays before the first."""
    ordered = [steps[slot] for slot in sorted(steps)]
    delay_s = sum(step.after_s for step in ordered if isinstance(step, Compute) and not step.resource)
    return Program(tuple(step for step in ordered if step.resource), delay_s, share, name)
