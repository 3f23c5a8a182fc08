"""The receiver's ASGI app: ingest routes, the page, and the JSON that tools read.

This module owns routing, the Host check and the headers that every answer carries. `ingest.py` decides what a
post may contain, `page.py` what is shown.

Threads: handlers run on the event loop; decoding, parsing and the database in worker threads.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transport_kit.envelope.encoder import dumps, loads
from transport_kit.envelope.encoding import encode
from transport_kit.envelope.envelope import Envelope
from transport_kit.receiver.auth import mask_values
from transport_kit.receiver.faults import Faults
from transport_kit.receiver.ingest import MAX_ENVELOPE_BYTES, Ingest, Post
from transport_kit.receiver.page import Page
from transport_kit.receiver.refusal import Refusal
from transport_kit.receiver.store import Store, StoredEnvelope
from transport_kit.receiver.summary import load, primary_item, text

__all__ = ["RESET_EXTENSION", "create_app"]

RESET_EXTENSION: Final = "transport_kit.reset"
"""Name in the ASGI scope's extensions of a callable that resets the connection (`serve.py` puts it there)."""

# Bodies of 200 MiB are legal: a bound on how many are decoded at a time bounds the memory.
_MAX_DECODING = 4
_MAX_LISTED = 10_000
# Names that public DNS can't resolve to this machine, so that no web page can use them for DNS rebinding.
_LOCAL_NAMES = frozenset({"localhost", "testserver", "host.docker.internal"})
# RFC 9110, section 7.2: an address in brackets or a name, and a port; nothing before, between or after them.
_HOST = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)(?:%[A-Za-z0-9._~%-]+)?\]|(?P<name>[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?))"
    r"(?::[0-9]*)?"
)
_ALWAYS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Clients in browsers post from other origins and read the limits; these answers contain nothing private.
_CROSS_ORIGIN = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "X-Sentry-Error, X-Sentry-Rate-Limits, Retry-After",
}
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Encoding, Content-Type, X-Sentry-Auth",
    "Access-Control-Max-Age": "3600",
}


def create_app(
    store: Store,
    faults: Faults | None = None,
    *,
    dsn: str = "",
    allowed_hosts: Iterable[str] = (),
    max_envelope_bytes: int = MAX_ENVELOPE_BYTES,
    on_received: Callable[[dict[str, Any]], object] | None = None,
) -> Starlette:
    """Return a Sentry-compatible server for development, as an ASGI app.

    Args:
        store: Stores the envelopes; the caller closes it.
        faults: The outage to play; None for none.
        dsn: Shown on the page while nothing has arrived, its key masked.
        allowed_hosts: Host names to answer for, besides IP addresses and this machine's own names. Any
            other is refused, as a web page could make its own name resolve to this machine.
        max_envelope_bytes: Largest envelope in bytes, both as received and decoded.
        on_received: Called with each record after it was stored, from worker threads.
    """
    handlers = _Handlers(
        store,
        faults or Faults(),
        Page(store, dsn),
        max_envelope_bytes=max_envelope_bytes,
        on_received=on_received,
    )
    ingest = [
        Route(path, handler, methods=["POST", "OPTIONS"])
        for kind, handler in (("envelope", handlers.envelope), ("store", handlers.legacy))
        for path in (f"/api/{{project}}/{kind}/", f"/api/{{project}}/{kind}")
    ]
    app = Starlette(
        routes=[
            *ingest,
            Route("/", handlers.page.index),
            Route("/style.css", handlers.page.style),
            Route("/events/{number:int}", handlers.page.event),
            Route("/envelopes/{number:int}", handlers.page.raw),
            Route("/api/events", handlers.events),
            Route("/api/events/{event_id}", handlers.event),
        ],
        exception_handlers={Refusal: handlers.refused, HTTPException: handlers.unrouted},
    )
    app.router.redirect_slashes = False
    app.add_middleware(
        _Guard, page=handlers.page, allowed_hosts=frozenset(host.lower() for host in allowed_hosts)
    )
    return app


class _Guard:
    """Refuses foreign Host headers, and puts the protective headers on every answer."""

    def __init__(self, app: ASGIApp, page: Page, allowed_hosts: frozenset[str]) -> None:
        self._app = app
        self._page = page
        self._allowed_hosts = _LOCAL_NAMES | allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/api/") and scope["method"] in ("POST", "OPTIONS"):
                    headers.update(_CROSS_ORIGIN)
            await send(message)

        hosts = Headers(scope=scope).getlist("host")
        if len(hosts) == 1 and self._allows(hosts[0]):
            await self._app(scope, receive, send_guarded)
        else:
            refusal = Refusal(400, "unknown host", ["name it with --allow-host to reach the receiver by it"])
            await self._page.refused(Request(scope), refusal)(scope, receive, send_guarded)

    def _allows(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = (match["name"] or "").lower().removesuffix(".")
        if name in self._allowed_hosts or name.endswith(".localhost"):
            return True
        try:
            # Only names can be rebound; an address can't.
            ipaddress.IPv4Address(name) if name else ipaddress.IPv6Address(match["ipv6"])
        except ValueError:
            return False
        return True


class _Handlers:
    """The functions of the routes, and their shared state."""

    def __init__(
        self,
        store: Store,
        faults: Faults,
        page: Page,
        *,
        max_envelope_bytes: int,
        on_received: Callable[[dict[str, Any]], object] | None,
    ) -> None:
        self.page = page
        self._store = store
        self._faults = faults
        self._ingest = Ingest(store, faults, max_envelope_bytes=max_envelope_bytes, on_received=on_received)
        self._decoding = asyncio.Semaphore(_MAX_DECODING)

    async def refused(self, request: Request, error: Exception) -> Response:
        """Answer a request that was refused."""
        assert isinstance(error, Refusal)
        return self.page.refused(request, error)

    async def unrouted(self, request: Request, error: Exception) -> Response:
        """Answer a request for a path or a method that no route has."""
        assert isinstance(error, HTTPException)
        refusal = Refusal(error.status_code, error.detail, headers=error.headers)
        if self.page.is_for_people(request):
            return self.page.refused(request, refusal)
        return PlainTextResponse(error.detail, error.status_code, error.headers)

    async def envelope(self, request: Request) -> Response:
        """POST /api/{project}/envelope/"""
        return await self._post(request, legacy=False)

    async def legacy(self, request: Request) -> Response:
        """POST /api/{project}/store/, deprecated: one event's JSON."""
        return await self._post(request, legacy=True)

    async def _post(self, request: Request, *, legacy: bool) -> Response:
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=_PREFLIGHT)
        try:
            body = await self._body(request)
        except ClientDisconnect:
            return Response(status_code=400)  # the client has gone
        fault = self._faults.kind
        if fault is not None and fault != "slow":
            return await self._play(fault, request)
        post = Post(
            project=request.path_params["project"],
            headers=request.headers,
            query=request.scope["query_string"].decode("latin-1"),
            body=body,
            legacy=legacy,
        )
        try:
            async with self._decoding:
                event_id, announced = await run_in_threadpool(self._ingest.accept, post)
        finally:
            if fault == "slow":
                await _wait_for_disconnect(request, self._faults.slow_by)
        return Response(
            dumps({} if event_id is None else {"id": event_id}),
            headers=announced,
            media_type="application/json",
        )

    async def _body(self, request: Request) -> bytes:
        """Return the whole body.

        A body that is too long is read to its end and dropped: otherwise a client that is still writing would
        see a reset in place of the answer.
        """
        limit = self._ingest.max_envelope_bytes
        body = bytearray()
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                body.clear()
            else:
                body += chunk
        if size > limit:
            raise Refusal(413, "envelope exceeded size limits", [f"{size} bytes, {limit} allowed"])
        return bytes(body)

    async def _play(self, fault: str, request: Request) -> Response:
        if fault == "503":
            raise Refusal(503, "service unavailable", ["the receiver plays an outage (--fail 503)"])
        if fault == "429":
            pause = str(self._faults.pause)
            limits = {"X-Sentry-Rate-Limits": f"{pause}::organization", "Retry-After": pause}
            raise Refusal(429, "rate limit reached", ["the receiver plays a limit (--fail 429)"], limits)
        if fault == "reset":
            reset = request.scope.get("extensions", {}).get(RESET_EXTENSION)
            if reset is None:
                raise RuntimeError("only the receiver's own server can reset a connection")
            reset()
        await _wait_for_disconnect(request)
        return Response(status_code=503)  # the client has gone

    def events(self, request: Request) -> Response:
        """GET /api/events?limit= : records, newest first."""
        limit = request.query_params.get("limit", "100")
        if not (limit.isascii() and limit.isdigit() and len(limit) < 10 and int(limit) > 0):
            raise Refusal(400, "bad limit", [f"a number from 1 to {_MAX_LISTED} is expected"])
        records = self._store.latest(min(int(limit), _MAX_LISTED))
        return Response(dumps(records), media_type="application/json")

    def event(self, request: Request) -> Response:
        """GET /api/events/{event_id}: the newest envelope of that id, with its payload."""
        stored = self._store.by_event_id(request.path_params["event_id"].replace("-", "").lower())
        if stored is None:
            raise Refusal(404, "unknown event", ["no stored envelope has that event id"])
        # Encoded first: the copy is not nested more deeply than `mask_values` can follow.
        detail = mask_values(loads(encode(_detail(stored), "event")), stored.key)
        return Response(encode(detail, "event"), media_type="application/json")


def _detail(stored: StoredEnvelope) -> dict[str, Any]:
    items = Envelope.deserialize(stored.body).items
    item = primary_item(items)
    payload = item.get_bytes() if item is not None else b""
    return {
        **stored.record,
        "payload": load(payload),
        "items": [{"type": text(each.type, 100), "size": len(each.get_bytes())} for each in items],
    }


async def _wait_for_disconnect(request: Request, seconds: float | None = None) -> None:
    """Wait until the client disconnects, at most `seconds`; the server's stop ends the wait too."""
    try:
        async with asyncio.timeout(seconds):
            await request.receive()  # the body has been read, so the next message is the disconnect
    except TimeoutError:
        pass
