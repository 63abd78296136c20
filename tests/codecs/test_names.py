"""Names of codecs: each prints itself back, bad ones say what is wrong, and a packet's name must fit its bodies."""

import re
from pathlib import Path

import pytest
import torch
from codec_tensors import checked
from hypothesis import given
from hypothesis import strategies as st

from splitinfer import codecs
from splitinfer.codecs.block import Header
from splitinfer.codecs.forms import FORMS, number
from splitinfer.codecs.packet import Frame, Kind, Limits, Packet
from splitinfer.errors import CodecError

BITS, SPANS = (8, 6, 4, 3, 2), ("tensor", "channel", *(f"block{2**power}" for power in range(4, 11)))
levels = st.integers(1, 19)
numbers = st.floats(1e-9, 0.99).map(number)


@st.composite
def names(draw):
    """Canonical names, composed here from the grammar of docs/codecs.md."""
    level = draw(levels)
    shown = "" if level == 1 else str(level)
    always = f"+zstd{shown}" if shown else ""  # forms that are always compressed name only other levels than 1
    optional = draw(st.sampled_from(["", f"+zstd{shown}"]))
    return draw(st.sampled_from([
        "raw", f"zstd{shown}", f"fp16{optional}", f"bf16{optional}", f"int8{always}", f"uint8{always}",
        f"dct{draw(st.integers(1, 100))}{always}",
        f"int{draw(st.sampled_from(BITS))}/{draw(st.sampled_from(SPANS))}{draw(st.sampled_from(['', '/sym']))}{optional}",
        f"eb{draw(numbers)}{draw(st.sampled_from(['', 'rel']))}{always}",
        f"topk{draw(numbers)}{draw(st.sampled_from(['', '/fp16', '/bf16']))}{always}",
    ]))


@checked
@given(names())
def test_canonical_names_print_themselves(name):
    codec = codecs.get(name)
    assert codec.name == name
    assert codecs.get(codec.name) is codec


@pytest.mark.parametrize(("written", "canonical"), [
    ("zstd1", "zstd"), ("raw+zstd", "zstd"), ("raw+zstd7", "zstd7"), ("int4", "int4/channel"), ("int4/sym", "int4/channel/sym"),
    ("int8+zstd1", "int8"), ("int8+zstd", "int8"), ("fp16+zstd1", "fp16+zstd"), ("eb1e-3rel", "eb0.001rel"), ("eb.5", "eb0.5"),
    ("eb0.0000001", "eb1e-7"), ("eb20", "eb20"), ("eb20.0", "eb20"), ("eb2e30", "eb2e30"), ("topk1", "topk1"), ("topk0.10", "topk0.1"),
    ("dct090", "dct90"), ("int4/channel+zstd01", "int4/channel+zstd"),
])
def test_other_spellings(written, canonical):
    assert codecs.get(written).name == canonical


@pytest.mark.parametrize(("name", "message"), [
    ("zip", r"no codec 'zip'; known: raw, zstd, fp16, int8; forms: raw, zstd\[<level>\], fp16"),
    ("", "no codec ''; known"), ("+zstd", "known"), ("RAW", "known"), ("raw ", "known"), ("zstd\n", "known"),
    ("zstd20", "zstd1 to zstd19"), ("zstd0", "zstd1 to zstd19"), ("zstd999999999999999999999999", "zstd1 to zstd19"), ("zstd-1", "known"),
    ("zstd+zstd", "known"), ("zstd3+zstd", "known"), ("int4+lz4", "after '\\+' stands zstd"),
    ("int4/channel+zstd+zstd", "after '\\+' stands zstd"),
    ("int5/channel", "5 bits; choose from 8, 6, 4, 3, 2; the form is int<8"), ("int16", "16 bits; choose"), ("int4/block", "known"),
    ("int4/block48", "blocks of 48; choose from 16, 32, 64"), ("int4/channel/block64", "known"), ("int4/sym/channel", "known"),
    ("int4/row", "known"), ("int4/channel64", "known"), ("eb0", "0 is not above 0"),
    ("eb-1", "known"), ("ebnan", "known"), ("ebinf", "known"),
    ("eb1e999", "is not above 0"), ("eb1e+3", "after '\\+' stands zstd"), ("eb", "known"), ("topk0", "0 is not above 0 and at most 1"),
    ("topk1.5", "1.5 is not above 0 and at most 1"), ("topk0.1/int8", "known"), ("topk0.1+fp16", "after '\\+' stands zstd"),
    ("dct0", "quality 0 is not from 1 to 100"), ("dct101", "quality 101"), ("dct", "known"), ("uint4", "known"),
    ("x" * 65, "at most 64 characters"),
    ("int٤", "known"),
])
def test_bad_names_say_why(name, message):
    with pytest.raises(CodecError, match=message):
        codecs.get(name)


@checked
@given(st.text("abcdefint01248/+.-ezstdsymrlkpu", max_size=20) | st.text(max_size=70))
def test_any_text_is_a_codec_or_a_codec_error(text):
    try:
        codec = codecs.get(text)
    except CodecError:
        return
    assert codecs.get(codec.name).name == codec.name


def test_lists():
    assert codecs.names() == ("raw", "zstd", "fp16", "int8")
    assert codecs.suggested()[:4] == codecs.names()
    assert 10 <= len(codecs.suggested()) <= 15
    assert all(codecs.get(name).name == name for name in codecs.suggested())
    assert len(codecs.catalogue()) == len(FORMS) == 10
    assert all(written and meaning and "\n" not in meaning for written, meaning in codecs.catalogue())


def test_every_form_is_written_as_its_pattern_reads():
    """The catalogue's text, with its blanks filled in, parses to that form."""
    values = {"<level>": "3", "<8|6|4|3|2>": "4", "<tensor|channel|block<16..1024>>": "block64", "<bound>": "0.01", "<share>": "0.1",
              "<fp16|bf16>": "bf16", "<1..100>": "80"}
    for written, _ in codecs.catalogue():
        name = written
        for blank, value in values.items():
            name = name.replace(blank, value)
        assert codecs.get(name.replace("[", "").replace("]", "")).name
        while "[" in name:
            name = re.sub(r"\[[^][]*\]", "", name)
        assert codecs.get(name).name == name


def test_the_page_on_codecs_holds_the_catalogue():
    page = (Path(__file__).parents[2] / "docs" / "codecs.md").read_text(encoding="utf-8")
    for written, meaning in codecs.catalogue():
        assert f"| `{written.replace('|', chr(92) + '|')}` | {meaning} |" in page


def test_numbers_are_short_and_exact():
    assert [number(value) for value in (0.1, 1e-7, 2.0, 1e22, 1.5e300, 0.001)] == ["0.1", "1e-7", "2", "1e22", "1.5e300", "0.001"]


TWINS = [
    ("int4/channel", "int4/tensor"), ("int4/channel", "int4/channel/sym"), ("int4/block64", "int4/block32"),
    ("int3/tensor", "int2/tensor"),
    ("eb0.01", "eb0.02"), ("eb0.01", "eb0.01rel"), ("topk0.1", "topk0.2"), ("topk0.1", "topk0.1/fp16"), ("dct50", "dct51"),
]


@pytest.mark.parametrize(("writer", "reader"), TWINS + [(b, a) for a, b in TWINS])
def test_a_body_with_other_parameters_than_its_name_is_refused(writer, reader):
    """The packet's table names the codec; a body of the same number with other parameters would decode to nonsense."""
    tensor = torch.randn(1, 4, 16, 16)
    frame = Frame.encode("x", tensor, codecs.get(writer))
    packet = Packet(Kind.REQUEST, "r", (Frame("x", reader, frame.parts),))
    with pytest.raises(CodecError, match=f"not written by '{reader}'"):
        Packet.unpack(packet.pack()).frame("x").decode(Limits())


@pytest.mark.parametrize("form", ["fp16", "bf16", "int4/channel"])
def test_what_is_compressed_is_named_so(form):
    tensor = torch.relu(torch.randn(1, 4, 32, 32))
    plain, zipped = codecs.get(form), codecs.get(form + "+zstd")
    for writer, reader in ((plain, zipped), (zipped, plain)):
        data = writer.encode(tensor)
        if data[1] == 0:  # bit-packed codes, which both may send
            assert reader.decode(data).shape == tensor.shape
        else:
            with pytest.raises(CodecError, match="mode"):
                reader.decode(data)


def test_levels_read_each_other():
    tensor = torch.relu(torch.randn(1, 4, 32, 32))
    for name in ("zstd", "int8", "fp16+zstd", "int4/channel+zstd", "eb0.1", "topk0.1", "uint8", "dct90"):
        high = name[:-4] + "zstd19" if name.endswith("zstd") else name + "+zstd19"
        codec = codecs.get(name)
        assert torch.equal(codec.decode(codecs.get(high).encode(tensor)), codec.decode(codec.encode(tensor)))


def test_numbers_of_codecs_are_those_of_the_wire_format():
    for number_, name in enumerate(("raw", "zstd5", "fp16+zstd", "int8", "bf16", "int8/channel", "eb0.1", "topk0.1", "uint8", "dct90")):
        codec = codecs.get(name)
        assert codec.codec_id == number_ == Header.unpack(codec.encode(torch.rand(1, 3, 8, 8)))[0].codec_id
