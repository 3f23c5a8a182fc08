"""Exceptions: an exception, its causes and its group's members as the protocol's values.

Owns the order, the ids and the texts. Reads what links exceptions through `BaseException`'s own C getters,
so that a property of a subclass never runs. The one piece of the app's code it calls is `__str__`, once an
exception, guarded, and no more of them after they took too long in all.

Source: the protocol's exception interface: oldest first, the raised one last with id 0, ids counting up
towards the first; a member's or a cause's `parent_id` is the exception it hangs on.

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
from transport_kit.reporting.values.scrub import FILTERED, is_sensitive, scrub_text
from transport_kit.runtime.interrupts import let_through
from transport_kit.runtime.log import log

__all__ = ["exception_values", "traceback_of"]

_MAX_EXCEPTIONS: Final = 50
#: Frames of one exception; the receiver keeps the first 50 and the last 200.
_MAX_FRAMES: Final = 250
#: Frames of all exceptions of an event, and how many each may have when those are used up.
_ALL_FRAMES: Final = 500
_FEWEST_FRAMES: Final = 5
_ALL_VARS_BYTES: Final = 256 * 1024
_VALUE_LENGTH: Final = 8192
_NOTES_LENGTH: Final = 2048
_NAME_LENGTH: Final = 256
_MAX_NOTES: Final = 50
#: For the arguments of an exception.
_ARGUMENTS: Final = Limits(text=512, breadth=10, depth=3, hides=is_sensitive)
_WALKED: Final = (int, float, list, tuple, dict, set, frozenset)
#: Modules whose values have short texts that cost nothing to make.
_PLAIN_MODULES: Final = frozenset({"datetime", "decimal", "fractions", "ipaddress", "pathlib", "uuid"})
# Seconds that the app's `__str__` methods may take in all; one that is slow can't be stopped, the next can.
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
    """One exception and where it hangs; its id is its place in the walk."""

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
    """`exception.values` of an event.

    Args:
        mechanism: How the raised exception was caught; the others are `chained`.
        handled: Whether the app went on.
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
        how: dict[str, Any] = {
            "type": mechanism if link.parent is None else "chained",
            "handled": handled,
            "exception_id": number,
        }
        if link.parent is not None:
            how["parent_id"] = link.parent
            how["source"] = link.source
        if link.group:
            how["is_exception_group"] = True
        value["mechanism"] = how
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


def _part(instead: _T, make: Callable[..., _T], *arguments: Any) -> _T:
    """What `make` makes; when it fails `instead`, for what failed may have been the scrubbing."""
    try:
        return make(*arguments)
    except RecursionError:
        raise  # a layer further out has more room
    except Exception as problem:
        let_through(problem)
        log.error("a part of an exception could not be told: %s", type(problem).__name__)
        return instead


def _walk(error: BaseException) -> list[_Link]:
    """The raised exception first, then depth first its cause or context and its members; each once."""
    links: list[_Link] = []
    seen: set[int] = set()
    waiting: list[tuple[BaseException, int | None, str | None]] = [(error, None, None)]
    while waiting and len(links) < _MAX_EXCEPTIONS:
        found, parent, source = waiting.pop()
        if id(found) in seen:
            continue  # a cycle, or one exception reached on two ways
        seen.add(id(found))
        number = len(links)
        members = _members(found)[:_MAX_EXCEPTIONS] if issubclass(type(found), BaseExceptionGroup) else ()
        links.append(_Link(found, parent, source, bool(members)))
        if members:
            places = range(len(members) - 1, -1, -1)
            waiting.extend((members[place], number, f"exceptions[{place}]") for place in places)
        suppresses = _suppresses(found)
        before = _cause(found) if suppresses else _context(found)
        if before is not None:
            waiting.append((before, number, "__cause__" if suppresses else "__context__"))
    return links


def _faulty_source(error: BaseException, frames: FrameReader) -> list[dict[str, Any]]:
    """The place a SyntaxError speaks of, as a frame; from the error alone, for no file is read for it."""
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
    """The texts of one capture's exceptions, within one allowance of time. Not shared between threads.

    `__str__` is called for exceptions, and for a lone argument whose class has one of its own; other
    arguments are walked, and never asked: a `__repr__` may read a database.
    """

    __slots__ = ("_clock", "_left")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = _TEXT_SECONDS

    def value(self, error: BaseException) -> str:
        """What the exception says, its notes below, without what looks like a secret."""
        notes = _notes(error)
        text = clean(self._text(error, 0))
        return cut(scrub_text(cut(text, _VALUE_LENGTH - len(notes)) + notes), _VALUE_LENGTH)

    def _text(self, error: BaseException, depth: int) -> str:
        try:
            cls: Any = type(error)
            described_by: object = cls.__str__
        except Exception as problem:
            let_through(problem)
            return f"<unprintable {class_name(type(error))}>"
        if described_by is not _PLAIN_TEXT and described_by is not _KEY_TEXT:
            return self._call(str, error)
        args = _args(error)
        if len(args) == 1:
            return self._argument(args[0], depth, quoted=described_by is _KEY_TEXT)
        if not args:
            return ""
        shown = [self._argument(arg, depth, quoted=True) for arg in args[: _ARGUMENTS.breadth]]
        if len(args) == 2 and _is_secrets_name(args[0]):
            shown[1] = repr(FILTERED)
        return f"({', '.join(shown)})"

    def _argument(self, argument: Any, depth: int, *, quoted: bool) -> str:
        """An argument as `str` of the exception would show it; `quoted` is how `repr` would."""
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
        began = self._clock()
        try:
            return cut(render(value), _VALUE_LENGTH)
        except KeyboardInterrupt:
            raise  # the user's, not the value's
        except BaseException as error:
            let_through(error)
            return f"<unprintable {class_name(type(value))}>"
        finally:
            self._left -= self._clock() - began


def _is_secrets_name(argument: object) -> bool:
    """Whether it is a name, and no sentence, that hides what comes after it."""
    return (
        type(argument) is str
        and len(argument) <= _NAME_LENGTH
        and " " not in argument
        and is_sensitive(argument)
    )


def _has_own_text(cls: type) -> bool:
    try:
        described_by: object = cls.__str__
        return described_by is not object.__str__
    except Exception as error:
        let_through(error)
        return False


def _notes(error: BaseException) -> str:
    """What `add_note` added, each on lines of its own; read from the instance, where `add_note` puts it."""
    notes = dict.get(_dict_of(error), "__notes__")
    if type(notes) is not list:
        return ""
    lines = [clean(cut(note, _NOTES_LENGTH)) for note in notes[:_MAX_NOTES] if issubclass(type(note), str)]
    return cut("\n" + "\n".join(lines), _NOTES_LENGTH) if lines else ""
