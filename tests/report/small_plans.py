"""A chain of four layers on three tiers, whose best plan splits; the same with hostile names; measured requests of it."""

from dataclasses import replace

from random_plans import a_profile, a_topology

from splitinfer.planner import plan
from splitinfer.plans import INPUT, PlannedBlock
from splitinfer.profiles import Framework
from splitinfer.tracing import Span, Trace

CODECS = ("raw", "int8", "zstd")


def chain(names=("stem.conv", "stem.norm", "body.conv", "head.fc")):
    """Tensors shrink on the way; coding takes half a millisecond, so that int8 pays on slow links."""
    tensors = [("images", INPUT), *((f"x{place}", name) for place, name in enumerate(names))]
    sizes = (150_000, 80_000, 20_000, 10_000, 400)
    users = [(name,) for name in names] + [()]
    rows = [(tensor, producer, users[place], sizes[place], place == len(names)) for place, (tensor, producer) in enumerate(tensors)]
    coding = {tensor: {"raw": (0.0, 0.0), "int8": (5e-4, 3e-4), "zstd": (8e-4, 5e-4)} for tensor, _ in tensors}
    seconds = dict(zip(names, (0.002, 0.003, 0.006, 0.004), strict=True))
    return a_profile(seconds, rows, codec_s=coding, wake_s=5e-4, packet_nbytes=60, framework=Framework(1e-3, 1e-9, True))


TOPOLOGY = a_topology([12, 3, 1], [(250_000, 500_000, 0.002), (1e6, 1e6, 0.01)], watts=5.0, price_per_s=1e-5)
PROFILE = chain()
SPLIT = plan(PROFILE, TOPOLOGY, codecs=CODECS)


def hybrid():
    """The plan with a block that three machines share, as if the planner had chosen it."""
    first, *rest = SPLIT.stages
    block = PlannedBlock(first.layers[:2], "rows", (5, 3, 2), ("t0", "camera-2", "camera-3"), codec="fp16")
    return replace(SPLIT, stages=(replace(first, blocks=(block,)), *rest))


def measured(total_s=0.2, tier="t0", request="r1"):
    """A request of which 30 ms were no span's."""
    work = Span("stage0", tier, "compute", 5.0, total_s - 0.08, 0.05)
    sent = Span("stage0", tier, "wire", work.end_s + 0.01, 0.05, 0.045, 10_000)
    return Trace(request, total_s, (work, sent))
