"""`with_lifespan`: wraps the ASGI application, so that the transport is closed before the server ends.

This module owns the lifespan, which Django does not support, and the end of requests with a
`StreamingHttpResponse`: its body is generated after all middleware, and Django has no signal for exceptions
there.

Threads: the event loop's thread. Closing waits on another thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import Context
from typing import Any

from transport_kit import ServedRequest
from transport_kit_django.conf import get_kit
from transport_kit_django.facts import MECHANISM, OutsideFacts
from transport_kit_django.middleware import OPEN_REQUESTS

__all__ = ["was_used", "with_lifespan"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# Deliberately loose: frameworks, servers and stubs declare these types differently.
ASGIApplication = Callable[[Any, Any, Any], Awaitable[None]]

_used = False


def was_used() -> bool:
    """Return True if an application of this process was wrapped; for the system check."""
    return _used


def with_lifespan(application: ASGIApplication) -> ASGIApplication:
    """Add a lifespan to the site: `application = with_lifespan(get_asgi_application())`.

    - The transport starts with the server, and is closed before the server learns that shutdown is
      complete. Without this, uvicorn ends its workers without any hook, and the queue in memory is lost.
    - An exception that ends a streaming body, or that escapes from Django itself, is captured and
      propagates unchanged. A disconnected client is not an error.

    Lifespan messages are not passed on to the wrapped application.
    """
    global _used
    _used = True

    async def wrapped(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        else:
            await _serve(application, scope, receive, send)

    return wrapped


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            get_kit().try_to_start()
            await send({"type": "lifespan.startup.complete"})
        else:
            await get_kit().try_to_close()
            await send({"type": "lifespan.shutdown.complete"})
            return


async def _serve(
    application: ASGIApplication, scope: MutableMapping[str, Any], receive: Receive, send: Send
) -> None:
    open_requests: list[tuple[ServedRequest, Context]] = []
    scope[OPEN_REQUESTS] = open_requests
    send_errors: list[OSError] = []

    async def watched_send(message: Message) -> None:
        try:
            await send(message)
        except OSError as error:  # raised by the server if the client has disconnected
            send_errors.append(error)
            raise

    try:
        await application(scope, receive, watched_send)
    except BaseException as error:
        _end(open_requests, None if error in send_errors else error)
        if error not in send_errors:
            facts = OutsideFacts(scope.get("path", ""))
            get_kit().capture_unhandled(error, mechanism=MECHANISM, facts=facts)
        raise
    _end(open_requests, None)


def _end(open_requests: list[tuple[ServedRequest, Context]], error: BaseException | None) -> None:
    for served, context in open_requests:
        # In the request's context, so that the event gets the scope that the app has set.
        context.run(served.finish, error)
