"""The layer around an app's WSGI callable: our routes, the beginning and the end of every other request.

Owns the translation of WSGI and of Flask's hooks for one app. Reads no body and changes no response.

Threads: runs on the server's threads. A permitted flush blocks the request that asked for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from types import GeneratorType
from typing import TYPE_CHECKING, Final

from flask import Flask, Response, has_request_context, request
from werkzeug.exceptions import ClientDisconnected
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.wsgi import ClosingIterator

from transport_kit import Answer, Kit, Leaf, Scope, ServedRequest
from transport_kit_flask.facts import KEY, Facts

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["Layer"]

logger = logging.getLogger("transport_kit")

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
        self._captures = kit.options.capture_errors
        self._expected = _is_disconnect if self._captures else _anything
        # The process in which the kit was started: the first request starts it, and the first one after a
        # fork starts the child's.
        self._started_in = 0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        leaf = self._match(environ.get("PATH_INFO", ""))
        if leaf is not None:
            answer = self._answer(leaf, environ)
            start_response(_status(answer), list(answer.headers))
            return [answer.body]
        if self._started_in != os.getpid():
            self._start()
        facts = environ[KEY] = Facts(environ)
        served = self.kit.reporter.request(
            facts.describe,
            named=facts.named,
            header=facts.header,
            user=facts.user,
            expected=self._expected,
            mechanism=_MECHANISM,
        ).begin()
        try:
            body = self._app(environ, start_response)
        except BaseException as error:
            _end(served, facts, error)
            raise
        # A middleware further in that is written as a generator has not even begun.
        if facts.streams or type(body) is GeneratorType:
            return _Stream(body, self, served, facts)
        _end(served, facts)
        return body

    # -- Flask's hooks ---------------------------------------------------------------------------------

    def before_request(self) -> Response | None:
        """Stands before the app's own hooks: keeps the request, whose route is known by now.

        Answers our routes where the layer was not passed, such as under a test that dispatches by hand.
        """
        current = request._get_current_object()  # type: ignore[attr-defined]
        facts = current.environ.get(KEY)
        if facts is not None:
            facts.begin(current)
            return None
        leaf = self._match(current.path)
        return None if leaf is None else self.respond(leaf)

    def after_request(self, response: Response) -> Response:
        """Stands after the app's own hooks: keeps the status, and whether the body is yet to be made."""
        current = request._get_current_object()  # type: ignore[attr-defined]
        facts = current.environ.get(KEY)
        if facts is not None:
            facts.status = response.status_code
            facts.streams = response.is_streamed and _is_made_later(response)
        return response

    def respond(self, leaf: Leaf) -> Response:
        """The answer to the current request, for a leaf."""
        answer = self._answer(leaf, request.environ)
        return Response(answer.body, answer.status, list(answer.headers))

    def on_exception(self, sender: Flask, *, exception: BaseException, **extra: object) -> None:
        """Flask's signal `got_request_exception`: no error handler took this one."""
        if self._captures:
            self.capture(exception, mechanism=_MECHANISM, handled=False)

    # -- capturing -------------------------------------------------------------------------------------

    def capture(self, error: BaseException | None, *, mechanism: str, handled: bool) -> str | None:
        """Report an exception, with the current request if there is one."""
        served = Scope.current().unit
        if isinstance(served, ServedRequest):
            if error is not None and not handled:
                return served.capture(error)
            return self.kit.capture_exception(error, mechanism=mechanism, handled=handled)
        if not has_request_context():
            return self.kit.capture_exception(error, mechanism=mechanism, handled=handled)
        # The layer was not passed: nobody but us knows of the request.
        facts = Facts(request.environ)
        facts.begin(request._get_current_object())  # type: ignore[attr-defined]
        return self._capture_apart(error, facts, mechanism, handled)

    def closed_badly(self, error: Exception, facts: Facts) -> None:
        """Report what went wrong when a body was closed, after the request had ended with its last chunk."""
        if not self._expected(error):
            self._capture_apart(error, facts, _MECHANISM, False)

    def _capture_apart(
        self, error: BaseException | None, facts: Facts, mechanism: str, handled: bool
    ) -> str | None:
        name, source = facts.named()
        return self.kit.capture_exception(
            error,
            mechanism=mechanism,
            handled=handled,
            request=facts.describe(),
            transaction=name,
            transaction_source=source,
        )

    # -- inside ----------------------------------------------------------------------------------------

    def _answer(self, leaf: Leaf, environ: WSGIEnvironment) -> Answer:
        return self.kit.answer(
            leaf,
            method=environ["REQUEST_METHOD"],
            query_string=environ.get("QUERY_STRING", ""),
            accept=environ.get("HTTP_ACCEPT"),
            authorization=environ.get("HTTP_AUTHORIZATION"),
        )

    def _start(self) -> None:
        self._started_in = os.getpid()
        try:
            self.kit.start()
        except Exception:
            logger.exception("the transport could not be started")


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


def _end(served: ServedRequest, facts: Facts, error: BaseException | None = None) -> None:
    served.status = facts.status
    served.finish(error)
    facts.forget()


def _is_made_later(response: Response) -> bool:
    """Whether a streamed body can break: a file that the server sends by itself stays one, and the page of
    an HTTP exception only looks streamed, as Werkzeug makes it by calling the exception as an app."""
    if response.direct_passthrough:
        return False
    return type(response.response) is not ClosingIterator or response.content_length is None


def _is_disconnect(error: BaseException) -> bool:
    """Whether the exception only says that the client went away."""
    return isinstance(error, ClientDisconnected)


def _anything(error: BaseException) -> bool:
    return True


def _status(answer: Answer) -> str:
    return f"{answer.status} {HTTP_STATUS_CODES.get(answer.status, 'Unknown')}"
