"""The four routes as Django views: an answer of the kit becomes a response.

Owns the translation, and which view is which route. The middleware answers them itself where it can; the
views are what the URLconf names, and answer where there is no middleware.

Threads: any. A permitted flush blocks the thread it runs on, and no event loop: Django runs these views
on a thread, and the middleware awaits.
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
    made: View = csrf_exempt(login_not_required(view))
    return made


#: The four views, by themselves: a view that somebody wrapped is theirs, and its wrapper is respected.
VIEWS: Final[dict[Any, Leaf]] = {_view(leaf): leaf for leaf in LEAVES}


def own_leaf(request: HttpRequest) -> Leaf | None:
    """Which of the four routes the request is for; None for any other."""
    try:
        return VIEWS.get(resolve(request.path_info, getattr(request, "urlconf", None)).func)
    except Exception:
        # No such path, or a URLconf that fails: Django will find out in its own place and way.
        return None


def question(request: HttpRequest) -> dict[str, Any]:
    """What the kit wants to know of a request for a route; reads no body."""
    meta = request.META
    return {
        "method": request.method,
        "query_string": meta.get("QUERY_STRING", ""),
        "accept": meta.get("HTTP_ACCEPT"),
        "authorization": meta.get("HTTP_AUTHORIZATION"),
    }


def response(answer: Answer) -> HttpResponse:
    """The answer as Django sends it."""
    made = HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))
    # Django logs each 503 as an error, and mails it to ADMINS: once per probe, for as long as it lasts.
    made._has_been_logged = True  # type: ignore[attr-defined]
    return made
