"""Exceptions that are the app's: raised by a signal handler while our code happened to run.

Owns the test for them, and the rule: `except Exception` around our own work, or around a callback of the
app, is for what that work raises. Celery's soft time limit, a server's worker timeout and the like are
raised by signal handlers, wherever the main thread is; each such handler of ours begins with `let_through`.

Limits: an exception set from another thread with CPython's `PyThreadState_SetAsyncExc` leaves no trace by
which to know it, and is taken for a failure of the code that it hit.

Threads: functions only.
"""

from __future__ import annotations

from types import FrameType, TracebackType

__all__ = ["let_through"]


def let_through(error: BaseException) -> None:
    """Raise again what a signal handler raised, if `error` is that or was made of it; else do nothing.

    Args:
        error: As caught by the caller.
    """
    found: BaseException | None = error
    frames: set[FrameType] = set()
    while found is not None:
        trace = found.__traceback__
        if found is not error and (trace is None or trace.tb_frame not in frames):
            return  # the app was handling it when it called us
        while trace is not None:
            frames.add(trace.tb_frame)
            if _is_handler(trace):
                raise found
            trace = trace.tb_next
        found = found.__context__


def _is_handler(trace: TracebackType) -> bool:
    """Whether its frame is that of a signal handler: called with a number and the frame it interrupted."""
    frame = trace.tb_frame
    caller = frame.f_back
    if caller is None:
        return False
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    values = frame.f_locals
    if frame.f_code.co_flags & _VARARGS:
        rest = frame.f_code.co_varnames[frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount]
        arguments = [values.get(name) for name in names] + list(values.get(rest, ()))
    else:
        arguments = [values.get(name) for name in names]
    return any(argument is caller for argument in arguments)


_VARARGS = 0x04  # CO_VARARGS of the `inspect` module, which is slow to import
