"""`TransportMiddleware`: the outermost layer, under WSGI and ASGI. It translates between Django and the kit.

Answers the four routes and serves every other request in a unit of work. Reads no body and changes no
response.

Threads: sync on the request's thread, async on the event loop's thread; each request in its own context.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any, Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponse

from transport_kit import LEAVES, ServedRequest
from transport_kit_django.conf import get_kit
from transport_kit_django.facts import MECHANISM, DjangoFacts, connect

__all__ = ["OPEN_REQUESTS", "TransportMiddleware"]

#: Key of a list in the ASGI scope or WSGI environ, set by the wrappers of `asgi.py` and `wsgi.py`. The
#: middleware appends the request of a streaming response, which ends with its body.
OPEN_REQUESTS: Final = "transport_kit.open_requests"


class TransportMiddleware:
    """Captures and delivers errors of a Django site, and serves the health routes. The first of `MIDDLEWARE`.

    - Requests for the four routes are answered here, before host checks, redirects, login, CSRF, sessions
      and database transactions: probes have no session, and the database may be down.
    - Every other request gets its own scope. An exception that Django turns into a 500 is captured once,
      with the route as transaction name.
    - Responses are passed on unchanged.

    Raises:
        TransportKitError: An invalid configuration, with `"STRICT": True` only, when Django loads the
            middleware.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        # Imported here: the views read the settings, which may be loading while this package is imported.
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
        served = get_kit().serve(DjangoFacts(request), mechanism=MECHANISM)
        try:
            response: HttpResponse = self.get_response(request)
        except BaseException as error:
            served.finish(error)
            raise
        _end(served, request, response)
        return response

    async def _acall(self, request: HttpRequest) -> HttpResponse:
        if request.path_info.endswith(LEAVES):
            leaf = self._views.own_leaf(request)
            if leaf is not None:
                return self._views.response(await get_kit().aanswer(leaf, **self._views.question(request)))
        served = get_kit().serve(DjangoFacts(request), mechanism=MECHANISM)
        try:
            response: HttpResponse = await self.get_response(request)
        except BaseException as error:
            served.finish(error)
            raise
        _end(served, request, response)
        return response


def _end(served: ServedRequest, request: HttpRequest, response: HttpResponse) -> None:
    served.status = response.status_code
    if response.streaming:
        # The body is generated after all middleware, still in this scope. Closing the response ends the
        # request. The wrapper of `asgi.py` or `wsgi.py`, if used, ends it with the body and captures an
        # exception of the body.
        response._resource_closers.append(served.finish)  # type: ignore[attr-defined]
        open_requests = getattr(request, "scope", request.META).get(OPEN_REQUESTS)
        if open_requests is not None:
            open_requests.append((served, copy_context()))
        return
    served.finish()
