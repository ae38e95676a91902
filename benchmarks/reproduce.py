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
Results = Sequence[dict[str, np.ndarray]]


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
    text: str, source: str, published: Any, values: Sequence[Any], holds: Callable[[float], bool]
) -> Claim:
    """A claim about the mean of ``values``, one of each seed; no values mean that it was not
    run.
    """
    x = np.asarray(values, np.float64)
    if not x.size:
        return Claim(text, source, published, None, None, 0, None, 0)
    alone = sum(bool(holds(float(v))) for v in x if np.isfinite(v))
    if not np.isfinite(x).all():
        return Claim(text, source, published, None, None, x.size, False, alone)
    spread = float(x.std(ddof=1)) if x.size > 1 else None
    return Claim(
        text,
        source,
        published,
        float(x.mean()),
        spread,
        x.size,
        bool(holds(float(x.mean()))),
        alone,
    )


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
    settings: dict[str, dict[str, Any]]
    run: Callable[[int, dict[str, Any], Path], dict[str, np.ndarray]]
    claims: Callable[[Results, dict[str, Any]], list[Claim]]
    picture: Callable[[Results, dict[str, Any], Any], None]
    seeds: int = 3


def names() -> list[str]:
    """The names of all experiments."""
    import benchmarks.experiments as package

    modules = (m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    return sorted(m.replace("_", "-") for m in modules)


def load(name: str) -> Experiment:
    """The experiment of that name."""
    return importlib.import_module(f"benchmarks.experiments.{name.replace('-', '_')}").EXPERIMENT


def reproduce(
    name: str, scale: str, out: Path, seeds: int | None = None, first: int = 0, resume: bool = False
) -> dict:
    """Runs the seeds ``first, first + 1, ...``, judges the claims, writes ``NAME.json`` and
    ``NAME.png`` to ``out``.
    """
    experiment = load(name)
    settings = experiment.settings[scale]
    seeds = (1 if scale == "smoke" else experiment.seeds) if seeds is None else seeds
    results, seconds, peaks = [], [], []
    for seed in range(first, first + seeds):
        folder = out / f"{name}-{scale}" / f"seed-{seed}"
        done = folder / "result.json"
        if resume and done.exists():
            stored = json.loads(done.read_text())
            _same_settings(done, stored["settings"], settings)
        else:
            if not resume and folder.exists():
                raise ValueError(
                    f"{folder} holds an earlier run: add --resume to go on, or give another --out"
                )
            interrupted = folder.exists()  # what went before was not timed
            folder.mkdir(parents=True, exist_ok=True)
            begun = folder / "settings.json"
            if begun.exists():
                _same_settings(begun, json.loads(begun.read_text()), settings)
            begun.write_text(json.dumps(settings))
            print(f"{name}, {scale}, seed {seed}", flush=True)
            reset_peak()
            begin = time.monotonic()
            result = {k: np.asarray(v) for k, v in experiment.run(seed, settings, folder).items()}
            stored = {
                "settings": settings,
                "seconds": None if interrupted else time.monotonic() - begin,
                "peak_resident_mib": round(peak_resident() / 2**20),
                "result": {k: _short(v) for k, v in result.items()},
            }
            part = done.with_suffix(".part")
            part.write_text(json.dumps(stored))
            part.rename(done)
        results.append({k: np.asarray(v) for k, v in stored["result"].items()})
        seconds.append(stored["seconds"])
        peaks.append(stored.get("peak_resident_mib"))
    claims = experiment.claims(results, settings)
    devices = (
        f" --devices {jax.device_count()}"
        if jax.default_backend() == "cpu" and jax.device_count() > 1
        else ""
    )
    report = {
        "name": name,
        "title": experiment.title,
        "source": experiment.source,
        "scale": scale,
        "command": f"python -m benchmarks reproduce {name} --scale {scale} --seeds {seeds} --first {first}{devices}",
        **machine(),
        "seeds": list(range(first, first + seeds)),
        "seconds": seconds,
        "peak_resident_mib": peaks,
        "settings": settings,
        "claims": [c._asdict() for c in claims],
        "results": [{k: _finite(_short(v)) for k, v in r.items()} for r in results],
    }
    (out / f"{name}.json").write_text(_json(report))
    _picture(experiment, results, settings, out / f"{name}.png")
    print(table(report["claims"]))
    print(f"written: {out / f'{name}.json'} and .png")
    return report


def _same_settings(file: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    if there != json.loads(json.dumps(here)):
        raise ValueError(f"{file} was made with other settings: {there}; give another --out")


def table(claims: Sequence[dict[str, Any]]) -> str:
    """Claims as lines of text."""
    rows = [(c["claim"], str(c["published"] or "-"), _value(c), _verdict(c)) for c in claims]
    rows.insert(0, ("claim", "published", "measured", "holds"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def report(root: Path, page: Path) -> str:
    """Gathers all results under ``root`` (``NAME/DEVICE.json``) into a Markdown page; returns
    it.
    """
    overview, sections = _markdown("experiment", "paper", "claims that hold", "run"), []
    for name in names():
        experiment = load(name)
        runs = sorted(root.glob(f"{name}/*.json"))
        if not runs:
            overview += _markdown_row(experiment.title, experiment.source, "", f"`{name}`: not run")
        for path in runs:
            r = json.loads(path.read_text())
            verdicts = [c["holds"] for c in r["claims"]]
            seeds = "1 seed" if len(r["seeds"]) == 1 else f"{len(r['seeds'])} seeds"
            run = f"`{name}` {r['scale']}, {seeds}, {path.stem}"
            run += "" if None in r["seconds"] else f", {sum(r['seconds']) / 60:.0f} min"
            holding = f"{verdicts.count(True)} of {len(verdicts) - verdicts.count(None)}"
            overview += _markdown_row(r["title"], r["source"], holding, run)
            claims = _markdown("paper", "claim", "published", "ours", "holds")
            for c in r["claims"]:
                claims += _markdown_row(
                    c["source"], c["claim"], c["published"], _value(c), _verdict(c)
                )
            link = "../" + path.with_suffix(".png").as_posix()
            made = f"`{r['command']}`" + (
                f"\n\n{r['note']}" if "note" in r else ""
            )  # of runs that were joined by hand
            sections.append(f"## {r['title']}\n\n{made}\n\n![{r['title']}]({link})\n\n{claims}")
    head = (
        "# Reproduced figures\n\nMade by `python -m benchmarks report` from what `python -m benchmarks reproduce` has "
        "measured. Ours are means over seeds ± their standard deviation. A claim is judged by the mean; where seeds "
        "disagree, in how many it holds is told too. A claim that does not hold is a result as well."
    )
    text = (
        "\n\n".join([head, overview.rstrip(), *(section.rstrip() for section in sections)]) + "\n"
    )
    page.write_text(text)
    return text


def _markdown(*head: str) -> str:
    return _markdown_row(*head) + _markdown_row(*["---"] * len(head))


def _markdown_row(*cells: Any) -> str:
    return "| " + " | ".join("" if x is None else str(x) for x in cells) + " |\n"


def _value(c: dict[str, Any]) -> str:
    value, spread = c["measured"], c["spread"]
    if value is None:
        return "not run" if c["holds"] is None else "not finite"
    if not spread or spread < 1e-4:
        return f"{value:.4g}" + ("" if spread is None else f" ± {spread:.2g}")
    digits = max(0, 1 - math.floor(math.log10(spread)))  # two of the spread's
    return f"{value:.{digits}f} ± {spread:.{digits}f}"


def _verdict(c: dict[str, Any]) -> str:
    if c["holds"] is None:
        return "not run"
    split = c["alone"] != c["seeds"] * c["holds"]  # the seeds do not agree
    return ("yes" if c["holds"] else "no") + f", {c['alone']} of {c['seeds']} seeds" * split


def _short(x: np.ndarray) -> Any:
    """Five significant digits are enough, and keep the files small."""
    return np.vectorize(lambda v: float(f"{v:.5g}"), otypes=[float])(x).tolist() if x.size else []


def _finite(x: Any) -> Any:
    """With None for what JSON has no number for."""
    return [_finite(v) for v in x] if isinstance(x, list) else x if math.isfinite(x) else None


def _json(report: dict[str, Any]) -> str:
    rows = report.pop("results")
    head = json.dumps(report, indent=1, allow_nan=False)
    body = ",\n".join(
        "  {"
        + ",\n   ".join(f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in r.items())
        + "}"
        for r in rows
    )
    report["results"] = rows
    return head[:-2] + ',\n "results": [\n' + body + "\n ]\n}\n"


def _picture(
    experiment: Experiment, results: Results, settings: dict[str, Any], path: Path
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    experiment.picture(results, settings, figure)
    figure.savefig(path, dpi=130)
