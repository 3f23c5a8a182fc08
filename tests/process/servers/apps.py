"""The apps that the servers run: each raises on request, and notes which hook ended its transport.

Run in a server's worker process. Notes are files in the directory `SERVER_NOTES`, named after the fact and
the process: `up-<pid>`, `busy-<pid>`, and `ended-<pid>` with the name of the hook that came first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from transport_kit import Kit
from transport_kit_starlette import TransportMiddleware

__all__ = ["app", "bare"]

#: Which code on the stack gives a hook away; the innermost that is found counts.
_HOOKS = {
    ("lifecycle.py", "_on_sigterm"): "SIGTERM",
    ("lifecycle.py", "_at_exit"): "atexit",
    ("util.py", "_run_finalizers"): "Finalize",
    ("offloop.py", "off_loop"): "lifespan",
}


def note(fact: str, text: str = "") -> None:
    """Write a note, unless this process has written one of this fact before."""
    path = Path(os.environ["SERVER_NOTES"]) / f"{fact}-{os.getpid()}"
    with contextlib.suppress(FileExistsError), path.open("x") as file:
        file.write(text)


def note_the_hook() -> None:
    """Called by the transport at the beginning of each flush and close."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        code = frame.f_code
        hook = _HOOKS.get((os.path.basename(code.co_filename), code.co_qualname.partition(".")[0]))
        if hook is not None:
            note("ended", hook)
            return
    note("ended", "unknown")


async def fail(request: Request) -> Response:
    """An error in a request."""
    raise RuntimeError(f"request {request.path_params['number']}")


async def fail_later(request: Request) -> Response:
    """A request that is in flight when the signal comes."""
    note("busy")
    await asyncio.sleep(float(os.environ["SERVER_IN_FLIGHT"]))
    raise RuntimeError("in flight")


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """The app's own start and end."""
    note("up")
    yield


kit = Kit({}, source="the test's app")
kit.transport.before_flush(note_the_hook)
app = Starlette(routes=[Route("/fail/{number:int}", fail), Route("/later", fail_later)], lifespan=lifespan)
app.add_middleware(TransportMiddleware, kit=kit)


async def _bare(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """A plain ASGI app that knows no lifespan: it raises when one comes, as the specification allows."""
    assert scope["type"] == "http", "only http"
    if scope["path"] == "/up":
        note("up")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"up"})
        return
    raise RuntimeError(f"request {scope['path'].rpartition('/')[2]}")


bare = TransportMiddleware(_bare, kit=kit)
