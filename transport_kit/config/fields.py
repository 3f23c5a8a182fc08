"""Kinds of option values: accepted values, parsing from text, and descriptions.

This module knows no option by name. `accept` checks a caller's value and returns the stored form; `parse`
turns the text of an environment variable into a value for `accept`. Both raise `ValueError` with a message
that begins with "must" or "may" and names the accepted values; no message contains a rejected text.

Threads: kinds never change and may be shared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = [
    "Callback",
    "Choice",
    "FieldKind",
    "Flag",
    "HeaderPairs",
    "ListOf",
    "Number",
    "Status",
    "Target",
    "Text",
    "Word",
]

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
#: Characters of a text, unless `longest` is set.
_LONGEST = 4096
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")


class FieldKind(Protocol):
    """One kind of option value."""

    @property
    def type_name(self) -> str:
        """The Python type for documentation, such as `int or None`."""

    @property
    def bounds(self) -> str:
        """The accepted values in words, such as `1 to 64`; empty if the type is the only condition."""

    def accept(self, value: object) -> object:
        """Return the stored form of `value`.

        Raises:
            ValueError: The value can't be used; the message names the accepted ones.
        """

    def parse(self, text: str) -> object:
        """Return the value of an environment variable's text, which `accept` must still check.

        Raises:
            ValueError: The text has the wrong form.
        """


@dataclass(frozen=True, slots=True)
class Flag:
    """True or False; in the environment a word such as `yes` or `off`."""

    @property
    def type_name(self) -> str:
        return "bool"

    @property
    def bounds(self) -> str:
        return ""

    def accept(self, value: object) -> object:
        if not isinstance(value, bool):
            raise ValueError("must be True or False")
        return value

    def parse(self, text: str) -> object:
        word = text.strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise ValueError("must be one of 1, true, yes, on, 0, false, no, off")


@dataclass(frozen=True, slots=True)
class Number:
    """A number within bounds, both inclusive; NaN is outside of all bounds.

    Attributes:
        minimum: The smallest accepted value.
        maximum: The largest accepted value.
        unit: The unit's plural, such as `seconds`; empty for counts and shares.
        whole: Only ints are accepted; otherwise floats too, and a float is stored.
        optional: None is accepted too.
    """

    minimum: float
    maximum: float
    unit: str = ""
    whole: bool = False
    optional: bool = False

    @property
    def type_name(self) -> str:
        return ("int" if self.whole else "float") + (" or None" if self.optional else "")

    @property
    def bounds(self) -> str:
        return f"{self._edge(self.minimum)} to {self._edge(self.maximum)}" + (
            f" {self.unit}" if self.unit else ""
        )

    def accept(self, value: object) -> object:
        if value is None and self.optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            raise ValueError(f"must be {self._noun}, not {type(value).__name__}")
        if not self.minimum <= value <= self.maximum:  # false for NaN too
            raise ValueError(f"must be from {self.bounds}, not {_printable(value)}")
        return value if self.whole else float(value)

    def parse(self, text: str) -> object:
        try:
            return int(text) if self.whole else float(text)
        except ValueError:
            raise ValueError(f"must be {self._noun}") from None

    @property
    def _noun(self) -> str:
        if self.whole:
            return "a whole number"
        return f"a number of {self.unit}" if self.unit else f"a number from {self.bounds}"

    def _edge(self, edge: float) -> str:
        return str(int(edge)) if edge == int(edge) else f"{edge:g}"


@dataclass(frozen=True, slots=True)
class Text:
    """Text without control characters, not empty.

    Attributes:
        optional: None is accepted too.
        path: An `os.PathLike` is accepted too, and stored as text.
        longest: The largest number of characters.
    """

    optional: bool = True
    path: bool = False
    longest: int = _LONGEST

    @property
    def type_name(self) -> str:
        return "str or None" if self.optional else "str"

    @property
    def bounds(self) -> str:
        return "" if self.longest == _LONGEST else f"at most {self.longest} characters"

    def accept(self, value: object) -> object:
        if value is None and self.optional:
            return None
        if self.path and isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not isinstance(value, str):
            raise ValueError(f"must be text, not {type(value).__name__}")
        if not value:
            raise ValueError("must not be empty; leave it out instead")
        if len(value) > self.longest:
            raise ValueError(f"must have at most {self.longest} characters, not {len(value)}")
        if any(ord(character) < 32 or ord(character) == 127 for character in value):
            raise ValueError("must not contain control characters")
        return value

    def parse(self, text: str) -> object:
        return text


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words.

    Attributes:
        words: The words, in the order of messages and documentation.
    """

    words: tuple[str, ...]

    @property
    def type_name(self) -> str:
        return "str"

    @property
    def bounds(self) -> str:
        return ", ".join(self.words)

    def accept(self, value: object) -> object:
        if value not in self.words:
            raise ValueError(f"must be one of {self.bounds}")
        return value

    def parse(self, text: str) -> object:
        return text


class Element(Protocol):
    """The kind of a list's members."""

    @property
    def type_name(self) -> str:
        """The Python type of a member for documentation."""

    @property
    def plural(self) -> str:
        """The noun for members in messages."""

    @property
    def bounds(self) -> str:
        """The accepted members in words; empty if the type is the only condition."""

    def check(self, member: object) -> None:
        """Check one member.

        Raises:
            ValueError: The member can't be used.
        """

    def parse(self, word: str) -> object:
        """Return the member for one word of an environment variable.

        Raises:
            ValueError: The word has the wrong form.
        """


@dataclass(frozen=True, slots=True)
class Word:
    """The kind of list items that are non-empty strings."""

    @property
    def type_name(self) -> str:
        return "str"

    @property
    def plural(self) -> str:
        return "texts"

    @property
    def bounds(self) -> str:
        return ""

    def check(self, member: object) -> None:
        if not (isinstance(member, str) and member):
            raise ValueError("must hold non-empty texts only")

    def parse(self, word: str) -> object:
        return word


@dataclass(frozen=True, slots=True)
class Target:
    """A list's member that selects URLs: a text that they contain, or a compiled pattern to search for."""

    @property
    def type_name(self) -> str:
        return "str or re.Pattern[str]"

    @property
    def plural(self) -> str:
        return "texts and patterns"

    @property
    def bounds(self) -> str:
        return ""

    def check(self, member: object) -> None:
        pattern = isinstance(member, re.Pattern) and isinstance(member.pattern, str)
        if not (pattern or (isinstance(member, str) and member)):
            raise ValueError("must hold non-empty texts and compiled text patterns only")

    def parse(self, word: str) -> object:
        return word


@dataclass(frozen=True, slots=True)
class Status:
    """A list's member that is an HTTP status after which a delivery may be repeated."""

    @property
    def type_name(self) -> str:
        return "int"

    @property
    def plural(self) -> str:
        return "HTTP statuses"

    @property
    def bounds(self) -> str:
        return "407, 408, 421, 425, 500 to 599"

    def check(self, member: object) -> None:
        if isinstance(member, bool) or not isinstance(member, int):
            raise ValueError("must hold whole numbers only")
        if member not in (407, 408, 421, 425) and not 500 <= member <= 599:
            raise ValueError(
                "may hold 407, 408, 421, 425 and 500 to 599, "
                f"not {_printable(member)}; a 429 is never retried"
            )

    def parse(self, word: str) -> object:
        try:
            return int(word)
        except ValueError:
            raise ValueError("must be statuses separated by commas") from None


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list, stored as a tuple; in the environment its members are separated by commas.

    Attributes:
        element: The kind of its members.
        ordered: The tuple is sorted and holds each member once; otherwise it is kept as given.
        optional: None is accepted too.
    """

    element: Element
    ordered: bool = False
    optional: bool = False

    @property
    def type_name(self) -> str:
        return f"tuple[{self.element.type_name}, ...]" + (" or None" if self.optional else "")

    @property
    def bounds(self) -> str:
        return self.element.bounds

    def accept(self, value: object) -> object:
        if value is None and self.optional:
            return None
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ValueError(f"must be a list of {self.element.plural}, not {type(value).__name__}")
        members = tuple(value)
        for member in members:
            self.element.check(member)
        return tuple(sorted(set(members))) if self.ordered else members

    def parse(self, text: str) -> object:
        return [self.element.parse(word.strip()) for word in text.split(",") if word.strip()]


@dataclass(frozen=True, slots=True)
class HeaderPairs:
    """HTTP headers: a mapping of names to values, stored as sorted pairs so that options stay hashable."""

    @property
    def type_name(self) -> str:
        return "mapping of str to str"

    @property
    def bounds(self) -> str:
        return ""

    def accept(self, value: object) -> object:
        # Pairs are accepted too, since `dataclasses.replace` passes the stored form.
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

    def parse(self, text: str) -> object:
        pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError("must be name=value pairs separated by commas")
        return tuple((name.strip(), value.strip()) for name, _, value in pairs)


@dataclass(frozen=True, slots=True)
class Callback:
    """A function or None; can't be set from the environment."""

    @property
    def type_name(self) -> str:
        return "function or None"

    @property
    def bounds(self) -> str:
        return ""

    def accept(self, value: object) -> object:
        if value is not None and not callable(value):
            raise ValueError(f"must be callable, not {type(value).__name__}")
        return value

    def parse(self, text: str) -> object:
        raise ValueError("can't be set from the environment")


def _printable(value: float) -> str:
    """Return the number for a message; Python refuses to print an int of thousands of digits."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    return str(value)
