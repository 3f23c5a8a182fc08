"""Frames: a traceback as the protocol's stack frames, oldest call first.

Owns what a frame says (place, source lines, whether it is the app's own, variables) and the caches that
make it cheap. What is the same each time a line of code fails is kept per code object and line; the
variables are read each time, through `bounded.py`.

Reads source only through `linecache` (a file, or what the module's loader says), regular files of a
bounded size only, and never raises for a file that is gone, moved, huge or badly encoded.

Threads: any number may use one `FrameReader`. Its caches are dicts changed in single steps; two threads
that miss at once do the same work twice.
"""

from __future__ import annotations

import linecache
import os
import stat
import sys
from collections import deque
from collections.abc import Iterable
from types import CodeType, FrameType, FunctionType, ModuleType, TracebackType
from typing import Any, Final

from transport_kit.reporting.values.bounded import MINIMUM, Limits, Room, bounded, clean, cut, tidy
from transport_kit.reporting.values.scrub import FILTERED, is_private, is_sensitive
from transport_kit.runtime.interrupts import let_through

__all__ = ["FrameReader"]

#: Bytes of JSON that the variables of one frame may take.
VARS_BYTES: Final = 2048
_CONTEXT_LINES: Final = 5
_LINE_LENGTH: Final = 256
_FUNCTION_LENGTH: Final = 512
_PATH_LENGTH: Final = 512
_NAME_LENGTH: Final = 200
_MAX_VARIABLES: Final = 50
_MAX_SOURCE_BYTES: Final = 4 * 1024 * 1024
_CACHED_LINES: Final = 1024
_CACHED_NAMES: Final = 4096

_STDLIB: Final = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_INSTALLED: Final = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_OURS: Final = ("transport_kit", "transport_kit_starlette", "transport_kit_django", "transport_kit_flask")
# Python 3.13 hands out a proxy instead of a dict for a function's variables.
_LOCALS_PROXY: Final[type] = type((lambda: sys._getframe().f_locals)())
_LANGUAGE: Final = (ModuleType, FunctionType, type)


class FrameReader:
    """Reads tracebacks into frames.

    Args:
        include: Module prefixes that are the app's own; wins over `exclude` and over where a file lies.
        exclude: Module prefixes that are not.
        send_pii: Whether variables named like client addresses keep their values.
    """

    def __init__(self, include: tuple[str, ...], exclude: tuple[str, ...], *, send_pii: bool) -> None:
        self._include = include
        self._exclude = (*exclude, *_OURS)
        self._hides = is_sensitive if send_pii else is_private
        self._limits = Limits(text=512, breadth=10, depth=3, hides=self._hides)
        # Variable name -> what `_cost` said.
        self._costs: dict[str, int] = {}
        # (id of code, line) -> (code, module, frame without variables, whether it is ours). The entry holds
        # the code object, so its id can't be another's; the module is compared, because one code may run in
        # two of them.
        self._known: dict[tuple[int, int], tuple[CodeType, Any, dict[str, Any], bool]] = {}

    def frames(self, trace: TracebackType | None, limit: int, room: Room) -> list[dict[str, Any]]:
        """At most `limit` frames, oldest first: the first fifth and the last four of what there is.

        Begins where the app was entered: this library's own frames before that are left out. Variables are
        read from the failing frame outwards, while `room` lasts, each frame's within its own 2 KiB.
        """
        while trace is not None and trace.tb_next is not None and self._is_ours(trace.tb_frame):
            trace = trace.tb_next
        oldest: list[TracebackType] = []
        newest: deque[TracebackType] = deque(maxlen=limit - limit // 5)
        while trace is not None:
            if len(oldest) < limit // 5:
                oldest.append(trace)
            else:
                newest.append(trace)
            trace = trace.tb_next
        share = Room(0)
        result = [self._frame(step, room, share) for step in reversed([*oldest, *newest])]
        result.reverse()
        return result

    def _is_ours(self, frame: FrameType) -> bool:
        module = dict.get(frame.f_globals, "__name__")
        return type(module) is str and _begins(module, _OURS)

    def _frame(self, step: TracebackType, room: Room, share: Room) -> dict[str, Any]:
        """One frame; `share` is where its part of the room is counted."""
        frame = step.tb_frame
        fixed, own = self._place(frame, step.tb_lineno or 0)
        left = room.left
        if not own and left > 2 * MINIMUM:
            given = share.left = left if left < VARS_BYTES else VARS_BYTES
            variables = self._variables(frame, share)
            room.left = left - given + share.left
            if variables:
                fixed["vars"] = variables
        return fixed

    # -- what is the same each time --------------------------------------------------------------------

    def _place(self, frame: FrameType, line: int) -> tuple[dict[str, Any], bool]:
        """The frame without variables, the caller's own copy; and whether it is one of this library."""
        code = frame.f_code
        module = dict.get(frame.f_globals, "__name__")
        key = (id(code), line)
        known = self._known.get(key)
        if known is None or known[0] is not code or known[1] is not module:
            name = clean(cut(module, _PATH_LENGTH)) if type(module) is str else None
            ours = name is not None and _begins(name, _OURS)
            known = (code, module, self._describe(frame, code, name, line), ours)
            if len(self._known) >= _CACHED_LINES:
                self._known.clear()
            self._known[key] = known
        return known[2].copy(), known[3]

    def _describe(self, frame: FrameType, code: CodeType, module: str | None, line: int) -> dict[str, Any]:
        path = _absolute(code.co_filename)
        result: dict[str, Any] = {
            "filename": tidy(_relative(path, module), _PATH_LENGTH),
            "abs_path": tidy(path, _PATH_LENGTH),
            "function": tidy(code.co_qualname, _FUNCTION_LENGTH),
            "in_app": self.in_app(path, module),
        }
        if module is not None:
            result["module"] = module
        if line > 0:
            result["lineno"] = line
            lines = _source(code.co_filename, frame.f_globals)
            if line <= len(lines):
                first = max(0, line - 1 - _CONTEXT_LINES)
                # Tuples: copies of this frame share them, and nobody can change them.
                result["pre_context"] = tuple(_line(text) for text in lines[first : line - 1])
                result["context_line"] = _line(lines[line - 1])
                result["post_context"] = tuple(_line(text) for text in lines[line : line + _CONTEXT_LINES])
        return result

    def in_app(self, path: str, module: str | None) -> bool:
        """Whether code is the app's own: by module prefix, then by where its file lies.

        The standard library, installed packages and generated code without a file are not; all other code
        is, wherever the process was started.
        """
        if module is not None:
            if _begins(module, self._include):
                return True
            if _begins(module, self._exclude):
                return False
        if any(part in path for part in _INSTALLED) or path.startswith(_STDLIB):
            return False
        return module == "__main__" or not path.startswith("<")

    # -- what is read each time ------------------------------------------------------------------------

    def _variables(self, frame: FrameType, room: Room) -> dict[str, Any]:
        held: Any = frame.f_locals
        kind = type(held)
        items: Iterable[tuple[Any, Any]] = (
            # dict.copy of a subclass runs none of its code (the namespace of a class body may be one).
            dict.copy(held).items()
            if kind is dict or issubclass(kind, dict)
            else held.items()
            if kind is _LOCALS_PROXY
            else ()
        )
        top_level = held is frame.f_globals
        limits = self._limits
        costs = self._costs
        result: dict[str, Any] = {}
        room.left -= 2
        for name, value in items:
            if type(name) is not str:
                continue  # a module's dict may hold anything, and hashing it would run its code
            try:
                cost = costs[name]
            except KeyError:
                cost = self._cost(name)
            if cost == 0 or (top_level and issubclass(type(value), _LANGUAGE)):
                continue  # at the top level, imports and definitions say what the source says already
            left = room.left - (cost if cost > 0 else -cost)
            if left < MINIMUM or len(result) >= _MAX_VARIABLES:
                break
            room.left = left
            result[name] = bounded(value, room, limits) if cost > 0 else FILTERED
        return result

    def _cost(self, name: str) -> int:
        """Bytes that a variable's name takes with its quotes and signs; with the marker, and negative, when
        its value is hidden; 0 when it is not to be shown (the compiler's, or of a length nobody writes)."""
        if name.startswith((".", "__")) or len(name) > _NAME_LENGTH:
            return 0
        # A character takes at most six bytes of JSON.
        cost = 4 + (len(name) if name.isidentifier() and name.isascii() else 6 * len(name))
        if self._hides(name):
            cost = -cost - len(FILTERED) - 2
        if len(self._costs) >= _CACHED_NAMES:
            self._costs.clear()
        self._costs[name] = cost
        return cost


def _begins(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def _absolute(filename: str) -> str:
    if filename.startswith("<"):
        return filename
    try:
        return os.path.abspath(filename)
    except OSError:
        return filename  # the working directory is gone


def _relative(path: str, module: str | None) -> str:
    """The path from its import root: as many parts as the module's name has, when they agree with it.

    `shop.cart` in `/srv/app/shop/cart.py` gives `shop/cart.py`. What has no such name (a script, a
    renamed module) is taken relative to the longest entry of `sys.path` above it.
    """
    if path.startswith("<"):
        return path
    if module is not None:
        expected = module.split(".")
        parts = path.split(os.sep)
        if parts[-1] in ("__init__.py", "__main__.py") and expected[-1] != parts[-1][:-3]:
            expected.append(parts[-1][:-3])
        found = parts[-len(expected) :]
        if [*found[:-1], found[-1].partition(".")[0]] == expected:
            return "/".join(found)
    roots = [root for root in list(sys.path) if type(root) is str and root and path.startswith(_folder(root))]
    root = _folder(max(roots, key=len)) if roots else os.path.dirname(path) + os.sep
    return path[len(root) :].replace(os.sep, "/")


def _folder(root: str) -> str:
    return root if root.endswith(os.sep) else root + os.sep


def _source(filename: str, namespace: dict[str, Any]) -> list[str]:
    """All lines of a source; empty when there is none to be had without risk."""
    try:
        if filename not in linecache.cache and not _readable(filename):
            return []
        return linecache.getlines(filename, namespace)
    except Exception as error:
        let_through(error)
        return []  # a loader of the app's, or a file that changed its nature since: no source, no harm


def _readable(filename: str) -> bool:
    try:
        status = os.stat(filename)
    except (OSError, ValueError):
        return True  # not a file: the module's loader may have the text
    # Opening a pipe or a terminal waits for a writer; a huge file takes the memory the app needs.
    return stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_SOURCE_BYTES


def _line(text: str) -> str:
    return tidy(text.rstrip("\r\n"), _LINE_LENGTH)
