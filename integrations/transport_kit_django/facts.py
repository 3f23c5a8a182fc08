"""What is captured of a request, and what is known about it without asking anyone.

Owns the receiver of `got_request_exception`, and the translation of an `HttpRequest` into plain values.
Nothing here reads a stream, evaluates a lazy object or touches the database.

Threads: whichever runs the request; under ASGI also a worker thread that runs in the request's context.
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

__all__ = ["Command", "connect", "Facts", "MECHANISM", "Outside"]

#: How events say that they were caught here.
MECHANISM: Final = "auto.http.django"


def connect() -> None:
    """Listen to `got_request_exception`; once, however often it is called."""
    got_request_exception.connect(_on_exception, dispatch_uid="transport_kit")


def _on_exception(*, request: HttpRequest | None = None, **_: object) -> None:
    """An exception that Django makes a response of, or propagates: then each layer says so once more."""
    # The facts are for what has no middleware of ours around it: there is none, or a layer outside of it
    # raised this.
    facts = None if request is None else Facts(request)
    get_kit().capture_unhandled(sys.exc_info()[1], mechanism=MECHANISM, facts=facts)


class Outside(RequestFacts):
    """A request that failed outside of all middleware: its path."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def named(self) -> tuple[str, str]:
        """The path."""
        return self._path, "url"


class Command(RequestFacts):
    """The management command that this process runs."""

    __slots__ = ()

    def named(self) -> tuple[str, str]:
        """The command; the script's name where there is none. No argument: it may be a password."""
        script, *arguments = sys.argv or [""]
        if arguments and arguments[0] in get_commands():
            return arguments[0], "task"
        return os.path.basename(script) or "python", "task"

    def is_expected(self, error: BaseException) -> bool:
        """Whether it is the command's own way to say that it can't; seen here with `--traceback` only."""
        return isinstance(error, CommandError)


class Facts(RequestFacts):
    """A request as the reporter asks for it; each answer is made when it is asked."""

    __slots__ = ("_request",)

    def __init__(self, request: HttpRequest) -> None:
        self._request = request

    def named(self) -> tuple[str, str]:
        """The route as the URLconf writes it; the path until Django has found one."""
        match = self._request.resolver_match
        if match is None:
            return self._request.path, "url"
        return match.route or "/", "route"

    def header(self, name: str) -> str | None:
        """A header by its lower-case name."""
        value: str | None = self._request.META.get("HTTP_" + name.upper().replace("-", "_"))
        return value

    def describe(self) -> RequestInfo:
        """The request as plain values; the body only if the app has read it."""
        request = self._request
        meta = request.META
        return RequestInfo.from_environ(
            meta,
            url=f"{request.scheme}://{_host(meta)}{escape_uri_path(request.path)}",
            data=_body(vars(request)),
        )

    def user(self) -> Mapping[str, object] | None:
        """Who is logged in, if somebody has looked already."""
        user = _loaded_user(vars(self._request))
        if user is None:
            return None
        # The instance's own dict: a field that was deferred is a query away, and a property may be too.
        fields = vars(user)
        meta = getattr(type(user), "_meta", None)
        pk = getattr(getattr(meta, "pk", None), "attname", "id")
        names = {
            "id": pk,
            "username": getattr(type(user), "USERNAME_FIELD", "username"),
            "email": getattr(type(user), "EMAIL_FIELD", "email"),
        }
        known = {key: fields[name] for key, name in names.items() if fields.get(name) is not None}
        if "id" in known:
            known["id"] = str(known["id"])
        return known or None


def _host(meta: Mapping[str, Any]) -> str:
    """The host as the client named it. `get_host` would refuse the very hosts that an event should show."""
    if settings.USE_X_FORWARDED_HOST and meta.get("HTTP_X_FORWARDED_HOST"):
        return str(meta["HTTP_X_FORWARDED_HOST"])
    return str(meta.get("HTTP_HOST") or f"{meta.get('SERVER_NAME')}:{meta.get('SERVER_PORT')}")


def _body(held: Mapping[str, Any]) -> object | None:
    """What the app has read of the body, from the request's own dict: parsed if it is a form, else bytes."""
    form = held.get("_post")
    if form:
        return {name: found[0] if len(found) == 1 else found for name, found in form.lists()}
    body: bytes | None = held.get("_body")
    return body or None


def _loaded_user(held: Mapping[str, Any]) -> object | None:
    """The user that `request.user` or `request.auser()` found, from the request's own dict."""
    user = held.get("_cached_user") or held.get("_acached_user") or held.get("user")
    if isinstance(user, LazyObject):
        user = vars(user)["_wrapped"]
    return None if user is empty or not hasattr(user, "__dict__") else user
