"""A TOML file whose mistakes are said with their line."""

import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

_HEADER = re.compile(r"\s*\[\[?([^\[\]]+)\]\]?\s*(#.*)?$")
_ENTRY = re.compile(r"\s*([\w.\s\"'-]+?)\s*=")


class ConfigError(ValueError):
    """What is wrong with a config, and in which line."""


class TomlFile:
    """The sections of a file, and the lines that they and their keys are in.

    A place in it is the keys that lead there, joined by dots: ``optimizer.learning_rate``.
    """

    def __init__(self, path: Path):
        self.path = path
        self.text, self.sections = _read(path)
        self.lines = _line_numbers(self.text, self.sections)

    def fail(self, place: str, message: str) -> NoReturn:
        """Raises a `ConfigError` with the line of a place, or else of what it is in."""
        while place and place not in self.lines:
            place = place.rpartition(".")[0]
        last = len(self.text.splitlines())
        raise ConfigError(f"{self.path}:{self.lines.get(place, last)}: {message}")

    @contextmanager
    def blame(self, place: str) -> Iterator[None]:
        """Errors inside are said with the line of the argument they name, else of the place."""
        try:
            yield
        except ConfigError:
            raise
        except KeyError as e:
            self.fail(
                place,
                f"{e} is missing from what the tasks give: do tasks, problem and data go together?",
            )
        except (TypeError, ValueError) as e:
            self.fail(self._place_of_argument(str(e), place), str(e))

    def _place_of_argument(self, message: str, place: str) -> str:
        """The place of the argument that a message begins with, the one nearest to ``place``."""
        name = re.split(r"\W", message, maxsplit=1)[0]
        section = place.partition(".")[0]
        for start in (place, section, ""):
            for known in self.lines:
                if known.startswith(start) and known.endswith(f".{name}"):
                    return known
        return place


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from e
    except ValueError as e:
        line = re.findall(r"at line (\d+)", str(e)) or [1]
        raise ConfigError(f"{path}:{line[0]}: this is not TOML: {e}") from e


def _line_numbers(text: str, sections: dict[str, Any]) -> dict[str, int]:
    """The line of each place: of what looks like a key and is among those that were read."""
    lines: dict[str, int] = {}
    section = []
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        entry = header or _ENTRY.match(line)
        if entry is None:
            continue

        keys = [key.strip(" \"'") for key in entry[1].split(".")]
        if not header:
            keys = section + keys
        if not _is_in(sections, keys):
            continue
        lines.setdefault(".".join(keys), number)
        if header:
            section = keys
    return lines


def _is_in(sections: dict[str, Any], keys: list[str]) -> bool:
    value = sections
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
    return True
