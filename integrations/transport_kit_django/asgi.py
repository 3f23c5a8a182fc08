"""`with_lifespan`: around the ASGI application, so that the transport ends before the server does.

Owns the lifespan, which Django refuses, and the end of requests whose response is a
`StreamingHttpResponse`: its body is made after all middleware, and Django has no signal for what goes wrong
there.

Threads: the event loop's. Closing waits on a thread of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import Context
from typing import Any

from transport_kit import ServedRequest
from transport_kit_django.conf import get_kit
from transport_kit_django.facts import MECHANISM, Outside
from transport_kit_django.middleware import HANDED_OVER

__all__ = ["was_used", "with_lifespan"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# Loose on purpose: frameworks, servers and stubs differ in how they write these types.
ASGIApplication = Callable[[Any, Any, Any], Awaitable[None]]

_used = False


def was_used() -> bool:
    """Whether an application of this process was wrapped; for the system check."""
    return _used


def with_lifespan(application: ASGIApplication) -> ASGIApplication:
    """Give the site a life: `application = with_lifespan(get_asgi_application())`.

    - The transport starts with the server, and is closed before the server learns that shutdown is
      complete. Without this, uvicorn ends several workers with no hook, and what waits in memory is lost.
    - An exception that ends a streaming body, or that escapes from Django itself, is captured and goes on
      unchanged. A client that went away is not an error.

    The lifespan ends here: what is inside need not know it, and is not asked.
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
    handed_over: list[tuple[ServedRequest, Context]] = []
    scope[HANDED_OVER] = handed_over
    gone: list[OSError] = []

    async def noting(message: Message) -> None:
        try:
            await send(message)
        except OSError as error:  # the server's way to say that the client went away
            gone.append(error)
            raise

    try:
        await application(scope, receive, noting)
    except BaseException as error:
        _end(handed_over, None if error in gone else error)
        if error not in gone:
            facts = Outside(scope.get("path", ""))
            get_kit().capture_unhandled(error, mechanism=MECHANISM, facts=facts)
        raise
    _end(handed_over, None)


def _end(handed_over: list[tuple[ServedRequest, Context]], error: BaseException | None) -> None:
    for served, context in handed_over:
        # In the context it ran in, so that the event gets what the app said about the request.
        context.run(served.finish, error)
