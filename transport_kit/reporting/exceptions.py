"""Exceptions: an exception, its causes and its group's members as the protocol's values.

This module owns the order, the ids and the texts. It reads causes, contexts and members through
`BaseException`'s own C getters, so that a property of a subclass never runs. The only app code it calls is
`__str__`: once per exception, guarded, and not again after the calls of one capture have used up their time.

Source: the protocol's exception interface: oldest first, the raised exception last with id 0, ids rising
towards the first; the `parent_id` of a cause or member is the id of the exception that refers to it.

Threads: stateless.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeVar

from transport_kit.reporting.frames import FrameReader
from transport_kit.reporting.values.bounded import (
    Limits,
    Room,
    bounded,
    class_name,
    clean,
    cut,
    module_of,
    qualname_of,
    tidy,
)
from transport_kit.reporting.values.scrub import scrub_text
from transport_kit.reporting.values.secret_names import FILTERED, is_sensitive
from transport_kit.runtime.interrupts import let_through
from transport_kit.runtime.log import log

__all__ = ["exception_values", "traceback_of"]

_MAX_EXCEPTIONS: Final = 50
#: Frames of one exception; the server keeps the first 50 and the last 200.
_MAX_FRAMES: Final = 250
#: Frames of all exceptions of an event, and the frames that each may still have once those are used up.
_ALL_FRAMES: Final = 500
_FEWEST_FRAMES: Final = 5
_ALL_VARS_BYTES: Final = 256 * 1024
_VALUE_LENGTH: Final = 8192
_NOTES_LENGTH: Final = 2048
_NAME_LENGTH: Final = 256
_MAX_NOTES: Final = 50
#: Limits of an exception's arguments.
_ARGUMENTS: Final = Limits(text=512, breadth=10, depth=3, hides=is_sensitive)
_WALKED: Final = (int, float, list, tuple, dict, set, frozenset)
#: Modules whose values are cheap to render and render short.
_PLAIN_MODULES: Final = frozenset({"datetime", "decimal", "fractions", "ipaddress", "pathlib", "uuid"})
# Seconds for all `__str__` calls of one capture. A slow call can't be interrupted; the next one is skipped.
_TEXT_SECONDS: Final = 0.02

_PLAIN_TEXT: Final[object] = BaseException.__str__
_KEY_TEXT: Final[object] = KeyError.__str__

_cause: Callable[[BaseException], BaseException | None] = BaseException.__dict__["__cause__"].__get__
_context: Callable[[BaseException], BaseException | None] = BaseException.__dict__["__context__"].__get__
_suppresses: Callable[[BaseException], bool] = BaseException.__dict__["__suppress_context__"].__get__
traceback_of: Callable[[BaseException], TracebackType | None] = BaseException.__dict__[
    "__traceback__"
].__get__
_args: Callable[[BaseException], tuple[Any, ...]] = BaseException.__dict__["args"].__get__
_dict_of: Callable[[BaseException], dict[str, Any]] = BaseException.__dict__["__dict__"].__get__
_members: Callable[[BaseException], tuple[BaseException, ...]] = BaseExceptionGroup.__dict__[
    "exceptions"
].__get__


_T = TypeVar("_T")


@dataclass(slots=True)
class _Link:
    """One exception and its parent's id. Its own id is its position in the walk."""

    error: BaseException
    parent: int | None
    source: str | None
    group: bool


def exception_values(
    error: BaseException,
    frames: FrameReader,
    *,
    mechanism: str,
    handled: bool,
    clock: Callable[[], float] = time.monotonic,
) -> list[dict[str, Any]]:
    """Return `exception.values` of an event.

    Args:
        error: The raised exception.
        frames: Reads the tracebacks.
        mechanism: How the raised exception was caught; the others are `chained`.
        handled: True if the app handled it and continued.
        clock: Monotonic seconds.
    """
    texts = _Texts(clock)
    room = Room(_ALL_VARS_BYTES)
    frames_left = _ALL_FRAMES
    values: list[dict[str, Any]] = []
    for number, link in enumerate(_walk(error)):
        cls = type(link.error)
        value: dict[str, Any] = {
            "type": cut(qualname_of(cls), _NAME_LENGTH),
            "value": _part("<unprintable>", texts.value, link.error),
        }
        module = module_of(cls)
        if module is not None and module != "builtins":
            value["module"] = module
        mechanism_value: dict[str, Any] = {
            "type": mechanism if link.parent is None else "chained",
            "handled": handled,
            "exception_id": number,
        }
        if link.parent is not None:
            mechanism_value["parent_id"] = link.parent
            mechanism_value["source"] = link.source
        if link.group:
            mechanism_value["is_exception_group"] = True
        value["mechanism"] = mechanism_value
        limit = max(_FEWEST_FRAMES, min(_MAX_FRAMES, frames_left))
        stack: list[dict[str, Any]] = _part([], frames.frames, traceback_of(link.error), limit, room)
        frames_left -= len(stack)
        if issubclass(cls, SyntaxError):
            stack.extend(_faulty_source(link.error, frames))
        if stack:
            value["stacktrace"] = {"frames": stack}
        values.append(value)
    values.reverse()
    return values


def _part(fallback: _T, make: Callable[..., _T], *arguments: Any) -> _T:
    """Return `make(*arguments)`, or `fallback` if it raises: unscrubbed data must not get out that way."""
    try:
        return make(*arguments)
    except RecursionError:
        raise  # a caller further out has more stack left
    except Exception as problem:
        let_through(problem)
        log.error("a part of an exception could not be told: %s", type(problem).__name__)
        return fallback


def _walk(error: BaseException) -> list[_Link]:
    """Return the raised exception, then, depth first, its cause or context and its members; each once."""
    links: list[_Link] = []
    seen: set[int] = set()
    pending: list[tuple[BaseException, int | None, str | None]] = [(error, None, None)]
    while pending and len(links) < _MAX_EXCEPTIONS:
        current, parent, source = pending.pop()
        if id(current) in seen:
            continue  # a cycle, or an exception that two others refer to
        seen.add(id(current))
        number = len(links)
        members = _members(current)[:_MAX_EXCEPTIONS] if issubclass(type(current), BaseExceptionGroup) else ()
        links.append(_Link(current, parent, source, bool(members)))
        if members:
            places = range(len(members) - 1, -1, -1)
            pending.extend((members[place], number, f"exceptions[{place}]") for place in places)
        suppresses = _suppresses(current)
        predecessor = _cause(current) if suppresses else _context(current)
        if predecessor is not None:
            pending.append((predecessor, number, "__cause__" if suppresses else "__context__"))
    return links


def _faulty_source(error: BaseException, frames: FrameReader) -> list[dict[str, Any]]:
    """Return the place that a SyntaxError names, as a frame; reads its attributes and no file."""
    filename, line, text = (
        SyntaxError.__dict__[name].__get__(error) for name in ("filename", "lineno", "text")
    )
    if type(filename) is not str or not filename or type(line) is not int or line < 1:
        return []
    path = tidy(filename, _NAME_LENGTH)
    frame: dict[str, Any] = {
        "filename": path,
        "abs_path": path,
        "function": "<module>",
        "lineno": line,
        "in_app": frames.in_app(filename, None),
    }
    if type(text) is str:
        frame["context_line"] = tidy(text.rstrip("\r\n"), _NAME_LENGTH)
    return [frame]


class _Texts:
    """Renders the exceptions of one capture within one time budget. Not shared between threads.

    Calls `__str__` of exceptions, and of a single argument whose class defines it. Other arguments are
    rendered by the bounded walk without running their code: a `__repr__` may query a database.
    """

    __slots__ = ("_clock", "_left")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = _TEXT_SECONDS

    def value(self, error: BaseException) -> str:
        """Return the exception's text followed by its notes, with secrets filtered."""
        notes = _notes(error)
        text = clean(self._text(error, 0))
        return cut(scrub_text(cut(text, _VALUE_LENGTH - len(notes)) + notes), _VALUE_LENGTH)

    def _text(self, error: BaseException, depth: int) -> str:
        try:
            cls: Any = type(error)
            str_method: object = cls.__str__
        except Exception as problem:
            let_through(problem)
            return f"<unprintable {class_name(type(error))}>"
        if str_method is not _PLAIN_TEXT and str_method is not _KEY_TEXT:
            return self._call(str, error)
        args = _args(error)
        if len(args) == 1:
            return self._argument(args[0], depth, quoted=str_method is _KEY_TEXT)
        if not args:
            return ""
        parts = [self._argument(arg, depth, quoted=True) for arg in args[: _ARGUMENTS.breadth]]
        if len(args) == 2 and _is_secrets_name(args[0]):
            parts[1] = repr(FILTERED)
        return f"({', '.join(parts)})"

    def _argument(self, argument: Any, depth: int, *, quoted: bool) -> str:
        """Return an argument as `str(error)` would show it; with `quoted`, as its `repr`."""
        cls = type(argument)
        if issubclass(cls, str):
            return repr(cut(argument, _ARGUMENTS.text)) if quoted else cut(argument, _VALUE_LENGTH)
        if issubclass(cls, BaseException):
            text = self._text(argument, depth + 1) if depth < _ARGUMENTS.depth else "..."
            return f"{qualname_of(cls)}({cut(text, _ARGUMENTS.text)!r})" if quoted else text
        if issubclass(cls, bytes):
            return repr(bytes.__getitem__(argument, slice(0, _ARGUMENTS.text)))
        if argument is None or issubclass(cls, _WALKED):
            return repr(bounded(argument, Room(_VALUE_LENGTH), _ARGUMENTS))
        if module_of(cls) in _PLAIN_MODULES:
            return self._call(repr if quoted else str, argument)
        if not quoted and _has_own_text(cls):
            return self._call(str, argument)
        return f"<{class_name(cls)}>"

    def _call(self, render: Callable[[Any], str], value: object) -> str:
        if self._left <= 0:
            return f"<{class_name(type(value))}>"
        started = self._clock()
        try:
            return cut(render(value), _VALUE_LENGTH)
        except KeyboardInterrupt:
            raise  # Ctrl-C by the user, no fault of the value
        except BaseException as error:
            let_through(error)
            return f"<unprintable {class_name(type(value))}>"
        finally:
            self._left -= self._clock() - started


def _is_secrets_name(argument: object) -> bool:
    """Return True if the argument is a name (no sentence) that marks the next argument as a secret."""
    return (
        type(argument) is str
        and len(argument) <= _NAME_LENGTH
        and " " not in argument
        and is_sensitive(argument)
    )


def _has_own_text(cls: type) -> bool:
    try:
        str_method: object = cls.__str__
        return str_method is not object.__str__
    except Exception as error:
        let_through(error)
        return False


def _notes(error: BaseException) -> str:
    """Return the exception's notes (`add_note`), one per line, read from its instance dict."""
    notes = dict.get(_dict_of(error), "__notes__")
    if type(notes) is not list:
        return ""
    lines = [clean(cut(note, _NOTES_LENGTH)) for note in notes[:_MAX_NOTES] if issubclass(type(note), str)]
    return cut("\n" + "\n".join(lines), _NOTES_LENGTH) if lines else ""
