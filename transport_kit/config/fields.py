"""The kinds of value that an option can have: how a value is checked, and how text becomes one.

Owns the wording of what is wrong with a value. Threads: instances never change.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

__all__ = [
    "boolean",
    "callback",
    "choice",
    "FieldKind",
    "fraction",
    "headers",
    "integer",
    "seconds",
    "statuses",
    "targets",
    "text",
    "words",
]

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")


@dataclass(frozen=True, slots=True)
class FieldKind:
    """One kind of value: `accept` returns the stored form or raises ValueError saying what is wanted;
    `read` turns an environment variable's text into what `accept` takes."""

    accept: Callable[[object], object]
    read: Callable[[str], object] = str


def _short(value: float) -> str:
    """The number for a message; whole numbers of thousands of digits can't even be printed."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    return str(value)


def boolean() -> FieldKind:
    def accept(value: object) -> object:
        if not isinstance(value, bool):
            raise ValueError("must be True or False")
        return value

    def read(text: str) -> object:
        word = text.strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise ValueError("must be one of 1, true, yes, on, 0, false, no, off")

    return FieldKind(accept, read)


def integer(minimum: int, maximum: int, *, optional: bool = False) -> FieldKind:
    def accept(value: object) -> object:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number, not {type(value).__name__}")
        if not minimum <= value <= maximum:
            raise ValueError(f"must be from {minimum} to {maximum}, not {_short(value)}")
        return value

    def read(text: str) -> object:
        try:
            return int(text)
        except ValueError:
            raise ValueError("must be a whole number") from None

    return FieldKind(accept, read)


def seconds(minimum: float, maximum: float) -> FieldKind:
    def accept(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"must be a number of seconds, not {type(value).__name__}")
        if not minimum <= value <= maximum:  # false for NaN too
            raise ValueError(f"must be from {minimum:g} to {maximum:g} seconds, not {_short(value)}")
        return float(value)

    def read(text: str) -> object:
        try:
            return float(text)
        except ValueError:
            raise ValueError("must be a number of seconds") from None

    return FieldKind(accept, read)


def fraction(*, optional: bool = False) -> FieldKind:
    def accept(value: object) -> object:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"must be a number from 0 to 1, not {type(value).__name__}")
        if not 0 <= value <= 1:  # false for NaN too
            raise ValueError(f"must be from 0 to 1, not {_short(value)}")
        return float(value)

    def read(text: str) -> object:
        try:
            return float(text)
        except ValueError:
            raise ValueError("must be a number from 0 to 1") from None

    return FieldKind(accept, read)


def text(*, optional: bool = True, path: bool = False, longest: int = 4096) -> FieldKind:
    def accept(value: object) -> object:
        if value is None and optional:
            return None
        if path and isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not isinstance(value, str):
            raise ValueError(f"must be text, not {type(value).__name__}")
        if not value:
            raise ValueError("must not be empty; leave it out instead")
        if len(value) > longest:
            raise ValueError(f"must have at most {longest} characters, not {len(value)}")
        if any(ord(c) < 32 or ord(c) == 127 for c in value):
            raise ValueError("must not contain control characters")
        return value

    return FieldKind(accept)


def choice(*words: str) -> FieldKind:
    def accept(value: object) -> object:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return value

    return FieldKind(accept)


def words() -> FieldKind:
    def accept(value: object) -> object:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ValueError(f"must be a list of texts, not {type(value).__name__}")
        words = tuple(value)
        if not all(isinstance(word, str) and word for word in words):
            raise ValueError("must hold non-empty texts only")
        return words

    return FieldKind(accept, lambda text: [word.strip() for word in text.split(",") if word.strip()])


def targets() -> FieldKind:
    """Texts that a URL holds, or compiled patterns that are found in it; None is every URL."""

    def accept(value: object) -> object:
        if value is None:
            return None
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ValueError(f"must be a list of texts and patterns, not {type(value).__name__}")
        targets = tuple(value)
        if not all(
            (isinstance(target, str) and target)
            or (isinstance(target, re.Pattern) and isinstance(target.pattern, str))
            for target in targets
        ):
            raise ValueError("must hold non-empty texts and compiled text patterns only")
        return targets

    return FieldKind(accept, lambda text: [word.strip() for word in text.split(",") if word.strip()])


def statuses() -> FieldKind:
    def accept(value: object) -> object:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ValueError(f"must be a list of HTTP statuses, not {type(value).__name__}")
        statuses = tuple(value)
        for status in statuses:
            if isinstance(status, bool) or not isinstance(status, int):
                raise ValueError("must hold whole numbers only")
            if status != 408 and not 500 <= status <= 599:
                raise ValueError(f"may hold 408 and 500 to 599, not {_short(status)}; a 429 is never retried")
        return tuple(sorted(set(statuses)))

    def read(text: str) -> object:
        try:
            return [int(word) for word in text.split(",") if word.strip()]
        except ValueError:
            raise ValueError("must be statuses separated by commas") from None

    return FieldKind(accept, read)


def headers() -> FieldKind:
    """Kept as sorted pairs, so that options stay hashable; pairs are taken too, for `dataclasses.replace`."""

    def accept(value: object) -> object:
        if not isinstance(value, Mapping | tuple):
            raise ValueError(f"must be a mapping of header names to values, not {type(value).__name__}")
        pairs = tuple(value.items()) if isinstance(value, Mapping) else value
        for pair in pairs:
            if not (
                isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
            ):
                raise ValueError("names and values must be text")
            name, text = pair
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError("names must be HTTP header names")
            if not _HEADER_VALUE.fullmatch(text):
                raise ValueError("values must be Latin-1 text without line breaks and control characters")
        if len({name.lower() for name, _ in pairs}) < len(pairs):
            raise ValueError("must not give a header twice")
        return tuple(sorted(pairs))

    def read(text: str) -> object:
        pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError("must be name=value pairs separated by commas")
        return tuple((name.strip(), value.strip()) for name, _, value in pairs)

    return FieldKind(accept, read)


def callback() -> FieldKind:
    def accept(value: object) -> object:
        if value is not None and not callable(value):
            raise ValueError(f"must be callable, not {type(value).__name__}")
        return value

    def read(text: str) -> object:
        raise ValueError("can't be set from the environment")

    return FieldKind(accept, read)
