"""`with_capture`: wraps the WSGI application, to capture exceptions of streaming bodies.

This module owns the end of requests with a `StreamingHttpResponse`: its body is generated after all
middleware, and Django has no signal for exceptions there.

Threads: the request's thread, on which WSGI servers also iterate over the body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from typing import Any

from django.http import StreamingHttpResponse

from transport_kit import ServedRequest
from transport_kit_django.conf import get_kit
from transport_kit_django.facts import MECHANISM, OutsideFacts
from transport_kit_django.middleware import OPEN_REQUESTS

__all__ = ["with_capture"]

# Deliberately loose: frameworks, servers and stubs declare these types differently.
WSGIApplication = Callable[[Any, Any], Iterable[bytes]]


def with_capture(application: WSGIApplication) -> WSGIApplication:
    """Capture the errors that bypass the middleware: `application = with_capture(get_wsgi_application())`.

    An exception that ends a streaming body, or that escapes from Django itself, is captured and propagates
    unchanged. A body that the server sends as a file (`wsgi.file_wrapper`) stays one. Wrap Django's
    application directly, inside of any other WSGI layer.
    """

    def captured(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        open_requests: list[tuple[ServedRequest, Context]] = []
        environ[OPEN_REQUESTS] = open_requests
        try:
            result = application(environ, start_response)
        except Exception as error:
            for served, _ in open_requests:
                served.finish(error)
            facts = OutsideFacts(environ.get("PATH_INFO", ""))
            get_kit().capture_unhandled(error, mechanism=MECHANISM, facts=facts)
            raise
        if not open_requests:
            return result
        # A file that the server sends is no longer a Django response; closing it ends the request.
        served, _ = open_requests.pop()
        return _Body(result, served) if isinstance(result, StreamingHttpResponse) else result

    return captured


class _Body:
    """Passes on a streaming body, and ends the request with it."""

    def __init__(self, response: StreamingHttpResponse, served: ServedRequest) -> None:
        self._response = response
        self._served = served

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._response
        except Exception as error:
            self._served.finish(error)
            raise
        self._served.finish()

    def close(self) -> None:
        try:
            self._response.close()
        finally:
            self._served.finish()
