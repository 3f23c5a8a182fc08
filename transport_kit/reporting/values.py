"""Values: any object of the app as a small piece of JSON, without running the app's code.

Owns the bounded walk. Only exact facts of built-in types are read, through the types' own C functions, so
that no `__repr__`, `__str__`, `__len__`, `__iter__`, `__class__` or `__getattr__` of the app runs; any
other object is `<module.Class>`, with its fields when its class declares them (`objects.py`). Every walk
has a depth, a breadth, a text length and a number of bytes.

Threads: stateless but for caches that any thread may fill. Containers that other threads change meanwhile
are read in one step each.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import orjson

from transport_kit.reporting.objects import Plan, fields_of, may_have_shape, plan_of, shape_of
from transport_kit.reporting.scrub import FILTERED, scrub_text

__all__ = [
    "as_text",
    "bounded",
    "class_name",
    "clean",
    "cut",
    "LEAST",
    "Limits",
    "MINIMUM",
    "module_of",
    "MOST",
    "qualname_of",
    "Room",
    "tidy",
]

#: Bytes of JSON that any scalar fits in; a walk writes a value only while this much room is left.
MINIMUM: Final = 24
_KEY_LENGTH: Final = 64
_CACHED_KEYS: Final = 4096
#: What every JSON reader takes as a number without loss of digits is within these.
LEAST: Final = -(1 << 63)
MOST: Final = (1 << 63) - 1
# Past a limit by this much a text is still scrubbed, so that a cut never hides the `@` that ends a password.
_LOOKAHEAD: Final = 512
_NAME_LENGTH: Final = 200
#: Under which an object with fields says its class.
_CLASS_KEY: Final = "<class>"

_module: Callable[[type], Any] = type.__dict__["__module__"].__get__
_qualname: Callable[[type], str] = type.__dict__["__qualname__"].__get__
_dumps = orjson.dumps


class Room:
    """Bytes of JSON that may still be written. One walk owns it; not shared between threads."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a value is kept.

    Attributes:
        text: Characters of a string.
        breadth: Elements of a container.
        depth: Containers within each other.
        hides: Says for a key whether its value is left out; None keeps all, and leaves text unscrubbed.
    """

    text: int
    breadth: int
    depth: int
    hides: Callable[[str], bool] | None = None


_SEQUENCES: Final = (list, tuple, set, frozenset)
# Id of a class -> a weak reference to it, its name, how its fields are read, whether it may have a shape.
_classes: dict[int, tuple[weakref.ref[type], str, Plan | None, bool]] = {}
_KEYS: Final = Limits(text=_KEY_LENGTH, breadth=0, depth=0)
_TEXTS: Final = Limits(text=2048, breadth=100, depth=6)
_TEXT_BYTES: Final = 2048


def cut(text: str, limit: int) -> str:
    """At most `limit` characters of a string as an exact `str`; a shortened one ends in `...`."""
    if type(text) is str and len(text) <= limit:
        return text
    if str.__len__(text) <= limit:
        return str.__getitem__(text, slice(None))
    return str.__getitem__(text, slice(0, limit - 3)) + "..."


def clean(text: str) -> str:
    """The text with lone surrogates written as escapes: what JSON and UTF-8 can carry."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def tidy(text: object, limit: int) -> str:
    """At most `limit` characters of a text that JSON can carry; what is no text is told as in a walk."""
    exact = text if type(text) is str else as_text(text)
    if len(exact) <= limit and exact.isascii():
        return exact
    return cut(clean(exact), limit)


def as_text(value: object) -> str:
    """A value that ought to be text as an exact `str`, without running its code: a number's digits, an
    object's class."""
    if issubclass(type(value), str):
        return str.__getitem__(value, slice(None))  # type: ignore[index]
    return str(bounded(value, Room(_TEXT_BYTES), _TEXTS))


def module_of(cls: type) -> str | None:
    """The module a class says it comes from; None when that is not text."""
    try:
        module = _module(cls)
    except AttributeError:
        return None
    return clean(cut(module, _NAME_LENGTH)) if issubclass(type(module), str) else None


def qualname_of(cls: type) -> str:
    """A class's qualified name, whatever its metaclass does."""
    return clean(cut(_qualname(cls), _NAME_LENGTH))


def class_name(cls: type) -> str:
    """`module.Class` of a class."""
    return f"{module_of(cls) or '?'}.{qualname_of(cls)}"


def bounded(value: Any, room: Room, limits: Limits, depth: int = 0) -> Any:
    """The value as JSON takes it, within `room` and `limits`.

    The caller sees to it that `room.left` is at least `MINIMUM`; it never becomes negative.
    """
    cls = type(value)
    if cls is str:
        return _text(value, room, limits)
    if value is None or cls is bool:
        room.left -= 5
        return value
    if cls is int:
        return _integer(value, room)
    if cls is float:
        return _float(value, room)
    if depth < limits.depth:
        try:
            if cls is list or (cls is not dict and issubclass(cls, _SEQUENCES)):
                return _sequence(value, room, limits, depth)
            if cls is dict or issubclass(cls, dict):
                return _mapping(value, room, limits, depth)
        except RuntimeError:
            # A set or dict changed between two of our steps: its class says more than half of it.
            pass
    if issubclass(cls, str):
        return _text(value, room, limits)
    if issubclass(cls, int):
        return _integer(int.__index__(value), room)
    if issubclass(cls, float):
        return _float(float.__float__(value), room)
    return _object(value, cls, room, limits, depth)


def _object(value: Any, cls: type, room: Room, limits: Limits, depth: int) -> Any:
    # By id, for a class's own hash is its metaclass's code; the reference says whether it still is that one.
    known = _classes.get(id(cls))
    if known is None or known[0]() is not cls:
        known = (weakref.ref(cls), f"<{class_name(cls)}>", plan_of(cls), may_have_shape(cls))
        if len(_classes) >= _CACHED_KEYS:
            _classes.clear()
        _classes[id(cls)] = known
    _, name, plan, shaped = known
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
    return _plain(text, room)


def _plain(text: str, room: Room) -> str:
    try:
        cost = len(_dumps(text))
    except orjson.JSONEncodeError:
        text = clean(text)
        cost = len(_dumps(text))
    if cost > room.left:
        # A character takes up to six bytes of JSON (an escaped control character); plain ASCII takes one.
        widest = 1 if cost == len(text) + 2 else 6
        text = cut(text, max(3, (room.left - 2) // widest))
        cost = len(_dumps(text))
    room.left -= cost
    return text


def _integer(value: int, room: Room) -> int | str:
    if LEAST <= value <= MOST:
        room.left -= 20
        return value
    bits = value.bit_length()
    # Decimal text of a huge integer takes quadratic time, and Python refuses it past 4300 digits.
    return _plain(str(value) if bits <= 1024 else f"<int of {bits} bits>", room)


def _float(value: float, room: Room) -> float | str:
    if not math.isfinite(value):
        return _plain(repr(value), room)
    room.left -= MINIMUM
    return value


def _sequence(value: Any, room: Room, limits: Limits, depth: int) -> list[Any]:
    cls = type(value)
    kind: Any = (
        cls if cls is list or cls is tuple else next(base for base in _SEQUENCES if issubclass(cls, base))
    )
    length = kind.__len__(value)
    # Taken in one step: other threads may change the container meanwhile.
    elements = value[: limits.breadth] if cls is list else list(islice(kind.__iter__(value), limits.breadth))
    if (
        length == 2
        and limits.hides is not None
        and type(elements[0]) is str
        and len(elements[0]) <= _NAME_LENGTH  # searching more than a name takes the time of the whole walk
        and limits.hides(elements[0])
    ):
        elements[1] = FILTERED  # a header or form field as a pair
    left = room.left - 2  # the room, kept here between the calls that change it
    result: list[Any] = []
    for element in elements:
        if left <= MINIMUM:
            break
        # The two commonest kinds here rather than in `bounded`: a call costs more than all else.
        kind = type(element)
        if kind is int and LEAST <= element <= MOST:
            left -= 21
            result.append(element)
        elif element is None or kind is bool:
            left -= 6
            result.append(element)
        else:
            room.left = left - 1
            result.append(bounded(element, room, limits, depth + 1))
            left = room.left
    room.left = left
    if length > len(result) and room.left > 2 * MINIMUM:
        note = f"<{length - len(result)} more>"
        room.left -= len(note) + 3
        result.append(note)
    return result


def _mapping(value: dict[Any, Any], room: Room, limits: Limits, depth: int) -> dict[str, Any]:
    room.left -= 2
    result: dict[str, Any] = {}
    length = dict.__len__(value)
    hides = limits.hides
    keys = _keys_of(hides)
    total = room.left  # the room, kept here between the calls that change it
    for name, element in list(islice(dict.items(value), limits.breadth)):
        known = keys.get(name) if type(name) is str else None
        key, cost, hidden = known or _known_key(name, hides, keys)
        left = total - cost
        if left < MINIMUM:
            break
        if hidden:
            total = left - len(FILTERED) - 2
            result[key] = FILTERED
        elif type(element) is int and LEAST <= element <= MOST:
            total = left - 20
            result[key] = element
        else:
            room.left = left
            result[key] = bounded(element, room, limits, depth + 1)
            total = room.left
    room.left = total
    if length > len(result) and room.left > 2 * MINIMUM:
        note = f"<{length - len(result)} more>"
        room.left -= len(note) + 9
        result["..."] = note
    return result


_Hides = Callable[[str], bool] | None
_Keys = dict[str, tuple[str, int, bool]]


@lru_cache(maxsize=16)
def _keys_of(hides: _Hides) -> _Keys:
    """What is known of keys under one rule. Changed in single steps; two that miss do the same work twice."""
    return {}


def _known_key(name: Any, hides: _Hides, keys: _Keys) -> tuple[str, int, bool]:
    """A key as it is written, the bytes it takes with its signs, and whether its value is hidden."""
    if type(name) is not str or len(name) > _KEY_LENGTH:
        name = _key(name)
        if name in keys:
            return keys[name]
    if len(keys) >= _CACHED_KEYS:
        keys.clear()
    key = clean(cut(name, _KEY_LENGTH))
    known = keys[name] = key, len(_dumps(key)) + 2, hides is not None and hides(key)
    return known


def _key(name: Any) -> str:
    cls = type(name)
    if issubclass(cls, str):
        return cut(name, _KEY_LENGTH)
    if name is None or cls is bool or cls is int or cls is float:
        return cut(str(bounded(name, Room(_KEY_LENGTH), _KEYS)), _KEY_LENGTH)
    return cut(f"<{class_name(cls)}>", _KEY_LENGTH)
