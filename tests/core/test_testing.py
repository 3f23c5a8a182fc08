"""CapturedTransport and its fixtures, which tests of apps use."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from transport_kit.config.options import ReporterOptions, TransportOptions
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.item import Item
from transport_kit.kit.kit import Kit
from transport_kit.reporting import Reporter
from transport_kit.testing import CapturedTransport
from transport_kit.testing.fixtures import captured_envelopes, captured_events, captured_transport
from transport_kit.transport.factory import make_transport

__all__ = ["captured_envelopes", "captured_events", "captured_transport"]


@pytest.fixture(name="transport")
def _transport() -> Iterator[CapturedTransport]:
    """Return a transport that stores envelopes; closed after the test."""
    with CapturedTransport(shutdown_timeout=1.0) as transport:
        yield transport


def test_what_is_captured_is_what_would_be_sent(transport: CapturedTransport) -> None:
    """An envelope is sealed when it is captured, so later changes by the app have no effect on it."""
    event: dict[str, Any] = {"message": "x", "extra": {"a": 1}}
    assert transport.capture_event(event)
    event["extra"]["a"] = 2
    assert transport.events[0]["extra"] == {"a": 1}
    assert b'"extra":{"a":1}' in transport.envelopes[0].items[0].get_bytes()
    assert transport.envelopes[0].headers["event_id"] == transport.events[0]["event_id"]
    assert Envelope.deserialize(transport.sealed[0]).serialize() == transport.sealed[0]
    assert transport.health().delivered == {"error": 1}


def test_items_are_found_by_type(transport: CapturedTransport) -> None:
    """`events` contains error events, `payloads` any type."""
    transport.capture_event({"type": "transaction", "transaction": "/checkout", "spans": []})
    transport.capture_envelope(Envelope.event({"message": "x"}).add_session({"sid": "1"}))
    assert [event["message"] for event in transport.events] == ["x"]
    assert [payload["transaction"] for payload in transport.payloads("transaction")] == ["/checkout"]
    assert transport.payloads("session") == [{"sid": "1"}]
    assert transport.payloads("check_in") == []


def test_an_attachment_that_would_be_left_out_is_left_out_counted_and_said(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The log shows why a test does not find its attachment."""
    with CapturedTransport(max_attachment_bytes=10) as transport:
        envelope = Envelope.event({"message": "x"}).add_attachment(b"y" * 20, filename="big")
        envelope.add_attachment(tmp_path / "gone", filename="gone").add_attachment(b"fits", filename="small")
        assert transport.capture_envelope(envelope)
        assert [item.headers.get("filename") for item in transport.envelopes[0].items] == [None, "small"]
        health = transport.health()
        assert health.delivered == {"error": 1, "attachment": 4}
        assert health.discarded_by_category == {"internal_sdk_error": {"attachment": 21}}
        assert health.captured == {"error": 1, "attachment": 25}
    assert caplog.text.count("an item was left out") == 2


def test_it_refuses_what_a_real_transport_refuses(
    transport: CapturedTransport, caplog: pytest.LogCaptureFixture
) -> None:
    """A test must not pass with an event that production would drop; the log has the reason."""
    assert not transport.capture_envelope(Envelope(items=[Item([1], type="event")]))
    assert not transport.capture_envelope(Envelope())
    assert "not a JSON object" in caplog.records[0].getMessage()
    assert transport.envelopes == []
    assert transport.health().discarded_by_category == {"internal_sdk_error": {"error": 1}}
    small = CapturedTransport(TransportOptions(max_attachment_bytes=10))
    assert not small.capture_envelope(Envelope().add_attachment(b"x" * 11, filename="a"))


def test_it_can_be_cleared_and_read_after_the_end(transport: CapturedTransport) -> None:
    """One transport for several steps of a test; assertions may follow the `with` block."""
    transport.capture_event({"message": "first"})
    events = transport.events
    transport.clear()
    assert (transport.sealed, transport.envelopes, transport.events) == ([], [], [])
    transport.capture_event({"message": "second"})
    transport.close()
    assert not transport.capture_event({"message": "late"})
    assert [event["message"] for event in events] == ["second"]
    assert transport.health().delivered == {"error": 2}


def test_it_goes_wherever_a_transport_goes() -> None:
    """Only one setting of the app differs from production."""
    transport = CapturedTransport()
    assert make_transport(transport) is transport
    kit = Kit({"dsn": transport}, environ={})
    kit.start()
    try:
        raise ValueError("boom")
    except ValueError as error:
        event_id = kit.capture_exception(error)
    assert event_id is not None
    assert [event["event_id"] for event in transport.events] == [event_id]
    assert isinstance(make_transport(CapturedTransport, max_senders=2), CapturedTransport)
    with pytest.raises(TypeError, match="either options or fields"):
        CapturedTransport(TransportOptions(), max_senders=2)


def test_captures_of_many_threads_are_all_kept(transport: CapturedTransport) -> None:
    """Tested apps may have threads."""
    threads = [
        threading.Thread(target=lambda: [transport.capture_event({"message": "x"}) for _ in range(100)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(transport.sealed) == len(transport.envelopes) == len(transport.events) == 400


def test_the_fixtures_grow_with_what_is_captured(
    captured_transport: CapturedTransport,
    captured_events: list[dict[str, Any]],
    captured_envelopes: list[Envelope],
) -> None:
    """A test requests the fixtures that it reads, and passes the transport to its app."""
    assert captured_events == []
    captured_transport.capture_event({"message": "x"})
    assert [event["message"] for event in captured_events] == ["x"]
    assert len(captured_envelopes) == 1


def test_a_failed_assertion_says_what_the_events_are_about(transport: CapturedTransport) -> None:
    """An event has 20 kB; a failed assertion shows one line of it."""
    reporter = Reporter(transport, ReporterOptions(detect_release=False))
    try:
        raise ValueError("boom")
    except ValueError as error:
        reporter.capture_exception(error, transaction="/carts/{id}")
    reporter.capture_message("stock is low " + 100 * "x", level="warning")
    reporter.capture_event({"logentry": {"formatted": "it failed"}})
    transport.capture_event({"event_id": "a" * 32, "exception": {"values": []}})
    assert repr(transport.events) == (
        "[<error ValueError: boom, in /carts/{id}>, "
        f"<warning stock is low {87 * 'x'}...>, <error it failed>, <error {'a' * 32}>]"
    )
    with pytest.raises(AssertionError, match=r"where 4 = len.*<error ValueError: boom, in /carts/"):
        assert len(transport.events) == 1


@pytest.mark.parametrize("plugin", ["transport_kit.testing", "transport_kit.testing.fixtures"])
def test_a_conftest_loads_the_fixtures_by_one_line(plugin: str, tmp_path: Path) -> None:
    """pytest must not warn if the conftest has imported the tools before."""
    (tmp_path / "conftest.py").write_text(
        f"from transport_kit.testing import CapturedTransport\npytest_plugins = [{plugin!r}]\n"
    )
    (tmp_path / "test_shop.py").write_text(
        "def test_it(captured_transport, captured_events, captured_envelopes):\n"
        "    captured_transport.capture_event({'message': 'x'})\n"
        "    assert (len(captured_events), len(captured_envelopes)) == (1, 1)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", tmp_path],
        env=os.environ | {"PYTHONPATH": str(root)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_tools_need_no_pytest() -> None:
    """Demos and other test runners use them too."""
    code = "import sys, transport_kit.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
