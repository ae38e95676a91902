"""Measurements and reproduced results.

``python -m benchmarks run [CASE ...]`` measures; ``python -m benchmarks reproduce NAME`` runs an experiment of a paper;
``python -m benchmarks report`` gathers what was reproduced.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from benchmarks import reproduce as harness
from benchmarks.machine import machine

CASES = {
    "estimators": "bias, variance, direction and cost of every estimator on one problem",
}
RESULTS = Path("benchmarks/results")


def main() -> int:
    """Runs one of the commands."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="measure", epilog="\n".join(f"{k}: {v}" for k, v in CASES.items()))
    run.add_argument("case", nargs="*", choices=[*CASES, []], help=", ".join(CASES))
    run.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    run.add_argument("--scale", choices=("smoke", "full"), default="full", help="smoke: does it run; claims nothing")

    again = commands.add_parser("reproduce", help="run an experiment of a paper")
    again.add_argument("name", nargs="?", choices=harness.names(), metavar="NAME")
    again.add_argument("--list", action="store_true", help="name them all")
    again.add_argument(
        "--scale",
        choices=harness.SCALES,
        default="small",
        help="smoke: does it run, claims nothing; small: two cores; full: the published setting",
    )
    again.add_argument("--out", type=Path, default=Path("out/reproduce"), help="folder for NAME.json and NAME.png")
    again.add_argument("--seeds", type=int, help="how many")
    again.add_argument("--first", type=int, default=0, help="the first seed (to share seeds among processes)")
    again.add_argument("--resume", action="store_true", help="keep the seeds that are done and go on with the rest")

    report = commands.add_parser("report", help="gather the results into docs/reproduced.md")
    report.add_argument("--results", type=Path, default=RESULTS)
    report.add_argument("--page", type=Path, default=Path("docs/reproduced.md"))

    args = parser.parse_args()
    if args.command == "report":
        print(harness.report(args.results, args.page))
    elif args.command == "run":
        args.out.mkdir(parents=True, exist_ok=True)
        for name in args.case or CASES:
            result = importlib.import_module(f"benchmarks.{name}").run(args.scale, args.out)
            path = args.out / f"{name}.json"
            path.write_text(json.dumps({"case": name, "scale": args.scale, **machine(), **result}, indent=1) + "\n")
            print(f"written: {path}")
    elif args.list:
        width = max(map(len, harness.names()))
        for name in harness.names():
            experiment = harness.load(name)
            print(f"{name:<{width}}  {experiment.title} ({experiment.source})")
    elif args.name is None:
        again.error("give the NAME of an experiment, or --list")
    elif args.seeds is not None and args.seeds < 1:
        again.error(f"--seeds must be at least 1, got {args.seeds}")
    else:
        try:
            harness.reproduce(args.name, args.scale, args.out, args.seeds, args.first, args.resume)
        except (FileNotFoundError, ValueError) as e:
            print(f"{args.name}: {e}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
