"""Records, inside a server's processes, the events that their transports accept and the hook that ends them.

Imported first by each of `apps/`. Notes are files in the directory `SERVER_NOTES`, one for each fact and
process: `accepted-<pid>` with an event id per line, `busy-<pid>` while a slow request is served, and
`ended-<pid>` with the name of the hook that came first. A line is written by one system call before the
capture returns, so that it survives any end of the process.

Threads: any, and greenlets. Takes no lock, and has no state that a fork could share.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from transport_kit import BaseHttpTransport, Envelope, FlushReport, Transport

__all__ = ["later"]

_NOTES = Path(os.environ["SERVER_NOTES"])

#: Functions on the stack that identify a hook; the innermost one counts.
_HOOKS = {
    ("sigterm.py", "_on_sigterm"): "SIGTERM",
    ("process.py", "_at_exit"): "atexit",
    ("util.py", "_run_finalizers"): "Finalize",
    ("event_loop.py", "off_loop"): "lifespan",
    ("gunicorn.py", "worker_exit"): "worker_exit",
    ("celery.py", "_Tasks"): "worker_process_shutdown",
    ("rq.py", "ReportingMixin"): "after each job",
}


def _note(fact: str, line: str = "") -> None:
    file = os.open(_NOTES / f"{fact}-{os.getpid()}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)


def _hook() -> str:
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        code = frame.f_code
        hook = _HOOKS.get((os.path.basename(code.co_filename), code.co_qualname.partition(".")[0]))
        if hook is not None:
            return hook
    return "unknown"


def later() -> NoReturn:
    """The work of a slow view: it is in flight when the signal comes, and fails after that."""
    _note("busy")
    time.sleep(float(os.environ["SERVER_IN_FLIGHT"]))
    raise RuntimeError("in flight")


def _watch() -> None:
    capture = BaseHttpTransport.capture_envelope

    def capture_envelope(self: BaseHttpTransport, envelope: Envelope) -> bool:
        accepted = capture(self, envelope)
        if accepted and any(item.type == "event" for item in envelope.items):
            _note("accepted", str(envelope.headers["event_id"]))
        return accepted

    def noting(end: Callable[..., FlushReport]) -> Callable[..., FlushReport]:
        def noted(self: Transport, *args: Any, **kwargs: Any) -> FlushReport:
            _note("ended", _hook())
            return end(self, *args, **kwargs)

        return noted

    # The methods are wrapped and not replaced, so that the app behaves as it does without the notes.
    BaseHttpTransport.capture_envelope = capture_envelope  # type: ignore[method-assign]
    BaseHttpTransport.flush = noting(BaseHttpTransport.flush)  # type: ignore[method-assign]
    BaseHttpTransport.close = noting(BaseHttpTransport.close)  # type: ignore[method-assign]


_watch()
