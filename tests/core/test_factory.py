"""The factory: the transport of each target, and the message of each mistake."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.timing import SOON
from transport_kit.config.dsn import Dsn
from transport_kit.config.options import TransportOptions
from transport_kit.envelope.envelope import Envelope
from transport_kit.runtime.errors import InvalidDsn, MissingExtra, OptionsError
from transport_kit.testing import CapturedTransport, FaultServer
from transport_kit.transport.base import Transport
from transport_kit.transport.factory import build_transport, make_transport
from transport_kit.transport.http import BaseHttpTransport, HttpTransport
from transport_kit.transport.local import FunctionTransport, NullTransport

KEY = "0123456789abcdef0123456789abcdef"
DSN = f"https://{KEY}@sentry.example/42"
OTHER = f"https://{KEY}@other.example/7"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variable of the machine that runs the tests."""
    monkeypatch.delenv("TRANSPORT_KIT_DSN", raising=False)


def function(envelope: Envelope) -> None:
    """A target."""


class Function:
    def __call__(self, envelope: Envelope) -> None:
        """Make instances a target."""


EXISTING = NullTransport()

TARGETS: list[tuple[object, str | None, type[Transport], str | None]] = [
    # target, TRANSPORT_KIT_DSN, class, destination
    (DSN, None, HttpTransport, DSN),
    (f"  {DSN}\n", None, HttpTransport, DSN),
    (DSN, OTHER, HttpTransport, DSN),
    (Dsn.parse(DSN), OTHER, HttpTransport, DSN),
    (None, OTHER, HttpTransport, OTHER),
    (None, None, NullTransport, None),
    (None, "", NullTransport, None),
    (None, "  ", NullTransport, None),
    ("", OTHER, NullTransport, None),
    (" \n", OTHER, NullTransport, None),
    (function, OTHER, FunctionTransport, None),
    (Function(), None, FunctionTransport, None),
    ([].append, None, FunctionTransport, None),
    (EXISTING, OTHER, NullTransport, None),
    (NullTransport, OTHER, NullTransport, None),
    (CapturedTransport, None, CapturedTransport, None),
    (HttpTransport, OTHER, HttpTransport, OTHER),
]


@pytest.mark.parametrize(("target", "variable", "kind", "dsn"), TARGETS)
def test_each_target_becomes_its_transport(
    target: Any,
    variable: str | None,
    kind: type[Transport],
    dsn: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All targets of the documentation; a valid target logs nothing."""
    if variable is not None:
        monkeypatch.setenv("TRANSPORT_KIT_DSN", variable)
    transport = make_transport(target)
    assert type(transport) is kind
    assert (transport.dsn and transport.dsn.reveal()) == dsn
    assert (transport is target) == isinstance(target, Transport)
    assert caplog.records == []


@pytest.mark.parametrize("target", [DSN, function, NullTransport, ""])
def test_options_reach_whatever_is_made(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments first, then the environment, then the default."""
    monkeypatch.setenv("TRANSPORT_KIT_MAX_SENDERS", "3")
    monkeypatch.setenv("TRANSPORT_KIT_SHUTDOWN_TIMEOUT", "9")
    options = make_transport(target, shutdown_timeout=0.5).options
    assert (options.shutdown_timeout, options.max_senders) == (0.5, 3)
    assert options.max_queue_items == TransportOptions().max_queue_items


MISTAKES: list[tuple[Any, dict[str, Any], dict[str, str], type[Exception], list[str]]] = [
    # target, options, environment, error, parts of its text
    ("sentry.example/42", {}, {}, InvalidDsn, ["invalid_scheme", "https://"]),
    (f"https://{KEY}@/42", {}, {}, InvalidDsn, ["missing_host"]),
    (f"https://{KEY}@host/", {}, {}, InvalidDsn, ["missing_project_id"]),
    (f"https://{KEY}@host:99999/1", {}, {}, InvalidDsn, ["invalid_port"]),
    (None, {}, {"TRANSPORT_KIT_DSN": f"https://{KEY}@host/x"}, InvalidDsn, ["TRANSPORT_KIT_DSN", "digits"]),
    (HttpTransport, {}, {"TRANSPORT_KIT_DSN": f"https://{KEY}@/1"}, InvalidDsn, ["TRANSPORT_KIT_DSN"]),
    (HttpTransport, {}, {}, OptionsError, ["HttpTransport needs a DSN", "TRANSPORT_KIT_DSN"]),
    (42, {}, {}, OptionsError, ["target", "not int"]),
    (DSN.encode(), {}, {}, OptionsError, ["target", "not bytes"]),
    ({"dsn": DSN}, {}, {}, OptionsError, ["target", "not dict"]),
    (DSN, {"max_sender": 2}, {}, OptionsError, ["max_sender", "arguments", "did you mean max_senders?"]),
    (DSN, {"max_senders": "2"}, {}, OptionsError, ["max_senders", "arguments", "whole number", "str"]),
    (DSN, {"max_senders": 0}, {}, OptionsError, ["max_senders", "from 1 to 64"]),
    (DSN, {"compression": "lzma"}, {}, OptionsError, ["compression", "gzip"]),
    (
        DSN,
        {"compression": "gzip", "compression_level": 22},
        {},
        OptionsError,
        ["compression_level", "0 to 9"],
    ),
    (EXISTING, {"max_senders": 2}, {}, OptionsError, ["max_senders", "exists already"]),
]


@pytest.mark.parametrize(("target", "options", "environment", "kind", "expected"), MISTAKES)
def test_each_mistake_is_one_line_that_names_it_and_no_key(
    target: Any,
    options: dict[str, Any],
    environment: dict[str, str],
    kind: type[Exception],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reader of a container's crash report may not have written the setting."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(kind) as raised:
        make_transport(target, **options)
    text = str(raised.value)
    assert all(words in text for words in expected), text
    assert "\n" not in text
    assert KEY not in text
    assert KEY not in repr(raised.value)
    assert raised.value.__cause__ is None
    context = raised.value.__context__
    assert context is None or raised.value.__suppress_context__ or KEY not in repr(context)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("MAX_SENDERS", "many", "must be a whole number; its default, 8, is used"),
        ("COMPRESSION_LEVEL", "22", "must be from 0 to 9 for gzip, not 22; its default, none, is used"),
        ("RETRY_STATUSES", "200", "may hold 407, 408, 421, 425 and 500 to 599, not 200"),
        ("SPOOL_DURABILITY", "disk", "must be one of process, host; host, the stronger one, is used"),
    ],
)
def test_a_variable_that_can_not_be_used_costs_that_option_only(
    name: str,
    text: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Deliveries continue; the log and health name the variable."""
    monkeypatch.setenv(f"TRANSPORT_KIT_{name}", text)
    with FaultServer() as server:
        transport = make_transport(server.dsn)
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        for report in (record.getMessage(), *transport.health().reasons):
            assert f"environment TRANSPORT_KIT_{name}" in report
            assert words in report
        assert transport.health().status == "warn"
        assert transport.capture_event({"message": "one"})
        assert transport.flush(SOON).ok
        assert transport.health().delivered == {"error": 1}
        transport.close()


@pytest.mark.parametrize("name", ["CA_CERTS", "CLIENT_CERT", "PROXY", "PROXY_HEADERS", "TRUST_ENV"])
@pytest.mark.parametrize(
    "target", [DSN, Dsn.parse(DSN), HttpTransport, None], ids=["text", "Dsn", "class", "environment"]
)
def test_a_variable_of_the_way_to_the_server_that_can_not_be_used_stops_deliveries(
    name: str, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may read envelopes that take another route."""
    monkeypatch.setenv("TRANSPORT_KIT_DSN", DSN)
    monkeypatch.setenv(f"TRANSPORT_KIT_{name}", "\x01")
    transport = make_transport(target)
    assert not transport.capture_event({"message": "one"})
    health = transport.health()
    assert health.status == "fail"
    assert f"environment TRANSPORT_KIT_{name}" in health.as_text()
    assert health.discarded == {"misconfigured": 1}
    assert health.pending == {}


def test_what_goes_to_a_function_needs_no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option about HTTP stops deliveries over HTTP only."""
    monkeypatch.setenv("TRANSPORT_KIT_CA_CERTS", "")
    sink: list[Envelope] = []
    transport = make_transport(sink.append)
    assert transport.capture_event({"message": "one"})
    assert len(sink) == 1


def test_a_package_that_is_missing_for_a_variable_leaves_the_default(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As an argument it is an error; as a variable it must not stop an app's deliveries."""
    monkeypatch.setattr("transport_kit.transport.wire.compression.find_spec", lambda package: None)
    with pytest.raises(MissingExtra):
        make_transport(DSN, compression="br")
    monkeypatch.setenv("TRANSPORT_KIT_COMPRESSION", "br")
    transport = make_transport(DSN)
    assert transport.options.compression == "gzip"
    assert "pip install 'transport-kit[br]'" in caplog.text
    assert transport.health().status == "warn"


def test_a_key_that_most_servers_refuse_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Kent accepts any key, so it can't be an error; the key is not shown."""
    with caplog.at_level(logging.WARNING):
        make_transport("http://dummy-key@localhost/1")
    (record,) = caplog.records
    assert record.name == "transport_kit"
    assert "32 hexadecimal digits" in record.getMessage()
    assert "dummy-key" not in record.getMessage()


def test_resolved_options_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Integrations resolve all options at once, and None then means off."""
    monkeypatch.setenv("TRANSPORT_KIT_DSN", OTHER)
    monkeypatch.setenv("TRANSPORT_KIT_MAX_SENDERS", "3")
    options = TransportOptions(max_senders=5)
    assert isinstance(build_transport(None, options), NullTransport)
    assert build_transport(DSN, options).options is options
    assert build_transport(EXISTING, options) is EXISTING


def test_a_subclass_of_ones_own_is_made_like_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hooks of `BaseHttpTransport` are public: a class that defines them is a target."""

    class Own(BaseHttpTransport):
        def _make_pool(self) -> str:
            return "pool"

    monkeypatch.setenv("TRANSPORT_KIT_DSN", DSN)
    transport = make_transport(Own, max_senders=2)
    assert type(transport) is Own
    assert transport.options.max_senders == 2
