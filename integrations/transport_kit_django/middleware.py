"""`TransportMiddleware`: one layer around all others, under WSGI and ASGI. It translates; the kit decides.

Owns the moment a request begins and ends, and which requests are for our own routes. Reads no body, and
touches no response.

Threads: sync on the request's thread, async on the event loop's; each request in a context of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any, Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponse

from transport_kit import LEAVES, ServedRequest
from transport_kit_django.conf import get_kit
from transport_kit_django.facts import MECHANISM, Facts, connect

__all__ = ["HANDED_OVER", "TransportMiddleware"]

#: Where the wrappers of `asgi.py` and `wsgi.py` leave a list, in the ASGI scope or the WSGI environ, that
#: takes the request of a response whose body is still to come.
HANDED_OVER: Final = "transport_kit.handed_over"


class TransportMiddleware:
    """Delivers what goes wrong in a Django site, and says how that goes. The first of `MIDDLEWARE`.

    - Requests for our four routes are answered here, before host checks, redirects, login, CSRF, sessions
      and database transactions: whoever probes has no session, and a database may be down.
    - Every other request gets a scope of its own. What Django makes a 500 of is captured once, with the
      route as transaction name.
    - Responses go out as they came.

    Raises:
        TransportKitError: With `"STRICT": True` only, when Django loads the middleware.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        # Not at the top: the views ask the settings, which may be loading while this package is imported.
        from transport_kit_django import views

        self.get_response = get_response
        self._views = views
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        connect()  # also for a site that has the middleware and not the app
        get_kit()

    def __call__(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        if self._is_async:
            return self._acall(request)
        if request.path_info.endswith(LEAVES):
            leaf = self._views.own_leaf(request)
            if leaf is not None:
                return self._views.response(get_kit().answer(leaf, **self._views.question(request)))
        served = get_kit().serve(Facts(request), mechanism=MECHANISM)
        try:
            answered: HttpResponse = self.get_response(request)
        except BaseException as error:
            served.finish(error)
            raise
        _end(served, request, answered)
        return answered

    async def _acall(self, request: HttpRequest) -> HttpResponse:
        if request.path_info.endswith(LEAVES):
            leaf = self._views.own_leaf(request)
            if leaf is not None:
                return self._views.response(await get_kit().aanswer(leaf, **self._views.question(request)))
        served = get_kit().serve(Facts(request), mechanism=MECHANISM)
        try:
            answered: HttpResponse = await self.get_response(request)
        except BaseException as error:
            served.finish(error)
            raise
        _end(served, request, answered)
        return answered


def _end(served: ServedRequest, request: HttpRequest, response: HttpResponse) -> None:
    served.status = response.status_code
    if response.streaming:
        # The body is made after all middleware, still in this scope. Closing the response ends the request;
        # the wrapper of `asgi.py` or `wsgi.py`, if there is one, ends it with the body, and sees it fail.
        response._resource_closers.append(served.finish)  # type: ignore[attr-defined]
        handed_over = getattr(request, "scope", request.META).get(HANDED_OVER)
        if handed_over is not None:
            handed_over.append((served, copy_context()))
        return
    served.finish()
