"""Handlers: an exception handler that also reports deliberate 5xx responses.

This module owns the reporting of an `HTTPException`, which the framework turns into a response before any
middleware can see it. The wrapped handler makes the response.

Threads: runs on the event loop's thread; a wrapped handler that is no coroutine function runs on a worker
thread, as the framework would run it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response

from transport_kit import Kit
from transport_kit_starlette.routes import KIT_KEY

__all__ = ["report_server_errors"]

logger = logging.getLogger("transport_kit")

_MECHANISM: Final = "auto.http.starlette"


async def _nothing(scope: object, receive: object, send: object) -> None:
    """An empty app for `ExceptionMiddleware`, of which only the handler is used."""


def report_server_errors(
    handler: Callable[..., Any] | None = None,
) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return an exception handler that reports an `HTTPException` of status 500 and above, as handled.

    `app.add_exception_handler(HTTPException, report_server_errors())`, with Starlette's own `HTTPException`,
    the base of FastAPI's. The exception is captured once, by the kit of the `TransportMiddleware` around the
    app, and not at all without `capture_errors`.

    Args:
        handler: Makes the response, for any status. None is Starlette's own plain text; for FastAPI's JSON
            pass `fastapi.exception_handlers.http_exception_handler`.
    """
    answer: Callable[..., Any] = handler or ExceptionMiddleware(_nothing).http_exception
    is_async = inspect.iscoroutinefunction(answer) or inspect.iscoroutinefunction(type(answer).__call__)

    async def report(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code >= 500:
            kit = request.get(KIT_KEY)
            if not isinstance(kit, Kit):
                logger.warning("an HTTPException was not reported: no TransportMiddleware is around this app")
            elif kit.options.capture_errors:
                kit.capture_exception(error, mechanism=_MECHANISM)
        response: Response = await (
            answer(request, error) if is_async else run_in_threadpool(answer, request, error)
        )
        return response

    return report
