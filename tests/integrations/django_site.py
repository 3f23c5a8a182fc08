"""A Django site for tests: its views and its URLs. `django_support` has the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import include, path, re_path
from django.utils.functional import SimpleLazyObject

from transport_kit import Scope
from transport_kit_django import get_kit


class CartError(Exception):
    """An error of the site."""


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


async def ahello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


def cart(request: HttpRequest, number: int) -> HttpResponse:
    raise CartError(f"cart {number}")


async def acart(request: HttpRequest, number: int) -> HttpResponse:
    raise CartError(f"cart {number}")


def gone(request: HttpRequest) -> HttpResponse:
    raise Http404("no such cart")


def forbidden(request: HttpRequest) -> HttpResponse:
    raise PermissionDenied


def suspicious(request: HttpRequest) -> HttpResponse:
    raise SuspiciousOperation("strange")


def handled(request: HttpRequest) -> HttpResponse:
    try:
        raise CartError("handled")
    except CartError:
        return HttpResponse(get_kit().capture_exception())


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def rows() -> Iterator[bytes]:
        Scope.current().set_tag("row", "second")
        yield b"one,"
        if "fail" in request.GET:
            raise CartError("row two")

    return StreamingHttpResponse(rows())


async def astream(request: HttpRequest) -> StreamingHttpResponse:
    async def rows() -> AsyncIterator[bytes]:
        Scope.current().set_tag("row", "second")
        yield b"one,"
        if "fail" in request.GET:
            raise CartError("row two")

    return StreamingHttpResponse(rows())


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(open(__file__, "rb"))


def read_form(request: HttpRequest) -> HttpResponse:
    raise CartError(str(len(request.POST)))


def read_body(request: HttpRequest) -> HttpResponse:
    raise CartError(str(len(request.body)))


def read_nothing(request: HttpRequest) -> HttpResponse:
    raise CartError("read nothing")


def tagged(request: HttpRequest, number: int) -> HttpResponse:
    Scope.current().set_tag("number", number)
    raise CartError(f"tagged {number}")


def ada() -> User:
    return User(pk=7, username="ada", email="ada@example.com")


def looked_at(request: Any) -> HttpResponse:
    """As after AuthenticationMiddleware, once the view has read `request.user`."""
    request._cached_user = ada()
    request.user = SimpleLazyObject(lambda: request._cached_user)
    raise CartError("for ada")


def not_looked_at(request: Any) -> HttpResponse:
    def look() -> User:
        return User.objects.get(pk=7)

    request.user = SimpleLazyObject(look)
    raise CartError("for nobody")


def evaluated(request: Any) -> HttpResponse:
    request.user = SimpleLazyObject(ada)
    assert request.user.pk == 7
    raise CartError("for ada")


def deferred(request: Any) -> HttpResponse:
    request.user = User.from_db("default", ["id"], [7])
    raise CartError("for number 7")


def unusual(request: Any) -> HttpResponse:
    request.user = "ada"
    raise CartError("for a text")


urlpatterns = [
    path("", hello),
    path("ahello", ahello),
    path("carts/<int:number>", cart),
    path("acarts/<int:number>", acart),
    path("shop/", include([re_path(r"^old/(?P<number>\d+)$", cart)])),
    path("gone", gone),
    path("forbidden", forbidden),
    path("suspicious", suspicious),
    path("handled", handled),
    path("stream", stream),
    path("astream", astream),
    path("file", file),
    path("form", read_form),
    path("body", read_body),
    path("nothing", read_nothing),
    path("tagged/<int:number>", tagged),
    path("looked-at", looked_at),
    path("not-looked-at", not_looked_at),
    path("evaluated", evaluated),
    path("deferred", deferred),
    path("unusual", unusual),
    path("app/health", hello),
    path("transport/", include("transport_kit_django.urls")),
]
