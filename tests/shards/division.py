"""What the tests of vertical splits share."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from splitinfer import capture
from splitinfer.shards import divide, run_local
from splitinfer.sizes import sizes_at
from splitinfer.stages import carve

TOLERANCE = 1e-5
SHARES = st.lists(st.integers(0, 6), min_size=2, max_size=5).filter(any)


def found_by(*strategies, quick=3, thorough=150):
    """A property on a few examples by default, on many among the slow tests."""

    def wrap(check):
        @pytest.mark.parametrize("examples", [quick, pytest.param(thorough, marks=pytest.mark.slow)])
        def test(examples):
            settings(max_examples=examples, deadline=None)(given(*strategies)(check))()

        return test

    return wrap


def error(expected, got):
    """Largest difference over the outputs, relative to the largest magnitude of each."""
    expected, got = pytree.tree_leaves(expected), pytree.tree_leaves(got)
    assert [value.shape for value in expected] == [value.shape for value in got]
    pairs = [(one, two) for one, two in zip(expected, got, strict=True) if one.numel()]
    return max(float((one - two).abs().max()) / (float(one.abs().max()) or 1.0) for one, two in pairs)


def run_part(graph, layers, tensors, dimensions):
    """The unsplit layers, by the horizontal carving that other tests hold against the eager module."""
    stage = carve(graph, layers)
    return stage(tensors, sizes_at(graph, stage.sizes, dimensions))


def check_module(model, args, axis, shares, layers=None, dynamic=None, **settings):
    """Divide a module (or some layers of it), compare with the eager module (or the carved layers), return the block."""
    model.eval()
    graph = capture(model, args, dynamic_shapes=dynamic)
    block = divide(graph, layers or graph.layers, axis, shares, **settings)
    tensors, dimensions = graph.bind(args, {})
    got = run_local(block, tensors, sizes_at(graph, block.sizes, dimensions))
    if layers is None:
        with torch.no_grad():
            expected = pytree.tree_leaves(model(*args))
        got = [got[leaf.name] for leaf in graph.outputs]
    else:
        expected, got = zip(*((value, got[name]) for name, value in run_part(graph, layers, tensors, dimensions).items()), strict=True)
    assert error(list(expected), list(got)) <= TOLERANCE
    return block
