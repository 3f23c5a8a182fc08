"""The layer around an app's WSGI callable: our routes, the beginning and the end of every other request.

Owns the translation of WSGI and of Flask's hooks for one app. Reads no body and changes no response.

Threads: runs on the server's threads. A permitted flush blocks the request that asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, Response, current_app, has_request_context, request
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.wsgi import ClosingIterator

from transport_kit import Answer, Kit, Leaf, ServedRequest
from transport_kit_flask.facts import KEY, Facts

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["after_request", "before_request", "EXTENSION", "get_kit", "Layer"]

#: Where an app holds its layer, in `app.extensions`.
EXTENSION: Final = "transport_kit"
_MECHANISM: Final = "auto.http.flask"


class Layer:
    """One app's part of the extension; held by the app.

    Args:
        kit: The app's kit.
        app: The WSGI callable further in.
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
        facts = environ[KEY] = Facts(environ)
        served = self.kit.serve(facts, mechanism=_MECHANISM)
        if served.transaction is not None:
            start_response = _noting_status(start_response, served)
        try:
            body = self._app(environ, start_response)
        except BaseException as error:
            _end(served, facts, error)
            raise
        # A middleware further in that is written as a generator has not even begun.
        if facts.streams or type(body) is GeneratorType:
            return _Stream(body, self, served, facts)
        served.finish()
        environ.pop(KEY, None)
        return body

    # -- for Flask -------------------------------------------------------------------------------------

    def respond(self, leaf: Leaf) -> Response:
        """The answer to the current request, for a leaf."""
        answer = self._answer(leaf, request.environ)
        return Response(answer.body, answer.status, list(answer.headers))

    def on_exception(self, sender: Flask, *, exception: BaseException, **extra: object) -> None:
        """Flask's signal `got_request_exception`: no error handler took this one."""
        self.kit.capture_unhandled(exception, mechanism=_MECHANISM, facts=_current())

    def capture(self, error: BaseException | None) -> str | None:
        """Report an exception that the app handles itself."""
        return self.kit.capture_exception(error, facts=_current())

    def closed_badly(self, error: Exception, facts: Facts) -> None:
        """Report what went wrong when a body was closed, after the request had ended with its last chunk."""
        if not facts.is_expected(error):
            self.kit.capture_unhandled(error, mechanism=_MECHANISM, facts=facts)

    # -- inside ----------------------------------------------------------------------------------------

    def _answer(self, leaf: Leaf, environ: WSGIEnvironment) -> Answer:
        return self.kit.answer(
            leaf,
            method=environ["REQUEST_METHOD"],
            query_string=environ.get("QUERY_STRING", ""),
            accept=environ.get("HTTP_ACCEPT"),
            authorization=environ.get("HTTP_AUTHORIZATION"),
        )


class _Stream:
    """Hands on a body that is yet to be made, and ends the request with it."""

    __slots__ = ("_body", "_facts", "_layer", "_next", "_served")

    def __init__(self, body: Iterable[bytes], layer: Layer, served: ServedRequest, facts: Facts) -> None:
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
            # Servers call `close` now; test clients often don't, and the next request is not to begin
            # inside of this one.
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
            self._layer.closed_badly(error, self._facts)


def get_kit(app: Flask | None = None) -> Kit:
    """The kit of an app, by default the current one.

    Raises:
        RuntimeError: There is no current app, or `init_app` was not called for it.
    """
    layer = (current_app if app is None else app).extensions.get(EXTENSION)
    if not isinstance(layer, Layer):
        raise RuntimeError("this app has no TransportKit; call TransportKit().init_app(app)")
    return layer.kit


# Flask asks of each hook, with each request, whether it is async; of functions it learns that soonest.


def before_request() -> Response | None:
    """Stands before the app's own hooks: keeps the request, whose route is known by now.

    Answers our routes where the layer was not passed, such as under a test that dispatches by hand.
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
    """Stands after the app's own hooks: keeps whether the body is yet to be made."""
    # What a view returns is most often a list by now.
    if type(response.response) is not list and response.is_streamed and _is_made_later(response):
        facts = request.environ.get(KEY)
        if facts is not None:
            facts.streams = True
    return response


def _noting_status(start_response: StartResponse, served: ServedRequest) -> StartResponse:
    """`start_response`, telling a transaction what the client is told. Nothing else asks for it."""

    def note(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
        code = status[:3]
        served.status = int(code) if code.isdecimal() else None
        return start_response(status, headers, *exc_info)

    return note


def _current() -> Facts | None:
    """The current request, for when the layer was not passed; then nobody but us knows of it."""
    if not has_request_context():
        return None
    current = request._get_current_object()  # type: ignore[attr-defined]
    return Facts(current.environ, current)


def _end(served: ServedRequest, facts: Facts, error: BaseException | None = None) -> None:
    served.finish(error)
    # The facts know the environ: without this, both would wait for the collector.
    facts.environ.pop(KEY, None)


def _is_made_later(response: Response) -> bool:
    """Whether a streamed body can break: a file that the server sends by itself stays one, and the page of
    an HTTP exception only looks streamed, as Werkzeug makes it by calling the exception as an app."""
    if response.direct_passthrough:
        return False
    return type(response.response) is not ClosingIterator or response.content_length is None


def _status(answer: Answer) -> str:
    return f"{answer.status} {HTTP_STATUS_CODES.get(answer.status, 'Unknown')}"
