"""The system checks of the setting and of the site."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.conf import settings
from django.core.checks import ERROR, CheckMessage, run_checks
from django.urls import include, path

from tests.integrations.django_support import django_site, override_settings
from transport_kit import FunctionTransport, NullTransport, TransportOptions
from transport_kit_django import TransportMiddleware, asgi

DSN = "https://0123456789abcdef0123456789abcdef@sentry.example/42"
OURS = "transport_kit_django.TransportMiddleware"
COMMON = "django.middleware.common.CommonMiddleware"


class OwnMiddleware(TransportMiddleware):
    """A site's subclass of our middleware."""


class Broken(FunctionTransport):
    """A site's own transport, whose constructor raises."""

    def __init__(self, options: TransportOptions | None = None) -> None:
        raise ValueError("password=hunter2")


def found(**overrides: Any) -> list[CheckMessage]:
    """Return the messages of our checks for a site with these settings."""
    with override_settings(**overrides):
        return [message for message in run_checks() if str(message.id).startswith("transport_kit.")]


def ids(**overrides: Any) -> list[str]:
    return [str(message.id).removeprefix("transport_kit.") for message in found(**overrides)]


def only(**overrides: Any) -> CheckMessage:
    (message,) = found(**overrides)
    return message


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"DSN": DSN},
        {"DSN": ""},
        {"DSN": None},
        {"DSN": NullTransport()},
        {"DSN": print},
        {"DSN": NullTransport},
        {"DSN": DSN, "MAX_SENDERS": 2, "RELEASE": "shop@1.2.0", "STRICT": True, "FLUSH_TOKEN": "x" * 20},
        {"DSN": DSN, "BACKOFF_BASE": 100, "BACKOFF_MAX": 200},
    ],
)
def test_a_setting_that_can_be_used_says_nothing(setting: dict[str, Any]) -> None:
    """A check with false alarms gets silenced."""
    assert found(TRANSPORT_KIT=setting) == []


@pytest.mark.parametrize(
    ("setting", "expected", "text", "hint"),
    [
        (None, "E001", "must be a dict, not NoneType", '"DSN"'),
        ([], "E001", "must be a dict, not list", '"DSN"'),
        ({"MAX_SENDER": 2}, "E002", "unknown key 'MAX_SENDER'", "'MAX_SENDERS'"),
        ({"XYZZY": 2}, "E002", "unknown key 'XYZZY'", "options.md"),
        ({"max_senders": 2}, "E002", "'max_senders' is not text in capitals", "'MAX_SENDERS'"),
        ({7: 2}, "E002", "7 is not text in capitals", "'7'"),
        ({"MAX_SENDERS": 0}, "E003", "TRANSPORT_KIT['MAX_SENDERS']", "from 1 to 64, not 0"),
        ({"MAX_SENDERS": "2"}, "E003", "TRANSPORT_KIT['MAX_SENDERS']", "a whole number, not str"),
        ({"STRICT": "yes"}, "E003", "TRANSPORT_KIT['STRICT']", "True or False"),
        ({"CLIENT_KEY": "key.pem"}, "E003", "TRANSPORT_KIT['CLIENT_KEY']", "needs client_cert"),
        ({"BACKOFF_BASE": 100}, "E003", "TRANSPORT_KIT['BACKOFF_BASE']", "smaller than backoff_base"),
        ({"DSN": "https://sentry.example/42"}, "E004", "missing_public_key", "."),
        ({"DSN": 42}, "E004", "invalid_url", "not int"),
    ],
)
def test_each_mistake_has_its_id_and_a_hint(setting: Any, expected: str, text: str, hint: str) -> None:
    """People search for the id, and follow the hint."""
    message = only(TRANSPORT_KIT=setting)
    assert message.id == f"transport_kit.{expected}"
    assert message.level == ERROR
    assert text in message.msg
    assert hint in str(message.hint)


def test_all_mistakes_are_told_at_once() -> None:
    """One run shows them all. An invalid DSN is not quoted, as it may contain a key."""
    setting = {
        "DSN": "https://topsecret@/42",
        "MAX_SENDER": 1,
        "REQUEST_TIMEOUT": 0,
        "STRICT": 1,
        "path": None,
    }
    messages = found(TRANSPORT_KIT=setting)
    assert sorted(str(message.id)[-4:] for message in messages) == ["E002", "E002", "E003", "E003", "E004"]
    assert "topsecret" not in str(messages)


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("TRANSPORT_KIT_MAX_SENDERS", "many", "must be a whole number"),
        ("TRANSPORT_KIT_MAX_SENDERS", "0", "must be from 1 to 64"),
        ("TRANSPORT_KIT_DSN", "https://topsecret@/42", "host"),
    ],
)
def test_a_wrong_variable_is_told_from_a_wrong_key(
    name: str, value: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message must name the place to correct."""
    monkeypatch.setenv(name, value)
    message = only(TRANSPORT_KIT={})
    assert message.id == "transport_kit.E005"
    assert name in message.msg
    assert hint in str(message.hint)
    assert "topsecret" not in str(message)


def test_a_variable_that_is_no_option_is_no_mistake_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes sets such variables for a Service of this name; a log line names them."""
    monkeypatch.setenv("TRANSPORT_KIT_SERVICE_HOST", "10.0.0.7")
    assert found(TRANSPORT_KIT={"DSN": DSN}) == []


def test_a_transport_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value is valid, but together they need a package that is not installed."""
    monkeypatch.setitem(sys.modules, "brotli", None)
    monkeypatch.setitem(sys.modules, "brotlicffi", None)
    for strict in (False, True):
        message = only(TRANSPORT_KIT={"DSN": DSN, "COMPRESSION": "br", "STRICT": strict})
        assert message.id == "transport_kit.E006"
        assert "pip install 'transport-kit[br]'" in str(message.hint)


@pytest.mark.parametrize("strict", [False, True])
def test_the_text_of_a_foreign_exception_is_not_shown(strict: bool) -> None:
    """It may contain secrets."""
    message = only(TRANSPORT_KIT={"DSN": Broken, "STRICT": strict})
    assert message.id == "transport_kit.E006"
    assert "ValueError" in str(message.hint)
    assert "hunter2" not in str(message)


# -- the site ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([OURS, COMMON], []),
        ([f"{__name__}.OwnMiddleware", COMMON], []),
        ([COMMON, OURS], ["W002"]),
        ([COMMON], ["W001"]),
        (["no.such.Middleware"], ["W001"]),
        ([], ["W001"]),
    ],
)
def test_the_middleware_is_there_and_first(order: list[str], expected: list[str]) -> None:
    """Only the first middleware sees every request."""
    assert ids(TRANSPORT_KIT={}, MIDDLEWARE=order) == expected


def urlconf(*patterns: Any) -> Any:
    module: Any = ModuleType("urls_of_a_test")
    module.urlpatterns = [*patterns]
    return module


def test_the_urls_are_included_or_declined() -> None:
    """Otherwise the 404 of a probe shows only at the deployment."""
    none = urlconf(path("", django_site.hello))
    assert ids(TRANSPORT_KIT={}, ROOT_URLCONF=none) == ["W003"]
    assert ids(TRANSPORT_KIT={"PATH": None}, ROOT_URLCONF=none) == []
    nested = urlconf(path("a/", include([path("b/", include("transport_kit_django.urls"))])))
    assert ids(TRANSPORT_KIT={}, ROOT_URLCONF=nested) == []


@pytest.mark.parametrize("urls", [None, "no.such.module"])
def test_a_site_without_urls_is_not_our_business(urls: Any) -> None:
    """Django reports it, or the site needs no URLs."""
    from transport_kit_django.checks import check_site

    with override_settings(TRANSPORT_KIT={}, ROOT_URLCONF=urls):
        assert check_site() == []
    with override_settings(TRANSPORT_KIT={}):
        del settings.ROOT_URLCONF
        assert check_site() == []


def test_personal_data_while_debugging_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's browser has real sessions."""
    assert ids(TRANSPORT_KIT={"SEND_DEFAULT_PII": True}, DEBUG=True) == ["W004"]
    assert ids(TRANSPORT_KIT={"SEND_DEFAULT_PII": True}) == []
    assert ids(TRANSPORT_KIT={"DSN": "nonsense", "STRICT": True}, DEBUG=True) == ["E004"]
    monkeypatch.setenv("TRANSPORT_KIT_SEND_DEFAULT_PII", "1")
    assert ids(TRANSPORT_KIT={}, DEBUG=True) == ["W004"]


def test_a_spool_that_is_served_to_anyone_is_told(tmp_path: Path) -> None:
    """The spool contains requests with personal data."""
    media = tmp_path / "media"
    roots = {"MEDIA_ROOT": str(media), "STATIC_ROOT": tmp_path / "static"}

    def spool(where: str) -> list[str]:
        return [i for i in ids(TRANSPORT_KIT={"QUEUE": where}, **roots) if i.startswith("W")]

    assert spool(f"file://{media}/spool") == ["W005"]
    assert spool(f"file://{media}/../media/%73pool") == ["W005"]
    assert spool(f"file://{tmp_path}/static") == ["W005"]
    assert spool(f"file://{tmp_path}/media-spool") == []
    assert spool("redis://localhost/0") == []


def test_asgi_without_lifespan_and_without_a_spool_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue in memory would be lost with every deployment."""
    monkeypatch.setattr(asgi, "_used", False)
    module: Any = ModuleType("asgi_of_a_test")
    module.application = object()
    monkeypatch.setitem(sys.modules, "asgi_of_a_test", module)
    name = "asgi_of_a_test.application"
    assert ids(TRANSPORT_KIT={}, ASGI_APPLICATION=name) == ["W006"]
    assert "W006" not in ids(TRANSPORT_KIT={"QUEUE": "file:///var/spool/app"}, ASGI_APPLICATION=name)
    assert ids(TRANSPORT_KIT={}, ASGI_APPLICATION="no.such.application") == []
    module.application = asgi.with_lifespan(module.application)
    assert ids(TRANSPORT_KIT={}, ASGI_APPLICATION=name) == []


def test_a_path_that_has_no_meaning_is_told() -> None:
    """An option without any effect must not be accepted silently."""
    assert ids(TRANSPORT_KIT={"PATH": "/kit"}) == ["W007"]
    assert ids(TRANSPORT_KIT={"PATH": None}) == []
