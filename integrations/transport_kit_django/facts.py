"""Facts: a Django request as plain values, computed on demand; and the receiver of Django's exception signal.

This module owns the receiver of `got_request_exception`, and the translation of an `HttpRequest` into plain
values. It reads no stream, evaluates no lazy object and queries no database.

Threads: the thread that runs the request; under ASGI also a worker thread that runs in the request's context.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Final

from django.conf import settings
from django.core.management import CommandError, get_commands
from django.core.signals import got_request_exception
from django.http import HttpRequest
from django.utils.encoding import escape_uri_path
from django.utils.functional import LazyObject, empty

from transport_kit import RequestFacts, RequestInfo
from transport_kit_django.conf import get_kit

__all__ = ["CommandFacts", "connect", "DjangoFacts", "MECHANISM", "OutsideFacts"]

#: Mechanism of the events captured here.
MECHANISM: Final = "auto.http.django"


def connect() -> None:
    """Connect to `got_request_exception`. Idempotent."""
    got_request_exception.connect(_on_exception, dispatch_uid="transport_kit")


def _on_exception(*, request: HttpRequest | None = None, **_: object) -> None:
    """Capture an exception that Django handles; one that propagates is signalled again by each layer."""
    # The facts are used only outside of `TransportMiddleware`: if it is not installed, or if a layer around
    # it raised the exception.
    facts = None if request is None else DjangoFacts(request)
    get_kit().capture_unhandled(sys.exc_info()[1], mechanism=MECHANISM, facts=facts)


class OutsideFacts(RequestFacts):
    """The facts of a request that failed outside of all middleware: its path."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def named(self) -> tuple[str, str]:
        """Return the path."""
        return self._path, "url"


class CommandFacts(RequestFacts):
    """The facts of the management command that this process runs."""

    __slots__ = ()

    def named(self) -> tuple[str, str]:
        """Return the command's or else the script's name, without arguments, as one may be a password."""
        script, *arguments = sys.argv or [""]
        if arguments and arguments[0] in get_commands():
            return arguments[0], "task"
        return os.path.basename(script) or "python", "task"

    def is_expected(self, error: BaseException) -> bool:
        """Return True for a `CommandError`, which reports a usage problem. Raised with `--traceback` only."""
        return isinstance(error, CommandError)


class DjangoFacts(RequestFacts):
    """The facts of one request."""

    __slots__ = ("_request",)

    def __init__(self, request: HttpRequest) -> None:
        self._request = request

    def named(self) -> tuple[str, str]:
        """Return the route as in the URLconf; the path before routing."""
        match = self._request.resolver_match
        if match is None:
            return self._request.path, "url"
        return match.route or "/", "route"

    def header(self, name: str) -> str | None:
        """Return a header by its lower-case name; None if it is absent."""
        value: str | None = self._request.META.get("HTTP_" + name.upper().replace("-", "_"))
        return value

    def describe(self) -> RequestInfo:
        """Return the request as plain values; the body only if the app has read it."""
        request = self._request
        meta = request.META
        return RequestInfo.from_environ(
            meta,
            url=f"{request.scheme}://{_host(meta)}{escape_uri_path(request.path)}",
            data=_body(vars(request)),
        )

    def user(self) -> Mapping[str, object] | None:
        """Return the logged-in user, if it is loaded already."""
        user = _loaded_user(vars(self._request))
        if user is None:
            return None
        # Read from the instance's dict: a deferred field, and possibly a property, would query the database.
        fields = vars(user)
        meta = getattr(type(user), "_meta", None)
        pk = getattr(getattr(meta, "pk", None), "attname", "id")
        names = {
            "id": pk,
            "username": getattr(type(user), "USERNAME_FIELD", "username"),
            "email": getattr(type(user), "EMAIL_FIELD", "email"),
        }
        result = {key: fields[name] for key, name in names.items() if fields.get(name) is not None}
        if "id" in result:
            result["id"] = str(result["id"])
        return result or None


def _host(meta: Mapping[str, Any]) -> str:
    """Return the host as the client sent it; `get_host` raises for invalid ones, which events should show."""
    if settings.USE_X_FORWARDED_HOST and meta.get("HTTP_X_FORWARDED_HOST"):
        return str(meta["HTTP_X_FORWARDED_HOST"])
    return str(meta.get("HTTP_HOST") or f"{meta.get('SERVER_NAME')}:{meta.get('SERVER_PORT')}")


def _body(attributes: Mapping[str, Any]) -> object | None:
    """Return the body that the app has read, from the request's instance dict: a parsed form, else bytes."""
    form = attributes.get("_post")
    if form:
        return {name: values[0] if len(values) == 1 else values for name, values in form.lists()}
    body: bytes | None = attributes.get("_body")
    return body or None


def _loaded_user(attributes: Mapping[str, Any]) -> object | None:
    """Return the user that `request.user` or `request.auser()` has loaded, from the instance dict."""
    user = attributes.get("_cached_user") or attributes.get("_acached_user") or attributes.get("user")
    if isinstance(user, LazyObject):
        user = vars(user)["_wrapped"]
    return None if user is empty or not hasattr(user, "__dict__") else user
