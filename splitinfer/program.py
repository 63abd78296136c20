"""``torch.export``, made functional, with errors that name the module and what works instead.

The program is functionalised with an empty table of decompositions, so that writing in place, also through a view, becomes
a plain data dependency while composite operators stay whole. On every family of the zoo the result equals the eager module
bit for bit.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitinfer.errors import CaptureError


def batch_shapes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Every tensor's first dimension varies, one size for all."""
    batch = torch.export.Dim("batch", min=1)

    def spec(leaf: object) -> object:
        return {0: batch} if isinstance(leaf, Tensor) and leaf.dim() else None

    return (*pytree.tree_map(spec, args), *pytree.tree_map(spec, dict(kwargs)).values())


def functional_program(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """The functional program. Dimensions of size 1 are doubled for tracing where they may vary: torch fixes a 1."""
    traced_args, traced_kwargs = _widened(args, kwargs, dynamic_shapes)
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(
                model, traced_args, traced_kwargs, dynamic_shapes=dynamic_shapes, strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            functional: torch.export.ExportedProgram = program.run_decompositions({})
            return functional
    except Exception as error:  # torch raises many types here; each becomes one CaptureError
        raise _explained(model, args, kwargs, error) from error


def _widened(args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The sample with its batch doubled where dimension 0 is dynamic and 1 for every tensor that has it."""
    if not isinstance(dynamic_shapes, tuple):
        return args, kwargs

    def widen(leaf: object, spec: object) -> object:
        if isinstance(leaf, Tensor) and isinstance(spec, dict) and 0 in spec and leaf.shape[0] == 1:
            return torch.cat([leaf, leaf])
        return leaf

    values = [*args, *kwargs.values()]
    wide = [
        pytree.tree_map(widen, value, spec) if isinstance(value, Tensor) else _widen_nested(widen, value, spec)
        for value, spec in zip(values, dynamic_shapes, strict=True)
    ]
    return tuple(wide[: len(args)]), dict(zip(kwargs, wide[len(args) :], strict=True))


def _widen_nested(widen: Any, value: Any, spec: Any) -> Any:
    leaves, tree = pytree.tree_flatten(value)
    specs = pytree.tree_leaves(spec, is_leaf=lambda node: node is None or (isinstance(node, dict) and 0 in node))
    if len(specs) != len(leaves):
        return value
    return pytree.tree_unflatten([widen(leaf, one) for leaf, one in zip(leaves, specs, strict=True)], tree)


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns about its own internals; a user can do nothing about it."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _explained(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> CaptureError:
    """The error with the module that it came from, and what works instead."""
    path = _failing_module(model, error)
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as own:
        return CaptureError(f"the model does not take its own sample: {_first_line(own)} (in module '{_failing_module(model, own)}')")
    kind = type(error).__name__
    if "DataDependent" in kind or "data-dependent" in str(error):
        advice = "its control flow depends on the values of a tensor; use torch.where or torch.cond there"
    elif "dynamic" in str(error).lower() or "Constraint" in kind:
        advice = "the dynamic dimensions do not fit the model; capture one static graph per shape instead"
    else:
        advice = "torch.export refuses it; move the unsupported part out of forward, or capture the submodules around it"
    return CaptureError(f"module '{path}' cannot be captured: {_first_line(error)}\n  What to try: {advice}.")


def _failing_module(model: nn.Module, error: BaseException) -> str:
    """Path of the innermost module of the model on the error's stack."""
    names = {id(module): name for name, module in model.named_modules()}
    found, trace = "", error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        found = names.get(id(owner), found) or found
        trace = trace.tb_next
    return found or type(model).__name__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
