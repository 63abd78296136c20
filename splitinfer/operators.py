"""What the importer asks of single operators: the module call they came from, names for people, whether they are random."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx


@dataclass
class Run:
    """Consecutive operators of one module call."""

    module: str
    nodes: list[fx.Node] = field(default_factory=list)


def is_getitem(node: fx.Node) -> bool:
    """Whether the operator takes one part of another's tuple."""
    return getattr(node.target, "__name__", "") == "getitem"


def is_random(node: fx.Node) -> bool:
    """Whether an operator draws random numbers at this call: attention and recurrent layers only with dropout on."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    given = dict(zip((argument.name for argument in target._schema.arguments), node.args, strict=False)) | node.kwargs
    if "dropout_p" in given or "attention" in target._opname:
        return bool(given.get("dropout_p", 0.0))
    if "train" in given:
        return bool(given["train"])
    return True


def module_path(node: fx.Node) -> tuple[str, str]:
    """Path of the innermost module that made the operator, and a key that differs between its calls."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", ""
    key, (path, _) = list(stack.items())[-1]
    return path.partition("@")[0], str(key)


def _op_name(node: fx.Node) -> str:
    target = node.target
    name = target._schema.name.partition("::")[2] if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
    return str(name).lstrip("_")


_VIEWS = {"view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "expand", "getitem", "slice", "select", "clone", "to", "t",
          "contiguous", "alias", "detach", "split", "chunk"}


def layer_names(runs: list[Run], granularity: str) -> list[str]:
    """The module's path; behind it the telling operator where the module has children or is the root."""
    paths = {run.module for run in runs}
    parents = {path.rpartition(".")[0] for path in paths} | {""}
    for path in paths:
        while path:
            path = path.rpartition(".")[0]
            parents.add(path)
    names: list[str] = []
    counts: dict[str, int] = {}
    for run in runs:
        name = run.module
        if granularity == "op" or name in parents:
            telling = [node for node in run.nodes if _op_name(node) not in _VIEWS] or run.nodes
            op = run.nodes[0].name if granularity == "op" else _op_name(telling[-1])
            name = f"{name}.{op}" if name else op
        counts[name] = counts.get(name, 0) + 1
        names.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return names
