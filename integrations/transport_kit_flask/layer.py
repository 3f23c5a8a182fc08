"""Layer: wraps an app's WSGI callable, answers the four routes, and reports on every other request.

This module owns the translation of WSGI and of Flask's hooks for one app. It reads no body and changes no
response.

Threads: runs on the server's threads. A permitted flush blocks its own request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, Response, current_app, has_request_context, request
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.wsgi import ClosingIterator

from transport_kit import Answer, Kit, Leaf, ServedRequest
from transport_kit_flask.facts import KEY, FlaskFacts

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["after_request", "before_request", "EXTENSION", "get_kit", "Layer"]

#: Key of an app's layer in `app.extensions`.
EXTENSION: Final = "transport_kit"
_MECHANISM: Final = "auto.http.flask"


class Layer:
    """One app's part of the extension; held by the app.

    Args:
        kit: The app's kit.
        app: The wrapped WSGI callable.
    """

    def __init__(self, kit: Kit, app: WSGIApplication) -> None:
        self.kit = kit
        self._app = app
        self._match = kit.match

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        leaf = self._match(environ.get("PATH_INFO", ""))
        if leaf is not None:
            answer = self._answer(leaf, environ)
            start_response(_status(answer), list(answer.headers))
            return [answer.body]
        facts = environ[KEY] = FlaskFacts(environ)
        served = self.kit.serve(facts, mechanism=_MECHANISM)
        if served.transaction is not None:
            start_response = _record_status(start_response, served)
        try:
            body = self._app(environ, start_response)
        except BaseException as error:
            _end(served, facts, error)
            raise
        # An inner middleware that is a generator function has not even started to run.
        if facts.streams or type(body) is GeneratorType:
            return _Stream(body, self, served, facts)
        served.finish()
        environ.pop(KEY, None)
        return body

    # -- called by hooks and views ---------------------------------------------------------------------

    def respond(self, leaf: Leaf) -> Response:
        """Return the answer for a leaf to the current request."""
        answer = self._answer(leaf, request.environ)
        return Response(answer.body, answer.status, list(answer.headers))

    def on_exception(self, sender: Flask, *, exception: BaseException, **extra: object) -> None:
        """Receive Flask's signal `got_request_exception`: no error handler handled the exception."""
        self.kit.capture_unhandled(exception, mechanism=_MECHANISM, facts=_current())

    def capture(self, error: BaseException | None) -> str | None:
        """Report an exception that the app handles itself."""
        return self.kit.capture_exception(error, facts=_current())

    def capture_close_error(self, error: Exception, facts: FlaskFacts) -> None:
        """Report an exception of closing a body, after the request had ended with the last chunk."""
        if not facts.is_expected(error):
            self.kit.capture_unhandled(error, mechanism=_MECHANISM, facts=facts)

    # -- routes ----------------------------------------------------------------------------------------

    def _answer(self, leaf: Leaf, environ: WSGIEnvironment) -> Answer:
        return self.kit.answer(
            leaf,
            method=environ["REQUEST_METHOD"],
            query_string=environ.get("QUERY_STRING", ""),
            accept=environ.get("HTTP_ACCEPT"),
            authorization=environ.get("HTTP_AUTHORIZATION"),
        )


class _Stream:
    """Passes on a streamed body, and ends the request with it."""

    __slots__ = ("_body", "_facts", "_layer", "_next", "_served")

    def __init__(self, body: Iterable[bytes], layer: Layer, served: ServedRequest, facts: FlaskFacts) -> None:
        self._body = body
        self._next = iter(body).__next__
        self._layer = layer
        # None once the request has ended.
        self._served: ServedRequest | None = served
        self._facts = facts

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> bytes:
        try:
            return self._next()
        except StopIteration:
            # Servers call `close` now, but test clients often don't, and the next request must not begin
            # within the scope of this one.
            self._end()
            raise
        except BaseException as error:
            self._end(error)
            raise

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        except BaseException as error:
            self._end(error)
            raise
        self._end()

    def _end(self, error: BaseException | None = None) -> None:
        served, self._served = self._served, None
        if served is not None:
            _end(served, self._facts, error)
        elif isinstance(error, Exception):
            self._layer.capture_close_error(error, self._facts)


def get_kit(app: Flask | None = None) -> Kit:
    """Return the kit of an app, by default the current app.

    Raises:
        RuntimeError: There is no current app, or `init_app` was not called for it.
    """
    layer = (current_app if app is None else app).extensions.get(EXTENSION)
    if not isinstance(layer, Layer):
        raise RuntimeError("this app has no TransportKit; call TransportKit().init_app(app)")
    return layer.kit


# Flask checks with each request whether a hook is async; for plain functions that check is fastest.


def before_request() -> Response | None:
    """Runs before the app's own hooks: stores the request, whose route is known now, in its facts.

    Answers the four routes itself if the layer was bypassed, such as in a test that dispatches by hand.
    """
    current = request._get_current_object()  # type: ignore[attr-defined]
    facts = current.environ.get(KEY)
    if facts is not None:
        facts.request = current
        return None
    layer: Layer = current_app.extensions[EXTENSION]
    leaf = layer.kit.match(current.path)
    return None if leaf is None else layer.respond(leaf)


def after_request(response: Response) -> Response:
    """Runs after the app's own hooks: records whether the body is generated later."""
    # Most responses are a list by now.
    if type(response.response) is not list and response.is_streamed and _is_generated(response):
        facts = request.environ.get(KEY)
        if facts is not None:
            facts.streams = True
    return response


def _record_status(start_response: StartResponse, served: ServedRequest) -> StartResponse:
    """Return a `start_response` that also sets the status of the transaction."""

    def record(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
        code = status[:3]
        served.status = int(code) if code.isdecimal() else None
        return start_response(status, headers, *exc_info)

    return record


def _current() -> FlaskFacts | None:
    """Return new facts of the current request, for a request that bypassed the layer; None without one."""
    if not has_request_context():
        return None
    current = request._get_current_object()  # type: ignore[attr-defined]
    return FlaskFacts(current.environ, current)


def _end(served: ServedRequest, facts: FlaskFacts, error: BaseException | None = None) -> None:
    served.finish(error)
    # Facts and environ refer to each other; this breaks the cycle, so that both are freed at once.
    facts.environ.pop(KEY, None)


def _is_generated(response: Response) -> bool:
    """Return True if the body is generated later and may raise.

    False for a file that the server sends by itself, and for the page of an HTTP exception, which only looks
    streamed because Werkzeug renders it by calling the exception as an app.
    """
    if response.direct_passthrough:
        return False
    return type(response.response) is not ClosingIterator or response.content_length is None


def _status(answer: Answer) -> str:
    return f"{answer.status} {HTTP_STATUS_CODES.get(answer.status, 'Unknown')}"
