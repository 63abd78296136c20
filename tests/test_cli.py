"""The command line: JSON for programs, one line and exit code 2 for bad input."""

import json
import subprocess
import sys

import pytest
import torch

import splitinfer
from splitinfer import plans, zoo
from splitinfer.cli import main

CLUSTER = """
version: 1
tiers: [{name: device, compute: {factor: 4}}, {name: cloud, compute: measured}]
links: [{between: [device, cloud], up: 10 Mbps, latency: 1 ms}]
"""


@pytest.fixture
def cluster_yaml(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER)
    return str(path)


def call(capsys, *arguments):
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, *arguments):
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1, err
    return err


class TestVerify:
    def test_stages(self, capsys):
        code, out, _ = call(capsys, "verify", "splitinfer.zoo:two_inputs_tied", "--stages", "4", "--json")
        verdict = json.loads(out)
        assert code == 0
        assert (verdict["exact"], verdict["stages"], verdict["max_abs_difference"]) == (True, 4, 0.0)

    def test_dynamic_batch(self, capsys):
        code, out, _ = call(capsys, "verify", "splitinfer.zoo:digits", "--dynamic-batch")
        assert code == 0
        assert out == "exact: every output equal bit for bit (2 stages, 3 calls)\n"

    def test_all_cuts(self, capsys):
        code, out, _ = call(capsys, "verify", "splitinfer.zoo:digits", "--all-cuts", "--json")
        assert code == 0
        assert json.loads(out)["calls"] == 14

    def test_a_lossy_plan_is_not_exact_and_says_why(self, capsys, tmp_path):
        from splitinfer import Plan, capture

        model, args, _ = zoo.digits()
        graph = capture(model, args)
        order = list(graph.layers)
        Plan.by_hand(graph, [order[:4], order[4:]], codecs=dict.fromkeys(graph.tensors, "int8")).save(tmp_path / "plan.json")
        code, out, _ = call(capsys, "verify", "splitinfer.zoo:digits", "--plan", str(tmp_path / "plan.json"), "--json")
        verdict = json.loads(out)
        assert code == 1
        assert not verdict["exact"]
        assert 0 < verdict["max_abs_difference"] < 0.1
        assert "int8, which loses bits on purpose" in verdict["note"]

    def test_too_many_stages(self, capsys):
        assert "at most 5 stages with work in each; asked for 9" in refused(capsys, "verify", "splitinfer.zoo:digits", "--stages", "9")

    def test_from_a_file_in_a_fresh_process(self, tmp_path):
        (tmp_path / "my_model.py").write_text(
            "import torch\ndef make():\n    m = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))\n"
            "    return m.eval(), (torch.randn(3, 4),), {}\n"
        )
        result = subprocess.run(
            [sys.executable, "-m", "splitinfer", "verify", f"{tmp_path}/my_model.py:make", "--json"],
            capture_output=True, text=True, timeout=120,
        )
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["exact"] is True


class TestProfileAndPlan:
    def test_profile_then_plan_without_the_model(self, capsys, tmp_path, cluster_yaml):
        code, out, _ = call(capsys, "profile", "splitinfer.zoo:digits", "-o", str(tmp_path / "profile.json"))
        assert code == 0
        assert "DigitsCNN: 15 layers" in out
        code, out, _ = call(capsys, "plan", "--profile", str(tmp_path / "profile.json"), "--topology", cluster_yaml,
                            "--codecs", "raw,zstd,fp16,int8", "-o", str(tmp_path / "plan.json"), "--json")  # fmt: skip
        assert code == 0
        made = json.loads(out)
        assert made["version"] == plans.VERSION
        assert made["certificate"]["status"] == "optimal"
        assert json.loads((tmp_path / "plan.json").read_text()) == made
        assert sum(len(stage["layers"]) for stage in made["stages"]) == 15
        code, out, _ = call(capsys, "plan", "--profile", str(tmp_path / "profile.json"), "--topology", cluster_yaml)
        assert "device only" in out
        assert "cloud only" in out

    def test_profile_json(self, capsys):
        code, out, _ = call(capsys, "profile", "splitinfer.zoo:digits", "--json")
        data = json.loads(out)
        assert code == 0
        first = data["layers"][0]
        assert (first["name"], first["flops"], first["weight_nbytes"]) == ("features.0", 2 * 64 * 32 * 9, 1280)
        assert set(data["tensors"][0]["sent_nbytes"]) == {"raw", "zstd", "fp16", "int8"}


class TestRun:
    def test_a_plan_runs_on_the_topology_it_was_made_for(self, capsys, tmp_path, cluster_yaml):
        profile, plan = str(tmp_path / "profile.json"), str(tmp_path / "plan.json")
        call(capsys, "profile", "splitinfer.zoo:digits", "-o", profile)
        call(capsys, "plan", "--profile", profile, "--topology", cluster_yaml, "-o", plan)
        code, out, err = call(capsys, "run", "splitinfer.zoo:digits", "--plan", plan, "--requests", "3", "--in-flight", "2", "--json")
        assert code == 0, err
        report = json.loads(out)
        assert report["requests"] == 3
        assert report["up_nbytes"] == pytest.approx(report["predicted_up_nbytes"], abs=32)
        assert set(report["breakdown_s"]) >= {"compute", "encode", "wire", "decode", "return", "framework"}

    def test_a_plan_by_hand_needs_a_topology(self, capsys, tmp_path):
        from splitinfer import Plan, capture

        model, args, _ = zoo.digits()
        graph = capture(model, args)
        Plan.by_hand(graph, [list(graph.layers)]).save(tmp_path / "plan.json")
        assert "give --topology" in refused(capsys, "run", "splitinfer.zoo:digits", "--plan", str(tmp_path / "plan.json"))


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["verify", "nomodule:make"], "cannot import 'nomodule'"),
            (["verify", "nofile.py:make"], "no file nofile.py"),
            (["verify", "splitinfer.zoo"], "MODEL is package.module:factory"),
            (["verify", "splitinfer.zoo:missing"], "has no factory 'missing'; it has"),
            (["verify", "os:getcwd"], r"must return (module, args tuple, kwargs dict); got str"),
            (["verify", "model.pt2"], "can run any code that is in it"),
            (["verify", "splitinfer.zoo:digits", "--plan", "none.json"], "cannot read the plan none.json"),
            (["plan", "splitinfer.zoo:digits", "--topology", "none.yaml"], "none.yaml"),
            (["profile", "splitinfer.zoo:digits", "-o", "/proc/none/profile.json"], "cannot write /proc/none/profile.json"),
        ],
    )
    def test_bad_input(self, capsys, arguments, message):
        assert message in refused(capsys, *arguments)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--objective", "speed"], "objective 'speed': 'speed' is not understood"),
            (["--codecs", "raw,int5"], "int5"),
            (["--strategy", "guess"], "there is no strategy 'guess'"),
        ],
    )
    def test_wishes_are_checked_before_anything_is_measured(self, capsys, cluster_yaml, arguments, message):
        # The model does not exist: it would be the next thing to fail.
        assert message in refused(capsys, "plan", "no.such:model", "--topology", cluster_yaml, *arguments)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--samples", "no.such:samples"], "say how much it may, with --max-accuracy-drop"),
            (["--samples", "no.such:samples", "--max-accuracy-drop", "1%", "--profile", "none.json"], "name the MODEL too"),
            (["--learned", "none.spli", "--profile", "none.json"], "name the MODEL too"),
            (["--metric", "kl", "--profile", "none.json"], "--metric kl judges the answers to samples; give --samples too"),
            (["--profile", "none.json", "--within", "latency=1s", "--within", "latency=2s"], "--within latency is given twice, 1 and 2"),
            (["--profile", "none.json", "--within", "interval=1s", "--within", "period=2s"], "--within interval is given twice, 1 and 2"),
        ],
    )
    def test_what_would_be_ignored_is_refused(self, capsys, cluster_yaml, arguments, message):
        """Samples without a budget, a metric without samples and all but the last of equal limits were dropped in silence."""
        model = [] if "--profile" in arguments else ["no.such:model"]
        assert message in refused(capsys, "plan", *model, "--topology", cluster_yaml, *arguments)

    def test_a_limit_below_zero(self, capsys, cluster_yaml):
        message = refused(capsys, "plan", "no.such:model", "--topology", cluster_yaml, "--within", "energy=-1")
        assert "cannot plan within energy = -1" in message

    def test_errors_of_several_lines_are_one_line_here(self, capsys, tmp_path, cluster_yaml):
        profile = str(tmp_path / "profile.json")
        model, args, _ = zoo.digits()
        splitinfer.profile(splitinfer.capture(model, args), codec_names=["raw"], repeats=2, budget_s=0.3).save(profile)
        small = CLUSTER.replace("{factor: 4}", "{factor: 4}, memory: 1 kB").replace("compute: measured", "compute: measured, memory: 1 kB")
        (tmp_path / "cluster.yaml").write_text(small)
        assert "no plan fits" in refused(capsys, "plan", "--profile", profile, "--topology", cluster_yaml, "--codecs", "raw")

    @pytest.mark.parametrize("arguments", [[], ["verify"], ["verify", "x:y", "--stages", "0"], ["nonsense"]])
    def test_a_wrong_command_line_is_one_line_too(self, capsys, arguments):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_a_closed_pipe_is_no_error(self):
        result = subprocess.run(
            f"{sys.executable} -m splitinfer profile splitinfer.zoo:digits | true", shell=True, capture_output=True, text=True, timeout=120
        )
        assert "Traceback" not in result.stderr

    def test_topology_errors_carry_line_and_key(self, capsys, tmp_path):
        path = tmp_path / "cluster.yaml"
        path.write_text(CLUSTER.replace("10 Mbps", "fast"))
        message = refused(capsys, "plan", "splitinfer.zoo:digits", "--topology", str(path))
        assert ":4: links[0].up" in message
        assert "'fast'" in message

    def test_plan_without_model_or_profile(self, capsys, cluster_yaml):
        assert "name a MODEL to measure, or give --profile" in refused(capsys, "plan", "--topology", cluster_yaml)

    def test_debug_shows_the_trace(self):
        from splitinfer.errors import UsageError

        with pytest.raises(UsageError):
            main(["verify", "nomodule:make", "--debug"])

    def test_a_plan_of_another_model(self, capsys, tmp_path):
        from splitinfer import Plan, capture

        model, args, _ = zoo.digits()
        graph = capture(model, args)
        Plan.by_hand(graph, [list(graph.layers)]).save(tmp_path / "plan.json")
        message = refused(capsys, "verify", "splitinfer.zoo:lstm", "--plan", str(tmp_path / "plan.json"))
        assert "the plan was made for DigitsCNN" in message

    def test_trusted_program_file(self, capsys, tmp_path):
        model, args, _ = zoo.digits()
        path = tmp_path / "model.pt2"
        torch.export.save(torch.export.export(model, args), path)
        code, out, err = call(capsys, "verify", str(path), "--trust-code", "--json")
        assert code == 0, err
        assert json.loads(out)["exact"] is True
