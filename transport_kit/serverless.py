"""`flush_after` and `report_uncaught`: for what has no request, and whose process may be gone right after.

Owns the order around one call: a unit of its own, the exception that escapes, the flush; for handlers of
serverless platforms (AWS Lambda freezes the process when the handler returns), for targets of
`multiprocessing`, and for the `main` of a script. And the hook that sees the exception a process ends with.

Threads: the decorated function may be called from any, also several at once. The hook runs on the main
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
    """Decorate a function or a coroutine function: what escapes is captured, and all is delivered, before
    the call returns.

        @flush_after(kit)
        def handler(event, context): ...

    The exception goes on unchanged; with `capture_errors` off it is not captured. The transport stays open,
    as the platform may call again: a process that is thawed finds its connections closed, and opens new
    ones. When nothing waits, nothing is waited for.

    Args:
        kit: Whose reporter and transport; `Kit({}, source="environment")` reads `TRANSPORT_KIT_*`.
        timeout: Seconds to wait for deliveries; None means `shutdown_timeout`. Leave room for it in the
            platform's own limit.

    Raises:
        TypeError: The function is a generator: its call returns before anything has run.
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
    """As it was written; an object that can be called, such as a `partial`, goes by its class."""
    named: Any = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


class _Script(RequestFacts):
    def named(self) -> tuple[str, str]:
        # No argument: it may be a password.
        return os.path.basename(sys.argv[0]) or "python", "task"


_SCRIPT: Final = _Script()


def report_uncaught(
    kit: Kit | Callable[[], Kit], facts: RequestFacts = _SCRIPT, *, mechanism: str = "auto.process"
) -> None:
    """Report the exception that ends this process; the end of the process delivers it.

    Puts a hook before the `sys.excepthook` that is there, which goes on as it would have. Nothing is
    reported at an interactive prompt, where each typing error comes this way; nor with `capture_errors`
    off, nor what was captured before. For exceptions of other threads see `threading.excepthook`.

    Args:
        kit: Or a function that is asked for it when there is something to report.
        facts: The name of what runs, and which exceptions are none to report; by default the script's name.
        mechanism: How events say that they were caught here.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        try:
            if not hasattr(sys, "ps1") and not facts.is_expected(error):
                current = kit if isinstance(kit, Kit) else kit()
                current.capture_unhandled(error, mechanism=mechanism, facts=facts)
        except Exception as problem:
            log.error("the end of the process was not reported: %s", type(problem).__name__)
        before(kind, error, trace)

    sys.excepthook = hook


def _unit(kit: Kit, name: str) -> ServedRequest:
    kit.start()
    return kit.serve(Callbacks(lambda: (name, "task")), op="function", mechanism=_MECHANISM)
