"""Measurements and reproduced results.

``python -m benchmarks run [CASE ...]`` measures; ``python -m benchmarks reproduce NAME`` runs an
experiment of a paper; ``python -m benchmarks report`` gathers what was reproduced.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import jax

from benchmarks import reproduce as harness
from benchmarks import table
from benchmarks.cases import cases
from benchmarks.machine import machine
from benchmarks.measure import machine_limits

RESULTS = Path("benchmarks/results")


def main() -> int:
    """Runs one of the commands."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    listed = "\n".join(
        f"{name}: {(case.__doc__ or '').splitlines()[0]}" for name, case in cases().items()
    )
    raw = argparse.RawDescriptionHelpFormatter
    run = commands.add_parser(
        "run", help="measure", epilog=f"cases, all by default:\n{listed}", formatter_class=raw
    )
    run.add_argument("case", nargs="*", choices=[*cases(), []], metavar="CASE", help="see below")
    run.add_argument(
        "--json",
        type=Path,
        help="a file for all figures, table and chart beside it; OUT/run.json by default",
    )
    run.add_argument("--device", choices=("cpu", "gpu"), help="by default what JAX takes")
    run.add_argument(
        "--against",
        choices=("peers",),
        help="compare with other packages: pip install 'metajax[peers]'",
    )
    run.add_argument(
        "--out", type=Path, default=Path("out/benchmarks"), help="a folder for pictures"
    )
    run.add_argument(
        "--scale",
        choices=("smoke", "full"),
        default="full",
        help="smoke: does it run; claims nothing",
    )

    again = commands.add_parser("reproduce", help="run an experiment of a paper")
    again.add_argument("name", nargs="?", choices=harness.names(), metavar="NAME")
    again.add_argument("--list", action="store_true", help="name them all")
    again.add_argument(
        "--scale",
        choices=harness.SCALES,
        default="small",
        help="smoke: does it run, claims nothing; small: two cores; full: the published setting",
    )
    again.add_argument(
        "--out", type=Path, default=Path("out/reproduce"), help="folder for NAME.json and NAME.png"
    )
    again.add_argument("--seeds", type=int, help="how many")
    again.add_argument(
        "--first", type=int, default=0, help="the first seed (to share seeds among processes)"
    )
    again.add_argument(
        "--devices",
        type=int,
        default=1,
        help="CPU: devices to simulate, so that meta-training fills as many cores",
    )
    again.add_argument(
        "--resume", action="store_true", help="keep the seeds that are done and go on with the rest"
    )

    report = commands.add_parser("report", help="gather the results into docs/reproduced.md")
    report.add_argument("--results", type=Path, default=RESULTS)
    report.add_argument("--page", type=Path, default=Path("docs/reproduced.md"))

    args = parser.parse_args()
    if args.command == "report":
        print(harness.report(args.results, args.page))
    elif args.command == "run":
        if (
            args.json is not None and args.json.suffix != ".json"
        ):  # the table and the chart get this name with theirs
            parser.error(f"--json must end in .json, got {args.json}")
        return measure(args)
    elif args.list:
        width = max(map(len, harness.names()))
        for name in harness.names():
            experiment = harness.load(name)
            print(f"{name:<{width}}  {experiment.title} ({experiment.source})")
    elif args.name is None:
        again.error("give the NAME of an experiment, or --list")
    elif args.seeds is not None and args.seeds < 1:
        again.error(f"--seeds must be at least 1, got {args.seeds}")
    elif args.devices < 1:
        again.error(f"--devices must be at least 1, got {args.devices}")
    else:
        if args.devices > 1:
            jax.config.update("jax_num_cpu_devices", args.devices)
        try:
            harness.reproduce(args.name, args.scale, args.out, args.seeds, args.first, args.resume)
        except (FileNotFoundError, ValueError) as e:
            print(f"{args.name}: {e}", file=sys.stderr)
            return 1
    return 0


def measure(args: argparse.Namespace) -> int:
    """Runs the cases that were asked for."""
    if args.device:
        # Processes that are started follow.
        os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[args.device]
        jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
    args.out.mkdir(parents=True, exist_ok=True)
    smoke, rows = args.scale == "smoke", []
    before = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # compile times are those of a compiler at work
    try:
        limits = machine_limits(256, 1) if smoke else machine_limits()
        setting = table.Setting(smoke, args.out, limits, args.against == "peers")
        for name in args.case or cases():
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += cases()[name](setting)
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
    print(table.text(rows, verdicts=not smoke))
    path = args.json or args.out / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"scale": args.scale, **machine(), "limits": limits._asdict()}
    path.write_text(json.dumps({**head, "rows": [row.record() for row in rows]}, indent=1) + "\n")
    path.with_suffix(".md").write_text(table.markdown(rows, verdicts=not smoke))
    table.chart(rows, path.with_suffix(".png"))
    print(f"written: {path}, and .md and .png beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
