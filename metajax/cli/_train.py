"""Meta-train what a TOML file describes, or go on with it.

The folder out of [run] gets metrics.csv, config.toml, checkpoints/, and the meta-parameters
final.npz and best.npz, the best by validation. Run it again and it goes on from the last
checkpoint.

Examples:
  metajax train examples/vsml-digits.toml
  metajax train out/vsml-digits                   on with the run in a folder
  metajax train out/vsml-digits --steps 1000      further than its config says
"""

import argparse
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

import metajax as mx
from metajax.cli import _arguments, _config, _run_folder
from metajax.cli._names import ARGUMENTS, SECTIONS
from metajax.cli._toml import ConfigError
from metajax.types import TrainState


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.epilog = _what_a_config_may_say()
    parser.add_argument(
        "source",
        type=_arguments.path,
        metavar="CONFIG.toml|FOLDER",
        help="a config, or the folder of a run",
    )
    parser.add_argument(
        "--steps",
        type=_arguments.whole_number(1),
        help="meta-steps in all, in place of what the file says",
    )
    parser.add_argument(
        "--out",
        type=_arguments.folder,
        help="folder for what comes out, in place of what the file says",
    )


def run(args: argparse.Namespace) -> None:
    """Trains, and keeps what came out."""
    path, folder = _run_folder.locate(args.source)
    changes = {"steps": args.steps, "out": str(args.out or folder or "")}
    given = {name: value for name, value in changes.items() if value}
    experiment = _config.experiment(path, **given)

    out = Path(experiment.run.out).expanduser()
    _run_folder.check_usable(out)
    _run_folder.refuse_another_run(path, out)
    state, data = experiment.start()
    validate = _validation(experiment)

    out.mkdir(parents=True, exist_ok=True)
    kept = out / _run_folder.CONFIG
    if path.resolve() != kept.resolve():
        shutil.copyfile(path, kept)

    label = path.stem if folder is None else folder.name
    try:
        result = _fit(experiment, state, data, validate, out, label)
    except ValueError as e:
        # Fewer steps than are done, or another seed than that of the checkpoints.
        raise ConfigError(f"{path}: {str(e).replace('num_steps', 'steps')}") from e
    _save(result, out)


def _fit(
    experiment: _config.Experiment,
    state: TrainState,
    data: Any,
    validate: mx.Validation,
    out: Path,
    label: str,
) -> mx.Fit:
    run = experiment.run
    return mx.fit(
        experiment.trainer,
        state,
        data,
        num_steps=run.steps,
        validate=validate,
        checkpoint=mx.checkpoints(out / "checkpoints", every=run.checkpoint_every),
        callbacks=[mx.log(out / "metrics.csv")],
        progress=label,
    )


def _validation(experiment: _config.Experiment) -> mx.Validation:
    """The meta-loss on fresh tasks."""
    run = experiment.run
    inner = experiment.inner

    def loss(key, meta_params, data):
        curves = mx.evaluate(
            inner, key, meta_params, data, num_tasks=run.validation_tasks
        )
        losses = curves.test_loss if inner.heldout else curves.loss
        return losses.mean()

    return mx.validation(
        loss,
        experiment.keys["validation"],
        experiment.data("validation"),
        every=min(run.validate_every, run.steps),
        patience=run.patience,
    )


def _save(result: mx.Fit, out: Path) -> None:
    losses = result.validation["loss"]
    if not np.isfinite(losses).any():
        raise FloatingPointError(
            f"no validation of {out} was finite, so that nothing is best; has the network an "
            f"output for every label?"
        )
    mx.save(out / "final.npz", result.state.meta_params)
    mx.save(out / "best.npz", result.best)

    best = int(np.nanargmin(losses))
    print(
        f"{int(result.state.step)} meta-steps; the best validation loss is {losses[best]:.4g}, at "
        f"meta-step {result.validation['step'][best]}.\n"
        f"{out}/ has metrics.csv, best.npz, final.npz; next:\n"
        f"  metajax evaluate {out}"
    )


def _what_a_config_may_say() -> str:
    sections = {f"[{name}]": ", ".join(table) for name, table in SECTIONS.items()}
    sections["[data]"] = ", ".join(_config.Data._fields)
    sections["[inner]"] = "horizon, meta_loss"
    sections["[run]"] = ", ".join(_config.Run._fields)
    arguments = {name: ", ".join(table) for name, table in ARGUMENTS.items()}
    return f"""A config has these sections; name picks a function, the other keys are its arguments:

{_rows(sections)}

Some arguments are made in the same way: learning_rate = {{ name = "linear_schedule", ... }}.

{_rows(arguments)}"""


def _rows(texts: dict[str, str]) -> str:
    """Names on the left, each with its text beside it."""
    rows = []
    for name, text in texts.items():
        lines = textwrap.wrap(text, width=82)
        rows.append(f"  {name:16}" + ("\n" + " " * 18).join(lines))
    return "\n".join(rows)
