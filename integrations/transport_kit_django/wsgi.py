"""`with_capture`: around the WSGI application, for what fails while a streaming body is being made.

Owns the end of requests whose response is a `StreamingHttpResponse`: its body is made after all middleware,
and Django has no signal for what goes wrong there.

Threads: the request's. WSGI servers make the body on the thread that called the application.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from typing import Any

from django.http import StreamingHttpResponse

from transport_kit import ServedRequest
from transport_kit_django.conf import get_kit
from transport_kit_django.facts import MECHANISM, Outside
from transport_kit_django.middleware import HANDED_OVER

__all__ = ["with_capture"]

# Loose on purpose: frameworks, servers and stubs differ in how they write these types.
WSGIApplication = Callable[[Any, Any], Iterable[bytes]]


def with_capture(application: WSGIApplication) -> WSGIApplication:
    """Capture what `TransportMiddleware` can't see: `application = with_capture(get_wsgi_application())`.

    An exception that ends a streaming body, or that escapes from Django itself, is captured and goes on
    unchanged. A body that the server sends as a file (`wsgi.file_wrapper`) stays one. Goes directly around
    Django's application, inside of any other WSGI layer.
    """

    def captured(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        handed_over: list[tuple[ServedRequest, Context]] = []
        environ[HANDED_OVER] = handed_over
        try:
            result = application(environ, start_response)
        except Exception as error:
            for served, _ in handed_over:
                served.finish(error)
            facts = Outside(environ.get("PATH_INFO", ""))
            get_kit().capture_unhandled(error, mechanism=MECHANISM, facts=facts)
            raise
        if not handed_over:
            return result
        # What the server sends as a file is none of Django's responses any more; closing it ends the request.
        served, _ = handed_over.pop()
        return _Body(result, served) if isinstance(result, StreamingHttpResponse) else result

    return captured


class _Body:
    """A body on its way, and the request that it ends."""

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
