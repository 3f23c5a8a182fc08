"""Exceptions raised by the app's signal handlers while code of this library runs.

Such exceptions belong to the app: Celery's soft time limit, a server's worker timeout and the like are raised
by signal handlers at any point of the main thread. An `except Exception` clause around the library's own
work, or around a callback of the app, must not suppress them; it begins with a call of `let_through`.

Limits: an exception set from another thread with CPython's `PyThreadState_SetAsyncExc` can't be recognised,
and is treated as an error of the interrupted code.

Threads: functions only.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType, TracebackType

__all__ = ["let_through"]

# The descriptors of BaseException, because a subclass may define attributes of these names that raise.
_traceback_of: Callable[[BaseException], TracebackType | None]
_traceback_of = BaseException.__dict__["__traceback__"].__get__
_context_of: Callable[[BaseException], BaseException | None]
_context_of = BaseException.__dict__["__context__"].__get__
_VARARGS = 0x04  # CO_VARARGS of the `inspect` module, which is slow to import


def let_through(error: BaseException) -> None:
    """Raise the signal handler's exception if `error` is one or was raised while handling one.

    Otherwise returns.

    Args:
        error: The exception caught by the caller.

    Raises:
        BaseException: The exception that the signal handler raised.
    """
    candidate: BaseException | None = error
    frames: set[FrameType] = set()
    seen: set[int] = set()
    while candidate is not None and id(candidate) not in seen:  # contexts may form a circle
        seen.add(id(candidate))
        trace = _traceback_of(candidate)
        if candidate is not error and (trace is None or trace.tb_frame not in frames):
            return  # the app was already handling this exception when it called the library
        while trace is not None:
            frames.add(trace.tb_frame)
            if _is_handler(trace):
                raise candidate
            trace = trace.tb_next
        candidate = _context_of(candidate)


def _is_handler(trace: TracebackType) -> bool:
    """Return True if the frame is a signal handler's: one of its arguments is the frame it interrupted."""
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
