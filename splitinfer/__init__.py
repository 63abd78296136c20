"""splitinfer: distributed split inference for PyTorch models.

A model that is too slow on the device and too far away in the cloud runs on both: capture it, profile it, plan where
to split it, and run the parts as Ray actors with compressed activations between them.

*Horizontal* split: different layers on different machines. *Vertical* split: one layer or block divided inside, by
channels, heads or tiles of the feature map. *Hybrid*: both in one plan.

The public names are loaded when first used: ``import splitinfer`` itself loads neither torch nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitinfer.calibrations import Calibration as Calibration
    from splitinfer.family import first_possible as first_possible
    from splitinfer.family import plan_family as plan_family
    from splitinfer.graph import Graph as Graph
    from splitinfer.importer import capture as capture
    from splitinfer.learn.accuracy import accurate_plan as accurate_plan
    from splitinfer.learn.calibrate import calibrate as calibrate
    from splitinfer.pipeline import Pipeline as Pipeline
    from splitinfer.planner import plan as plan
    from splitinfer.plans import Plan as Plan
    from splitinfer.profiler import profile as profile
    from splitinfer.profiles import Profile as Profile
    from splitinfer.runtime.deploy import deploy as deploy
    from splitinfer.runtime.resilient import resilient as resilient
    from splitinfer.simulator import simulate as simulate
    from splitinfer.tracing import Trace as Trace
    from splitinfer.verify import verify_split as verify_split

__version__ = "0.1.0"

_HOMES = {
    "Calibration": "splitinfer.calibrations",
    "Graph": "splitinfer.graph",
    "Pipeline": "splitinfer.pipeline",
    "Plan": "splitinfer.plans",
    "Profile": "splitinfer.profiles",
    "Trace": "splitinfer.tracing",
    "accurate_plan": "splitinfer.learn.accuracy",
    "calibrate": "splitinfer.learn.calibrate",
    "capture": "splitinfer.importer",
    "deploy": "splitinfer.runtime.deploy",
    "first_possible": "splitinfer.family",
    "plan": "splitinfer.planner",
    "plan_family": "splitinfer.family",
    "profile": "splitinfer.profiler",
    "resilient": "splitinfer.runtime.resilient",
    "simulate": "splitinfer.simulator",
    "verify_split": "splitinfer.verify",
}

__all__ = [
    "Calibration", "Graph", "Pipeline", "Plan", "Profile", "Trace", "__version__", "accurate_plan", "calibrate", "capture", "deploy",
    "first_possible", "plan", "plan_family", "profile", "resilient", "simulate", "verify_split",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in ("codecs", "errors", "learn", "simulator", "zoo"):
        return import_module(f"splitinfer.{name}")
    raise AttributeError(f"module 'splitinfer' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
