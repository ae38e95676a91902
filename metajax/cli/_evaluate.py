"""Run what was trained on fresh tasks from the test split.

Examples:
  metajax evaluate out/l2l-digits
  metajax evaluate out/l2l-digits --baselines
  metajax evaluate examples/maml-digits.toml --tasks 500 --plot maml.png
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import metajax as mx
from metajax.cli import _arguments, _config, _run_folder
from metajax.cli._toml import ConfigError
from metajax.types import Inner

_MOST_ROWS = 10  # of the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument(
        "source",
        type=_arguments.path,
        metavar="CONFIG.toml|FOLDER",
        help="a config, or the folder of a run",
    )
    parser.add_argument(
        "--tasks",
        type=_arguments.whole_number(1),
        default=32,
        help="number of tasks (default 32)",
    )
    parser.add_argument(
        "--steps",
        type=_arguments.whole_number(1),
        help="inner steps (default: the horizon)",
    )
    parser.add_argument(
        "--params",
        default="best.npz",
        help="which file of the folder (default best.npz)",
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help=f"beside {', '.join(mx.BASELINES)} on the same tasks, each with the learning rate "
        f"that was best on others",
    )
    parser.add_argument(
        "--plot",
        type=_arguments.file_ending_in(".png", ".pdf", ".svg"),
        metavar="FILE",
        help="a picture, .png, .pdf or .svg",
    )


def run(args: argparse.Namespace) -> None:
    """Prints learning curves with the meta-parameters before and after training."""
    path, folder = _run_folder.locate(args.source)
    experiment = _config.experiment(path)
    out = folder or Path(experiment.run.out).expanduser()
    _run_folder.refuse_another_run(path, out)

    before = experiment.meta_params()
    trained = _load(out, args.params, before, args.source)
    contestants = {
        "meta-trained": (experiment.inner, trained),
        "before meta-training": (experiment.inner, before),
    }
    steps = args.steps or experiment.inner.horizon
    if args.baselines:
        contestants |= _baselines(experiment, path, steps, args.tasks)

    data = experiment.data("test")
    curves = {}
    for name, (inner, meta_params) in contestants.items():
        # More ways than the test split has classes are noticed only here.
        try:
            curves[name] = mx.evaluate(
                inner,
                experiment.keys["test"],
                meta_params,
                data,
                num_tasks=args.tasks,
                steps=steps,
            )
        except ValueError as e:
            raise ConfigError(f"{path}, on the test split: {e}") from e

    print(_table(curves))
    if args.plot is not None:
        _picture(args.plot, curves)
        print(f"\nThe picture is {args.plot}")


def _baselines(
    experiment: _config.Experiment, path: Path, steps: int, num_tasks: int
) -> dict[str, tuple[Inner, float]]:
    """Optimizers on the problem of a config, with the rates that are best for other tasks."""
    problem = experiment.problem
    if problem is None:
        raise ConfigError(
            f"{path}: its learner has no problem that an optimizer could minimise; leave out "
            f"--baselines"
        )
    try:
        found = mx.compare(
            mx.BASELINES,
            problem,
            experiment.tasks,
            experiment.keys["validation"],
            experiment.data("validation"),
            steps=steps,
            num_tasks=num_tasks,
            search=_search(experiment.inner),
        )
    except (TypeError, ValueError) as e:
        raise ConfigError(f"{path}: no baseline could be trained: {e}") from e

    loops = {}
    for name, rate in found.rate.items():
        learner = mx.l2l(mx.BASELINES[name], problem)
        loop = mx.inner(learner, experiment.tasks, steps)
        loops[f"{name} at {rate:.3g}"] = loop, rate
    return loops


def _search(inner: Inner) -> mx.RateSearch:
    """By the loss that is meta-trained for."""
    if not inner.heldout:
        return mx.RateSearch()
    return mx.RateSearch(score=lambda curves: curves.test_loss.mean())


def _load(out: Path, name: str, like: Any, source: Path) -> Any:
    """The meta-parameters in a file of the folder of a run."""
    if not (out / name).exists():
        there = ", ".join(sorted(file.name for file in out.glob("*.npz")))
        remedy = f"train to the end first: metajax train {source}"
        if there:
            remedy = f"--params may be {there}"
        raise FileNotFoundError(f"{out}/{name} is not there; {remedy}")
    try:
        return mx.load(out / name, like=like)
    except ValueError as e:
        raise ConfigError(str(e)) from e


class _Column(NamedTuple):
    """A column of the table.

    Attributes:
      name: of the meta-parameters.
      quantity: what is shown.
      steps: ``[num_tasks, steps]``.
      test: ``[num_tasks]``, on the test batch after the last step.
    """

    name: str
    quantity: str
    steps: np.ndarray
    test: np.ndarray


def _columns(curves: dict[str, mx.Curves]) -> list[_Column]:
    columns = []
    for name, curve in curves.items():
        steps = {"loss": curve.loss} | curve.metrics
        test = {"loss": curve.test_loss} | curve.test_metrics
        for quantity in ("loss", "accuracy"):
            if quantity in steps:
                columns.append(
                    _Column(
                        name, quantity, _wide(steps[quantity]), _wide(test[quantity])
                    )
                )
    return columns


def _wide(values: Any) -> np.ndarray:
    return np.asarray(values, np.float64)


def _table(curves: dict[str, mx.Curves]) -> str:
    """Means and standard deviations over the tasks, of inner steps and of the test batch."""
    columns = _columns(curves)
    num_tasks, num_steps = columns[0].steps.shape
    rows = [
        ["", *(column.name for column in columns)],
        ["inner step", *(column.quantity for column in columns)],
    ]
    for steps in np.array_split(np.arange(num_steps), min(_MOST_ROWS, num_steps)):
        label = f"{steps[0] + 1}"
        if len(steps) > 1:
            label = f"{steps[0] + 1}-{steps[-1] + 1}"
        rows.append(
            [label, *(_spread(column.steps[:, steps].mean(1)) for column in columns)]
        )
    rows.append(["test", *(_spread(column.test) for column in columns)])

    caption = (
        f"{num_tasks} tasks, mean ± standard deviation over them; test: each task's test batch, "
        f"after step {num_steps}"
    )
    return "\n".join([caption, "", *_aligned(rows)])


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.4g} ± {values.std():.2g}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells))
    return lines


def _picture(path: Path, curves: dict[str, mx.Curves]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    losses = {name: curve.loss for name, curve in curves.items()}
    mx.plot.curves(losses, left, ylabel="loss before the step")

    # The last quantity is the accuracy if there is one.
    columns = _columns(curves)
    quantity = columns[-1].quantity
    tested = [column.test for column in columns if column.quantity == quantity]
    right.boxplot(tested, widths=0.6, medianprops={"color": mx.plot.COLOURS[0]})
    places = range(1, len(curves) + 1)
    right.set_xticks(places, [name.replace(" ", "\n", 1) for name in curves])
    right.set(ylabel=f"{quantity} on the test batch, a task each")
    right.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
