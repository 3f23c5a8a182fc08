"""Exceptions that are the app's: raised by a signal handler while our code happened to run.

Owns the test for them, and the rule: `except Exception` around our own work, or around a callback of the
app, is for what that work raises. Celery's soft time limit, a server's worker timeout and the like are
raised by signal handlers, wherever the main thread is; each such handler of ours begins with `let_through`.

Limits: an exception set from another thread with CPython's `PyThreadState_SetAsyncExc` leaves no trace by
which to know it, and is taken for a failure of the code that it hit.

Threads: functions only.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType, TracebackType

__all__ = ["let_through"]

# The class's own descriptors: an exception of the app may define attributes of these names that raise.
_traceback_of: Callable[[BaseException], TracebackType | None]
_traceback_of = BaseException.__dict__["__traceback__"].__get__
_context_of: Callable[[BaseException], BaseException | None]
_context_of = BaseException.__dict__["__context__"].__get__
_VARARGS = 0x04  # CO_VARARGS of the `inspect` module, which is slow to import


def let_through(error: BaseException) -> None:
    """Raise again what a signal handler raised, if `error` is that or was made of it; else do nothing.

    Args:
        error: As caught by the caller.
    """
    found: BaseException | None = error
    frames: set[FrameType] = set()
    seen: set[int] = set()
    while found is not None and id(found) not in seen:  # an app may link exceptions in a circle
        seen.add(id(found))
        trace = _traceback_of(found)
        if found is not error and (trace is None or trace.tb_frame not in frames):
            return  # the app was handling it when it called us
        while trace is not None:
            frames.add(trace.tb_frame)
            if _is_handler(trace):
                raise found
            trace = trace.tb_next
        found = _context_of(found)


def _is_handler(trace: TracebackType) -> bool:
    """Return True for a signal handler's frame: its arguments include the frame that it interrupted."""
    frame = trace.tb_frame
    caller = frame.f_back
    if caller is None or (frame.f_code.co_argcount < 2 and not frame.f_code.co_flags & _VARARGS):
        return False
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    values = frame.f_locals
    if frame.f_code.co_flags & _VARARGS:
        rest = frame.f_code.co_varnames[frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount]
        arguments = [values.get(name) for name in names] + list(values.get(rest, ()))
    else:
        arguments = [values.get(name) for name in names]
    return any(argument is caller for argument in arguments)
