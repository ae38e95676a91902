"""One command for each published result: seeds, claims, a JSON file and a picture.

An experiment is a module in `benchmarks/experiments/` with an `EXPERIMENT`. What it claims is
computed from what its seeds have returned and from nothing else.
"""

import importlib
import json
import math
import pkgutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.machine import machine
from benchmarks.measure import peak_resident, reset_peak

SCALES = ("smoke", "small", "full")
Settings = dict[str, Any]
Result = dict[str, np.ndarray]
Results = Sequence[Result]  # of the seeds


class Claim(NamedTuple):
    """A statement of a paper and what was found.

    Attributes:
      claim: the statement, with its threshold.
      source: where it stands, e.g. "Kirsch & Schmidhuber 2021, section 4.1".
      published: the published figure in words or as a number, None where there is none.
      measured: the mean over seeds, None where it was not run or is not finite, which does not
        hold.
      spread: its standard deviation over seeds, None with one seed or with such a mean.
      seeds: how many.
      holds: whether it holds here, of the mean, None where it was not run.
      alone: in how many seeds it holds by itself.
    """

    claim: str
    source: str
    published: Any
    measured: float | None
    spread: float | None
    seeds: int
    holds: bool | None
    alone: int


def claim(
    text: str,
    source: str,
    published: Any,
    values: Sequence[Any],
    holds: Callable[[float], bool],
) -> Claim:
    """A claim about the mean of ``values``, one of each seed.

    No values mean that it was not run.
    """
    x = np.asarray(values, np.float64)
    if not x.size:
        return Claim(text, source, published, None, None, 0, None, 0)

    finite = x[np.isfinite(x)].tolist()
    alone = sum(bool(holds(value)) for value in finite)
    if not np.isfinite(x).all():
        return Claim(text, source, published, None, None, x.size, False, alone)

    mean = float(x.mean())
    spread = float(x.std(ddof=1)) if x.size > 1 else None
    mean_holds = bool(holds(mean))
    return Claim(text, source, published, mean, spread, x.size, mean_holds, alone)


def below(bound: float) -> Callable[[float], bool]:
    """``x < bound``."""
    return lambda x: x < bound


def at_most(bound: float) -> Callable[[float], bool]:
    """``x <= bound``."""
    return lambda x: x <= bound


def above(bound: float) -> Callable[[float], bool]:
    """``x > bound``."""
    return lambda x: x > bound


def at_least(bound: float) -> Callable[[float], bool]:
    """``x >= bound``."""
    return lambda x: x >= bound


class Experiment(NamedTuple):
    """What a module of `benchmarks.experiments` provides.

    Attributes:
      title: one line.
      source: paper and figure or table.
      settings: scale -> all that may differ between scales, as plain numbers and strings.
      run: ``(seed, settings, folder) -> {name: array}``, arrays small enough for JSON; whatever
        takes long goes on from checkpoints in ``folder``.
      claims: ``(results, settings) -> [Claim]``.
      picture: ``(results, settings, figure) -> None`` draws on a matplotlib figure.
      seeds: how many by default.
    """

    title: str
    source: str
    settings: dict[str, Settings]
    run: Callable[[int, Settings, Path], Result]
    claims: Callable[[Results, Settings], list[Claim]]
    picture: Callable[[Results, Settings, Any], None]
    seeds: int = 3


def names() -> list[str]:
    """The names of all experiments."""
    import benchmarks.experiments as package

    modules = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return sorted(
        name.replace("_", "-") for name in modules if not name.startswith("_")
    )


def load(name: str) -> Experiment:
    """The experiment of that name."""
    module = name.replace("-", "_")
    return importlib.import_module(f"benchmarks.experiments.{module}").EXPERIMENT


def reproduce(
    name: str,
    scale: str,
    out: Path,
    seeds: int | None = None,
    first: int = 0,
    resume: bool = False,
) -> dict[str, Any]:
    """Runs the seeds ``first, first + 1, ...`` and checks the claims against what they return.

    Writes ``NAME.json`` and ``NAME.png`` to ``out``, and returns what is in the first.
    """
    experiment = load(name)
    settings = experiment.settings[scale]
    if seeds is None:
        seeds = 1 if scale == "smoke" else experiment.seeds
    run_seeds = range(first, first + seeds)

    stored = []
    for seed in run_seeds:
        folder = seed_folder(out, name, scale, seed)
        stored.append(_run_or_load(experiment, seed, settings, folder, resume))
    results = [_arrays(seed_stored["result"]) for seed_stored in stored]
    claims = experiment.claims(results, settings)

    command = f"python -m benchmarks reproduce {name} --scale {scale}"
    command += f" --seeds {seeds} --first {first}"
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        command += f" --devices {jax.device_count()}"
    report = {
        "name": name,
        "title": experiment.title,
        "source": experiment.source,
        "scale": scale,
        "command": command,
        **machine(),
        "seeds": list(run_seeds),
        "seconds": [seed_stored["seconds"] for seed_stored in stored],
        "peak_resident_mib": [
            seed_stored.get("peak_resident_mib") for seed_stored in stored
        ],
        "settings": settings,
        "claims": [one._asdict() for one in claims],
        "results": [_only_finite(_rounded(result)) for result in results],
    }
    file = out / f"{name}.json"
    file.write_text(_json(report))
    _picture(experiment, results, settings, file.with_suffix(".png"))
    print(table(report["claims"]))
    print(f"written: {file} and .png")
    return report


def seed_folder(out: Path, name: str, scale: str, seed: int) -> Path:
    """Where the checkpoints and the result of a seed are."""
    return out / f"{name}-{scale}" / f"seed-{seed}"


def _run_or_load(
    experiment: Experiment,
    seed: int,
    settings: Settings,
    folder: Path,
    resume: bool,
) -> dict[str, Any]:
    """What a seed has come to: from its folder if it is done, else run and then kept there."""
    done = folder / "result.json"
    if resume and done.exists():
        stored = json.loads(done.read_text())
        _check_settings(done, stored["settings"], settings)
        return stored
    if folder.exists() and not resume:
        raise ValueError(
            f"{folder} holds an earlier run: add --resume to go on, or give another --out"
        )

    was_interrupted = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / "settings.json"
    if begun.exists():
        _check_settings(begun, json.loads(begun.read_text()), settings)
    begun.write_text(json.dumps(settings))

    print(f"{folder.parent.name}, seed {seed}", flush=True)
    reset_peak()
    begin = time.monotonic()
    try:
        result = _arrays(experiment.run(seed, settings, folder))
    except FileNotFoundError:
        # For want of data, say: a folder in which nothing was begun is not in the way of the next.
        if list(folder.iterdir()) == [begun]:
            begun.unlink()
            folder.rmdir()
        raise
    seconds = time.monotonic() - begin
    stored = {
        "settings": settings,
        "seconds": None
        if was_interrupted
        else seconds,  # what went before was not timed
        "peak_resident_mib": round(peak_resident() / 2**20),
        "result": _rounded(result),
    }
    part = done.with_suffix(".part")
    part.write_text(json.dumps(stored))
    part.rename(done)
    return stored


def _check_settings(file: Path, there: Settings, here: Settings) -> None:
    if there != json.loads(json.dumps(here)):
        raise ValueError(
            f"{file} was made with other settings: {there}; give another --out"
        )


def _arrays(result: dict[str, Any]) -> Result:
    return {name: np.asarray(value) for name, value in result.items()}


def _rounded(result: Result) -> dict[str, Any]:
    """As lists of numbers of five significant digits: they are enough, and keep the files small."""
    return {name: _five_digits(x) for name, x in result.items()}


def _five_digits(x: np.ndarray) -> Any:
    if not x.size:
        return []
    rounded = np.vectorize(lambda value: float(f"{value:.5g}"), otypes=[float])
    return rounded(x).tolist()


def _only_finite(x: Any) -> Any:
    """With None for what JSON has no number for."""
    if isinstance(x, dict):
        return {name: _only_finite(value) for name, value in x.items()}
    if isinstance(x, list):
        return [_only_finite(value) for value in x]
    return x if math.isfinite(x) else None


def table(claims: Sequence[dict[str, Any]]) -> str:
    """Claims as lines of text."""
    rows = [("claim", "published", "measured", "holds")]
    for one in claims:
        published = str(one["published"] or "-")
        rows.append((one["claim"], published, _measured(one), _verdict(one)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


_HEAD = (
    "# Reproduced figures\n\n"
    "Made by `python -m benchmarks report` from what `python -m benchmarks reproduce` has "
    "measured. Ours are means over seeds ± their standard deviation. A claim is judged by the "
    "mean; where seeds disagree, in how many it holds is told too. A claim that does not hold is a "
    "result as well."
)


def report(root: Path, page: Path) -> str:
    """Gathers all results under ``root`` (``NAME/DEVICE.json``) into a Markdown page.

    Returns the text of the page.
    """
    overview = _markdown_head("experiment", "paper", "claims that hold", "run")
    sections = []
    for name in names():
        paths = sorted(root.glob(f"{name}/*.json"))
        if not paths:
            experiment = load(name)
            overview += _markdown_row(
                experiment.title, experiment.source, "", f"`{name}`: not run"
            )
        for path in paths:
            stored = json.loads(path.read_text())
            overview += _overview_row(name, path, stored)
            sections.append(_section(path, stored))
    parts = [_HEAD, overview.rstrip(), *(section.rstrip() for section in sections)]
    text = "\n\n".join(parts) + "\n"
    page.write_text(text)
    return text


def _overview_row(name: str, path: Path, stored: dict[str, Any]) -> str:
    verdicts = [one["holds"] for one in stored["claims"]]
    holding = f"{verdicts.count(True)} of {len(verdicts) - verdicts.count(None)}"

    num_seeds = len(stored["seeds"])
    seeds = "1 seed" if num_seeds == 1 else f"{num_seeds} seeds"
    run = f"`{name}` {stored['scale']}, {seeds}, {path.stem}"
    if None not in stored["seconds"]:
        run += f", {sum(stored['seconds']) / 60:.0f} min"
    return _markdown_row(stored["title"], stored["source"], holding, run)


def _section(path: Path, stored: dict[str, Any]) -> str:
    title = stored["title"]
    made = f"`{stored['command']}`"
    if "note" in stored:  # of runs that were joined by hand
        made += f"\n\n{stored['note']}"
    picture = "../" + path.with_suffix(".png").as_posix()

    claims = _markdown_head("paper", "claim", "published", "ours", "holds")
    for one in stored["claims"]:
        measured = _measured(one)
        verdict = _verdict(one)
        claims += _markdown_row(
            one["source"],
            one["claim"],
            one["published"],
            measured,
            verdict,
        )
    return f"## {title}\n\n{made}\n\n![{title}]({picture})\n\n{claims}"


def _markdown_head(*head: str) -> str:
    return _markdown_row(*head) + _markdown_row(*["---"] * len(head))


def _markdown_row(*cells: Any) -> str:
    return "| " + " | ".join("" if x is None else str(x) for x in cells) + " |\n"


def _measured(one: dict[str, Any]) -> str:
    value = one["measured"]
    spread = one["spread"]
    if value is None:
        return "not run" if one["holds"] is None else "not finite"
    if spread is None:
        return f"{value:.4g}"
    if spread < 1e-4:
        return f"{value:.4g} ± {spread:.2g}"
    digits = max(0, 1 - math.floor(math.log10(spread)))  # two of the spread's
    return f"{value:.{digits}f} ± {spread:.{digits}f}"


def _verdict(one: dict[str, Any]) -> str:
    if one["holds"] is None:
        return "not run"
    verdict = "yes" if one["holds"] else "no"
    all_agree = one["alone"] == one["seeds"] * one["holds"]
    return (
        verdict if all_agree else f"{verdict}, {one['alone']} of {one['seeds']} seeds"
    )


def _json(report: dict[str, Any]) -> str:
    """Indented, but for the results: a line for each of their entries."""
    without_results = {name: x for name, x in report.items() if name != "results"}
    head = json.dumps(without_results, indent=1, allow_nan=False).removesuffix("\n}")

    bodies = []
    for result in report["results"]:
        lines = [
            f"{json.dumps(k)}: {json.dumps(x, allow_nan=False)}"
            for k, x in result.items()
        ]
        bodies.append("  {" + ",\n   ".join(lines) + "}")
    body = ",\n".join(bodies)
    return head + ',\n "results": [\n' + body + "\n ]\n}\n"


def _picture(
    experiment: Experiment,
    results: Results,
    settings: Settings,
    path: Path,
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    experiment.picture(results, settings, figure)
    figure.savefig(path, dpi=130)
