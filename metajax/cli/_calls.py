"""Tables of a TOML file as calls of functions, each checked against its signature."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from metajax.cli._names import ARGUMENTS, SECTIONS, Table, can_be_given
from metajax.cli._toml import TomlFile
from metajax.cli._values import convert, describe

Section = dict[str, Any]

# Keys of a section that are no arguments of the function it names.
_EXTRA_KEYS = {"tasks": ("augment",), "optimizer": ("clip",)}


class ConfigFile(TomlFile):
    """A TOML file whose sections name functions and give their arguments."""

    def check_sections(self, *others: str) -> None:
        """All sections must be among those that name a function, and ``others``."""
        known = [*SECTIONS, *others]
        for name, section in self.sections.items():
            if name not in known:
                self.fail(name, f"unknown section [{name}]{_alternatives(name, known)}")
            if not isinstance(section, dict):
                self.fail(name, f"{name} must be a section, [{name}]")

    def section(self, name: str, needed_by: str = "") -> Section:
        """A section that must be there."""
        if name not in self.sections:
            reason = f"; [{needed_by}] needs it" if needed_by else ""
            self.fail(f"{needed_by}.name", f"the section [{name}] is missing{reason}")
        return self.sections[name]

    def refuse(self, name: str, reason: str) -> None:
        """A section that must not be there."""
        if name in self.sections:
            self.fail(name, f"{reason}; remove [{name}]")

    def make_section(self, name: str, needed_by: str = "", **made: Any) -> Any:
        """Calls the function that a section names."""
        section = _without(self.section(name, needed_by), *_EXTRA_KEYS.get(name, ()))
        return self.make(name, SECTIONS[name], section, **made)

    def make(self, place: str, table: Table, section: Any, **made: Any) -> Any:
        """Calls the function of a table that is named, the other keys its arguments."""
        if isinstance(section, str):
            section = {"name": section}
        function = self.named(place, table, section)
        return self.call(place, function, _without(section, "name"), **made)

    def named(self, place: str, table: Table, section: Any) -> Callable:
        """The function of a table that is named."""
        if not isinstance(section, dict) or "name" not in section:
            self.fail(place, f"{place} must have a name{_alternatives('', table)}")
        name = section["name"]
        if not isinstance(name, str) or name not in table:
            there_are = _alternatives(name, table)
            self.fail(f"{place}.name", f"unknown name {name!r} in {place}{there_are}")
        return table[name]

    def call(
        self, place: str, function: Callable, section: Section, **made: Any
    ) -> Any:
        """Calls a function with the arguments of a section, and with those of ``made`` it takes."""
        parameters = dict(inspect.signature(function).parameters)
        made = {name: value for name, value in made.items() if name in parameters}
        free = {
            name: parameter
            for name, parameter in parameters.items()
            if name not in made and can_be_given(parameter)
        }
        self._check_names(place, section, free)

        arguments = {}
        for name, value in section.items():
            arguments[name] = self._argument(f"{place}.{name}", free[name], value)
        with self.blame(place):
            return function(**made, **arguments)

    def _check_names(
        self, place: str, section: Section, parameters: dict[str, inspect.Parameter]
    ) -> None:
        for name in section:
            if name not in parameters:
                there_are = _alternatives(
                    name, [*parameters, *_EXTRA_KEYS.get(place, ())]
                )
                self.fail(
                    f"{place}.{name}",
                    f"unknown argument {name!r} in {place}{there_are}",
                )
        for name, parameter in parameters.items():
            if name not in section and parameter.default is parameter.empty:
                self.fail(
                    place, f"{place} lacks the argument {name!r}, {_wanted(parameter)}"
                )

    def _argument(self, place: str, parameter: inspect.Parameter, value: Any) -> Any:
        name = parameter.name
        if name in ARGUMENTS and isinstance(value, (dict, str)):
            return self.make(place, ARGUMENTS[name], value)
        try:
            return convert(parameter, value)
        except TypeError:
            self.fail(place, f"{name} must be {_wanted(parameter)}, got {value!r}")
        except ValueError as e:
            self.fail(place, f"{name} {e}, got {value!r}")


def _without(section: Section, *names: str) -> Section:
    return {name: value for name, value in section.items() if name not in names}


def _wanted(parameter: inspect.Parameter) -> str:
    """What a parameter takes, in words."""
    words = describe(parameter)
    if parameter.name in ARGUMENTS:
        words.append(f"one of {', '.join(ARGUMENTS[parameter.name])}")
    return " or ".join(words)


def _alternatives(name: Any, known: Iterable[str]) -> str:
    """What there is instead of an unknown name, and which of it may have been meant."""
    there_are = f"; there are {', '.join(known)}"
    near = [other for other in known if _initials(other) == name]
    near += difflib.get_close_matches(str(name), known, 1, cutoff=0.5)
    return f"{there_are}: did you mean {near[0]!r}?" if near else there_are


def _initials(name: str) -> str:
    """``lr`` of ``learning_rate``."""
    return "".join(word[:1] for word in name.split("_"))
