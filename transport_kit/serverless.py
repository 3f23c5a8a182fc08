"""`flush_after` and `report_uncaught`: for functions and scripts whose process may end right after them.

This module owns the steps around one call (a unit of work, capturing the exception that escapes, the flush):
for handlers of serverless platforms (AWS Lambda freezes the process when the handler returns), targets of
`multiprocessing` and the `main` of a script. Also owns the hook for the exception that ends a process.

Threads: the decorated function may be called from any thread, also concurrently. The hook runs on the main
thread.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeVar, cast

from transport_kit.kit.kit import Kit
from transport_kit.reporting import RequestFacts, ServedRequest
from transport_kit.reporting.served_request import Callbacks
from transport_kit.runtime.log import log

__all__ = ["flush_after", "report_uncaught"]

P = ParamSpec("P")
R = TypeVar("R")

_MECHANISM: Final = "auto.function"


def flush_after(kit: Kit, *, timeout: float | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function or coroutine function to capture its exception and flush before the call returns.

        @flush_after(kit)
        def handler(event, context): ...

    The exception propagates unchanged; without `capture_errors` it is not captured. The transport stays open,
    because the platform may call again; a thawed process replaces the connections that were closed meanwhile.
    An empty queue adds no wait.

    Args:
        kit: The kit to report to; `Kit({}, source="environment")` reads `TRANSPORT_KIT_*`.
        timeout: Seconds to wait for deliveries; None means `shutdown_timeout`. The platform's own time limit
            must include it.

    Raises:
        TypeError: The function is a generator function: calling it runs nothing yet.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"flush_after needs a function that returns; {_name(function)} is a generator")
        name = _name(function)
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
            awaited = cast(Callable[P, Awaitable[Any]], function)

            @functools.wraps(function)
            async def acall(*args: P.args, **kwargs: P.kwargs) -> Any:
                try:
                    with _unit(kit, name):
                        return await awaited(*args, **kwargs)
                finally:
                    await kit.transport.aflush(timeout)

            return cast(Callable[P, R], acall)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                with _unit(kit, name):
                    return function(*args, **kwargs)
            finally:
                kit.transport.flush(timeout)

        return call

    return decorate


def _name(function: Callable[..., Any]) -> str:
    """Return the function's qualified name; for another callable, such as a `partial`, that of its class."""
    subject: Any = function if hasattr(function, "__qualname__") else type(function)
    return f"{subject.__module__}.{subject.__qualname__}"


class _Script(RequestFacts):
    def named(self) -> tuple[str, str]:
        # Without arguments: one may be a password.
        return os.path.basename(sys.argv[0]) or "python", "task"


_SCRIPT: Final = _Script()


def report_uncaught(
    kit: Kit | Callable[[], Kit], facts: RequestFacts = _SCRIPT, *, mechanism: str = "auto.process"
) -> None:
    """Report the exception that ends this process; it is delivered at the end of the process.

    Sets a `sys.excepthook` that then calls the previous one. Reports nothing at an interactive prompt, where
    the hook runs for each typing error; nothing without `capture_errors`; and no exception that was captured
    before. For exceptions of other threads see `threading.excepthook`.

    Args:
        kit: The kit, or a function that returns it, called for each report.
        facts: Names the running work and decides which exceptions are not captured; by default the script's
            name.
        mechanism: The mechanism in the events.
    """
    previous_hook = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        try:
            if not hasattr(sys, "ps1") and not facts.is_expected(error):
                current = kit if isinstance(kit, Kit) else kit()
                current.capture_unhandled(error, mechanism=mechanism, facts=facts)
        except Exception as problem:
            log.error("the end of the process was not reported: %s", type(problem).__name__)
        previous_hook(kind, error, trace)

    sys.excepthook = hook


def _unit(kit: Kit, name: str) -> ServedRequest:
    kit.start()
    return kit.serve(Callbacks(lambda: (name, "task")), op="function", mechanism=_MECHANISM)
