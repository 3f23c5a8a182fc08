"""The JSON encoder: orjson where it can be imported, else the standard library's with the same strictness.

Owns every call of either, and the guards that keep orjson from ending the process. Writes JSON's own types,
exact ones; everything else is refused, and `encoding.py` repairs it. The decoder takes what JSON is and
nothing more, at most 1024 levels deep.

Two guards, as there are values with which orjson ends the process:

- Near the recursion limit reading an Enum's value raises, which no release expects. `dumps` makes sure of
  room before each call.
- 3.12.0 and 3.13.0 follow tuples without end. 3.10.1 to 3.11.9 reserve no room for the closing brackets of
  what is nested deeply (120 levels by experiment), and write past their buffer. Every release writes a list
  that is part of itself 2**60 times over until the memory ends. So `dumps` looks through the value first,
  unless the release is known to be safe.

Threads: every function may be called from any thread; `announce` logs from one of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from enum import Enum
from gc import get_referents
from json.encoder import encode_basestring
from typing import Any, Final, NoReturn

from transport_kit.runtime.log import log

__all__ = [
    "announce",
    "check_depth",
    "dumps",
    "dumps_text",
    "dumps_within",
    "finite",
    "Fragment",
    "indented",
    "integer",
    "loads",
    "NAME",
    "refuse_constant",
    "REMARK",
]

#: Releases of orjson that need no look at the value: those that pass tests/core/test_encoder.py without.
#: None so far: 3.10.0 survives depth, but not size.
_SOUND: Final[frozenset[str]] = frozenset()
#: Releases that are known to need it: the first and the last.
_UNSOUND: Final = ((3, 10, 0), (3, 13, 0))
# As deep as `encoding.repair` goes, and well below what any release can't do; orjson's own bound is 254.
_DEEPEST: Final = 100
# orjson's own.
_DEEPEST_READ: Final = 1024
# A value that is part of many others is looked through as often. What is larger than this is repaired.
_MOST: Final = 1_000_000
_SIGN: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


# -- the guards ------------------------------------------------------------------------------------------


class _Member(Enum):
    ONE = 1


_MEMBERS: Final = (_Member.ONE,)


def _value_of(member: _Member) -> int:
    # One frame more than the encoder needs, and by way of C, which Python counts apart since 3.12.
    return member.value


class _RefusedError(TypeError):
    """A value that is not made of JSON's own types, or is too deep or too large.

    Attributes:
        nodes: How many nodes were looked at.
    """

    def __init__(self, problem: str, nodes: int) -> None:
        super().__init__(problem)
        self.nodes = nodes


def _look_through(value: object, most: int) -> int:
    """The number of nodes of `value`, each as often as it is part of another.

    Another thread can still make a cycle of tuples between this and the encoder's own reading.

    Raises:
        _RefusedError: It is not made of JSON's own types, is too deep, or has more than `most` nodes.
    """
    level: list[Any] = [value]
    nodes = 1
    for _ in range(_DEEPEST + 1):
        inner: list[Any] = []
        # Compared one by one: looking a class up would call a metaclass's `__hash__`.
        for part in level:
            kind = type(part)
            if kind is str or kind is int:
                continue
            if kind is dict or kind is list or kind is tuple:
                inner.append(part)
            elif part is not None and kind is not bool and kind is not float and kind is not Fragment:
                raise _RefusedError("not of JSON's own types", nodes)
        if not inner:
            return nodes
        if nodes > most:
            break
        level = get_referents(*inner)
        nodes += len(level)
    raise _RefusedError("nested too deeply, or too large", nodes)


# -- the standard library's ------------------------------------------------------------------------------


class _Fragment:
    """JSON that is written already, as a part of what is being written."""

    __slots__ = ("contents",)

    def __init__(self, contents: bytes) -> None:
        self.contents = contents


def _written(value: object) -> bytes:
    """What orjson writes, but for the spelling of some floats.

    Iterative, so that an event has the same bound on depth wherever it is captured.

    Raises:
        TypeError: It holds what orjson refuses, an Enum or a UUID.
    """
    parts: list[str] = []
    write = parts.append
    open_: list[tuple[Iterator[Any], str]] = [(iter((value,)), "")]
    comma = ""
    while open_:
        members, end = open_[-1]
        for part in members:
            write(comma)
            comma = ","
            if end == "}":
                key, part = part
                if type(key) is not str:
                    raise TypeError("a key is not a str")
                write(encode_basestring(key) + ":")
            kind = type(part)
            if kind is dict or kind is list or kind is tuple:
                if not part:
                    write("{}" if kind is dict else "[]")
                    continue
                if len(open_) > _DEEPEST:
                    raise TypeError("nested too deeply")
                # Copied in one step: another thread may change it.
                copy = tuple(part.items() if kind is dict else part)
                write("{" if kind is dict else "[")
                open_.append((iter(copy), "}" if kind is dict else "]"))
                comma = ""
                break
            write(_scalar(part))
        else:
            write(end)
            comma = ","
            open_.pop()
    return _encoded("".join(parts))


def _scalar(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return str(encode_basestring(value))
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        if -(2**63) <= value < 2**64:
            return str(value)
        raise TypeError("an int of more than 64 bits")
    if kind is float:
        return repr(value) if math.isfinite(value) else "null"
    if kind is _Fragment:
        return str(value.contents, "utf-8")
    raise TypeError("not of JSON's own types")


def _text_written(text: str) -> bytes:
    return _encoded(encode_basestring(text))


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise TypeError("a lone surrogate") from None


def _read(data: bytes | str) -> Any:
    """What orjson reads; ValueError for anything that is not JSON."""
    text = data if isinstance(data, str) else str(data, "utf-8")
    check_depth(text)
    try:
        value = json.loads(text, parse_constant=refuse_constant, parse_float=finite, parse_int=integer)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        elif not text.isascii():
            text.encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


# -- what readers of JSON share --------------------------------------------------------------------------


def check_depth(text: str) -> None:
    """Raise ValueError where brackets nest deeper than a reader may go.

    The standard library's reader follows them as far as the recursion limit, which an app may have raised
    beyond what its stack holds.
    """
    if text.count("[") + text.count("{") <= _DEEPEST_READ:
        return
    depth = 0
    for found in _SIGN.finditer(text):
        sign = found[0]
        if sign == "[" or sign == "{":
            depth += 1
            if depth > _DEEPEST_READ:
                raise ValueError("nested too deeply")
        elif sign == "]" or sign == "}":
            depth -= 1


def refuse_constant(text: str) -> NoReturn:
    """For `parse_constant`: NaN and infinities are Python's, not JSON's."""
    raise ValueError(f"{text} is not JSON")


def finite(text: str) -> float:
    """For `parse_float`: a number, and no infinity in its place."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number out of range")
    return number


def integer(text: str) -> int | float:
    """For `parse_int`: beyond 64 bits a float. Long ints would take quadratic time."""
    if len(text) <= 20 and -(2**63) <= (number := int(text)) < 2**64:
        return number
    return finite(text)


# -- which of them, and how ------------------------------------------------------------------------------


def _imported() -> Any:
    try:
        import orjson
    except ImportError:
        # PyPy has none, an isolated sub-interpreter refuses it.
        return None
    return orjson


def _remark(version: str | None) -> str | None:
    if version is None:
        return "orjson can't be imported here; writing JSON takes many times as long"
    if version in _SOUND:
        return None
    # A candidate of a release is no release.
    numbers = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", version, re.ASCII)
    if numbers is not None and _UNSOUND[0] <= tuple(map(int, numbers.groups())) <= _UNSOUND[1]:
        return "values are looked through first: there are some with which this release ends the process"
    return "values are looked through first: this release is not known to be safe"


_orjson: Final = _imported()
_strict: Final[int] = (
    _orjson.OPT_PASSTHROUGH_DATACLASS | _orjson.OPT_PASSTHROUGH_SUBCLASS | _orjson.OPT_PASSTHROUGH_DATETIME
    if _orjson
    else 0
)
#: The encoder in use: its name and version.
NAME: Final[str] = f"orjson {_orjson.__version__}" if _orjson else "json of the standard library"
#: Why it is not as fast as could be; None when it is.
REMARK: Final = _remark(_orjson.__version__ if _orjson else None)
_guarded: Final = REMARK is not None
_announced = False

#: A part that is JSON already, made of its bytes.
Fragment: type[Any] = _orjson.Fragment if _orjson else _Fragment
#: Exact str -> its JSON; TypeError for lone surrogates. Not guarded: no Python runs, nothing is followed.
dumps_text: Callable[[str], bytes] = _orjson.dumps if _orjson else _text_written
#: JSON -> its value; ValueError for anything else. Not guarded: no Python runs but the exception's own.
loads: Callable[[bytes | str], Any] = _orjson.loads if _orjson else _read


def dumps(value: object) -> bytes:
    """Compact JSON: one line, raw UTF-8. NaN and infinities become null.

    Raises:
        TypeError: It is refused. An Enum or a UUID may be, or may be written as its value.
        RecursionError: The recursion limit is too near.
    """
    # Raises here what would be raised inside, where it ends the process.
    for _ in map(_value_of, _MEMBERS):
        pass
    if _guarded:
        _look_through(value, _MOST)
    # By position: in a second sub-interpreter orjson takes no keywords.
    return _written(value) if _orjson is None else _orjson.dumps(value, None, _strict)


def dumps_within(value: object, most: int) -> tuple[bytes | None, int]:
    """Compact JSON of `value` (None if refused, or of more than `most` nodes), and the nodes looked at.

    Raises:
        RecursionError: The recursion limit is too near.
    """
    nodes = 0
    try:
        nodes = _look_through(value, most)
        return dumps(value), nodes
    except _RefusedError as refusal:
        return None, refusal.nodes
    except TypeError:
        return None, nodes


def indented(value: object) -> str:
    """JSON for people to read.

    Raises:
        TypeError: It is refused.
    """
    # Plain, and no deeper than what is walked next.
    dumps(value)
    return json.dumps(value, ensure_ascii=False, indent=2)


def announce() -> None:
    """Log, once in a process, that the encoder is not as fast as it could be."""
    global _announced
    if REMARK is not None and not _announced:
        _announced = True
        log.info("JSON is written by %s; %s", NAME, REMARK)
