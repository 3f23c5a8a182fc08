"""Lifespan events: start the transport with the app, and close it before the server learns of the app's end.

This module owns the handling of lifespan messages, the answers for an app without a lifespan, and `lifespan`,
the composition for apps without our middleware.

Threads: runs on the event loop's thread; closing waits on another thread.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transport_kit import Kit

__all__ = ["lifespan", "live"]

logger = logging.getLogger("transport_kit")

_MECHANISM: Final = "auto.lifespan.starlette"
#: The server may stop the event loop after any of these.
_LAST_MESSAGES: Final = frozenset(
    {"lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"}
)

AppType = TypeVar("AppType")


def lifespan(
    user_lifespan: Callable[[AppType], AbstractAsyncContextManager[Any]] | None = None, *, kit: Kit
) -> Callable[[AppType], AbstractAsyncContextManager[Any]]:
    """Make the app's lifespan start and close a kit: `Starlette(lifespan=lifespan(shop, kit=kit))`.

    For apps whose lifespan no `TransportMiddleware` sees: an app that only logs and captures by hand, or one
    whose middleware is in a mounted app. Together with such a middleware, nothing happens twice.

    The kit starts before the app's own lifespan and is closed after it. The yielded state is passed on
    unchanged. An exception of startup or shutdown is captured (with `capture_errors`), delivered, and
    propagates.

    Args:
        user_lifespan: The app's own `lifespan`, as for Starlette and FastAPI: a function of the app that
            returns an async context manager. None if the app has none.
        kit: Started and closed with the app.
    """

    @asynccontextmanager
    async def composed(app: AppType) -> AsyncIterator[Any]:
        kit.try_to_start()
        try:
            if user_lifespan is None:
                yield None
            else:
                async with user_lifespan(app) as state:
                    yield state
        except Exception as error:
            kit.capture_unhandled(error, mechanism=_MECHANISM)
            raise
        finally:
            await kit.try_to_close()

    return composed


async def live(app: ASGIApp, kit: Kit, scope: Scope, receive: Receive, send: Send) -> None:
    """Start the kit, run the app's lifespan, and close the kit before the last message is sent.

    An app without a lifespan raises, or returns, before it calls `receive` or `send`. Then this function
    answers the server itself: some servers, such as uvicorn's workers, give no other sign of their end.
    """
    responded = False

    async def watch_send(message: Message) -> None:
        nonlocal responded
        responded = True
        if message["type"] in _LAST_MESSAGES:
            # The app sends `failed` while it handles the exception: capture it now, or it is never delivered.
            if message["type"].endswith("failed"):
                kit.capture_unhandled(sys.exc_info()[1], mechanism=_MECHANISM)
            await kit.try_to_close()
        await send(message)

    async def watch_receive() -> Message:
        nonlocal responded
        responded = True
        return await receive()

    kit.try_to_start()
    try:
        await app(scope, watch_receive, watch_send)
    except Exception as error:
        if responded:
            raise
        # Logged at the level that servers use; the cause may also be a bug in a middleware.
        logger.info("the app has no lifespan (%s), the transport has one", type(error).__name__)
    if not responded:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await kit.try_to_close()
        await send({"type": "lifespan.shutdown.complete"})
