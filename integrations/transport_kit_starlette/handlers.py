"""An exception handler for those who want deliberate 5xx answers reported too.

Owns the reporting of an `HTTPException` that never escapes: the framework turns it into a response further in
than any middleware. What the client gets is the other handler's.

Threads: runs on the event loop's thread; another handler that is no coroutine runs on a worker thread, as
the framework would run it.
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
    """Stands for the app in the framework's own layer, of which only the answer is used."""


def report_server_errors(
    handler: Callable[..., Any] | None = None,
) -> Callable[[Request, Exception], Awaitable[Response]]:
    """An exception handler that reports an `HTTPException` of status 500 and above, as handled.

    `app.add_exception_handler(HTTPException, report_server_errors())`, with Starlette's own `HTTPException`,
    which is FastAPI's base. It is reported once, to the kit of the `TransportMiddleware` around the app, and
    not at all when `capture_errors` is off.

    Args:
        handler: What answers the client, for any status. None is Starlette's own plain text; for FastAPI's
            JSON give `fastapi.exception_handlers.http_exception_handler`.
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
