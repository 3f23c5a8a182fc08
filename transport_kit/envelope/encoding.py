"""Strict JSON: what may be written, and the bounded walk that repairs the rest.

Nothing is serialised behind the user's back: the encoder (`encoder.py`) refuses dataclasses, subclasses and
datetimes, and `repair` writes objects it does not know as their class name, without calling any of their
methods. Knows nothing about envelopes; `trimming.py` makes oversize events smaller.

Threads: every function may be called from any thread, holds no lock and keeps no state. A value that
another thread changes meanwhile is written as it was at some moment, part by part, or is a `SealError`.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

from transport_kit.envelope.encoder import Fragment, dumps, dumps_within
from transport_kit.runtime.errors import SealError

__all__ = ["clean_text", "dump", "encode", "repair"]

# Bytes of a buffer from which on the allocator takes back what is not used, but for a tenth.
_GIVEN_BACK: Final = 16 * 1024
# Bounds of one repair. Only a hostile value meets them: an event may have a million bytes. The encoder's
# own bound on depth is 254.
MAX_DEPTH: Final = 100
MAX_BREADTH: Final = 20_000
MAX_NODES: Final = 100_000
MAX_TEXT: Final = 16 * 1024 * 1024
_MAX_INT_BITS: Final = 4096
# Down to this depth a part is encoded as it is where it needs no repair: most don't. Each level may look
# through the whole once more, so both the depth and the number of nodes looked at are bounded.
_WHOLE_DEPTH: Final = 8
MAX_LOOKS: Final = 200_000
_TRIES: Final = 3


def encode(value: object, path: str) -> bytes:
    """Compact JSON of `value`: one line, raw UTF-8.

    What the encoder refuses is repaired first, see `repair`. NaN and infinities become null, an `Enum`
    member its value, a UUID its text.

    Args:
        value: Any object.
        path: What to call `value` in an error, such as `event`.

    Raises:
        SealError: The value changed under our hands at every try, or is too big for the memory.
    """
    try:
        return dump(value)
    except (TypeError, RecursionError):
        pass
    try:
        return dump(repair(value, path))
    except SealError:
        raise
    except Exception as error:
        raise SealError(path, f"can't be written as JSON ({type(error).__name__})") from None


def dump(value: object) -> bytes:
    """Strict JSON of `value` in memory of about that size.

    Raises:
        TypeError: The encoder refuses it.
        RecursionError: The recursion limit is too near.
    """
    # The encoder leaves its result in the buffer it wrote to: up to twice the size, and 4 kB for a
    # header. These bytes may wait in a queue that counts them. The end of a large buffer is given back.
    result = dumps(value)
    return result if len(result) >= _GIVEN_BACK else bytes(memoryview(result))


def clean_text(text: str) -> str:
    """`text` with pairs of surrogates joined and lone ones replaced by U+FFFD. Any text stays the same."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def repair(value: object, path: str) -> Any:
    """A copy of `value` that the encoder takes: plain dicts, lists, strings and numbers, and parts that
    needed no repair, encoded already.

    Bounded in depth, breadth, nodes and text; wide first, so that what stands near the root survives.
    Iterative. No method of an object outside the builtins and the standard library is called; subclasses
    of builtins are read through the base class, whatever they override.

    Raises:
        SealError: A container was changed by another thread at every try; names its path.
    """
    return _Repair(path).run(value)


_Reader = Callable[[Any], Iterator[Any]]

_MAPPINGS: Final[dict[type, _Reader]] = {
    dict: lambda source: iter(dict.items(source)),
    # The proxy's own methods would call those of what it wraps.
    MappingProxyType: lambda source: iter(dict.items(gc.get_referents(source)[0])),
}
_SEQUENCES: Final[dict[type, _Reader]] = {
    base: base.__iter__ for base in (list, tuple, set, frozenset, deque)
}
_NOT_A_LEAF: Final = object()
_ENUM_STATE: Final = vars(Enum)["__dict__"]
_QUALNAME: Final = vars(type)["__qualname__"]
_MODULE: Final = vars(type)["__module__"]


class _OpenContainer:
    """A container that is being copied: its source, its copy, and its parents up to the root."""

    __slots__ = ("copy", "depth", "key", "parent", "read", "source")

    def __init__(
        self,
        source: object,
        read: _Reader,
        copy: dict[str, Any] | list[Any],
        parent: _OpenContainer | None,
        key: object,
    ) -> None:
        self.source = source
        self.read = read
        self.copy = copy
        self.parent = parent
        self.key = key
        self.depth: int = 1 if parent is None else parent.depth + 1


class _Repair:
    def __init__(self, path: str) -> None:
        self._path = path
        self._nodes = MAX_NODES
        self._text = MAX_TEXT
        self._looks = MAX_LOOKS
        self._open: deque[_OpenContainer] = deque()

    def run(self, value: object) -> Any:
        copy = self._copy(value, None, None)
        while self._open:
            task = self._open.popleft()
            members, whole = self._members(task)
            if type(task.copy) is list:
                task.copy.extend([self._copy(item, task, index) for index, item in enumerate(members)])
                if not whole:
                    task.copy.append("<truncated>")
            elif type(task.copy) is dict:
                self._fill(task.copy, task, members)
                if not whole:
                    task.copy["<truncated>"] = True
        return copy

    def _fill(self, copy: dict[str, Any], task: _OpenContainer, members: list[tuple[object, object]]) -> None:
        repeats: dict[str, int] = {}
        for raw, item in members:
            key = name = self._key(raw)
            # Distinct keys can become one text (1 and "1"): both values are kept.
            while key in copy:
                repeats[name] = repeats.get(name, 1) + 1
                key = f"{name}#{repeats[name]}"
            copy[key] = self._copy(item, task, key)

    def _members(self, task: _OpenContainer) -> tuple[list[Any], bool]:
        """A snapshot, at most as long as the bounds allow, and whether nothing was cut off."""
        room = min(self._nodes, MAX_BREADTH)
        for _ in range(_TRIES):
            try:
                # Runs in C from end to end: another thread can get in only through the garbage collector.
                taken = list(islice(task.read(task.source), room + 1))
            except RuntimeError:
                continue
            whole = len(taken) <= room
            del taken[room:]
            self._nodes -= len(taken)
            return taken, whole
        raise SealError(self._where(task), "was changed by another thread while it was read")

    def _where(self, task: _OpenContainer) -> str:
        parts: list[str] = []
        here = task
        while here.parent is not None:
            parts.append(f"[{here.key}]" if type(here.key) is int else f".{here.key}"[:100])
            here = here.parent
        return self._path + "".join(reversed(parts))

    def _copy(self, value: object, parent: _OpenContainer | None, key: object) -> Any:
        value = _member_value(value)
        leaf = self._leaf(value)
        if leaf is not _NOT_A_LEAF:
            return leaf
        here = parent
        while here is not None:
            if here.source is value:
                return "<cycle>"
            here = here.parent
        depth = 0 if parent is None else parent.depth
        if depth >= MAX_DEPTH:
            return "<too deep>"
        if 0 < depth <= _WHOLE_DEPTH and (whole := self._whole(value)) is not None:
            return whole
        copy: dict[str, Any] | list[Any]
        read = _reader(type(value), _MAPPINGS)
        if read is not None:
            copy = {}
        else:
            read = _reader(type(value), _SEQUENCES)
            assert read is not None  # or `_leaf` would have named its class
            copy = []
        self._open.append(_OpenContainer(value, read, copy, parent, key))
        return copy

    def _whole(self, value: object) -> Any:
        if self._looks <= 0:
            return None
        try:
            part, nodes = dumps_within(value, self._looks)
        except RecursionError:
            return None
        self._looks -= nodes
        if part is None or len(part) > self._text:
            return None
        self._text -= len(part)
        return Fragment(part)

    def _key(self, raw: object) -> str:
        raw = _member_value(raw)
        leaf = self._leaf(raw)
        if type(leaf) is str:
            return leaf
        return _class_name(raw) if leaf is _NOT_A_LEAF else dumps(leaf).decode()

    def _leaf(self, value: object) -> Any:
        """The JSON scalar for `value`, or `_NOT_A_LEAF` for a container.

        Only the real type counts: `isinstance` would ask the object's `__class__`.
        """
        kind = type(value)
        if kind is str:
            return self._string(value)  # type: ignore[arg-type]
        if value is None or kind is bool or kind is float:
            return value
        if kind is dict or kind is list or kind is tuple:
            return _NOT_A_LEAF
        return self._builtin(value, kind)

    def _builtin(self, value: Any, kind: type) -> Any:
        if issubclass(kind, Enum):
            return _class_name(value)  # its value is a member again: these could go in a circle
        if issubclass(kind, int):
            return self._integer(int.__add__(value, 0))
        if issubclass(kind, str):
            return self._string(str.__str__(value))
        if issubclass(kind, float):
            return float.__float__(value)
        if _reader(kind, _MAPPINGS) or _reader(kind, _SEQUENCES):
            return _NOT_A_LEAF if kind is not MappingProxyType or _wraps_dict(value) else _class_name(value)
        if issubclass(kind, bytes | bytearray | memoryview):
            return self._string(_decoded(value, self._text + 1))
        try:
            return self._string(_standard_text(value, kind) or _class_name(value))
        except Exception:
            # A subclass or a foreign tzinfo misbehaves.
            return _class_name(value)

    def _integer(self, number: int) -> int | str:
        if -(2**63) <= number < 2**64:
            return number
        bits = number.bit_length()
        # Decimal text takes quadratic time.
        return str(number) if bits <= _MAX_INT_BITS else f"<int of {bits} bits>"

    def _string(self, text: str) -> str:
        if len(text) > self._text:
            text = text[: self._text] + "…"
        self._text = max(0, self._text - len(text))
        if text.isascii():
            return text
        try:
            text.encode()
        except UnicodeEncodeError:
            return clean_text(text)
        return text


def _member_value(value: object) -> object:
    """The value of an Enum's member, as the encoder would write it; anything else as it is."""
    return _ENUM_STATE.__get__(value).get("_value_") if issubclass(type(value), Enum) else value


def _reader(kind: type, readers: dict[type, _Reader]) -> _Reader | None:
    # Compared one by one: looking `kind` up would call a metaclass's `__hash__`.
    for base, read in readers.items():
        if issubclass(kind, base):
            return read
    return None


def _wraps_dict(proxy: object) -> bool:
    return issubclass(type(gc.get_referents(proxy)[0]), dict)


def _decoded(value: bytes | bytearray | memoryview, limit: int) -> str:
    try:
        return bytes(memoryview(value)[:limit]).decode("utf-8", "replace")
    except Exception:
        # A released memoryview, or one of several dimensions.
        return _class_name(value)


def _standard_text(value: Any, kind: type) -> str | None:
    if issubclass(kind, datetime):
        try:
            return datetime.isoformat(value)
        except Exception:
            return datetime.isoformat(datetime.replace(value, tzinfo=None))
    for base, text in (
        (date, date.isoformat),
        (time, time.isoformat),
        (timedelta, timedelta.__str__),
        (Decimal, Decimal.__str__),
        (UUID, UUID.__str__),
        (PurePath, PurePath.__str__),
    ):
        if issubclass(kind, base):
            return text(value)
    return None


def _class_name(value: object) -> str:
    kind = type(value)
    # Read past the metaclass, which may answer with anything, slowly.
    module, name = _MODULE.__get__(kind), _QUALNAME.__get__(kind)
    if type(module) is not str:
        module = "?"
    return clean_text(f"<{module[:200]}.{name[:200]}>")
