"""``python -m benchmarks run [CASE ...] [--out DIR] [--scale smoke|full]``: a table, a JSON file and a picture."""

import argparse
import importlib
import json
import platform
import sys
from pathlib import Path

import evosax
import jax
import optax

import metajax as mx

CASES = {
    "estimators": "bias, variance, direction and cost of every estimator on one problem",
}


def main() -> int:
    """Runs the named cases, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure", epilog="\n".join(f"{k}: {v}" for k, v in CASES.items()))
    run.add_argument("case", nargs="*", choices=[*CASES, []], help=", ".join(CASES))
    run.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    run.add_argument("--scale", choices=("smoke", "full"), default="full", help="smoke: does it run; claims nothing")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.case or CASES:
        result = importlib.import_module(f"benchmarks.{name}").run(args.scale, args.out)
        path = args.out / f"{name}.json"
        path.write_text(json.dumps({"case": name, "scale": args.scale, **machine(), **result}, indent=1) + "\n")
        print(f"written: {path}")
    return 0


def machine() -> dict:
    """Device and versions, to stand beside every figure."""
    return {
        "device": jax.devices()[0].device_kind,
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "metajax": mx.__version__,
            "jax": jax.__version__,
            "optax": optax.__version__,
            "evosax": getattr(evosax, "__version__", "unknown"),
        },
    }


if __name__ == "__main__":
    sys.exit(main())
