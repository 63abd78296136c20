"""Learned compression: bottlenecks and early exits, trained on the user's samples; docs/learned-compression.md.

The names are loaded when first used, because the planner takes :mod:`splitinfer.learn.reach` from here and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitinfer.learn.accuracy import accurate_plan as accurate_plan
    from splitinfer.learn.bottleneck import Bottleneck as Bottleneck
    from splitinfer.learn.bottleneck import train_bottleneck as train_bottleneck
    from splitinfer.learn.exits import ExitHead as ExitHead
    from splitinfer.learn.exits import apply_exits as apply_exits
    from splitinfer.learn.heads import train_exit as train_exit
    from splitinfer.learn.learned import Learned as Learned
    from splitinfer.learn.thresholds import Choice as Choice
    from splitinfer.learn.thresholds import Recorded as Recorded
    from splitinfer.learn.thresholds import choose_thresholds as choose_thresholds
    from splitinfer.learn.thresholds import record_exits as record_exits
    from splitinfer.learn.variants import learned_plan as learned_plan

_HOMES = {
    "accurate_plan": "accuracy",
    "Bottleneck": "bottleneck",
    "train_bottleneck": "bottleneck",
    "ExitHead": "exits",
    "apply_exits": "exits",
    "train_exit": "heads",
    "Learned": "learned",
    "learned_plan": "variants",
    "Choice": "thresholds",
    "Recorded": "thresholds",
    "choose_thresholds": "thresholds",
    "record_exits": "thresholds",
}

__all__ = [
    "Bottleneck", "Choice", "ExitHead", "Learned", "Recorded", "accurate_plan", "apply_exits", "choose_thresholds", "learned_plan",
    "record_exits", "train_bottleneck", "train_exit",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"splitinfer.learn.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'splitinfer.learn' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
