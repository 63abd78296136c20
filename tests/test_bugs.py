"""Bugs that were found, each with its story."""

import msgpack
import numpy as np
import pytest
import torch
from torch import nn

from splitinfer import capture, codecs, profile, zoo
from splitinfer.codecs.packet import Packet
from splitinfer.errors import PlanError
from splitinfer.stagefile import STAGE_LIMITS, dump_stage, load_stage
from splitinfer.stages import carve


def forged(change):
    """A stage file whose program was changed, its checksum right."""
    model, args, _ = zoo.digits()
    packet = Packet.unpack(dump_stage(carve(capture(model, args), ["features.0", "features.1"])), STAGE_LIMITS)
    meta = msgpack.unpackb(msgpack.packb(dict(packet.meta)))
    change(meta["program"]["rows"])
    return Packet(packet.kind, packet.request_id, packet.frames, meta=meta).pack()


# fx pastes targets and names into the Python that it generates: a forged stage file could run any code of its sender.
@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[0].__setitem__(2, "x = open('/tmp/splitinfer-was-here', 'w')"),
        lambda rows: rows[0].__setitem__(0, "a; import os"),
        lambda rows: next(row for row in rows if row[1] == "get_attr").__setitem__(2, "weight_0 or exit()"),
        lambda rows: next(row for row in rows if row[1] == "call_function").__setitem__(4, {"d": {"x=exit()": 1}}),
        lambda rows: next(row for row in rows if row[1] == "call_function").__setitem__(1, "call_method"),
        lambda rows: next(row for row in rows if row[1] == "call_function").__setitem__(2, "os::system.default"),
        lambda rows: rows.pop(),  # no output
        lambda rows: rows.clear(),
    ],
)
def test_a_forged_stage_file_runs_no_code(change, tmp_path):
    with pytest.raises(PlanError):
        load_stage(forged(change))


def test_the_forgery_itself_is_well_made():
    assert load_stage(forged(lambda rows: None)).layers == ("features.0", "features.1")


# A decoded tensor that started elsewhere in a cache line than the original made MKL sum in another order.
def test_memory_starts_at_the_same_place_in_a_cache_line():
    base = torch.arange(64.0)
    for start in (0, 1, 3, 15, 16):
        tensor = base[start : start + 20]
        for name in codecs.names():
            decoded = codecs.get(name).decode(codecs.get(name).encode(tensor), copy=False)
            assert decoded.data_ptr() % 64 == tensor.data_ptr() % 64, (name, start)


# Recurrent layers choose their kernel by requires_grad, also under no_grad: a GRU stage whose weights were plain
# buffers differed from the module in the last bit.
def test_stages_keep_requires_grad():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.GRU(8, 8, num_layers=2, bidirectional=True, batch_first=True)).eval(), torch.randn(2, 5, 8)
    stage = carve(capture(model, (x,)), capture(model, (x,)).layers)
    assert all(weight.requires_grad for weight in stage.module.parameters())
    loaded = load_stage(dump_stage(stage))
    with torch.no_grad():
        expected = model(x)
    for one in (stage, loaded):
        results = list(one({"input": x}, {}).values())
        assert any(torch.equal(result, expected[0]) for result in results)


# Two pipelines made from one graph shared the buffer that the model changes, so each saw the other's calls.
def test_pipelines_do_not_share_state():
    from splitinfer.pipeline import Pipeline
    from splitinfer.plans import Plan

    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x + self.calls

    graph = capture(Counts().eval(), (torch.zeros(2),))
    plan = Plan.by_hand(graph, [list(graph.layers)])
    one, two = Pipeline.local(graph, plan), Pipeline.local(graph, plan)
    assert [one(torch.zeros(2))[0].item() for _ in range(3)] == [1, 2, 3]
    assert two(torch.zeros(2))[0].item() == 1


# A tensor of arrays from outside may start between two elements; its packet was refused by every decoder.
def test_unaligned_memory_from_numpy():
    raw = np.frombuffer(b"\0" + np.arange(5, dtype=np.float32).tobytes(), dtype=np.uint8)[1:].view(np.float32)
    tensor = torch.from_numpy(raw.copy() if not raw.flags.aligned and not raw.flags.writeable else raw)
    assert torch.equal(codecs.get("raw").decode(codecs.get("raw").encode(tensor)), tensor)


def test_an_input_called_input_has_codec_times():
    """fx renames a placeholder that bears the name of a builtin, as that of `nn.Sequential` does, and the profile missed it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    graph = capture(model, (torch.randn(1, 3, 8, 8),))
    assert "input" in graph.tensors
    measured = profile(graph, codec_names=["raw"], repeats=1)
    assert set(measured.measurements[0].codec_s) == set(graph.tensors)
    assert all(tensor.sent_nbytes for tensor in measured.tensors)
