"""Strict JSON, and the bounded repair of values that the encoder refuses.

No object is serialised implicitly: the encoder (`encoder.py`) refuses dataclasses, subclasses and datetimes,
and `repair` replaces objects of unknown classes by their class name, without calling any of their methods.
Independent of envelopes; `trimming.py` makes oversize events smaller.

Threads: every function may be called from any thread, holds no lock and keeps no state. If another thread
changes a value meanwhile, each of its parts is encoded as it was at some moment, or `SealError` is raised.
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

# From this number of bytes on, the allocator releases the unused end of a buffer, except a tenth.
_SHRUNK_FROM: Final = 16 * 1024
# Limits of one repair. Only a hostile value reaches them, as an event may have a million bytes. The encoder's
# own limit on depth is 254.
MAX_DEPTH: Final = 100
MAX_BREADTH: Final = 20_000
MAX_NODES: Final = 100_000
MAX_TEXT: Final = 16 * 1024 * 1024
_MAX_INT_BITS: Final = 4096
# Down to this depth, a part that needs no repair is encoded as it is; most need none. Each level may check
# the same nodes once more, so both the depth and the number of checked nodes are limited.
_WHOLE_DEPTH: Final = 8
MAX_LOOKS: Final = 200_000
_TRIES: Final = 3


def encode(value: object, path: str) -> bytes:
    """Return compact JSON of `value`: one line, raw UTF-8.

    A value that the encoder refuses is repaired first, see `repair`. NaN and infinities become null, an
    `Enum` member its value, a UUID its text.

    Args:
        value: Any object.
        path: The name of `value` in an error, such as `event`.

    Raises:
        SealError: Another thread changed the value during every try, or it is too big for the memory.
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
    """Return strict JSON of `value`, in an object that uses little more memory than its length.

    Raises:
        TypeError: The encoder refuses it.
        RecursionError: The recursion limit is too near.
    """
    # The encoder returns the buffer that it wrote to: up to twice the size of the result, and 4 kB for a
    # header. These bytes may wait in a queue that counts them. The end of a large buffer is released.
    result = dumps(value)
    return result if len(result) >= _SHRUNK_FROM else bytes(memoryview(result))


def clean_text(text: str) -> str:
    """Return `text` with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def repair(value: object, path: str) -> Any:
    """Return a copy of `value` that the encoder accepts.

    The copy consists of plain dicts, lists, strings and numbers, and of encoded parts that needed no repair.
    Its depth, breadth, nodes and text are limited. The walk is iterative and breadth-first, so that parts
    near the root survive. No method of a class outside the builtins and the standard library is called;
    subclasses of builtins are read through the base class, whatever they override.

    Args:
        value: Any object.
        path: The name of `value` in an error.

    Raises:
        SealError: Another thread changed a container during every try; the error names its path.
    """
    return _Repair(path).run(value)


_Reader = Callable[[Any], Iterator[Any]]

_MAPPINGS: Final[dict[type, _Reader]] = {
    dict: lambda source: iter(dict.items(source)),
    # The proxy's own methods would call those of the mapping that it wraps.
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
    """State of a container while it is copied: the source, the copy so far, and the state of its parent."""

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
    """One run of `repair`, with the nodes, characters and checks that are left of its limits."""

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
            members, complete = self._members(task)
            if type(task.copy) is list:
                task.copy.extend([self._copy(item, task, index) for index, item in enumerate(members)])
                if not complete:
                    task.copy.append("<truncated>")
            elif type(task.copy) is dict:
                self._fill(task.copy, task, members)
                if not complete:
                    task.copy["<truncated>"] = True
        return copy

    def _fill(self, copy: dict[str, Any], task: _OpenContainer, members: list[tuple[object, object]]) -> None:
        repeats: dict[str, int] = {}
        for raw, item in members:
            key = name = self._key(raw)
            # Distinct keys can have the same text (1 and "1"): both values are kept.
            while key in copy:
                repeats[name] = repeats.get(name, 1) + 1
                key = f"{name}#{repeats[name]}"
            copy[key] = self._copy(item, task, key)

    def _members(self, task: _OpenContainer) -> tuple[list[Any], bool]:
        """Return a snapshot of the members within the limits, and True if it contains all of them."""
        room = min(self._nodes, MAX_BREADTH)
        for _ in range(_TRIES):
            try:
                # Runs in C from end to end: another thread can run only if the garbage collector does.
                members = list(islice(task.read(task.source), room + 1))
            except RuntimeError:
                continue
            complete = len(members) <= room
            del members[room:]
            self._nodes -= len(members)
            return members, complete
        raise SealError(self._path_of(task), "was changed by another thread while it was read")

    def _path_of(self, task: _OpenContainer) -> str:
        parts: list[str] = []
        node = task
        while node.parent is not None:
            parts.append(f"[{node.key}]" if type(node.key) is int else f".{node.key}"[:100])
            node = node.parent
        return self._path + "".join(reversed(parts))

    def _copy(self, value: object, parent: _OpenContainer | None, key: object) -> Any:
        value = _member_value(value)
        leaf = self._leaf(value)
        if leaf is not _NOT_A_LEAF:
            return leaf
        ancestor = parent
        while ancestor is not None:
            if ancestor.source is value:
                return "<cycle>"
            ancestor = ancestor.parent
        depth = 0 if parent is None else parent.depth
        if depth >= MAX_DEPTH:
            return "<too deep>"
        if 0 < depth <= _WHOLE_DEPTH and (part := self._encoded_part(value)) is not None:
            return part
        copy: dict[str, Any] | list[Any]
        read = _reader(type(value), _MAPPINGS)
        if read is not None:
            copy = {}
        else:
            read = _reader(type(value), _SEQUENCES)
            assert read is not None  # else `_leaf` would have returned its class name
            copy = []
        self._open.append(_OpenContainer(value, read, copy, parent, key))
        return copy

    def _encoded_part(self, value: object) -> Any:
        """Return the value as an encoded part if it needs no repair; else None."""
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
        """Return the JSON scalar for `value`, or `_NOT_A_LEAF` for a container.

        Decided by the real type: `isinstance` would read the object's `__class__`.
        """
        class_ = type(value)
        if class_ is str:
            return self._string(value)  # type: ignore[arg-type]
        if value is None or class_ is bool or class_ is float:
            return value
        if class_ is dict or class_ is list or class_ is tuple:
            return _NOT_A_LEAF
        return self._builtin(value, class_)

    def _builtin(self, value: Any, class_: type) -> Any:
        if issubclass(class_, Enum):
            return _class_name(value)  # its value is a member too, and members may form a cycle
        if issubclass(class_, int):
            return self._integer(int.__add__(value, 0))
        if issubclass(class_, str):
            return self._string(str.__str__(value))
        if issubclass(class_, float):
            return float.__float__(value)
        if _reader(class_, _MAPPINGS) or _reader(class_, _SEQUENCES):
            return _NOT_A_LEAF if class_ is not MappingProxyType or _wraps_dict(value) else _class_name(value)
        if issubclass(class_, bytes | bytearray | memoryview):
            return self._string(_decoded(value, self._text + 1))
        try:
            return self._string(_standard_text(value, class_) or _class_name(value))
        except Exception:
            # A subclass or a custom tzinfo raises.
            return _class_name(value)

    def _integer(self, number: int) -> int | str:
        if -(2**63) <= number < 2**64:
            return number
        bits = number.bit_length()
        # Conversion to decimal takes quadratic time.
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
    """Return the value of an Enum's member, as the encoder would write it; anything else unchanged."""
    return _ENUM_STATE.__get__(value).get("_value_") if issubclass(type(value), Enum) else value


def _reader(class_: type, readers: dict[type, _Reader]) -> _Reader | None:
    # Compared one by one: a lookup of the class would call its metaclass's `__hash__`.
    for base, read in readers.items():
        if issubclass(class_, base):
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


def _standard_text(value: Any, class_: type) -> str | None:
    if issubclass(class_, datetime):
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
        if issubclass(class_, base):
            return text(value)
    return None


def _class_name(value: object) -> str:
    class_ = type(value)
    # Read through `type`: a metaclass may return anything, slowly.
    module, name = _MODULE.__get__(class_), _QUALNAME.__get__(class_)
    if type(module) is not str:
        module = "?"
    return clean_text(f"<{module[:200]}.{name[:200]}>")
