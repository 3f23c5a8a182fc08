"""Calls Django without sockets, as a server does: WSGI and ASGI give the same `Reply`. Configures Django."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from wsgiref.util import FileWrapper

import django
from django.conf import settings

# Once per process; each test overrides what it needs.
if not settings.configured:
    settings.configure(
        SECRET_KEY="for tests",
        ALLOWED_HOSTS=["shop.example"],
        ROOT_URLCONF="tests.integrations.django_site",
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "transport_kit_django"],
        MIDDLEWARE=["transport_kit_django.TransportMiddleware", "django.middleware.common.CommonMiddleware"],
        # A database that is down: any query is an error, so no test can cause one unseen.
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "/nowhere/at/all.sqlite3"}},
        LOGGING_CONFIG=None,
        USE_TZ=True,
    )
    django.setup()

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import override_settings

from tests.integrations import django_site
from tests.letting_go import let_go

__all__ = ["acall", "call_asgi", "call_wsgi", "django_site", "override_settings", "Reply", "Site"]


@dataclass
class Reply:
    """The response as the client sees it, and the end of the call as the server sees it."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    error: BaseException | None = None
    #: What a WSGI application returned.
    result: Any = None


def call_wsgi(
    app: Callable[..., Iterable[bytes]],
    path: str = "/",
    *,
    method: str = "GET",
    query: str = "",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    environ: dict[str, Any] | None = None,
) -> Reply:
    """Make one request as a WSGI server does: iterate over the body, then close it."""
    reply = Reply()
    given = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.7",
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_HOST": "shop.example",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.file_wrapper": FileWrapper,
    }
    for name, value in headers:
        key = name.upper().replace("-", "_")
        given[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value

    def start(status: str, fields: list[tuple[str, str]], *_: Any) -> Callable[[bytes], None]:
        reply.status, reply.headers = int(status.split()[0]), fields
        return lambda chunk: None

    try:
        result = app(given | (environ or {}), start)
        reply.result = result
        try:
            for chunk in result:
                reply.body += chunk
        finally:
            if hasattr(result, "close"):
                result.close()
    except Exception as error:
        reply.error = error
    return reply


async def acall(
    app: Callable[..., Awaitable[None]],
    path: str = "/",
    *,
    method: str = "GET",
    query: str = "",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    fail_after: int | None = None,
    **facts: Any,
) -> Reply:
    """Make one request as an ASGI server does; after `fail_after` messages the client is disconnected."""
    reply = Reply()
    fields = [(name.lower().encode(), value.encode()) for name, value in headers]
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
        "headers": [(b"host", b"shop.example"), *fields],
        "server": ("127.0.0.1", 8000),
        "client": ("192.0.2.7", 50000),
    } | facts
    sent = 0
    asked = False

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await asyncio.Event().wait()  # the client stays, and says nothing more
        asked = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal sent
        if sent == fail_after:
            raise OSError("the client went away")
        sent += 1
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = [(name.decode(), value.decode()) for name, value in message["headers"]]
        else:
            reply.body += message.get("body", b"")

    try:
        await app(scope, receive, send)
    except Exception as error:
        reply.error = error
    return reply


def call_asgi(app: Callable[..., Awaitable[None]], path: str = "/", **facts: Any) -> Reply:
    """Run `acall` in an event loop of its own."""
    reply = asyncio.run(acall(app, path, **facts))
    if reply.error is not None:
        let_go(reply.error)
    return reply


class Site:
    """Django with other settings, under WSGI or ASGI; made anew for each call of `serve`."""

    def __init__(self, kind: str, stack: ExitStack) -> None:
        self.kind = kind
        self._stack = stack

    def serve(
        self, wrap: Callable[[Any], Any] = lambda app: app, /, **overrides: Any
    ) -> Callable[..., Reply]:
        """Override settings until the test ends, and return a function that makes requests."""
        self._stack.enter_context(override_settings(**overrides))
        if self.kind == "wsgi":
            wsgi = wrap(WSGIHandler())
            return lambda path="/", **facts: call_wsgi(wsgi, path, **facts)
        asgi = wrap(ASGIHandler())
        return lambda path="/", **facts: call_asgi(asgi, path, **facts)
