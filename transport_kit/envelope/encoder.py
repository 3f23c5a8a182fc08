"""The JSON encoder: orjson if it can be imported, else the standard library's with the same strictness.

This module owns every call of either, and the guards against crashes of orjson. The encoder accepts only the
exact types of JSON, no subclasses; it refuses all others, and `encoding.py` repairs them. The decoder accepts
strict JSON only, at most 1024 levels deep.

Two guards, because some values crash the process in orjson:

- Near the recursion limit, reading an Enum's value raises, which no release handles. `dumps` checks before
  each call that there is room.
- 3.12.0 and 3.13.0 follow cyclic tuples without end. 3.10.1 to 3.11.9 reserve no room for the closing
  brackets of deeply nested values (120 levels by experiment), and write past their buffer. Every release
  writes a list that is nested in itself 2**60 times, until the memory is exhausted. So `dumps` checks the
  value first, unless the release is known to be safe.

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

#: Releases of orjson that need no check of the value: those that pass tests/core/test_encoder.py without it.
#: None so far: 3.10.0 survives depth, but not size.
_SOUND: Final[frozenset[str]] = frozenset()
#: The first and the last release that are known to need it.
_UNSOUND: Final = ((3, 10, 0), (3, 13, 0))
# The depth of `encoding.repair`, and well below what crashes any release; orjson's own limit is 254.
_MAX_DEPTH: Final = 100
# The limit of orjson's decoder.
_MAX_READ_DEPTH: Final = 1024
# The most nodes of a value that is encoded without repair. A value that is part of several others counts
# as many times.
_MAX_NODES: Final = 1_000_000
_STRING_OR_BRACKET: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


# -- the guards ------------------------------------------------------------------------------------------


class _Member(Enum):
    ONE = 1


_MEMBERS: Final = (_Member.ONE,)


def _value_of(member: _Member) -> int:
    # One frame more than the encoder needs, and called from C, whose frames Python counts apart since 3.12.
    return member.value


class _RefusedError(TypeError):
    """A value that contains other types than JSON's, or is too deep or too large.

    Attributes:
        nodes: The number of nodes that were checked.
    """

    def __init__(self, problem: str, nodes: int) -> None:
        super().__init__(problem)
        self.nodes = nodes


def _check_nodes(value: object, max_nodes: int) -> int:
    """Return the number of nodes of `value`; a node that is part of several others counts as many times.

    Another thread can still make a cycle of tuples between this check and the encoder's reading.

    Raises:
        _RefusedError: It contains other types than JSON's, is too deep, or has more than `max_nodes` nodes.
    """
    level: list[Any] = [value]
    nodes = 1
    for _ in range(_MAX_DEPTH + 1):
        containers: list[Any] = []
        # Compared one by one: a lookup of the class would call its metaclass's `__hash__`.
        for part in level:
            class_ = type(part)
            if class_ is str or class_ is int:
                continue
            if class_ is dict or class_ is list or class_ is tuple:
                containers.append(part)
            elif part is not None and class_ is not bool and class_ is not float and class_ is not Fragment:
                raise _RefusedError("not of JSON's own types", nodes)
        if not containers:
            return nodes
        if nodes > max_nodes:
            break
        level = get_referents(*containers)
        nodes += len(level)
    raise _RefusedError("nested too deeply, or too large", nodes)


# -- the standard library's encoder and decoder ----------------------------------------------------------


class _Fragment:
    """Encoded JSON, to be inserted into the output as it is."""

    __slots__ = ("contents",)

    def __init__(self, contents: bytes) -> None:
        self.contents = contents


def _dumps_without_orjson(value: object) -> bytes:
    """Return the same JSON as orjson, except for the spelling of some floats.

    Iterative, so that the limit on depth does not depend on the depth of the caller's stack.

    Raises:
        TypeError: It contains an Enum, a UUID, or a value that orjson refuses.
    """
    parts: list[str] = []
    write = parts.append
    stack: list[tuple[Iterator[Any], str]] = [(iter((value,)), "")]
    comma = ""
    while stack:
        members, end = stack[-1]
        for part in members:
            write(comma)
            comma = ","
            if end == "}":
                key, part = part
                if type(key) is not str:
                    raise TypeError("a key is not a str")
                write(encode_basestring(key) + ":")
            class_ = type(part)
            if class_ is dict or class_ is list or class_ is tuple:
                if not part:
                    write("{}" if class_ is dict else "[]")
                    continue
                if len(stack) > _MAX_DEPTH:
                    raise TypeError("nested too deeply")
                # Copied in one step: another thread may change it.
                copy = tuple(part.items() if class_ is dict else part)
                write("{" if class_ is dict else "[")
                stack.append((iter(copy), "}" if class_ is dict else "]"))
                comma = ""
                break
            write(_scalar(part))
        else:
            write(end)
            comma = ","
            stack.pop()
    return _encoded("".join(parts))


def _scalar(value: Any) -> str:
    class_ = type(value)
    if class_ is str:
        return str(encode_basestring(value))
    if value is None:
        return "null"
    if class_ is bool:
        return "true" if value else "false"
    if class_ is int:
        if -(2**63) <= value < 2**64:
            return str(value)
        raise TypeError("an int of more than 64 bits")
    if class_ is float:
        return repr(value) if math.isfinite(value) else "null"
    if class_ is _Fragment:
        return str(value.contents, "utf-8")
    raise TypeError("not of JSON's own types")


def _dumps_text_without_orjson(text: str) -> bytes:
    return _encoded(encode_basestring(text))


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise TypeError("a lone surrogate") from None


def _loads_without_orjson(data: bytes | str) -> Any:
    """Return the value of strict JSON, as orjson does; raise ValueError for anything else."""
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


# -- checks of JSON text, also used by `parsing.py` ------------------------------------------------------


def check_depth(text: str) -> None:
    """Raise ValueError if brackets nest deeper than the decoder's limit.

    The standard library's decoder follows them up to the recursion limit, which an app may have raised beyond
    what its stack can hold.
    """
    if text.count("[") + text.count("{") <= _MAX_READ_DEPTH:
        return
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        bracket = match[0]
        if bracket == "[" or bracket == "{":
            depth += 1
            if depth > _MAX_READ_DEPTH:
                raise ValueError("nested too deeply")
        elif bracket == "]" or bracket == "}":
            depth -= 1


def refuse_constant(text: str) -> NoReturn:
    """Refuse NaN and infinities, which are not JSON. For `parse_constant`."""
    raise ValueError(f"{text} is not JSON")


def finite(text: str) -> float:
    """Return a float; raise ValueError where it would be infinite. For `parse_float`."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number out of range")
    return number


def integer(text: str) -> int | float:
    """Return an int, or a float beyond 64 bits: long ints take quadratic time. For `parse_int`."""
    if len(text) <= 20 and -(2**63) <= (number := int(text)) < 2**64:
        return number
    return finite(text)


# -- the choice of the encoder ---------------------------------------------------------------------------


def _import_orjson() -> Any:
    try:
        import orjson
    except ImportError:
        # It does not exist for PyPy, and an isolated sub-interpreter refuses to import it.
        return None
    return orjson


def _remark(version: str | None) -> str | None:
    if version is None:
        return "orjson can't be imported here; writing JSON takes many times as long"
    if version in _SOUND:
        return None
    # Release candidates don't match.
    numbers = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", version, re.ASCII)
    if numbers is not None and _UNSOUND[0] <= tuple(map(int, numbers.groups())) <= _UNSOUND[1]:
        return "values are looked through first: there are some with which this release ends the process"
    return "values are looked through first: this release is not known to be safe"


_orjson: Final = _import_orjson()
_strict: Final[int] = (
    _orjson.OPT_PASSTHROUGH_DATACLASS | _orjson.OPT_PASSTHROUGH_SUBCLASS | _orjson.OPT_PASSTHROUGH_DATETIME
    if _orjson
    else 0
)
#: The name and version of the encoder in use.
NAME: Final[str] = f"orjson {_orjson.__version__}" if _orjson else "json of the standard library"
#: The reason why it is not as fast as it could be, or None.
REMARK: Final = _remark(_orjson.__version__ if _orjson else None)
_guarded: Final = REMARK is not None
_announced = False

#: A part of a value that is encoded already; made from its bytes.
Fragment: type[Any] = _orjson.Fragment if _orjson else _Fragment
#: Returns the JSON of an exact str; raises TypeError for lone surrogates. Needs no guard: it runs no Python
#: code and follows no references.
dumps_text: Callable[[str], bytes] = _orjson.dumps if _orjson else _dumps_text_without_orjson
#: Returns the value of JSON; raises ValueError for anything else. Needs no guard: it runs no Python code but
#: the exception's.
loads: Callable[[bytes | str], Any] = _orjson.loads if _orjson else _loads_without_orjson


def dumps(value: object) -> bytes:
    """Return compact JSON: one line, raw UTF-8. NaN and infinities become null.

    Raises:
        TypeError: The value is refused. An Enum or a UUID is refused, or encoded as its value.
        RecursionError: The recursion limit is too near.
    """
    # Raises the RecursionError here that would crash the process inside the encoder.
    for _ in map(_value_of, _MEMBERS):
        pass
    if _guarded:
        _check_nodes(value, _MAX_NODES)
    # Positional: in a second sub-interpreter orjson accepts no keywords.
    return _dumps_without_orjson(value) if _orjson is None else _orjson.dumps(value, None, _strict)


def dumps_within(value: object, max_nodes: int) -> tuple[bytes | None, int]:
    """Return compact JSON of `value`, and the number of nodes checked.

    The JSON is None if the value is refused or has more than `max_nodes` nodes.

    Raises:
        RecursionError: The recursion limit is too near.
    """
    nodes = 0
    try:
        nodes = _check_nodes(value, max_nodes)
        return dumps(value), nodes
    except _RefusedError as refusal:
        return None, refusal.nodes
    except TypeError:
        return None, nodes


def indented(value: object) -> str:
    """Return JSON with indentation, for people to read.

    Raises:
        TypeError: The value is refused.
    """
    # Refuses other types than JSON's, and depths that `json.dumps` can't follow.
    dumps(value)
    return json.dumps(value, ensure_ascii=False, indent=2)


def announce() -> None:
    """Log, once per process, the reason why the encoder is not as fast as it could be."""
    global _announced
    if REMARK is not None and not _announced:
        _announced = True
        log.info("JSON is written by %s; %s", NAME, REMARK)
