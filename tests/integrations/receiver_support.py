"""A client for the receiver's app in this process, and the requests of the corpus."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import brotli  # type: ignore[import-untyped]
import httpx
from starlette.applications import Starlette

CORPUS = Path(__file__).parents[1] / "data" / "corpus"
KEY = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"
AUTH = {"X-Sentry-Auth": f"Sentry sentry_key={KEY}, sentry_version=7, sentry_client=test/1.0"}
EVENT_ID = "9ec79c33ec9942ab8353589fcb2e04dc"
EVENT = b'{"event_id":"%s"}\n{"type":"event"}\n{"message":"hello"}\n' % EVENT_ID.encode()
URL = "/api/42/envelope/"


def manifest() -> list[dict[str, Any]]:
    """Return the corpus: one entry for each request of a real client."""
    entries: list[dict[str, Any]] = json.loads((CORPUS / "manifest.json").read_text(encoding="utf-8"))
    return entries


def replayed(entry: Mapping[str, Any]) -> tuple[bytes, bytes, dict[str, str]]:
    """Return the envelope, the body in its original encoding, and the client's own headers."""
    envelope = (CORPUS / entry["file"]).read_bytes()
    body = {None: bytes, "br": brotli.compress, "gzip": gzip.compress}[entry["content_encoding"]](envelope)
    framing = {"host", "content-length", "transfer-encoding", "connection"}
    headers = {name: value for name, value in entry["headers"] if name.lower() not in framing}
    return envelope, body, headers


class Client:
    """Sends requests to an ASGI app without a socket."""

    def __init__(self, app: Starlette, base_url: str = "http://127.0.0.1:8123") -> None:
        self._app = app
        self._base_url = base_url

    def request(
        self,
        method: str,
        path: str,
        content: bytes | list[bytes] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send one request; a list of bytes is sent chunked."""

        async def chunks(parts: list[bytes]) -> AsyncIterator[bytes]:
            for part in parts:
                yield part

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app)
            async with httpx.AsyncClient(transport=transport, base_url=self._base_url) as client:
                body = chunks(content) if isinstance(content, list) else content
                return await client.request(method, path, content=body, headers=headers)

        return asyncio.run(send())

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Send a GET."""
        return self.request("GET", path, headers=headers)

    def post(
        self,
        content: bytes | list[bytes] = EVENT,
        headers: Mapping[str, str] | None = None,
        path: str = URL,
    ) -> httpx.Response:
        """POST an envelope, with the key in a header unless other headers are given."""
        return self.request("POST", path, content, AUTH if headers is None else headers)
