"""The four routes of a Django site: answered before everything else, without taking other paths."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import pytest
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.urls import include, path, reverse

from tests.integrations.django_support import Site, django_site, override_settings
from transport_kit_django.views import VIEWS

OURS = "transport_kit_django.TransportMiddleware"
TOKEN = "a-long-enough-token"
BEARER = [("Authorization", f"Bearer {TOKEN}")]
LEAVES = ("live", "ready", "health", "flush")
HEALTH = next(view for view, leaf in VIEWS.items() if leaf == "health")


@pytest.fixture(name="site", params=["wsgi", "asgi"])
def _site(request: Any) -> Iterator[Site]:
    """Django under both kinds of server."""
    with ExitStack() as stack:
        yield Site(request.param, stack)


def urlconf(*patterns: Any) -> Any:
    module: Any = ModuleType("urls_of_a_test")
    module.urlpatterns = [*patterns]
    return module


AROUND: dict[str, dict[str, Any]] = {
    "host": {"ALLOWED_HOSTS": [], "USE_X_FORWARDED_HOST": True},
    "https": {
        "SECURE_SSL_REDIRECT": True,
        "MIDDLEWARE": [OURS, "django.middleware.security.SecurityMiddleware"],
    },
    "login": {
        "MIDDLEWARE": [
            OURS,
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.auth.middleware.LoginRequiredMiddleware",
        ],
    },
    "csrf": {"MIDDLEWARE": [OURS, "django.middleware.csrf.CsrfViewMiddleware"]},
    "cache": {"MIDDLEWARE": [OURS, "django.middleware.cache.UpdateCacheMiddleware"]},
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_they_answer_before_whatever_the_site_puts_in_between(
    around: dict[str, Any], site: Site, sink: Any
) -> None:
    """A probe has no session, speaks plain HTTP, and sends the pod's address as host."""
    call = site.serve(TRANSPORT_KIT={"DSN": sink, "FLUSH_TOKEN": TOKEN}, **around)
    assert [call(f"/transport/{leaf}").status for leaf in LEAVES] == [200, 200, 200, 404]
    reply = call("/transport/flush", method="POST", headers=BEARER, query="timeout=10")
    assert (reply.status, json.loads(reply.body)["ok"]) == (200, True)
    assert "set-cookie" not in {name.lower() for name, _ in reply.headers}
    assert call("/transport/health", headers=[("Accept", "text/html")]).body.startswith(b"<!doctype html>")


@pytest.mark.parametrize("order", [[OURS], []], ids=["middleware", "views"])
def test_they_answer_while_the_database_is_down(
    order: list[str], site: Site, sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ATOMIC_REQUESTS, Django opens a transaction around each view, which these don't need."""
    from django.db import connections

    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    call = site.serve(TRANSPORT_KIT={"DSN": sink, "FLUSH_TOKEN": TOKEN}, MIDDLEWARE=order)
    assert call("/").status == 500
    assert [call(f"/transport/{leaf}").status for leaf in LEAVES] == [200, 200, 200, 404]
    assert call("/transport/flush", method="POST", headers=BEARER).status == 200


def test_the_views_answer_without_the_middleware(site: Site, sink: Any) -> None:
    """The site may put them behind its own layers; they are exempt from CSRF and login even then."""
    behind = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    call = site.serve(TRANSPORT_KIT={"DSN": sink, "FLUSH_TOKEN": TOKEN}, MIDDLEWARE=behind)
    assert call("/transport/health").status == 200
    assert call("/transport/flush", method="POST", headers=BEARER).status == 200


def test_they_answer_where_the_urlconf_puts_them(site: Site, sink: Any) -> None:
    """The site chooses the path."""
    urls = urlconf(path("_/kit/", include("transport_kit_django.urls")))
    call = site.serve(TRANSPORT_KIT={"DSN": sink}, ROOT_URLCONF=urls, ALLOWED_HOSTS=[])
    assert call("/_/kit/live").status == 200
    assert call("/transport/live").status == 400  # an unknown path, and a host that is not allowed
    with override_settings(ROOT_URLCONF=urls):
        assert reverse("transport_kit:health") == "/_/kit/health"


def test_they_answer_below_a_script_name(sink: Any) -> None:
    """The site may be one of several on its host."""
    with ExitStack() as stack:
        wsgi = Site("wsgi", stack).serve(TRANSPORT_KIT={"DSN": sink}, ALLOWED_HOSTS=[])
        assert wsgi("/transport/live", environ={"SCRIPT_NAME": "/shop"}).status == 200
        asgi = Site("asgi", stack).serve(TRANSPORT_KIT={"DSN": sink}, ALLOWED_HOSTS=[])
        assert asgi("/shop/transport/live", root_path="/shop").status == 200


@pytest.mark.parametrize("where", ["/app/health", "/transport/health/", "/transport/healthy", "/flush"])
def test_every_other_path_is_the_sites(where: str, site: Site, sink: Any) -> None:
    """Only four paths are taken, and no other path with the same ending."""
    reply = site.serve(TRANSPORT_KIT={"DSN": sink})(where)
    assert (reply.status, reply.body == b"hello") in ((200, True), (404, False))


def test_a_view_of_ours_that_the_site_has_wrapped_is_behind_its_wrapper(site: Site, sink: Any) -> None:
    """The middleware must not bypass a login that the site requires."""
    urls = urlconf(path("health", login_required(HEALTH)), path("accounts/login/", django_site.hello))
    order = [
        OURS,
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]
    call = site.serve(TRANSPORT_KIT={"DSN": sink}, ROOT_URLCONF=urls, MIDDLEWARE=order, **SIGNED)
    assert call("/health").status == 302


SIGNED = {"SESSION_ENGINE": "django.contrib.sessions.backends.signed_cookies"}


def test_a_urlconf_that_fails_fails_as_it_did(site: Site, sink: Any) -> None:
    """The middleware must not change the error of a broken URLconf."""
    reply = site.serve(TRANSPORT_KIT={"DSN": sink}, ROOT_URLCONF="no.such.module")("/health")
    assert reply.status == 500 or isinstance(reply.error, ModuleNotFoundError)


def test_probes_are_neither_captured_nor_logged_nor_mailed(
    site: Site, sink: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Django would log a 503 as an error and mail it to the admins, once per probe."""
    call = site.serve(TRANSPORT_KIT={"DSN": "nonsense", "READY_REQUIRES_DELIVERY": True})
    with caplog.at_level(logging.DEBUG, "django.request"):
        assert [call(f"/transport/{leaf}").status for leaf in LEAVES] == [200, 503, 503, 404]
    assert [record for record in caplog.records if record.name == "django.request"] == []


def test_details_are_for_those_who_hold_the_token(site: Site, sink: Any) -> None:
    """A WSGI server passes the header as Latin-1 text, an ASGI server as bytes."""
    call = site.serve(TRANSPORT_KIT={"DSN": sink, "FLUSH_TOKEN": "sésame-ouvre-toi"})
    assert json.loads(call("/transport/health").body) == {"status": "pass"}
    word = (
        "Bearer sésame-ouvre-toi".encode().decode("latin-1")
        if site.kind == "wsgi"
        else "Bearer sésame-ouvre-toi"
    )
    assert "checks" in json.loads(call("/transport/health", headers=[("Authorization", word)]).body)


def test_head_has_the_headers_and_no_body(site: Site, sink: Any) -> None:
    """Some probes send HEAD."""
    reply = site.serve(TRANSPORT_KIT={"DSN": sink})("/transport/live", method="HEAD")
    headers = {name.lower(): value for name, value in reply.headers}
    assert (reply.status, reply.body, headers["content-length"]) == (200, b"", "17")
    assert headers["cache-control"] == "no-store"


def test_a_class_based_site_is_no_different(site: Site, sink: Any) -> None:
    """A view may be any callable, also one that is not hashable."""

    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, request: HttpRequest) -> HttpResponse:
            return HttpResponse("mine")

    urls = urlconf(path("health", Unhashable()))
    assert site.serve(TRANSPORT_KIT={"DSN": sink}, ROOT_URLCONF=urls)("/health").body == b"mine"
