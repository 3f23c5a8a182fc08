"""The receiver as a running server: its socket, its thread, its shutdown.

This module owns the address rules (loopback by default), the uvicorn server and the reset of connections.
Handles no signals: `cli/receiver.py` waits for them.

Threads: the server's event loop runs on its own thread; every public method may be called from any other
thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, Self, cast

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from transport_kit.receiver.app import RESET_EXTENSION, create_app
from transport_kit.receiver.faults import Faults
from transport_kit.receiver.ingest import MAX_ENVELOPE_BYTES
from transport_kit.receiver.store import Store
from transport_kit.runtime.errors import OptionsError

__all__ = ["DEVELOPMENT_KEY", "Receiver"]

DEVELOPMENT_KEY: Final = "0123456789abcdef0123456789abcdef"
"""The key in the receiver's DSN. It never changes, so that a DSN in an app's settings stays valid after a
restart; it protects nothing, as any key of 32 letters and digits is accepted."""

# Seconds after which a stop resets open requests: a played hang would delay the stop forever.
_STOP_GRACE = 0.3


class _ResettableProtocol(H11Protocol):
    """A connection that the app can reset, by a callable in the ASGI scope."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        inner: Any = self.app

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope.setdefault("extensions", {})[RESET_EXTENSION] = self.reset
            await inner(scope, receive, send)

        self.app: Any = app

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio sets TCP_NODELAY only for sockets whose protocol is TCP, and our listener has protocol 0.
        # Without it every answer waits 40 ms for the client's acknowledgement.
        with contextlib.suppress(OSError):  # some systems refuse it once the peer has gone
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(cast(asyncio.Transport, transport))

    def reset(self) -> None:
        """End the connection with a RST: a linger of 0 makes the kernel drop unsent bytes."""
        raw = self.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


class _UvicornServer(uvicorn.Server):
    """A server that sets `settled` when it serves, and whose shutdown resets requests that stay open."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.settled.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(_STOP_GRACE, self._reset_connections)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def _reset_connections(self) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, _ResettableProtocol):
                connection.reset()


class Receiver:
    """A receiver that runs on its own thread from `start` to `close`; a context manager calls both.

    ```python
    with Receiver() as receiver, make_transport(receiver.dsn) as transport:
        transport.capture_event({"message": "hello"})
        assert receiver.wait_for(1)
        assert receiver.events()[0]["title"] == "hello"
    ```

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        store: Path of a file that outlives a restart; None for memory; or a `Store`, which the caller closes.
        fail: Outage to play from the start, one of `FAULTS`.
        fail_for: Seconds until the outage and the rate limit end; None means never.
        rate_limit: Value of X-Sentry-Rate-Limits to announce and enforce, such as `60:error:key`.
        listen_anywhere: Allows an address that other machines can reach.
        allowed_hosts: Further host names to answer for; see `create_app`.
        max_envelopes: Envelopes kept, newest first.
        max_envelope_bytes: Largest envelope in bytes.
        on_received: Called with each record after it was stored, from worker threads.

    Raises:
        OptionsError: A value is out of range, the address is not loopback, or the store can't be used.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        store: Store | str | os.PathLike[str] | None = None,
        fail: str | None = None,
        fail_for: float | None = None,
        rate_limit: str | None = None,
        listen_anywhere: bool = False,
        allowed_hosts: Iterable[str] = (),
        max_envelopes: int = 10_000,
        max_envelope_bytes: int = MAX_ENVELOPE_BYTES,
        on_received: Callable[[dict[str, Any]], object] | None = None,
    ) -> None:
        self.faults = Faults(fail, seconds=fail_for, rate_limit=rate_limit)
        self._address = _resolve(host, port, listen_anywhere)
        self._hosts = [*allowed_hosts, host]
        if listen_anywhere:
            self._hosts.append(socket.gethostname())
        self._owns_store = not isinstance(store, Store)
        self.store = store if isinstance(store, Store) else Store(store, max_envelopes=max_envelopes)
        self._max_envelope_bytes = max_envelope_bytes
        self._on_received = on_received
        # `start` assigns these before the thread starts; any thread reads them after that.
        self._server: _UvicornServer | None = None
        self._thread: threading.Thread | None = None
        self.port = port

    def start(self) -> Self:
        """Listen, and return when requests are answered. A receiver starts once.

        Raises:
            OptionsError: The port is taken, or the address is not this machine's. The store is closed.
        """
        if self._thread is not None:
            raise RuntimeError("this receiver was started before")
        try:
            listener = _listen(self._address)
        except BaseException:
            self.close()
            raise
        self.port = int(listener.getsockname()[1])
        app = create_app(
            self.store,
            self.faults,
            dsn=self.dsn,
            allowed_hosts=self._hosts,
            max_envelope_bytes=self._max_envelope_bytes,
            on_received=self._on_received,
        )
        config = uvicorn.Config(
            app,
            http=_ResettableProtocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=3,
        )
        server = self._server = _UvicornServer(config)

        def run() -> None:
            try:
                server.run(sockets=[listener])
            finally:
                listener.close()
                server.settled.set()

        self._thread = threading.Thread(target=run, name="transport-kit-receiver", daemon=True)
        self._thread.start()
        server.settled.wait()
        if not server.started:
            raise RuntimeError("the receiver's server ended as it began")
        return self

    def stop(self) -> None:
        """End the server; the store stays readable. Idempotent."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()

    def close(self) -> None:
        """End the server, and close the store if the receiver opened it. Idempotent."""
        self.stop()
        if self._owns_store:
            self.store.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The page's address, without a slash at the end."""
        return f"http://{self._netloc}"

    @property
    def dsn(self) -> str:
        """A DSN that reaches this receiver, with its key."""
        return f"http://{DEVELOPMENT_KEY}@{self._netloc}/1"

    @property
    def _netloc(self) -> str:
        # A client can't connect to the unspecified address.
        address = ipaddress.ip_address(self._address[0].partition("%")[0])
        if address.is_unspecified:
            address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
        host = f"[{address}]" if address.version == 6 else str(address)
        return f"{host}:{self.port}"

    def events(self, limit: int = 10_000) -> list[dict[str, Any]]:
        """Return the records of `/api/events`, newest first."""
        return self.store.latest(limit)

    def wait_for(self, count: int, timeout: float = 5.0) -> bool:
        """Wait until `count` envelopes arrived since the start; return False after `timeout` seconds."""
        return self.store.wait_for(count, timeout)


def _resolve(host: str, port: int, anywhere: bool) -> tuple[Any, ...]:
    """Return the address to listen on; refuse one that other machines could reach.

    Raises:
        OptionsError: It is not loopback and not allowed, or unknown.
    """
    if not 0 <= port <= 65535:
        raise OptionsError("port", f"must be from 0 to 65535, not {port}")
    try:
        infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise OptionsError("host", f"{host} is unknown: {error}") from None
    address = infos[0][4]
    if not anywhere and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise OptionsError(
            "host",
            f"{host or 'every address'} can be reached from other machines, and what apps report is private;"
            " allow it with --listen-anywhere (listen_anywhere=True), or leave the default 127.0.0.1",
        )
    return address


def _listen(address: tuple[Any, ...]) -> socket.socket:
    family = socket.AF_INET6 if ":" in str(address[0]) else socket.AF_INET
    try:
        return socket.create_server(address, family=family, backlog=1024)
    except OSError as error:
        raise OptionsError(
            "port", f"can't listen on {address[0]} port {address[1]}: {error.strerror}; 0 takes a free port"
        ) from None
