"""Types of arguments on the command line: each gives the value of a text, or says what is wrong."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

_LARGEST = 2**31 - 1  # counts and seeds are int32


def whole_number(least: int) -> Callable[[str], int]:
    """A whole number from ``least``."""

    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= _LARGEST:
            raise ArgumentTypeError(
                f"must be a whole number from {least} to {_LARGEST}, got {text}"
            )
        return int(text)

    return number


def path(text: str) -> Path:
    """A file or a folder, which need not be there."""
    if "\0" in text:
        raise ArgumentTypeError(f"must not hold the character NUL, got {text!r}")
    return Path(text)


def folder(text: str) -> Path:
    """A folder, which need not be there."""
    if not text.strip():
        raise ArgumentTypeError("must be the name of a folder, got an empty one")
    return path(text)


def file_ending_in(*suffixes: str) -> Callable[[str], Path]:
    """A file of one of the kinds."""

    def file(text: str) -> Path:
        if Path(text).suffix not in suffixes:
            raise ArgumentTypeError(f"must end in {' or '.join(suffixes)}, got {text}")
        return path(text)

    return file
