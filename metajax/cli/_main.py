"""The command line: ``metajax demo``, ``train``, ``evaluate``, ``pretrained`` and ``data``.

Exit codes: 0, all is well; 1, a run failed; 2, a mistake in the command or the config; 130 and 143,
stopped by Ctrl-C and SIGTERM.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import metajax as mx
from metajax.cli import _config as config

_EXAMPLES = """examples:
  metajax demo                              meta-train an optimizer and compare it, about three minutes
  metajax train examples/l2l-digits.toml    train what a file describes; the same again goes on
  metajax evaluate out/l2l-digits --plot curves.png
  metajax pretrained card vsml-mnist
  metajax data prepare mnist"""


def _rows(tables: dict[str, Any], width: int) -> str:
    return "\n".join(f"  {name}".ljust(width) + ", ".join(table) for name, table in tables.items())


_TRAIN = f"""A config has these sections; name picks a function of metajax, the other keys are its arguments:

{_rows({f"[{name}]": table for name, table in config.SECTIONS.items()}, 14)}
  [data]      name, train, validation, test (splits; validation: other tasks from train), few_shot, size, data_dir
  [inner]     horizon, meta_loss
  [run]       {", ".join(config.Run._fields)}

Some arguments are made in the same way, e.g. learning_rate = {{ name = "cosine_decay_schedule", ... }}:

{_rows(config.ARGUMENTS, 16)}

The folder out of [run] gets metrics.csv, config.toml, checkpoints/, and the meta-parameters final.npz and best.npz, the
best by validation. Run it again and it goes on from the last checkpoint.

examples:
  metajax train examples/vsml-digits.toml
  metajax train out/vsml-digits                   on with the run in a folder, to the steps of its config
  metajax train out/vsml-digits --steps 1000      further than that"""

_EVALUATE = """examples:
  metajax evaluate out/l2l-digits
  metajax evaluate examples/maml-digits.toml --tasks 500 --plot maml.png"""

_PRETRAINED = """examples:
  metajax pretrained
  metajax pretrained card l2l-digits
  metajax pretrained export l2l-digits l2l.safetensors"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    if rest and not args.passes_on:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return args.command(args, rest) or 0
    except config.ConfigError as e:
        print(f"metajax: {e}", file=sys.stderr)
        return 2
    except (FloatingPointError, ImportError, OSError, RuntimeError) as e:
        print(f"metajax: {type(e).__name__}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as e:
        print(f"metajax: {e}" if str(e) else "metajax: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "metajax",
        description=mx.__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"metajax {mx.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    def add(
        name: str, command: Any, text: str, epilog: str = "", passes_on: bool = False
    ) -> argparse.ArgumentParser:
        new = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=not passes_on,
        )
        new.set_defaults(command=command, passes_on=passes_on)
        return new

    add(
        "demo",
        _demo,
        "meta-train an optimizer on images of digits and compare it with tuned baselines",
        "",
        True,
    )
    new = add("train", _train, "meta-train what a TOML file describes, or go on with it", _TRAIN)
    new.add_argument(
        "source", type=Path, metavar="CONFIG.toml|FOLDER", help="a config, or the folder of a run"
    )
    new.add_argument(
        "--steps", type=_count, help="meta-steps in all, in place of what the file says"
    )
    new.add_argument(
        "--out", type=Path, help="folder for what comes out, in place of what the file says"
    )
    new = add(
        "evaluate", _evaluate, "run what was trained on fresh tasks from the test split", _EVALUATE
    )
    new.add_argument(
        "source", type=Path, metavar="CONFIG.toml|FOLDER", help="a config, or the folder of a run"
    )
    new.add_argument("--tasks", type=_count, default=32, help="number of tasks (default 32)")
    new.add_argument("--steps", type=_count, help="inner steps (default: the horizon)")
    new.add_argument(
        "--params", default="best.npz", help="which file of the folder (default best.npz)"
    )
    new.add_argument("--plot", type=Path, metavar="FILE", help="a picture, .png, .pdf or .svg")
    new = add(
        "pretrained",
        _pretrained,
        "show and export meta-trained parameters of the package",
        _PRETRAINED,
    )
    new.set_defaults(action="list")
    actions = new.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="the names")
    card = actions.add_parser(
        "card", help="what a set was trained on, what it reached, where it fails"
    )
    export = actions.add_parser("export", help="write a set to a file")
    for action in (card, export):
        action.add_argument("name", metavar="NAME", choices=mx.pretrained.list())
    export.add_argument("file", type=Path, metavar="FILE", help="ends in .npz or .safetensors")
    new = add("data", _data, "download and prepare data sets: metajax data prepare NAME", "", True)
    new.add_argument("action", choices=["prepare"], nargs="?")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text}")
    return int(text)


def _demo(args: argparse.Namespace, rest: list[str]) -> None:
    from metajax.cli import _demo as demo

    demo.main(rest, prog="metajax demo")


def _data(args: argparse.Namespace, rest: list[str]) -> int:
    from metajax.cli import _data as data

    return data.main(rest if args.action else ["--help"], prog="metajax data prepare")


def _pretrained(args: argparse.Namespace, rest: list[str]) -> None:
    if args.action == "card":
        print(mx.pretrained.card(args.name))
    elif args.action == "export":
        if args.file.suffix not in (".npz", ".safetensors"):
            raise config.ConfigError(f"FILE must end in .npz or .safetensors, got {args.file}")
        mx.save(args.file, mx.pretrained.params(args.name))
        print(f"{args.name} is in {args.file}")
    else:
        print("\n".join(mx.pretrained.list()))


def _train(args: argparse.Namespace, rest: list[str]) -> None:
    path, folder = _source(args.source)
    changes = {"steps": args.steps, "out": str(args.out or folder or "")}
    experiment = config.experiment(path, **{k: x for k, x in changes.items() if x})
    run, keys, loop = experiment.run, experiment.keys, experiment.inner
    out = Path(run.out).expanduser()
    _same(path, out)
    state, data = experiment.start()
    out.mkdir(parents=True, exist_ok=True)
    if path.resolve() != (out / "config.toml").resolve():
        shutil.copyfile(path, out / "config.toml")

    def loss(key, meta_params, data):
        curves = mx.evaluate(loop, key, meta_params, data, num_tasks=run.validation_tasks)
        return (curves.loss if loop.loss is None else curves.test_loss).mean()

    validate = mx.validation(
        loss,
        keys["validation"],
        experiment.data("validation"),
        every=min(run.validate_every, run.steps),
        patience=run.patience,
    )
    store = mx.checkpoints(out / "checkpoints", every=run.checkpoint_every)
    try:
        result = mx.fit(
            experiment.trainer,
            state,
            data,
            num_steps=run.steps,
            chunk=run.chunk,
            validate=validate,
            checkpoint=store,
            log=out / "metrics.csv",
            label=path.stem if folder is None else folder.name,
        )
    except (
        ValueError
    ) as e:  # fewer steps than are done, or another seed than that of the checkpoints
        raise config.ConfigError(f"{path}: {str(e).replace('num_steps', 'steps')}") from e
    if not np.isfinite(result.validation["loss"]).any():
        raise FloatingPointError(
            f"no validation of {out} was finite, so that nothing is best; has the network an output for every label?"
        )
    mx.save(out / "final.npz", result.state.meta_params)
    mx.save(out / "best.npz", result.best)
    best = int(np.nanargmin(result.validation["loss"]))
    print(
        f"{int(result.state.step)} meta-steps; the best validation loss is {result.validation['loss'][best]:.4g}, at "
        f"meta-step {result.validation['step'][best]}.\n{out}/ has metrics.csv, best.npz, final.npz; next:\n"
        f"  metajax evaluate {out}"
    )


def _evaluate(args: argparse.Namespace, rest: list[str]) -> None:
    if args.plot is not None and args.plot.suffix not in (".png", ".pdf", ".svg"):
        raise config.ConfigError(f"--plot must end in .png, .pdf or .svg, got {args.plot}")
    path, folder = _source(args.source)
    experiment = config.experiment(path)
    out = folder or Path(experiment.run.out).expanduser()
    _same(path, out)
    if not (out / args.params).exists():
        there = ", ".join(sorted(file.name for file in out.glob("*.npz")))
        hint = (
            f"--params may be {there}"
            if there
            else f"train to the end first: metajax train {args.source}"
        )
        raise FileNotFoundError(f"{out}/{args.params} is not there; {hint}")
    before = experiment.init()
    try:
        trained = mx.load(out / args.params, like=before)
    except ValueError as e:
        raise config.ConfigError(str(e)) from e
    data = experiment.data("test")
    try:
        curves = {
            name: mx.evaluate(
                experiment.inner,
                experiment.keys["test"],
                params,
                data,
                num_tasks=args.tasks,
                steps=args.steps,
            )
            for name, params in {"meta-trained": trained, "before meta-training": before}.items()
        }
    except ValueError as e:  # more ways than the test split has classes, for one
        raise config.ConfigError(f"{path}, on the test split: {e}") from e
    print(_table(curves))
    if args.plot is not None:
        _picture(args.plot, curves)
        print(f"\nThe picture is {args.plot}")


def _table(curves: dict[str, mx.Curves]) -> str:
    """Means and standard deviations over the tasks, by inner step, and on the test batch after the
    last.
    """
    columns = {}
    for name, c in curves.items():
        shown = {"loss": (c.loss, c.test_loss)}
        if "accuracy" in c.metrics:
            shown["accuracy"] = (c.metrics["accuracy"], c.test_metrics["accuracy"])
        columns |= {
            (name, what): [np.asarray(x, np.float64) for x in both] for what, both in shown.items()
        }
    tasks, steps = next(iter(columns.values()))[0].shape
    parts = np.array_split(np.arange(steps), min(10, steps))
    labels = [f"{p[0] + 1}" if len(p) == 1 else f"{p[0] + 1}-{p[-1] + 1}" for p in parts]
    rows = [["", *(name for name, _ in columns)], ["inner step", *(what for _, what in columns)]]
    for label, part in zip(labels, parts, strict=True):
        rows.append([label, *(_spread(x[:, part].mean(1)) for x, _ in columns.values())])
    rows.append(["test", *(_spread(x) for _, x in columns.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(x.rjust(w) for x, w in zip(row, widths, strict=True)) for row in rows]
    about = f"{tasks} tasks, mean ± standard deviation over them; test: each task's test batch, after step {steps}"
    return "\n".join([about, "", *lines])


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4g} ± {values.std():.2g}"


def _picture(path: Path, curves: dict[str, mx.Curves]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    mx.plot.curves(
        {name: c.loss for name, c in curves.items()}, left, ylabel="loss before the step"
    )
    what = "accuracy" if all("accuracy" in c.test_metrics for c in curves.values()) else "loss"
    tested = [c.test_metrics[what] if what == "accuracy" else c.test_loss for c in curves.values()]
    right.boxplot(
        [np.asarray(x) for x in tested], widths=0.6, medianprops={"color": mx.plot.COLOURS[0]}
    )
    right.set_xticks([1, 2], [name.replace(" ", "\n", 1) for name in curves])
    right.set(ylabel=f"{what} on the test batch, a task each")
    right.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _source(source: Path) -> tuple[Path, Path | None]:
    """The config, and the folder of the run if it was named."""
    return (source / "config.toml", source) if source.is_dir() else (source, None)


def _same(path: Path, out: Path) -> None:
    """Says that a folder holds the run of another config, should it."""
    if not (out / "config.toml").exists() or (out / "config.toml") == path:
        return
    old, new = config.read(out / "config.toml"), config.read(path)
    judged = ("seed", "validation_tasks")  # losses of other tasks do not compare
    for x in (old, new):
        x["run"] = {k: x.get("run", {}).get(k, config.Run._field_defaults[k]) for k in judged}
    changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    if changed:
        raise config.ConfigError(
            f"{path} and {out}/config.toml differ in [{'], ['.join(changed)}], so that {out} is the folder of another "
            f"run; give another out"
        )
