"""The library's log: every line goes to the logger `transport_kit`, and no failing handler hurts the app.

This module owns the logger, and its silence at the end of the process. Callers decide what is logged and how
often.

Threads: any, senders included. There is no lock, as a fork could inherit it locked.
"""

from __future__ import annotations

import _thread
import logging
import time

from transport_kit.runtime.interrupts import let_through

__all__ = ["log"]


class _Log:
    """The logger. Its handlers belong to the app, so their exceptions are suppressed."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("transport_kit")
        # Threads that are in a handler. Setting and deleting one item of a dict is atomic.
        self._threads_logging: dict[int, None] = {}
        self._silent = False

    def info(self, message: str, *arguments: object) -> None:
        self._log(logging.INFO, message, arguments)

    def warning(self, message: str, *arguments: object) -> None:
        self._log(logging.WARNING, message, arguments)

    def error(self, message: str, *arguments: object) -> None:
        self._log(logging.ERROR, message, arguments)

    def exception(self, message: str, *arguments: object) -> None:
        """Log an error with the traceback of the exception being handled."""
        self._log(logging.ERROR, message, arguments, exc_info=True)

    def _log(self, level: int, message: str, arguments: tuple[object, ...], exc_info: bool = False) -> None:
        thread = _thread.get_ident()
        if self._silent or thread in self._threads_logging:
            # A handler that captures this library's lines would otherwise recurse without end.
            return
        try:
            self._threads_logging[thread] = None
            self._logger.log(level, message, *arguments, exc_info=exc_info, stacklevel=3)
        except Exception as error:
            let_through(error)
            # a handler failed, and there is no other place to report it
        finally:
            self._threads_logging.pop(thread, None)

    def silence(self, within: float) -> None:
        """Log nothing from now on, and wait up to `within` seconds for lines that are being written.

        Called when the interpreter is about to end. It would abort if it stopped a daemon thread that holds
        the lock of stderr.
        """
        self._silent = True
        deadline = time.monotonic() + within
        this = _thread.get_ident()
        while any(thread != this for thread in self._threads_logging.copy()) and time.monotonic() < deadline:
            time.sleep(0.001)

    def renew(self) -> None:
        """Reset in a forked child, which has none of its parent's threads, and may log until its own end."""
        self._threads_logging.clear()
        self._silent = False


log = _Log()
