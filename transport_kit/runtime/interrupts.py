"""Recognizes exceptions that a signal handler of the app raised while this library's code ran.

An `except Exception` around this library's work, or around a callback of the app, is for exceptions of that
work. But signal handlers raise on the main thread at any point: Celery's soft time limit, a server's worker
timeout and the like. So each such `except` block begins with `let_through`, which raises them again.

Limits: an exception that another thread sets with CPython's `PyThreadState_SetAsyncExc` can't be recognized,
and counts as a failure of the code that it interrupts.

Threads: functions only.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType, TracebackType

__all__ = ["let_through"]

# Descriptors of the base class: an exception of the app may redefine these attributes so that they raise.
_traceback_of: Callable[[BaseException], TracebackType | None]
_traceback_of = BaseException.__dict__["__traceback__"].__get__
_context_of: Callable[[BaseException], BaseException | None]
_context_of = BaseException.__dict__["__context__"].__get__
_VARARGS = 0x04  # CO_VARARGS of the `inspect` module, which is slow to import


def let_through(error: BaseException) -> None:
    """Raise the exception of a signal handler again, if `error` is one or has one as its context.

    Args:
        error: The exception that the caller has caught.
    """
    exception: BaseException | None = error
    frames: set[FrameType] = set()
    visited: set[int] = set()
    while exception is not None and id(exception) not in visited:  # contexts may form a circle
        visited.add(id(exception))
        trace = _traceback_of(exception)
        if exception is not error and (trace is None or trace.tb_frame not in frames):
            return  # the app was handling this context when it called the library
        while trace is not None:
            frames.add(trace.tb_frame)
            if _is_handler(trace):
                raise exception
            trace = trace.tb_next
        exception = _context_of(exception)


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
