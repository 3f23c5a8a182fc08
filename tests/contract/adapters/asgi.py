"""Serves any ASGI app, lifespan included, in an event loop of its own; not an adapter itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.contract.adapters import Reply
from tests.letting_go import let_go

__all__ = ["AsgiApp"]


class AsgiApp:
    """An `App`; `kit` is a function, as some frameworks build the kit late."""

    def __init__(self, app: Any, kit: Callable[[], Any]) -> None:
        self._app = app
        self._kit = kit

    @property
    def kit(self) -> Any:
        return self._kit()

    @contextmanager
    def serve(self) -> Iterator[AsgiSite]:
        with asyncio.Runner() as runner:
            site = AsgiSite(self._app, runner)
            runner.run(site.start())
            try:
                yield site
            finally:
                runner.run(site.end())


class AsgiSite:
    """A `Site` that exchanges messages as a server does, without sockets."""

    def __init__(self, app: Any, runner: asyncio.Runner) -> None:
        self._app = app
        self._runner = runner
        self._has_lifespan = True
        self._escaped: list[BaseException] = []

    async def start(self) -> None:
        self._incoming: asyncio.Queue[Any] = asyncio.Queue()
        self._sent: asyncio.Queue[str] = asyncio.Queue()

        async def send(message: Any) -> None:
            await self._sent.put(message["type"])

        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}

        async def run_lifespan() -> None:
            try:
                await self._app(scope, self._incoming.get, send)
            except Exception:
                self._has_lifespan = False  # an app without lifespan support raises
                await self._sent.put("unsupported")

        self._lifespan = asyncio.create_task(run_lifespan())
        await self._incoming.put({"type": "lifespan.startup"})
        assert await self._sent.get() in ("lifespan.startup.complete", "unsupported")

    async def end(self) -> None:
        if self._has_lifespan:
            await self._incoming.put({"type": "lifespan.shutdown"})
            assert await self._sent.get() == "lifespan.shutdown.complete"
        await self._lifespan
        let_go(*self._escaped)
        self._escaped.clear()

    def get(self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Reply:
        return self._runner.run(self._get(path, method, headers or {}))

    def many(self, paths: Iterable[str]) -> list[Reply]:
        async def gather() -> list[Reply]:
            return await asyncio.gather(*(self._get(path, "GET", {}) for path in paths))

        return self._runner.run(gather())

    async def _get(self, path: str, method: str, headers: Mapping[str, str]) -> Reply:
        path, _, query = path.partition("?")
        messages: list[Any] = []
        is_received = False

        async def receive() -> Any:
            nonlocal is_received
            if is_received:
                await asyncio.Event().wait()  # the client stays connected and sends no more
            is_received = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [
                (b"host", b"shop.example"),
                *((name.lower().encode(), value.encode()) for name, value in headers.items()),
            ],
            "server": ("127.0.0.1", 8000),
            "client": ("192.0.2.7", 50000),
        }
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            self._escaped.append(error)  # a server logs it and sends what it has
        if not messages:
            return Reply(500, (), b"")  # the server's own response
        start, *rest = messages
        return Reply(
            start["status"],
            tuple((name.decode().lower(), value.decode("latin-1")) for name, value in start["headers"]),
            b"".join(message.get("body", b"") for message in rest),
        )
