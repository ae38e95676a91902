"""The folder of a run, ``out`` in its config: it has a copy of the config, and what came out."""

import os
from pathlib import Path
from typing import Any

from metajax.cli._config import Run
from metajax.cli._toml import ConfigError, TomlFile

CONFIG = "config.toml"


def locate(source: Path) -> tuple[Path, Path | None]:
    """The config that a command is given, and the folder of the run if it is given that."""
    if source.is_dir():
        return source / CONFIG, source
    return source, None


def check_usable(folder: Path) -> None:
    """Notices a folder that cannot be written to before minutes are spent on compilation."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(
            f"out is {folder}, but {existing} is a file; give another out"
        )
    if not os.access(existing, os.W_OK):
        raise ConfigError(
            f"out is {folder}, but {existing} cannot be written to; give another out"
        )


def refuse_another_run(path: Path, folder: Path) -> None:
    """Says that a folder holds the run of another config than that in ``path``, should it."""
    kept = folder / CONFIG
    if not kept.exists() or kept == path:
        return

    old = _what_makes_a_run(kept)
    new = _what_makes_a_run(path)
    changed = sorted(
        name for name in old.keys() | new.keys() if old.get(name) != new.get(name)
    )
    if changed:
        raise ConfigError(
            f"{path} and {kept} differ in [{'], ['.join(changed)}], so that {folder} is the folder "
            f"of another run; give another out"
        )


def _what_makes_a_run(path: Path) -> dict[str, Any]:
    """All sections, of [run] the seed and the tasks: losses of other tasks do not compare."""
    sections = TomlFile(path).sections
    run = Run._field_defaults | sections.get("run", {})
    return sections | {"run": (run["seed"], run["validation_tasks"])}
