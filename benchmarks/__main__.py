"""Measurements and reproduced results.

``python -m benchmarks run [CASE ...]`` measures; ``python -m benchmarks compiled [CASE ...]``
counts what programs for accelerators do, on a machine without any; ``python -m benchmarks reproduce
NAME`` runs an experiment of a paper; ``python -m benchmarks queue`` works off a list of them;
``python -m benchmarks report`` gathers what was reproduced.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

from benchmarks import ahead, queue, sharded, table, targets
from benchmarks import reproduce as harness
from benchmarks.cases import cases
from benchmarks.machine import machine
from benchmarks.measure import machine_limits
from benchmarks.programs import PROGRAMS

RESULTS = Path("benchmarks/results")


def main() -> int:
    """Runs one of the commands."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_run(commands)
    _add_compiled(commands)
    _add_reproduce(commands)
    _add_queue(commands)
    _add_report(commands)
    args = parser.parse_args()
    return args.do(args)


def _add_run(commands: Any) -> None:
    descriptions = []
    for name, case in cases().items():
        first_line, *_ = (case.__doc__ or "").splitlines()
        descriptions.append(f"{name}: {first_line}")
    parser = commands.add_parser(
        "run",
        help="measure",
        epilog="cases, all by default:\n" + "\n".join(descriptions),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "case",
        nargs="*",
        type=_one_of(cases()),
        metavar="CASE",
        help="see below",
    )
    parser.add_argument(
        "--json",
        type=_json_path,
        help="a file for all figures, table and chart beside it; OUT/run.json by default",
    )
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), help="by default what JAX takes"
    )
    parser.add_argument(
        "--against",
        choices=("peers",),
        help="compare with other packages: pip install 'metajax[peers]'",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/benchmarks"),
        help="a folder for pictures",
    )
    parser.add_argument(
        "--scale",
        choices=("smoke", "full"),
        default="full",
        help="smoke: does it run; claims nothing",
    )
    parser.set_defaults(do=measure)


def _add_compiled(commands: Any) -> None:
    descriptions = []
    for name, case in PROGRAMS.items():
        descriptions.append(f"{name}: {case.__doc__}")
    descriptions.append(f"sharded: {sharded.__doc__} Of TPUs alone.")
    parser = commands.add_parser(
        "compiled",
        help="count kernels, traffic and memory for accelerators that need not be here",
        epilog="cases, all by default:\n" + "\n".join(descriptions),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "case",
        nargs="*",
        type=_one_of([*PROGRAMS, "sharded"]),
        metavar="CASE",
        help="see below",
    )
    parser.add_argument(
        "--for",
        nargs="+",
        dest="targets",
        default=list(targets.TARGETS),
        metavar="TARGET",
        help=f"{', '.join(targets.TARGETS)}; all by default",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/compiled"),
        help="a folder for TARGET.json, .md and .png",
    )
    parser.add_argument(
        "--scale",
        choices=("smoke", "full"),
        default="full",
        help="smoke: does it run; claims nothing",
    )
    parser.set_defaults(do=compile_ahead)


def _add_reproduce(commands: Any) -> None:
    parser = commands.add_parser("reproduce", help="run an experiment of a paper")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "name",
        nargs="?",
        choices=harness.names(),
        metavar="NAME",
    )
    which.add_argument("--list", action="store_true", help="name them all")
    parser.add_argument(
        "--scale",
        choices=harness.SCALES,
        default="small",
        help="smoke: does it run, claims nothing; small: two cores; full: the published setting",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/reproduce"),
        help="folder for NAME.json and NAME.png",
    )
    parser.add_argument("--seeds", type=_positive_int, help="how many")
    parser.add_argument(
        "--first",
        type=int,
        default=0,
        help="the first seed (to share seeds among processes)",
    )
    parser.add_argument(
        "--devices",
        type=_positive_int,
        default=1,
        help="CPU: devices to simulate, so that meta-training fills as many cores",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the seeds that are done and go on with the rest",
    )
    parser.set_defaults(do=reproduce)


def _add_queue(commands: Any) -> None:
    parser = commands.add_parser(
        "queue", help="work off a list of long runs in the background"
    )
    parser.add_argument(
        "file",
        type=Path,
        nargs="?",
        default=Path("benchmarks/queue.toml"),
        help="the list, benchmarks/queue.toml by default",
    )
    parser.add_argument(
        "--processes", type=_positive_int, default=1, help="how many runs at a time"
    )
    parser.add_argument("--out", type=Path, default=Path("out/reproduce"))
    parser.add_argument(
        "--status", action="store_true", help="say what is done and what remains"
    )
    parser.set_defaults(do=work_off)


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report", help="gather the results into docs/reproduced.md"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=Path("docs/reproduced.md"))
    parser.set_defaults(do=report)


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def _one_of(names: Iterable[str]) -> Callable[[str], str]:
    """For an argument that may be left out: with ``choices``, Python 3.11 refuses that."""

    def checked(text):
        if text not in names:
            choices = ", ".join(names)
            raise argparse.ArgumentTypeError(f"invalid choice {text}, take {choices}")
        return text

    return checked


def _json_path(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".json":  # the table and the chart get this name with theirs
        raise argparse.ArgumentTypeError(f"must end in .json, got {path}")
    return path


def report(args: argparse.Namespace) -> int:
    """Gathers the results."""
    print(harness.report(args.results, args.page))
    return 0


def reproduce(args: argparse.Namespace) -> int:
    """Runs the experiment that was asked for, or names them all."""
    if args.list:
        width = max(map(len, harness.names()))
        for name in harness.names():
            experiment = harness.load(name)
            print(f"{name:<{width}}  {experiment.title} ({experiment.source})")
        return 0

    if args.devices > 1:
        jax.config.update("jax_num_cpu_devices", args.devices)
    try:
        harness.reproduce(
            args.name,
            args.scale,
            args.out,
            args.seeds,
            args.first,
            args.resume,
        )
    except (FileNotFoundError, ValueError) as e:
        print(f"{args.name}: {e}", file=sys.stderr)
        return 1
    return 0


def work_off(args: argparse.Namespace) -> int:
    """Works off a queue, or says where it stands."""
    try:
        runs = queue.read(args.file)
    except (OSError, ValueError) as e:
        print(e, file=sys.stderr)
        return 1
    print(queue.status(runs, args.out), flush=True)
    if args.status:
        return 0
    return min(1, queue.work(runs, args.out, args.processes))


def measure(args: argparse.Namespace) -> int:
    """Runs the cases that were asked for."""
    if args.device:
        # Processes that are started follow.
        os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda,cpu"}[args.device]
        jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    args.out.mkdir(parents=True, exist_ok=True)
    is_smoke = args.scale == "smoke"
    rows = []
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    # Compile times are to be those of a compiler at work.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        limits = machine_limits(256, 1) if is_smoke else machine_limits()
        setting = table.Setting(is_smoke, args.out, limits, args.against == "peers")
        for name in args.case or cases():
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += cases()[name](setting)
    finally:
        jax.config.update("jax_enable_compilation_cache", before)

    print(table.text(rows, verdicts=not is_smoke))
    path = args.json or args.out / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"scale": args.scale, **machine(), "limits": limits._asdict()}
    records = [row.record() for row in rows]
    path.write_text(json.dumps({**head, "rows": records}, indent=1) + "\n")
    path.with_suffix(".md").write_text(table.markdown(rows, verdicts=not is_smoke))
    table.chart(rows, path.with_suffix(".png"))
    print(f"written: {path}, and .md and .png beside it")
    return 0


def compile_ahead(args: argparse.Namespace) -> int:
    """Compiles the cases that were asked for, for each target."""
    jax.config.update("jax_platforms", "cpu")  # whatever the compilers would look for
    try:
        found = {name: targets.devices(name)[0] for name in args.targets}
    except (ValueError, targets.UnavailableError) as e:
        print(e, file=sys.stderr)
        return 1
    known = targets.known_topologies()
    if known:
        print(f"topologies of TPUs that this JAX knows: {', '.join(known)}")

    args.out.mkdir(parents=True, exist_ok=True)
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        for name, device in found.items():
            if args.case != ["sharded"]:
                path = _compile_for(name, device, args)
                print(f"written: {path}, and .md and .png beside it")
            if name == "tpu-v5e" and "sharded" in (args.case or ["sharded"]):
                path = _compile_sharded(args)
                print(f"written: {path}, and .md beside it")
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
    return 0


def _compile_for(name: str, device: Any, args: argparse.Namespace) -> Path:
    target = targets.target(name)
    costs = []
    refused = {}
    for case in [case for case in PROGRAMS if case in (args.case or PROGRAMS)]:
        for step in PROGRAMS[case](args.scale == "smoke"):
            if step.only not in (None, name):
                continue
            what = f"{case}: {step.what}"
            print(f"{name}, {what} ...", file=sys.stderr, flush=True)
            try:
                costs.append(ahead.cost(case, step, target, device))
            except jax.errors.JaxRuntimeError as e:  # such as too little memory
                refused[what] = str(e).splitlines()[0]

    table = ahead.markdown(costs, refused)
    print(table)
    path = args.out / f"{name}.json"
    head = {
        "scale": args.scale,
        **machine(),
        "device": device.device_kind,
        "limits": target.limits._asdict(),
    }
    records = [cost.record() for cost in costs]
    found = {**head, "programs": records, "refused": refused}
    path.write_text(json.dumps(found, indent=1) + "\n")
    path.with_suffix(".md").write_text(table)
    ahead.chart(costs, path.with_suffix(".png"))
    return path


def _compile_sharded(args: argparse.Namespace) -> Path:
    target = targets.target("tpu-v5e")
    found = []
    for topology, steps in sharded.SHARDED.items():
        devices = targets.devices("tpu-v5e", topology_name=topology)
        mesh = sharded.mesh_of(devices)
        for step in steps(mesh):
            print(f"{topology}: {step.what} ...", file=sys.stderr, flush=True)
            cost = ahead.cost("sharded", step, target, devices[0])
            found.append(sharded.Exchange(mesh.size, cost))
            if args.scale == "smoke":
                break

    text = sharded.markdown(found)
    print(text)
    path = args.out / "tpu-v5e-sharded.json"
    records = [each.record() for each in found]
    head = {"scale": args.scale, **machine(), "device": "TPU v5 lite"}
    path.write_text(json.dumps({**head, "programs": records}, indent=1) + "\n")
    path.with_suffix(".md").write_text(text)
    return path


if __name__ == "__main__":
    sys.exit(main())
