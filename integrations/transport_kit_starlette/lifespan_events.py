"""The life of a transport: started with the app's lifespan, closed before the server hears of its end.

Owns the watching of the lifespan's messages, the answers for an app that knows none, and `lifespan`, the
composition for apps that have no middleware of ours around them.

Threads: runs on the event loop's thread; closing waits on a thread of its own.
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
#: After each of these the server may end the event loop.
_LAST_MESSAGES: Final = frozenset(
    {"lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"}
)

AppType = TypeVar("AppType")


def lifespan(
    user_lifespan: Callable[[AppType], AbstractAsyncContextManager[Any]] | None = None, *, kit: Kit
) -> Callable[[AppType], AbstractAsyncContextManager[Any]]:
    """The app's own lifespan within the life of a kit: `Starlette(lifespan=lifespan(shop, kit=kit))`.

    For what has no `TransportMiddleware` around it that sees the lifespan: an app that only logs and reports
    by hand, or one whose middleware sits in a mounted app. With one that does, nothing happens twice.

    The kit starts before the app's own lifespan, and is closed after it. What that yields is the state of the
    app, unchanged; an exception of its startup or shutdown is captured (unless `capture_errors` is off),
    delivered, and goes on.

    Args:
        user_lifespan: What Starlette and FastAPI take as `lifespan`: a function of the app that returns an
            async context manager. None when the app has none.
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
    """Run an app's lifespan within the life of the kit, which ends before the last message goes on.

    An app that knows no lifespan raises, or returns, before it has said or asked anything. Then the server is
    answered here: some, such as uvicorn's workers, give no other sign of the end.
    """
    spoke = False

    async def note(message: Message) -> None:
        nonlocal spoke
        spoke = True
        if message["type"] in _LAST_MESSAGES:
            # The app sends `failed` while it handles what failed: captured now, or never delivered.
            if message["type"].endswith("failed"):
                kit.capture_unhandled(sys.exc_info()[1], mechanism=_MECHANISM)
            await kit.try_to_close()
        await send(message)

    async def ask() -> Message:
        nonlocal spoke
        spoke = True
        return await receive()

    kit.try_to_start()
    try:
        await app(scope, ask, note)
    except Exception as error:
        if spoke:
            raise
        # What servers say of it too, and at this level: it may as well be a mistake in a middleware.
        logger.info("the app has no lifespan (%s), the transport has one", type(error).__name__)
    if not spoke:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await kit.try_to_close()
        await send({"type": "lifespan.shutdown.complete"})
