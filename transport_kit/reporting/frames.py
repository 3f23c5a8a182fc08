"""Frames: a traceback as the protocol's stack frames, oldest call first.

This module owns the content of a frame (place, source lines, in-app flag, variables) and the caches that make
it cheap. Everything but the variables is cached per code object and line; the variables are read each time,
through `bounded.py`.

This module reads source only through `linecache` (a regular file of bounded size, or the module's loader),
and never raises for a file that is gone, moved, huge or badly encoded.

Threads: any number may use one `FrameReader`. Its caches are dicts changed in atomic steps; two threads that
miss at the same time do the same work twice.
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
from transport_kit.reporting.values.secret_names import FILTERED, hidden, is_private, is_sensitive
from transport_kit.runtime.interrupts import let_through

__all__ = ["FrameReader"]

#: Bytes of JSON for the variables of one frame.
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
# Python 3.13 returns a proxy instead of a dict for a function's variables.
_LOCALS_PROXY: Final[type] = type((lambda: sys._getframe().f_locals)())
_LANGUAGE: Final = (ModuleType, FunctionType, type)


class FrameReader:
    """Reads tracebacks into frames.

    Args:
        include: Module prefixes of the app's own code; wins over `exclude` and over the file's location.
        exclude: Module prefixes of other code.
        send_pii: True to keep the values of variables that are named like client addresses.
    """

    def __init__(self, include: tuple[str, ...], exclude: tuple[str, ...], *, send_pii: bool) -> None:
        self._include = include
        self._exclude = (*exclude, *_OURS)
        self._hides = is_sensitive if send_pii else is_private
        self._limits = Limits(text=512, breadth=10, depth=3, hides=self._hides)
        # Variable name -> result of `_cost`.
        self._costs: dict[str, int] = {}
        # (id of code, line) -> (code, module, frame without variables, True for this library's code). The
        # entry holds the code object, so that its id can't be reused; the module is compared because one code
        # object may run in two modules.
        self._known: dict[tuple[int, int], tuple[CodeType, Any, dict[str, Any], bool]] = {}

    def frames(self, trace: TracebackType | None, limit: int, room: Room) -> list[dict[str, Any]]:
        """Return at most `limit` frames, oldest first.

        Of a longer traceback, the outermost frames make up a fifth of `limit` and the innermost ones the
        rest. This library's own frames at the outer end are left out. Variables are read from the failing
        frame outwards while `room` lasts, at most 2 KiB per frame.
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
        """Return one frame. `share` is a `Room` to reuse for the frame's part of `room`."""
        frame = step.tb_frame
        result, ours = self._place(frame, step.tb_lineno or 0)
        bytes_left = room.left
        if not ours and bytes_left > 2 * MINIMUM:
            allowance = share.left = bytes_left if bytes_left < VARS_BYTES else VARS_BYTES
            variables = self._variables(frame, share)
            room.left = bytes_left - allowance + share.left
            if variables:
                result["vars"] = variables
        return result

    # -- cached parts ----------------------------------------------------------------------------------

    def _place(self, frame: FrameType, line: int) -> tuple[dict[str, Any], bool]:
        """Return a copy of the frame without variables, and True if it is this library's code."""
        code = frame.f_code
        module = dict.get(frame.f_globals, "__name__")
        key = (id(code), line)
        entry = self._known.get(key)
        if entry is None or entry[0] is not code or entry[1] is not module:
            name = clean(cut(module, _PATH_LENGTH)) if type(module) is str else None
            ours = name is not None and _begins(name, _OURS)
            entry = (code, module, self._describe(frame, code, name, line), ours)
            if len(self._known) >= _CACHED_LINES:
                self._known.clear()
            self._known[key] = entry
        return entry[2].copy(), entry[3]

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
                # Tuples, because all copies of this frame share them.
                result["pre_context"] = tuple(_line(text) for text in lines[first : line - 1])
                result["context_line"] = _line(lines[line - 1])
                result["post_context"] = tuple(_line(text) for text in lines[line : line + _CONTEXT_LINES])
        return result

    def in_app(self, path: str, module: str | None) -> bool:
        """Return True for the app's own code, judged by module prefix, then by the file's location.

        The standard library, installed packages and generated code without a file are not the app's own; all
        other code is, whatever the working directory.
        """
        if module is not None:
            if _begins(module, self._include):
                return True
            if _begins(module, self._exclude):
                return False
        if any(part in path for part in _INSTALLED) or path.startswith(_STDLIB):
            return False
        return module == "__main__" or not path.startswith("<")

    # -- variables -------------------------------------------------------------------------------------

    def _variables(self, frame: FrameType, room: Room) -> dict[str, Any]:
        namespace: Any = frame.f_locals
        cls = type(namespace)
        items: Iterable[tuple[Any, Any]] = (
            # dict.copy of a subclass runs none of its code (the namespace of a class body may be one).
            dict.copy(namespace).items()
            if cls is dict or issubclass(cls, dict)
            else namespace.items()
            if cls is _LOCALS_PROXY
            else ()
        )
        top_level = namespace is frame.f_globals
        limits = self._limits
        costs = self._costs
        result: dict[str, Any] = {}
        room.left -= 2
        for name, value in items:
            if type(name) is not str:
                continue  # a module's dict may have any keys, and hashing one would run its code
            try:
                cost = costs[name]
            except KeyError:
                cost = self._cost(name)
            if cost == 0 or (top_level and issubclass(type(value), _LANGUAGE)):
                continue  # imports and definitions at the top level only repeat the source
            bytes_left = room.left - (cost if cost > 0 else -cost)
            if bytes_left < MINIMUM or len(result) >= _MAX_VARIABLES:
                break
            room.left = bytes_left
            result[name] = bounded(value, room, limits) if cost > 0 else hidden(name, value)
        return result

    def _cost(self, name: str) -> int:
        """Return the JSON bytes of a variable's name with quotes, colon and comma.

        Negative, and including the marker, for a name whose value is hidden. 0 for a name that is left out:
        one made by the compiler, or an overlong one.
        """
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
    """Return the path relative to its import root: its last parts, if they match the module's name.

    `shop.cart` in `/srv/app/shop/cart.py` gives `shop/cart.py`. If they don't match (a script, a renamed
    module), the path is taken relative to the longest entry of `sys.path` above it.
    """
    if path.startswith("<"):
        return path
    if module is not None:
        module_parts = module.split(".")
        parts = path.split(os.sep)
        if parts[-1] in ("__init__.py", "__main__.py") and module_parts[-1] != parts[-1][:-3]:
            module_parts.append(parts[-1][:-3])
        tail = parts[-len(module_parts) :]
        if [*tail[:-1], tail[-1].partition(".")[0]] == module_parts:
            return "/".join(tail)
    roots = [root for root in list(sys.path) if type(root) is str and root and path.startswith(_folder(root))]
    root = _folder(max(roots, key=len)) if roots else os.path.dirname(path) + os.sep
    return path[len(root) :].replace(os.sep, "/")


def _folder(root: str) -> str:
    return root if root.endswith(os.sep) else root + os.sep


def _source(filename: str, namespace: dict[str, Any]) -> list[str]:
    """Return all lines of a source; empty if it can't be read safely."""
    try:
        if filename not in linecache.cache and not _readable(filename):
            return []
        return linecache.getlines(filename, namespace)
    except Exception as error:
        let_through(error)
        return []  # a failing loader of the app, or a file replaced meanwhile; the frame goes without source


def _readable(filename: str) -> bool:
    try:
        status = os.stat(filename)
    except (OSError, ValueError):
        return True  # not a file: the module's loader may have the text
    # Opening a pipe or a terminal would block; a huge file would take the app's memory.
    return stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_SOURCE_BYTES


def _line(text: str) -> str:
    return tidy(text.rstrip("\r\n"), _LINE_LENGTH)
