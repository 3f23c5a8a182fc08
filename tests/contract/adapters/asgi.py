"""Serves any ASGI app, lifespan included, in an event loop of its own; no adapter by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.contract.adapters import Reply
from tests.letting_go import let_go

__all__ = ["AsgiApp"]


class AsgiApp:
    """An `App`; `kit` is asked for when it is needed, as some frameworks build late."""

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
    """A `Site`: the messages of a server, without its sockets."""

    def __init__(self, app: Any, runner: asyncio.Runner) -> None:
        self._app = app
        self._runner = runner
        self._has_lifespan = True
        self._escaped: list[BaseException] = []

    async def start(self) -> None:
        self._incoming: asyncio.Queue[Any] = asyncio.Queue()
        self._said: asyncio.Queue[str] = asyncio.Queue()

        async def send(message: Any) -> None:
            await self._said.put(message["type"])

        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}

        async def live() -> None:
            try:
                await self._app(scope, self._incoming.get, send)
            except Exception:
                self._has_lifespan = False  # the app's way to say that it knows none
                await self._said.put("unsupported")

        self._life = asyncio.create_task(live())
        await self._incoming.put({"type": "lifespan.startup"})
        assert await self._said.get() in ("lifespan.startup.complete", "unsupported")

    async def end(self) -> None:
        if self._has_lifespan:
            await self._incoming.put({"type": "lifespan.shutdown"})
            assert await self._said.get() == "lifespan.shutdown.complete"
        await self._life
        let_go(*self._escaped)
        self._escaped.clear()

    def get(self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Reply:
        return self._runner.run(self._get(path, method, headers or {}))

    def many(self, paths: Iterable[str]) -> list[Reply]:
        async def all_of_them() -> list[Reply]:
            return await asyncio.gather(*(self._get(path, "GET", {}) for path in paths))

        return self._runner.run(all_of_them())

    async def _get(self, path: str, method: str, headers: Mapping[str, str]) -> Reply:
        path, _, query = path.partition("?")
        messages: list[Any] = []
        asked = False

        async def receive() -> Any:
            nonlocal asked
            if asked:
                await asyncio.Event().wait()  # the client stays, and says nothing more
            asked = True
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
            self._escaped.append(error)  # a server logs it; what counts here is what was sent
        if not messages:
            return Reply(500, (), b"")  # which the server makes itself
        start, *rest = messages
        return Reply(
            start["status"],
            tuple((name.decode().lower(), value.decode("latin-1")) for name, value in start["headers"]),
            b"".join(message.get("body", b"") for message in rest),
        )
