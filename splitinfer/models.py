"""MODEL and SAMPLES of the command line: factories in a module or a file; a model may be a trusted ``.pt2`` program."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from splitinfer.errors import UsageError


@dataclass(frozen=True)
class Model:
    """A module with a sample call."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def load_model(name: str, *, trust_code: bool = False) -> Model:
    """The model that a MODEL argument names.

    Raises UsageError, in one line, for a name that leads nowhere, a factory that fails or returns something else, and
    for a ``.pt2`` without `trust_code`: loading one runs whatever code is in it.
    """
    if name.partition(":")[0].endswith(".pt2"):
        return _program(name, trust_code)
    return _checked(_made(name, "MODEL"), name)


def load_samples(name: str) -> tuple[list[Any], list[int] | None]:
    """The samples, and labels if there are some, that a SAMPLES argument names.

    The factory takes no arguments and returns a list of samples, or (samples, labels); a sample is a tensor, a tuple of
    arguments or a dictionary of keyword arguments. Raises UsageError, in one line, for anything else.
    """
    made = _made(name, "SAMPLES")
    pair: Any = made
    samples, labels = pair if isinstance(made, tuple) and len(made) == 2 else (pair, None)
    try:
        found, marks = list(samples), None if labels is None else [int(label) for label in labels]
    except (TypeError, ValueError) as error:
        raise UsageError(f"the factory {name} must return a list of samples, or (samples, labels): {error}") from None
    if not found or (marks is not None and len(marks) != len(found)):
        raise UsageError(f"the factory {name} returned {len(found)} samples" + ("" if marks is None else f" and {len(marks)} labels"))
    return found, marks


def _made(name: str, kind: str) -> object:
    """What the factory of this name returns."""
    place, _, factory_name = name.rpartition(":")
    if not place or not factory_name:
        raise UsageError(f"{kind} is package.module:factory or path/file.py:factory; got '{name}'")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_module(place)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"'{place}' has no factory '{factory_name}'; it has {', '.join(sorted(known)[:12])}")
    try:
        return factory()
    except Exception as error:  # user code: its failure is the user's to mend, in one line
        raise UsageError(f"the factory {name} failed: {type(error).__name__}: {error}") from error


def _checked(made: object, name: str) -> Model:
    fits = isinstance(made, tuple) and len(made) == 3 and isinstance(made[0], nn.Module)
    if not fits or not isinstance(made[1], tuple) or not isinstance(made[2], dict):  # type: ignore[index]
        raise UsageError(f"the factory {name} must return (module, args tuple, kwargs dict); got {_shape_of(made)}")
    return Model(*made)  # type: ignore[misc]


def _shape_of(made: object) -> str:
    if isinstance(made, tuple):
        return f"({', '.join(type(item).__name__ for item in made)})"
    return type(made).__name__


def _from_module(place: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module beside the user, as with python -m
    try:
        return importlib.import_module(place)
    except ImportError as error:
        raise UsageError(f"cannot import '{place}': {error}") from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # user code, as above
        raise UsageError(f"cannot import {path}: {type(error).__name__}: {error}") from error
    return module


def _program(name: str, trust_code: bool) -> Model:
    """An exported program, with the sample that it carries."""
    if not trust_code:
        raise UsageError(
            f"{name} is refused: loading a .pt2 unpickles it, which can run any code that is in it. "
            f"If you made it yourself or trust who did, add --trust-code."
        )
    if not Path(name).is_file():
        raise UsageError(f"no file {name}")
    try:
        program = torch.export.load(name)
    except Exception as error:  # torch raises many types for a damaged file
        raise UsageError(f"cannot load {name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    if program.example_inputs is None:
        raise UsageError(f"{name} carries no sample inputs; export it again with torch.export.save of a program that has them")
    args, kwargs = program.example_inputs
    module = program.module()
    for child in module.modules():
        child.training = False  # an exported program has no mode of its own
    return Model(module, tuple(args), dict(kwargs))
