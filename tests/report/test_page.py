"""The page as text: complete, self-contained, and harmless whatever the files say."""

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_plans import a_topology
from small_plans import CODECS, PROFILE, SPLIT, TOPOLOGY, chain, hybrid, measured

from splitinfer.errors import PlanError, UsageError
from splitinfer.planner import baseline_plans, plan
from splitinfer.plans import Candidate
from splitinfer.report import Traces, examine
from splitinfer.report.chart import Scale
from splitinfer.report.graph import layer_groups
from splitinfer.report.markup import Markup, joined, tag
from splitinfer.report.page import page

HOSTILE = '</title></script></style><script>document.documentElement.dataset.pwned = "yes"</script><img src=x onerror="pwn()">"\'&\ud800\0'
FOUND = examine(SPLIT, PROFILE, TOPOLOGY, Traces((measured(), measured(0.25))), points=3)


class Parsed(HTMLParser):
    """Elements, their attributes, and the text in each."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], Counter(), []
        self.data = self.script = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in ("meta", "link", "br"):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, text):
        if self.open and self.open[-1] == "script":
            self.data, self.script = (text, self.script) if self.elements[-1][1].get("id") == "data" else (self.data, text)

    def ids(self):
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]

    def count(self, name):
        return sum(found == name for found, _ in self.elements)


def hostile_findings(word):
    """Every name that a plan, a profile or a trace can hold is the word; a topology takes letters and digits only."""
    profile = replace(chain(tuple(f"{word}.{place}" for place in range(4))), model=word)
    tensors = tuple(replace(tensor, name=f"{word}{place}") for place, tensor in enumerate(profile.tensors))
    codings = {tensor.name: profile.measurements[0].codec_s[old.name] for tensor, old in zip(tensors, profile.tensors, strict=True)}
    profile = replace(profile, tensors=tensors, measurements=(replace(profile.measurements[0], codec_s=codings, machine=word),))
    made = plan(profile, TOPOLOGY, codecs=CODECS)
    stages = tuple(replace(stage, name=word) for stage in made.stages)
    rivals = tuple(replace(each, name=f"{word} only", why_not=word) for each in made.baselines)
    made = replace(
        made, stages=stages, certificate={**made.certificate, "strategy": word}, baselines=(*rivals, Candidate(word, None, word))
    )
    return examine(made, profile, TOPOLOGY, Traces((measured(tier=word, request=word),)), points=2)


def check_harmless(text):
    found = Parsed(text)
    assert not found.open
    assert found.count("script") == 2
    assert found.count("img") == found.count("iframe") == 0
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert len(found.ids()) == len(set(found.ids()))
    return found


class TestComplete:
    def test_sections(self):
        found = check_harmless(page(FOUND))
        assert found.count("h1") == 1
        assert {"plan", "clocks", "request", "rivals", "bandwidth", "trade-offs"} <= set(found.ids())
        assert set(re.findall(r'<svg role="img" aria-labelledby="(\S+)-title', page(FOUND))) == {
            "graph", "clocks-bars", "gantt-measured", "gantt-simulated", "rivals-bars", "curves", "front-energy", "front-money",
        }  # fmt: skip

    def test_every_picture_is_named_and_has_a_table_behind_it(self):
        found = check_harmless(page(FOUND))
        for name, attributes in found.elements:
            assert all(word in found.ids() for word in attributes.get("aria-labelledby", "").split()), (name, attributes)
        assert found.count("table") >= found.count("svg")
        assert found.count("table") == found.count("caption")

    def test_the_differences_are_printed_in_per_cent(self):
        text = page(FOUND)
        predicted = SPLIT.cost.latency_s
        assert f"{(predicted / 0.2 - 1) * 100:+.1f} %" in text
        assert "predicted against measured" in text
        assert "simulated against measured" in text
        assert f"{0.095 / 0.2 * 100:.1f} % of the measured latency is declared sleep" in text

    def test_the_numbers_are_inside_as_json(self):
        found = Parsed(page(FOUND))
        assert json.loads(found.data) == json.loads(FOUND.to_json())
        assert [clock["name"] for clock in json.loads(found.data)["clocks"]] == ["predicted", "simulated", "measured"]

    def test_nothing_comes_from_elsewhere(self):
        found = Parsed(page(FOUND))
        for name, attributes in found.elements:
            for key in ("src", "srcset", "href", "action", "xlink:href", "data"):
                assert attributes.get(key, "#")[0] == "#" or attributes[key] == "data:,", (name, attributes)
            assert "style" not in attributes  # the policy forbids them
        policy = next(
            attributes["content"] for _, attributes in found.elements if attributes.get("http-equiv") == "Content-Security-Policy"
        )
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert not re.findall(r"url\((?!#)|@import|https?:", page(FOUND))

    def test_a_plan_by_hand(self):
        found = examine(replace(SPLIT, cost=None, baselines=(), certificate={}), PROFILE, TOPOLOGY, points=2)
        text = page(found)
        assert "The plan was made by hand, so nothing was predicted." in text
        assert "rivals" not in Parsed(text).ids()
        assert [column.name for column in found.comparison.columns] == ["simulated"]

    def test_a_single_tier(self):
        alone = a_topology([1], [])
        found = examine(plan(PROFILE, alone, codecs=["raw"]), PROFILE, alone)
        assert found.sweep is None
        assert "bandwidth" not in check_harmless(page(found)).ids()

    def test_layers_that_machines_share(self):
        """The graph shows their shares; where the simulator does not take such a plan, the page says so."""
        found = examine(hybrid(), PROFILE, TOPOLOGY, points=2)
        text = page(found)
        assert "2 layers shared by rows" in text
        assert "camera-2: 3 (30.0 %)" in text
        simulated = any(column.name == "simulated" for column in found.comparison.columns)
        assert simulated or "Not simulated: " in text


class TestHarmless:
    def test_markup_in_every_name(self):
        text = page(hostile_findings(HOSTILE))
        found = check_harmless(text)
        text.encode("utf-8")  # half a surrogate pair cannot be written
        benign = Parsed(page(hostile_findings("x" * len(HOSTILE))))
        assert [name for name, _ in found.elements] == [name for name, _ in benign.elements]
        assert found.script == benign.script
        assert HOSTILE in json.loads(found.data)["plan"]["model"]

    @settings(max_examples=5, deadline=None)
    @given(st.text(st.sampled_from("<>&\"'/=! -]scriptSCRIPT\n\u2028\ud800"), min_size=1, max_size=30))
    def test_any_name(self, word):
        check_harmless(page(hostile_findings(f"n{word}")))

    @given(st.text(), st.text())
    def test_text_is_escaped_once_and_markup_never(self, inner, value):
        made = tag("p", inner, tag("b", inner), class_=value, hidden=True, id=None)
        assert isinstance(made, Markup)
        assert joined(made) == made
        parsed = Parsed(made)
        assert [name for name, _ in parsed.elements] == ["p", "b"]
        assert set(parsed.elements[0][1]) == {"class", "hidden"}


class TestRefusals:
    def test_another_model(self):
        with pytest.raises(PlanError, match="the profile is of test"):
            examine(replace(SPLIT, fingerprint="0" * 16), PROFILE, TOPOLOGY)

    def test_no_topology(self):
        with pytest.raises(UsageError, match="names no topology; give one"):
            examine(replace(SPLIT, topology=None), PROFILE)

    def test_too_few_points(self):
        with pytest.raises(UsageError, match="1 rates; a curve needs 2"):
            examine(SPLIT, PROFILE, TOPOLOGY, points=1)

    def test_unknown_codec(self):
        with pytest.raises(PlanError, match="'int5'"):
            examine(SPLIT, PROFILE, TOPOLOGY, codecs=["int5"])

    def test_a_topology_without_the_plan_s_tiers_is_said_on_the_page(self):
        other = a_topology([2, 1], [(1e5, 1e5, 0.0)])
        made = baseline_plans(PROFILE, TOPOLOGY, CODECS)["t2 only"]
        assert "Not simulated: the plan uses tier 't2'" in page(examine(made, PROFILE, other, points=2))


class TestDrawing:
    @given(st.floats(1e-6, 1e9), st.floats(1.0001, 1e9), st.booleans())
    def test_ticks_are_few_and_inside(self, low, ratio, log):
        scale = Scale(low, low * ratio, 0.0, 100.0, log)
        ticks = scale.ticks()
        assert 1 <= len(ticks) <= 20
        assert all(-1e-6 <= scale(tick) <= 100 + 1e-6 for tick in ticks)
        assert ticks == sorted(ticks)

    def test_layers_in_groups(self):
        layers = [f"body.{block}.{part}" for block in range(3) for part in ("conv", "norm")] + ["head"]
        assert layer_groups(layers) == [(name, 1) for name in layers]
        assert layer_groups(layers, most=4) == [("body.0", 2), ("body.1", 2), ("body.2", 2), ("head", 1)]
        assert layer_groups(layers, most=2) == [("body", 6), ("head", 1)]
        assert layer_groups(["a", "b", "c", "d"], most=3) == [("a", 1), ("b", 1), ("…", 2)]
        assert sum(count for _, count in layer_groups([f"l{n}" for n in range(100)])) == 100
