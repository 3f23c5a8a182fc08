"""Serves any WSGI app in this process; not an adapter itself.

WSGI has no event for an app's end: the kit is started and closed here, as an app must do itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder, run_wsgi_app

from tests.contract.adapters import Reply
from tests.letting_go import let_go

__all__ = ["WsgiApp"]


class WsgiApp:
    """An `App` that is served without a socket; `kit` is None without the integration."""

    def __init__(self, app: Any, kit: Callable[[], Any] | None) -> None:
        self._app = app
        self._kit = kit

    @property
    def kit(self) -> Any:
        return None if self._kit is None else self._kit()

    @contextmanager
    def serve(self) -> Iterator[WsgiSite]:
        if self._kit is not None:
            self._kit().start()
        site = WsgiSite(self._app)
        yield site
        let_go(*site.escaped)
        if self._kit is not None:
            self._kit().close()


class WsgiSite:
    """A `Site` that calls the app as a server does, on one thread for each request."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.escaped: list[BaseException] = []

    def get(self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Reply:
        request = EnvironBuilder(path, "http://shop.example", method=method, headers=Headers(headers))
        try:
            body, status, headers_sent = run_wsgi_app(self._app, request.get_environ(), buffered=True)
        except Exception as error:
            self.escaped.append(error)  # a server logs it, and sends a response of its own
            return Reply(500, (), b"")
        lowered = tuple((name.lower(), value) for name, value in headers_sent.items())
        return Reply(int(status.split()[0]), lowered, b"".join(body))

    def many(self, paths: Iterable[str]) -> list[Reply]:
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(self.get, paths))
