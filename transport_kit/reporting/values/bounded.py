"""Bounded values: any object of the app as a small piece of JSON, without running the app's code; and tags.

This module owns the bounded walk and the form of tags. It reads only built-in types, through their own C
functions, so that no `__repr__`, `__str__`, `__len__`, `__iter__`, `__class__` or `__getattr__` of the app
runs. Any other object becomes `<module.Class>`, with its fields if its class declares them (`objects.py`).
Every walk is limited in depth, breadth, text length and bytes.

Threads: stateless except for caches that any thread may fill. A container that other threads may change is
copied in one atomic step.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Any, Final

from transport_kit.envelope.encoder import dumps_text
from transport_kit.reporting.values.objects import (
    Plan,
    fields_of,
    may_have_shape,
    member_name,
    names_of,
    plan_of,
    shape_of,
)
from transport_kit.reporting.values.scrub import scrub_text, secret_flag
from transport_kit.reporting.values.secret_names import FILTERED, counts_below, hidden

__all__ = [
    "as_text",
    "bounded",
    "class_name",
    "clean",
    "cut",
    "Limits",
    "MINIMUM",
    "module_of",
    "qualname_of",
    "Room",
    "tag_key",
    "TAG_LENGTH",
    "tag_value",
    "tidy",
]

#: Bytes of JSON that any scalar fits in; a walk writes a value only while this many bytes are left.
MINIMUM: Final = 24
#: Bytes of JSON that any number within `_MIN_INTEGER` and `_MAX_INTEGER` fits in.
_NUMBER: Final = 20
_BESIDE_NUMBER: Final = MINIMUM - _NUMBER
#: Largest dict, in elements, that is copied whole.
_SMALL: Final = 100
_KEY_LENGTH: Final = 64
_CACHED_KEYS: Final = 4096
# Every JSON reader accepts integers within these bounds.
_MIN_INTEGER: Final = -(1 << 63)
_MAX_INTEGER: Final = (1 << 63) - 1
# Characters past the limit that are still scrubbed, so that a cut never hides the `@` that ends a password.
_LOOKAHEAD: Final = 512
_NAME_LENGTH: Final = 200
#: Key of the class name in an object with fields.
_CLASS_KEY: Final = "<class>"

_module: Callable[[type], Any] = type.__dict__["__module__"].__get__
_qualname: Callable[[type], str] = type.__dict__["__qualname__"].__get__

#: Characters of a tag's key, and of its value.
TAG_LENGTH: Final = 200
#: Keys of a mapping that describes one value: those of its name, and those of the value.
_NAMING_KEYS: Final = (
    "name",
    "key",
    "field",
    "header",
    "param",
    "variable",
    "setting",
    "loc",
    "id",
    "Name",
    "Key",
)
_VALUE_KEYS: Final = ("value", "input", "Value")
#: Elements of a tuple that is a key.
_KEY_PARTS: Final = 8
_NOT_IN_TAG_KEY = re.compile(r"[^A-Za-z0-9_.:\-]")


class Room:
    """Number of bytes of JSON that may still be written. Owned by one walk; not shared between threads."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


@dataclass(frozen=True, slots=True)
class Limits:
    """The size limits of a walk.

    Attributes:
        text: Characters of a string.
        breadth: Elements of a container.
        depth: Nested containers.
        hides: Returns True for a key whose value is hidden; None hides nothing and leaves text unscrubbed.
        costs: Cache. Key -> bytes of JSON of the key, its punctuation and a number; for a hidden value, the
            negated bytes of key and marker. Only keys that are written unchanged. Changed in atomic steps;
            two threads that miss do the same work twice.
        shows_counts: Cache. The hidden keys in `costs` under which a flag, None or a count is shown.
    """

    text: int
    breadth: int
    depth: int
    hides: Callable[[str], bool] | None = None
    costs: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    shows_counts: set[str] = field(default_factory=set, init=False, repr=False, compare=False)


_SEQUENCES: Final = (list, tuple, set, frozenset)
# Id of a class -> weak reference to it, its name, its plan, result of `may_have_shape`.
_classes: dict[int, tuple[weakref.ref[type], str, Plan | None, bool]] = {}
_KEYS: Final = Limits(text=_KEY_LENGTH, breadth=0, depth=0)
_TEXTS: Final = Limits(text=2048, breadth=100, depth=6)
_TEXT_BYTES: Final = 2048


def cut(text: str, limit: int) -> str:
    """Return at most `limit` characters of a string as an exact `str`; a shortened text ends in `...`."""
    if type(text) is str and len(text) <= limit:
        return text
    if str.__len__(text) <= limit:
        return str.__getitem__(text, slice(None))
    return str.__getitem__(text, slice(0, limit - 3)) + "..."


def clean(text: str) -> str:
    """Return the text with lone surrogates as escapes, so that JSON and UTF-8 can encode it."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def tidy(text: object, limit: int) -> str:
    """Return at most `limit` characters of encodable text; other values are rendered by `as_text`."""
    exact = text if type(text) is str else as_text(text)
    if len(exact) <= limit and exact.isascii():
        return exact
    return cut(clean(exact), limit)


def as_text(value: object) -> str:
    """Return a value as an exact `str` without running its code; an object becomes its class name."""
    if issubclass(type(value), str):
        return str.__getitem__(value, slice(None))  # type: ignore[index]
    return str(bounded(value, Room(_TEXT_BYTES), _TEXTS))


def module_of(cls: type) -> str | None:
    """Return the `__module__` of a class; None if it is missing or no text."""
    try:
        module = _module(cls)
    except AttributeError:
        return None
    return clean(cut(module, _NAME_LENGTH)) if issubclass(type(module), str) else None


def qualname_of(cls: type) -> str:
    """Return a class's qualified name without running its metaclass's code."""
    return clean(cut(_qualname(cls), _NAME_LENGTH))


def class_name(cls: type) -> str:
    """Return `module.Class` for a class."""
    return f"{module_of(cls) or '?'}.{qualname_of(cls)}"


def bounded(value: Any, room: Room, limits: Limits, depth: int = 0) -> Any:
    """Return the value as JSON-compatible data within `room` and `limits`.

    The caller ensures that `room.left` is at least `MINIMUM`; it never becomes negative.
    """
    cls = type(value)
    if cls is str:
        return _text(value, room, limits)
    if value is None or cls is bool:
        room.left -= 5
        return value
    if cls is int:
        return _integer(value, room)
    if depth < limits.depth:
        try:
            if cls is list:
                return _sequence(value, list, room, limits, depth)
            if cls is dict or issubclass(cls, dict):
                return _mapping(value, room, limits, depth)
            for base in _SEQUENCES:
                if issubclass(cls, base):
                    if base is tuple and cls is not tuple:
                        names = names_of(cls)
                        if names and len(names) == tuple.__len__(value):
                            by_name = dict(zip(names, tuple.__iter__(value), strict=True))
                            return _mapping(by_name, room, limits, depth)
                    return _sequence(value, base, room, limits, depth)
        except RuntimeError:
            # Another thread changed the set or dict during the copy: render its class only.
            pass
    if issubclass(cls, float):
        return _float(float.__float__(value), room)
    if issubclass(cls, str):
        return _text(value, room, limits)
    if issubclass(cls, int):
        return _integer(int.__index__(value), room)
    return _object(value, cls, room, limits, depth)


def _object(value: Any, cls: type, room: Room, limits: Limits, depth: int) -> Any:
    # Cached by id, because hashing a class may run its metaclass's code. The weak reference detects a reused
    # id.
    entry = _classes.get(id(cls))
    if entry is None or entry[0]() is not cls:
        entry = (weakref.ref(cls), f"<{class_name(cls)}>", plan_of(cls), may_have_shape(cls))
        if len(_classes) >= _CACHED_KEYS:
            _classes.clear()
        _classes[id(cls)] = entry
    _, name, plan, shaped = entry
    if plan is not None and depth < limits.depth and room.left > len(name) + 2 * MINIMUM:
        return _mapping({_CLASS_KEY: name, **fields_of(value, cls, plan)}, room, limits, depth)
    shape = shape_of(value, cls) if shaped else None
    return _plain(name if shape is None else f"{name[:-1]} {shape}>", room)


def _text(text: str, room: Room, limits: Limits) -> str:
    limit = limits.text
    if type(text) is not str or len(text) > limit:
        text = cut(text, limit if limits.hides is None else limit + _LOOKAHEAD)
    if limits.hides is not None:
        text = scrub_text(text)
        if len(text) > limit:
            text = cut(text, limit)
    try:
        cost = len(dumps_text(text))
    except TypeError:
        return _plain(clean(text), room)
    if cost > room.left:
        return _plain(text, room)
    room.left -= cost
    return text


def _plain(text: str, room: Room) -> str:
    """Return the text, cut to the room that is left."""
    try:
        cost = len(dumps_text(text))
    except TypeError:
        text = clean(text)
        cost = len(dumps_text(text))
    if cost > room.left:
        # A character takes up to six bytes of JSON (an escaped control character), plain ASCII one.
        widest = 1 if cost == len(text) + 2 else 6
        text = cut(text, max(3, (room.left - 2) // widest))
        cost = len(dumps_text(text))
    room.left -= cost
    return text


def _integer(value: int, room: Room) -> int | str:
    if _MIN_INTEGER <= value <= _MAX_INTEGER:
        room.left -= 20
        return value
    bits = value.bit_length()
    # The decimal text of a huge integer takes quadratic time, and Python refuses more than 4300 digits.
    return _plain(str(value) if bits <= 1024 else f"<int of {bits} bits>", room)


def _float(value: float, room: Room) -> float | str:
    if not math.isfinite(value):
        return _plain(repr(value), room)
    room.left -= MINIMUM
    return value


def _sequence(value: Any, base: Any, room: Room, limits: Limits, depth: int) -> list[Any]:
    length = base.__len__(value)
    breadth = limits.breadth
    # Copied in one atomic step: other threads may change the container.
    elements = value[:breadth] if type(value) is list else list(islice(base.__iter__(value), breadth))
    if length == 2 == len(elements):  # a header or form field as a pair
        first: Any = elements[0]
        name = first if type(first) is str else _bytes_name(first) if type(first) is bytes else ""
        if name and _hides(name, limits):
            elements[1] = hidden(name, elements[1])
    # Reserve room for a number per element; `_render_elements` corrects it for other elements.
    bytes_left = room.left - 2
    count = (bytes_left - MINIMUM) // (_NUMBER + 1)
    if count < len(elements):
        del elements[max(count, 0) :]
    bytes_left -= len(elements) * (_NUMBER + 1)
    for element in elements:
        # The most common case is handled here, as a call of `bounded` costs more than the rest of the loop.
        # Bounds of a billion in two separate comparisons, because the interpreter compares small integers
        # fastest.
        if type(element) is not int or element > 1_000_000_000 or element < -1_000_000_000:
            bytes_left = _render_elements(elements, bytes_left, room, limits, depth)
            break
    room.left = bytes_left
    if length > len(elements) and bytes_left > 2 * MINIMUM:
        note = f"<{length - len(elements)} more>"
        room.left = bytes_left - len(note) - 3
        elements.append(note)
    return elements


def _render_elements(elements: list[Any], bytes_left: int, room: Room, limits: Limits, depth: int) -> int:
    """Replace each element by its bounded form; return the bytes left.

    `bytes_left` already excludes the room of a number for each element.
    """
    for place, element in enumerate(elements):
        if type(element) is int and element < 1_000_000_000 and element > -1_000_000_000:
            continue
        bytes_left += _NUMBER
        if bytes_left < MINIMUM:
            bytes_left += (len(elements) - place) * (_NUMBER + 1) - _NUMBER
            del elements[place:]
            break
        room.left = bytes_left
        elements[place] = rendered = bounded(element, room, limits, depth + 1)
        bytes_left = room.left
        if type(rendered) is str and rendered[:1] == "-" and limits.hides is not None:
            _hide_argument(elements, place, limits)
    return bytes_left


def _hide_argument(arguments: list[Any], place: int, limits: Limits) -> None:
    """Hide the value of a flag of a command: in the next argument, or in the flag's own."""
    flag = arguments[place]
    if (flag[1:2] == "-" or len(flag) > 3) and place + 1 < len(arguments) and _hides(flag, limits):
        arguments[place + 1] = FILTERED
        return
    short, attached = secret_flag(arguments[: place + 1])
    if not short or not flag.startswith(short):
        return
    if len(flag) > len(short):
        arguments[place] = short + FILTERED
    elif not attached and place + 1 < len(arguments):
        arguments[place + 1] = FILTERED


def _bytes_name(name: bytes) -> str:
    return name[: _NAME_LENGTH + 1].decode("latin-1")


def _hides(name: str, limits: Limits) -> bool:
    # Searching a text longer than any name would dominate the time of the walk.
    return limits.hides is not None and len(name) <= _NAME_LENGTH and limits.hides(name)


def _mapping(value: dict[Any, Any], room: Room, limits: Limits, depth: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    costs, shows_counts = limits.costs, limits.shows_counts
    breadth = limits.breadth
    bytes_left = room.left - 2  # local copy of `room.left`, written back before each call that changes it
    length = dict.__len__(value)
    # Copied in one atomic step: other threads may change the dict. A small dict is fastest to copy whole.
    members = dict.copy(value).items() if length <= _SMALL else list(islice(dict.items(value), breadth))
    for name, element in islice(members, breadth):
        try:
            cost = costs[name] if type(name) is str else None
        except KeyError:
            cost = None
        if cost is None:
            name, cost = _known_key(name, limits)
        if cost > 0:
            bytes_left -= cost  # of the key, and of a number
            if bytes_left < _BESIDE_NUMBER:
                bytes_left += cost
                break
            if type(element) is int and element < 1_000_000_000 and element > -1_000_000_000:
                result[name] = element
            else:
                room.left = bytes_left + _NUMBER
                result[name] = bounded(element, room, limits, depth + 1)
                bytes_left = room.left
        else:
            bytes_left += cost
            if bytes_left < 0:
                bytes_left -= cost
                break
            result[name] = FILTERED if name not in shows_counts else hidden(name, element)
    if limits.hides is not None and ("value" in result or "input" in result or "Value" in result):
        bytes_left = _hide_named(value, result, bytes_left, limits)
    room.left = bytes_left
    if length > len(result) and bytes_left > 2 * MINIMUM:
        note = f"<{length - len(result)} more>"
        room.left = bytes_left - len(note) - 9
        result["..."] = note
    return result


def _hide_named(members: dict[Any, Any], result: dict[str, Any], bytes_left: int, limits: Limits) -> int:
    """Hide a value whose name is another member: `{"name": "password", "value": "x"}`; return the bytes left.

    Frameworks describe fields, headers and variables so; `loc` and `input` are Pydantic's.
    """
    for naming in _NAMING_KEYS:
        name = dict.get(members, naming)
        if name is None:
            continue
        parts = name if type(name) in (tuple, list) else (name,)
        names = [_bytes_name(part) if type(part) is bytes else part for part in parts[:10]]
        if not any(type(part) is str and _hides(part, limits) for part in names):
            continue
        for key in _VALUE_KEYS:
            if key in result:
                bytes_left -= len(FILTERED) + 2
                if bytes_left < 0:  # the marker may be longer than the value
                    bytes_left += len(FILTERED) + 2
                    del result[key]
                else:
                    result[key] = FILTERED
    return bytes_left


def _known_key(name: Any, limits: Limits) -> tuple[str, int]:
    """Return a key as it is written, and its entry in `limits.costs`."""
    key = clean(cut(name, _KEY_LENGTH)) if type(name) is str else clean(_key(name))
    hides, costs = limits.hides, limits.costs
    cost = costs.get(key)
    if cost is None:
        cost = len(dumps_text(key)) + 2
        cost = -(cost + len(FILTERED) + 2) if hides is not None and hides(key) else cost + _NUMBER
        if len(costs) >= _CACHED_KEYS:
            costs.clear()
            limits.shows_counts.clear()
        if cost < 0 and counts_below(key):
            limits.shows_counts.add(key)  # before the cost, so that a key with a cost has its entry
        costs[key] = cost
    return key, cost


def _key(name: Any) -> str:
    cls = type(name)
    if issubclass(cls, str):
        return cut(name, _KEY_LENGTH)
    if name is None or cls is bool or cls is int or cls is float:
        return cut(str(bounded(name, Room(_KEY_LENGTH), _KEYS)), _KEY_LENGTH)
    if cls is bytes:
        return cut(repr(name[:_KEY_LENGTH]), _KEY_LENGTH)
    if cls is tuple and all(type(part) in (str, bytes, int) for part in name[:_KEY_PARTS]):
        parts = tuple(part if type(part) is int else part[:_KEY_LENGTH] for part in name[:_KEY_PARTS])
        return cut(repr(parts), _KEY_LENGTH)
    if issubclass(cls, Enum) and type(member := member_name(name, cls)) is str:
        return cut(f"{class_name(cls)}.{member}", _KEY_LENGTH)
    return cut(f"<{class_name(cls)}>", _KEY_LENGTH)


def tag_key(key: object) -> str:
    """Return a tag's key in the form that servers accept: spaces become `-`, other invalid characters `_`."""
    return _NOT_IN_TAG_KEY.sub("_", cut(as_text(key), TAG_LENGTH).strip().replace(" ", "-"))


def tag_value(value: object) -> str:
    """Return a tag's value in the form that servers accept: one line of text."""
    return cut(" ".join(as_text(value).splitlines()), TAG_LENGTH)
