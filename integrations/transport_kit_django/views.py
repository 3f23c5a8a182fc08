"""Views: the four routes of the kit as Django views.

This module owns the translation of the kit's answers into responses. The middleware answers these routes
itself; the views give them an address in the URLconf, and answer if there is no middleware.

Threads: any. A permitted flush blocks its own thread but no event loop: Django runs these views on a thread,
and the middleware awaits the flush.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from django.contrib.auth.decorators import login_not_required
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import resolve
from django.views.decorators.csrf import csrf_exempt

from transport_kit import LEAVES, Answer, Leaf
from transport_kit_django.conf import get_kit

__all__ = ["own_leaf", "question", "response", "VIEWS"]

View = Callable[[HttpRequest], HttpResponse]


def _view(leaf: Leaf) -> View:
    def view(request: HttpRequest) -> HttpResponse:
        return response(get_kit().answer(leaf, **question(request)))

    view.__name__ = view.__qualname__ = leaf
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    exempt_view: View = csrf_exempt(login_not_required(view))
    return exempt_view


#: View -> its route. A view that the site has wrapped is not in it, so that the middleware leaves it alone.
VIEWS: Final[dict[Any, Leaf]] = {_view(leaf): leaf for leaf in LEAVES}


def own_leaf(request: HttpRequest) -> Leaf | None:
    """Return which of the four routes the request is for; None for any other request."""
    try:
        return VIEWS.get(resolve(request.path_info, getattr(request, "urlconf", None)).func)
    except Exception:
        # No such path, or a failing URLconf: Django handles either later.
        return None


def question(request: HttpRequest) -> dict[str, Any]:
    """Return the arguments of `Kit.answer` for a request; reads no body."""
    meta = request.META
    return {
        "method": request.method,
        "query_string": meta.get("QUERY_STRING", ""),
        "accept": meta.get("HTTP_ACCEPT"),
        "authorization": meta.get("HTTP_AUTHORIZATION"),
    }


def response(answer: Answer) -> HttpResponse:
    """Return the answer as a Django response."""
    http_response = HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))
    # Otherwise Django would log each 503 as an error and mail it to ADMINS, once per probe.
    http_response._has_been_logged = True  # type: ignore[attr-defined]
    return http_response
