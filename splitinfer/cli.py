"""The command ``splitinfer``. Parsing the command line loads neither torch nor ray.

Exit codes: 0 done; 1 a check failed (``verify`` found a difference); 2 bad input, in one line; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from cluster.topology import Topology
    from splitinfer.graph import Graph
    from splitinfer.models import Model
    from splitinfer.plans import Plan
    from splitinfer.profiles import Profile

_MODEL_HELP = "package.module:factory or path/file.py:factory; the factory takes no arguments and returns (model, args, kwargs)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, 'head' for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # the last place: one line for people, a trace on request
        if options.debug or not _expected(error):
            raise
        print(f"splitinfer: {error}", file=sys.stderr)
        return 2


def _expected(error: Exception) -> bool:
    """Whether an error speaks to the user; anything else is a bug of ours and shows its trace."""
    from cluster.errors import ClusterError
    from partitioners.errors import PartitionerError
    from splitinfer.errors import SplitinferError

    return isinstance(error, ClusterError | PartitionerError | SplitinferError)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage is for --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="splitinfer", description="Distributed split inference for PyTorch models.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = _command(commands, "demo", _demo, "two models over three tiers on this machine: plans, requests, predicted beside measured")
    demo.add_argument("--requests", type=_positive, default=20, help="requests for each row (default 20)")

    profile = _command(commands, "profile", _profile, "measure a model's layers and codecs")
    _model_arguments(profile)
    profile.add_argument("--topology", type=Path, metavar="YAML", help="measure on the tiers' own nodes, and the calls between them")
    profile.add_argument("--threads", type=_positive, help="torch threads without a topology (default 1)")
    profile.add_argument("-o", "--output", type=Path, metavar="JSON", help="write the profile here")

    plan = _command(commands, "plan", _plan, "choose where each layer runs")
    _model_arguments(plan, optional=True)
    plan.add_argument("--topology", type=Path, required=True, metavar="YAML", help="tiers and links (docs/cluster-yaml.md)")
    plan.add_argument("--profile", type=Path, metavar="JSON", help="a profile made before; without it the model is measured here")
    plan.add_argument("--objective", default="latency", help="what to minimise: latency")
    plan.add_argument("--codecs", default="raw,zstd", help="codecs that a cut may use (default raw,zstd; lossy: fp16,int8)")
    plan.add_argument("--strategy", default="auto", help="auto, mincut, milp or exhaustive")
    plan.add_argument("-o", "--output", type=Path, metavar="JSON", help="write the plan here")

    run = _command(commands, "run", _run, "run a plan on Ray, on this machine")
    _model_arguments(run)
    run.add_argument("--plan", type=Path, required=True, metavar="JSON")
    run.add_argument("--topology", type=Path, metavar="YAML", help="other tiers and links than those that the plan was made for")
    run.add_argument("--requests", type=_positive, default=10, help="requests with the sample input (default 10)")
    run.add_argument("--in-flight", type=_positive, default=1, help="requests under way at once (default 1)")

    verify = _command(commands, "verify", _verify, "compare the split model with the whole one, bit for bit")
    _model_arguments(verify)
    where = verify.add_mutually_exclusive_group()
    where.add_argument("--stages", type=_positive, metavar="K", help="K stages cut nearest to equal FLOPs (default 2)")
    where.add_argument("--plan", type=Path, metavar="JSON", help="the stages and codecs of a plan")
    where.add_argument("--all-cuts", action="store_true", help="two stages at every possible cut")
    return parser


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="one JSON object on standard output")
    command.add_argument("--debug", action="store_true", help="show traces of errors")
    return command


def _model_arguments(command: argparse.ArgumentParser, optional: bool = False) -> None:
    command.add_argument("model", nargs="?" if optional else None, metavar="MODEL", help=_MODEL_HELP)
    command.add_argument("--dynamic-batch", action="store_true", help="let the first dimension of every input vary")
    command.add_argument("--trust-code", action="store_true", help="load a .pt2 file, which can run any code it holds")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number")
    return number


def _version() -> str:
    from splitinfer import __version__

    return f"splitinfer {__version__}"


# -- commands; each imports what it needs when it runs


def _demo(options: argparse.Namespace) -> int:
    from splitinfer.demo import run_demo

    report = run_demo(options.requests, show=_quiet if options.json else print)
    if options.json:
        _emit(report)
    return 0


def _profile(options: argparse.Namespace) -> int:
    profile = _measured(_graph(options)[1], _topology(options), options)
    _save(profile.to_json(), options.output)
    _show(profile, options)
    return 0


def _plan(options: argparse.Namespace) -> int:
    from splitinfer.errors import UsageError
    from splitinfer.planner import check_wishes, plan
    from splitinfer.profiles import Profile

    topology = _topology(options)
    assert topology is not None  # argparse requires it
    names = [name.strip() for name in options.codecs.split(",") if name.strip()]
    check_wishes(options.objective, names, options.strategy)  # before measuring, which takes a while
    if options.profile is not None:
        profile = Profile.load(options.profile)
    elif options.model is not None:
        # An emulated topology can be measured as it will run; on real nodes that is what 'splitinfer profile' is for.
        profile = _measured(_graph(options)[1], topology if topology.emulated else None, options)
    else:
        raise UsageError("name a MODEL to measure, or give --profile")
    made = plan(profile, topology, options.objective, names, strategy=options.strategy)
    _save(made.to_json(), options.output)
    _show(made, options)
    return 0


def _run(options: argparse.Namespace) -> int:
    from splitinfer.plans import Plan
    from splitinfer.runtime.serve import run_requests

    plan = Plan.load(options.plan)
    topology = _topology(options) or _planned_topology(plan)
    graph = _graph(options)[1]
    report = run_requests(graph, plan, topology, options.requests, options.in_flight, progress=_progress(options))
    _emit(report.to_dict()) if options.json else print(report)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from splitinfer.plans import Plan
    from splitinfer.verify import balanced_stages, verify_all_cuts, verify_split

    model, graph = _graph(options)
    if options.all_cuts:
        verdict = verify_all_cuts(graph, model.module, progress=_progress(options))
    else:
        plan = Plan.load(options.plan) if options.plan else Plan.by_hand(graph, balanced_stages(graph, options.stages or 2))
        verdict = verify_split(graph, model.module, plan)
    _show(verdict, options)
    return 0 if verdict.exact else 1


def _graph(options: argparse.Namespace) -> tuple[Model, Graph]:
    from splitinfer.importer import capture
    from splitinfer.models import load_model

    model = load_model(options.model, trust_code=options.trust_code)
    return model, capture(model.module, model.args, model.kwargs, "batch" if options.dynamic_batch else None)


def _topology(options: argparse.Namespace) -> Topology | None:
    if options.topology is None:
        return None
    from cluster.topology import Topology

    return Topology.load(options.topology)


def _planned_topology(plan: Plan) -> Topology:
    from cluster.topology import Topology
    from splitinfer.errors import UsageError

    if plan.topology is None:
        raise UsageError("the plan was made by hand and names no topology; give --topology")
    return Topology.from_dict(plan.topology)


def _measured(graph: Graph, topology: Topology | None, options: argparse.Namespace) -> Profile:
    from splitinfer.profiler import profile

    threads = getattr(options, "threads", None)
    return profile(graph, topology, threads=threads, progress=_progress(options))


def _progress(options: argparse.Namespace) -> bool:
    """Bars are for people who watch."""
    return not options.json and sys.stderr.isatty()


def _show(thing: Any, options: argparse.Namespace) -> None:
    if options.json:
        print(thing.to_json() if hasattr(thing, "to_json") else json.dumps(thing.to_dict()))
    else:
        print(thing)


def _emit(report: Any) -> None:
    print(json.dumps(report))


def _quiet(*_: object) -> None:
    """Nothing but the JSON goes to standard output."""


def _save(text: str, path: Path | None) -> None:
    if path is not None:
        from splitinfer.errors import UsageError

        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
