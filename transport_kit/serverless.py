"""`flush_after`: for functions that somebody calls, and whose process may be frozen or gone right after.

Owns the order around one call: a unit of its own, the exception that escapes, the flush. For handlers of
serverless platforms (AWS Lambda freezes the process when the handler returns), for targets of
`multiprocessing`, and for the `main` of a script.

Threads: the decorated function may be called from any, also several at once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, ParamSpec, TypeVar, cast

from transport_kit.kit import Kit
from transport_kit.reporting import ServedRequest

__all__ = ["flush_after"]

P = ParamSpec("P")
R = TypeVar("R")

_MECHANISM: Final = "auto.function"


def flush_after(kit: Kit, *, timeout: float | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function or a coroutine function: what escapes is captured, and all is delivered, before
    the call returns.

        @flush_after(kit)
        def handler(event, context): ...

    The exception goes on unchanged. The transport stays open, as the platform may call again: a process
    that is thawed finds its connections closed, and opens new ones. When nothing waits, nothing is waited
    for.

    Args:
        kit: Whose reporter and transport; `Kit({}, source="environment")` reads `TRANSPORT_KIT_*`.
        timeout: Seconds to wait for deliveries; None means `shutdown_timeout`. Leave room for it in the
            platform's own limit.

    Raises:
        TypeError: The function is a generator: its call returns before anything has run.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"flush_after needs a function that returns; {function.__name__} is a generator")
        name = f"{function.__module__}.{function.__qualname__}"
        if inspect.iscoroutinefunction(function):
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


def _unit(kit: Kit, name: str) -> ServedRequest:
    kit.start()
    return kit.reporter.request(named=lambda: (name, "task"), op="function", mechanism=_MECHANISM)
