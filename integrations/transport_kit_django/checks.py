"""System checks: problems of the setting and of the site's set-up, for `manage.py check`.

This module owns the ids and hints. The options validate the values.

| id | about |
| --- | --- |
| E001 | the setting is no dict |
| E002 | a key is unknown, or not in capitals |
| E003 | a value can't be used |
| E004 | the DSN can't be used |
| E005 | an environment variable can't be used |
| E006 | the transport can't be made, such as for want of an extra |
| W001 | the middleware is missing |
| W002 | the middleware is not the first |
| W003 | the urls are not included |
| W004 | DEBUG together with SEND_DEFAULT_PII |
| W005 | the spool is inside MEDIA_ROOT or STATIC_ROOT |
| W006 | ASGI without `with_lifespan` and without a spool |
| W007 | PATH has no meaning here |
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.core import checks
from django.urls import URLResolver, get_resolver
from django.utils.module_loading import import_string

from transport_kit import (
    Dsn,
    IntegrationOptions,
    InvalidDsn,
    Kit,
    OptionsError,
    Transport,
    TransportKitError,
)
from transport_kit_django import asgi
from transport_kit_django.conf import SETTING, SOURCE, get_kit, values
from transport_kit_django.middleware import TransportMiddleware
from transport_kit_django.views import VIEWS

__all__ = ["check_setting", "check_site"]

_PREFIX: Final = "TRANSPORT_KIT_"
_DSN_VARIABLE: Final = f"{_PREFIX}DSN"
_MIDDLEWARE: Final = "transport_kit_django.TransportMiddleware"
_SUGGESTION = re.compile(r"did you mean (\w+)\?")


def check_setting(**_: Any) -> list[checks.CheckMessage]:
    """Check that the setting can be used: E001 to E006."""
    setting = values()
    if not isinstance(setting, Mapping):
        return [
            checks.Error(
                f"{SETTING} must be a dict, not {type(setting).__name__}.",
                hint=f'Write {SETTING} = {{"DSN": "https://<key>@<host>/<project>"}}.',
                id="transport_kit.E001",
            )
        ]
    problems = [*_keys(setting), *_dsn(setting), *_options(setting)]
    return problems or [*_transport()]


def check_site(**_: Any) -> list[checks.CheckMessage]:
    """Check the set-up of the site: W001 to W007."""
    setting_value = values()
    setting = setting_value if isinstance(setting_value, Mapping) else {}
    return [
        *_middleware(),
        *_urls(setting),
        *_personal_data(),
        *_spool(setting),
        *_asgi(setting),
        *_path(setting),
    ]


# -- the setting ---------------------------------------------------------------------------------------


def _keys(setting: Mapping[Any, Any]) -> Iterator[checks.CheckMessage]:
    for key in setting:
        if not isinstance(key, str) or not key.isupper():
            yield checks.Error(
                f"{SETTING}: the key {key!r} is not text in capitals.",
                hint=f"Write it as {str(key).upper()!r}.",
                id="transport_kit.E002",
            )


def _dsn(setting: Mapping[Any, Any]) -> Iterator[checks.CheckMessage]:
    value, where, check_id = setting.get("DSN"), f"{SETTING}['DSN']", "transport_kit.E004"
    if value is None:
        value, where, check_id = os.environ.get(_DSN_VARIABLE), _DSN_VARIABLE, "transport_kit.E005"
    if value is None or isinstance(value, Dsn | Transport) or callable(value):
        return
    try:
        # The text of these errors never holds the DSN, which holds a key.
        if not isinstance(value, str):
            raise InvalidDsn("invalid_url", f"a DSN is text, not {type(value).__name__}")
        if value.strip():
            Dsn.parse(value)
    except InvalidDsn as error:
        yield checks.Error(f"{where} can't be used ({error.reason}).", hint=f"{error.hint}.", id=check_id)


def _options(setting: Mapping[Any, Any]) -> Iterator[checks.CheckMessage]:
    """Yield a problem for each invalid entry: an invalid one is removed, and the rest is tried again."""
    remaining = {
        key.lower(): value for key, value in setting.items() if isinstance(key, str) and key.isupper()
    }
    remaining.pop("dsn", None)
    environ = dict(os.environ)
    try:
        IntegrationOptions.from_mapping({"strict": remaining.pop("strict", False)}, source=SOURCE)
    except OptionsError as error:
        yield _problem(error)
    while True:
        try:
            # Delivers nowhere and starts nothing. Strict, so that it raises instead of logging.
            Kit({**remaining, "dsn": "", "strict": True}, source=SOURCE, environ=environ)
            return
        except OptionsError as error:
            yield _problem(error)
            places = (
                (remaining, error.field),
                (environ, error.field),
                (environ, error.source.rpartition(" ")[2]),
            )
            if not any(place.pop(name, places) is not places for place, name in places):
                return  # a default that conflicts with another entry: there is nothing to remove


def _problem(error: OptionsError) -> checks.Error:
    name = error.field.upper()
    if error.source != SOURCE:
        variable = name if name.startswith(_PREFIX) else _PREFIX + name
        return checks.Error(
            f"The environment variable {variable} can't be used.",
            hint=f"{error.problem}.".replace("?.", "?"),
            id="transport_kit.E005",
        )
    if error.problem.startswith("unknown option"):
        near = _SUGGESTION.search(error.problem)
        hint = f"Did you mean {near[1].upper()!r}?" if near else "docs/reference/options.md lists all keys."
        return checks.Error(f"{SETTING} has the unknown key {name!r}.", hint=hint, id="transport_kit.E002")
    return checks.Error(
        f"{SETTING}[{name!r}] can't be used.", hint=f"It {error.problem}.", id="transport_kit.E003"
    )


def _transport() -> Iterator[checks.CheckMessage]:
    """Yield problems that only occur when the transport is made: a missing extra, files, a custom class."""
    try:
        kit = get_kit()
        problem = kit.problem or next(iter(kit.option_problems), None)
    except TransportKitError as error:  # with STRICT
        problem = str(error)
    except Exception as error:
        problem = type(error).__name__  # not our exception: its text may contain secrets
    if problem is not None:
        yield checks.Error("The transport can't be made as it is set.", hint=problem, id="transport_kit.E006")


# -- the site ------------------------------------------------------------------------------------------


def _middleware() -> Iterator[checks.CheckMessage]:
    ours = [_is_ours(path) for path in settings.MIDDLEWARE]
    if not any(ours):
        yield checks.Warning(
            "transport_kit_django.TransportMiddleware is not in MIDDLEWARE.",
            hint=f"Put {_MIDDLEWARE!r} first: requests have no scope of their own without it.",
            id="transport_kit.W001",
        )
    elif not ours[0]:
        yield checks.Warning(
            f"{settings.MIDDLEWARE[ours.index(True)]} is not the first of MIDDLEWARE.",
            hint="What stands before it may refuse or redirect probes, and fails outside of any scope.",
            id="transport_kit.W002",
        )


def _is_ours(path: str) -> bool:
    try:
        middleware = import_string(path)
    except Exception:
        return False  # Django raises when it loads the middleware
    return isinstance(middleware, type) and issubclass(middleware, TransportMiddleware)


def _urls(setting: Mapping[Any, Any]) -> Iterator[checks.CheckMessage]:
    if setting.get("PATH", "") is None or not getattr(settings, "ROOT_URLCONF", None):
        return
    try:
        included = _has_our_views(get_resolver())
    except Exception:
        return  # a URLconf that can't be loaded: Django's own checks report it
    if not included:
        yield checks.Warning(
            "transport_kit_django.urls are not included: live, ready, health and flush have no address.",
            hint='Add path("transport/", include("transport_kit_django.urls")) to the root URLconf, '
            f'or say {SETTING}["PATH"] = None.',
            id="transport_kit.W003",
        )


def _has_our_views(resolver: URLResolver) -> bool:
    return any(
        _has_our_views(entry) if isinstance(entry, URLResolver) else entry.callback in VIEWS
        for entry in resolver.url_patterns
    )


def _personal_data() -> Iterator[checks.CheckMessage]:
    if settings.DEBUG and _sends_personal_data():
        yield checks.Warning(
            "DEBUG and SEND_DEFAULT_PII are both on: who tries things out sends cookies, bodies and users.",
            hint=f'Write {SETTING}["SEND_DEFAULT_PII"] = not DEBUG.',
            id="transport_kit.W004",
        )


def _sends_personal_data() -> bool:
    try:
        return get_kit().reporter.options.send_default_pii  # the environment may set it too
    except Exception:
        return False  # with STRICT: nothing is sent


def _queue(setting: Mapping[Any, Any]) -> str:
    return str(setting.get("QUEUE") or os.environ.get(f"{_PREFIX}QUEUE") or "")


def _spool(setting: Mapping[Any, Any]) -> Iterator[checks.CheckMessage]:
    queue = urlsplit(_queue(setting))
    if queue.scheme != "file":
        return
    spool = Path(unquote(queue.path)).resolve()
    for name in ("MEDIA_ROOT", "STATIC_ROOT"):
        root = getattr(settings, name, None)
        if root and spool.is_relative_to(Path(root).resolve()):
            yield checks.Warning(
                f"The spool {spool} is inside {name}: what waits there may be served to anyone.",
                hint="Choose a directory that no web server knows, such as /var/spool/app.",
                id="transport_kit.W005",
            )


def _asgi(setting: Mapping[Any, Any]) -> Iterator[checks.CheckMessage]:
    application = getattr(settings, "ASGI_APPLICATION", None)
    if not application or _queue(setting):
        return
    try:
        import_string(application)
    except Exception:
        return  # the server reports it
    if not asgi.was_used():
        yield checks.Warning(
            f"{application} is not wrapped in with_lifespan, and there is no spool.",
            hint="uvicorn ends a process without any hook but the lifespan, which Django lacks: what waits "
            "in memory is lost. Write application = with_lifespan(get_asgi_application()), "
            "from transport_kit_django.asgi.",
            id="transport_kit.W006",
        )


def _path(setting: Mapping[Any, Any]) -> Iterator[checks.CheckMessage]:
    if setting.get("PATH") is not None:
        yield checks.Warning(
            f"{SETTING}['PATH'] has no meaning: the URLconf says where the routes answer.",
            hint="Leave it out, or None to say that there shall be none.",
            id="transport_kit.W007",
        )
