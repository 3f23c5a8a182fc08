"""Fixtures for tests of integrations: a sink for events, and a bare ASGI server without sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import pytest
import uvicorn

from tests.timing import SOON
from transport_kit import Envelope

Message = MutableMapping[str, Any]
ASGIApp = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]


class Sink:
    """A transport function that keeps envelopes and parses their events."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    def __call__(self, envelope: Envelope) -> None:
        self.envelopes.append(envelope)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the payloads of all items of a type."""
        items = [item for envelope in tuple(self.envelopes) for item in envelope.items]
        return [json.loads(item.get_bytes()) for item in items if item.type == kind]

    @property
    def events(self) -> list[dict[str, Any]]:
        return self.of("event")

    @property
    def event(self) -> dict[str, Any]:
        """Return the only event."""
        (event,) = self.events
        return event

    @property
    def exception(self) -> dict[str, Any]:
        """Return the raised exception of the only event."""
        value: dict[str, Any] = self.event["exception"]["values"][-1]
        return value


class Exchange:
    """One connection from the server's side: all messages of the app, and the exception that escaped."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.error: BaseException | None = None

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])


class Client:
    """Calls ASGI apps as a server does, without a socket or a thread."""

    @staticmethod
    def scope(path: str = "/", kind: str = "http", **facts: Any) -> dict[str, Any]:
        scope: dict[str, Any] = {
            "type": kind,
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"shop.example")],
            "server": ("127.0.0.1", 8000),
            "client": ("192.0.2.7", 50000),
        }
        if kind == "websocket":
            del scope["method"]
            scope |= {"scheme": "ws", "subprotocols": []}
        return scope | facts

    async def arequest(
        self,
        app: ASGIApp,
        path: str = "/",
        *,
        incoming: list[Message] | None = None,
        send: Callable[[Message], Awaitable[None]] | None = None,
        **facts: Any,
    ) -> Exchange:
        seen = Exchange()
        left: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]
        if incoming is not None:
            left = [*incoming]

        async def receive() -> Message:
            return left.pop(0) if left else {"type": "http.disconnect"}

        async def keep(message: Message) -> None:
            seen.messages.append(dict(message))

        try:
            await app(self.scope(path, **facts), receive, send or keep)
        except BaseException as error:
            seen.error = error
        return seen

    def __call__(self, app: ASGIApp, path: str = "/", **facts: Any) -> Exchange:
        return asyncio.run(self.arequest(app, path, **facts))


class Served:
    """An app under uvicorn on a free port of this machine, in a thread of this process."""

    def __init__(self, app: Any, **settings: Any) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(app, log_level="critical", **settings)
        self._server = uvicorn.Server(config)
        # Connections wait in the listener's backlog until the server is up: no polling for it.
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(SOON)
        assert not self._thread.is_alive()
        self._listener.close()


@pytest.fixture(name="sink")
def _sink() -> Sink:
    """The destination of a test's events."""
    return Sink()


@pytest.fixture(name="client")
def _client() -> Client:
    """The bare ASGI server."""
    return Client()


@pytest.fixture(name="serve")
def _serve() -> Iterator[Callable[..., Served]]:
    """Serve an app with uvicorn until the test ends."""
    running: list[Served] = []

    def serve(app: Any, **settings: Any) -> Served:
        running.append(Served(app, **settings))
        return running[-1]

    yield serve
    for served in running:
        served.stop()
