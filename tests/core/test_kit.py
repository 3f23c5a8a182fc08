"""The kit: a configuration error is one log line and never an outage; a closed transport is replaced."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from transport_kit.config.dsn import Dsn
from transport_kit.config.options import TransportOptions
from transport_kit.envelope.envelope import Envelope
from transport_kit.kit.kit import Kit
from transport_kit.kit.routes import Answer
from transport_kit.runtime.errors import InvalidDsn, MissingExtra, OptionsError
from transport_kit.transport.base import Transport
from transport_kit.transport.local import FunctionTransport, NullTransport
from transport_kit.transport.worker.outcome import FlushReport

KEY = "0123456789abcdef0123456789abcdef"
DSN = f"http://{KEY}@127.0.0.1:9/42"
TOKEN = "a-long-enough-token"


def make(
    values: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    shared: bool = False,
    **more: Any,
) -> Kit:
    return Kit(
        {**(values or {}), **more}, source="settings.TRANSPORT_KIT", environ=environ or {}, shared=shared
    )


def health(kit: Kit, **request: Any) -> Any:
    reply = kit.answer("health", method="GET", query_string=b"", accept=None, authorization=None, **request)
    return reply.status, json.loads(reply.body)


class SlowFlush(FunctionTransport):
    """A transport of the user's, whose flush waits until the test releases it."""

    def __init__(self, options: TransportOptions | None = None) -> None:
        super().__init__(lambda envelope: None, options)
        self.entered = threading.Event()
        self.released = threading.Event()
        self.flushed_on: list[int] = []

    def _flush(self, timeout: float, until: str) -> FlushReport:
        self.flushed_on.append(threading.get_ident())
        self.entered.set()
        return FlushReport(self.released.wait(timeout), delivered=1)


def test_the_dsn_may_be_a_text_a_dsn_or_a_callable() -> None:
    """An integration accepts every target of `make_transport`."""
    sink: list[Envelope] = []
    for target in (DSN, Dsn.parse(DSN)):
        kit = make(dsn=target)
        assert kit.transport.dsn == Dsn.parse(DSN)
        assert kit.close(0).ok
    kit = make(dsn=sink.append)
    assert kit.capture_exception(ValueError("boom")) is not None
    assert len(sink) == 1


def test_names_are_taken_in_either_case() -> None:
    """Settings modules use capitals, keyword arguments don't."""
    kit = make({"DSN": DSN, "MAX_QUEUE_ITEMS": 7, "path": "/internal", "Release": "shop@1"})
    assert kit.problem is None
    assert kit.transport.options.max_queue_items == 7
    assert kit.options.path == "/internal"
    assert kit.reporter.options.release == "shop@1"


def test_the_environment_fills_what_is_not_given() -> None:
    """One image runs in staging and in production."""
    environ = {
        "TRANSPORT_KIT_DSN": DSN,
        "TRANSPORT_KIT_PATH": "/from-env",
        "TRANSPORT_KIT_MAX_SENDERS": "3",
    }
    kit = make({"dsn": None, "max_senders": 2}, environ)
    assert kit.transport.dsn == Dsn.parse(DSN)
    assert kit.options.path == "/from-env"
    assert kit.transport.options.max_senders == 2


@pytest.mark.parametrize("values", [{"dsn": ""}, {}, {"dsn": None}])
def test_no_dsn_is_valid_and_means_off(values: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    """A developer's machine has no DSN, which is not an error."""
    environ = {"TRANSPORT_KIT_DSN": DSN} if values == {"dsn": ""} else {}
    kit = make(values, environ)
    assert isinstance(kit.transport, NullTransport)
    assert kit.problem is None
    assert health(kit)[0] == 200
    assert not caplog.records


BAD = [
    ({"dsn": f"http://{KEY}@/42"}, "missing_host", InvalidDsn),
    ({"dsn": f"{KEY}"}, "dsn (settings.TRANSPORT_KIT)", InvalidDsn),
    ({"dsn": 42}, "dsn (settings.TRANSPORT_KIT): must be a DSN", OptionsError),
    ({"dsn": DSN, "DSN": DSN}, "given twice", OptionsError),
]


@pytest.mark.parametrize(("values", "reason", "kind"), BAD)
def test_a_configuration_error_is_one_error_line_and_a_transport_that_counts(
    values: dict[str, object], reason: str, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """A typo in a setting must not take a shop offline; health and the log name it."""
    kit = make(values, {}, health_details="always")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.name == "transport_kit"
    assert reason in record.getMessage()
    assert "\n" not in record.getMessage()
    assert KEY not in caplog.text
    assert kit.capture_exception(ValueError("boom")) is None
    status, body = health(kit)
    assert (status, body["status"]) == (503, "fail")
    assert reason in body["output"]
    assert body["checks"]["items:discarded"][0]["observedValue"] == {"misconfigured": {"error": 1}}
    kit.start()
    assert kit.close().ok
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("values", "reason", "kind"), BAD)
def test_a_configuration_error_is_raised_when_strict(
    values: dict[str, object], reason: str, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """With `strict`, an app prefers not to start."""
    with pytest.raises(kind) as caught:
        make(values, strict=True)
    assert KEY not in str(caught.value)
    assert not caplog.records


#: Options that can't be used, with a valid DSN.
UNUSABLE = [
    ({"dsn": DSN, "max_sender": 2}, "did you mean max_senders"),
    ({"dsn": DSN, "max_senders": "two"}, "max_senders (settings.TRANSPORT_KIT)"),
    ({"dsn": DSN, "release": 5}, "release (settings.TRANSPORT_KIT)"),
    ({"dsn": DSN, "path": "no-slash"}, "path (settings.TRANSPORT_KIT)"),
    ({"dsn": NullTransport(), "max_senders": 2}, "max_senders (settings.TRANSPORT_KIT)"),
    ({"dsn": DSN, "of_a_newer_version": 2}, "unknown option"),
    ({"dsn": DSN, "compression_level": 22}, "compression_level (settings.TRANSPORT_KIT)"),
    ({"dsn": DSN, 7: "x"}, "unknown option"),
]


@pytest.mark.parametrize(("values", "reason"), UNUSABLE)
def test_an_option_that_can_not_be_used_is_one_error_line_and_deliveries_go_on(
    values: dict[Any, object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The default is used; health and the log name the option and its source."""
    kit = make(values, {}, health_details="always")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.name == "transport_kit"
    assert reason in record.getMessage()
    assert KEY not in caplog.text
    status, body = health(kit)
    assert (status, body["status"]) == (200, "warn")
    assert reason in body["output"]
    assert kit.problem is None
    kit.close(0)
    kit.start()
    assert len(caplog.records) == 1
    assert reason in health(kit)[1]["output"]
    kit.close(0)


@pytest.mark.parametrize(("values", "reason"), UNUSABLE)
def test_an_option_that_can_not_be_used_is_raised_when_strict(
    values: dict[Any, object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A pipeline checks settings about which production is lenient."""
    with pytest.raises(OptionsError, match=re.escape(reason.split(" ")[0])):
        make(values, strict=True)
    assert not caplog.records


@pytest.mark.parametrize("name", ["ca_certs", "client_cert", "proxy", "proxy_headers", "CA_CERT"])
def test_a_way_to_the_server_that_can_not_be_used_stops_deliveries(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Others may read envelopes that bypass the proxy or trust another CA."""
    kit = make({"dsn": DSN, name: 7})
    assert kit.capture_exception(ValueError("boom")) is None
    assert health(kit)[1]["status"] == "fail"
    assert kit.problem is not None
    assert "nothing is delivered until it is mended" in kit.problem
    assert len(caplog.records) == 1


def test_a_queue_that_can_not_be_used_fails_health_while_memory_stands_in() -> None:
    """Accepted envelopes no longer survive the process, on which the user may rely."""
    sink: list[Envelope] = []
    kit = make({"dsn": sink.append, "queue": "redis://queue"}, health_details="always")
    assert kit.capture_exception(ValueError("boom"))
    assert len(sink) == 1
    assert health(kit)[1]["status"] == "fail"


def test_a_filter_that_can_not_be_used_lets_nothing_through() -> None:
    """Events must not be sent unfiltered."""
    sink: list[Envelope] = []
    kit = make({"dsn": sink.append, "before_send": "module.function"})
    assert kit.capture_exception(ValueError("boom")) is None
    assert not sink
    assert kit.transport.health().discarded == {"before_send": 1}


def test_strict_may_come_from_the_environment() -> None:
    """The pipeline may be strict about settings with which production is lenient."""
    with pytest.raises(InvalidDsn):
        make({"dsn": "nonsense"}, {"TRANSPORT_KIT_STRICT": "yes"})


def test_an_error_in_the_environment_names_the_variable(caplog: pytest.LogCaptureFixture) -> None:
    """A wrong variable can't be found in the settings."""
    make(environ={"TRANSPORT_KIT_DSN": f"http://{KEY}@/1"})
    make(environ={"TRANSPORT_KIT_MAX_SENDERS": "many"})
    first, second = (record.getMessage() for record in caplog.records)
    assert "dsn (environment TRANSPORT_KIT_DSN)" in first
    assert "environment TRANSPORT_KIT_MAX_SENDERS" in second
    assert KEY not in caplog.text


def test_health_answers_where_and_to_whom_it_was_told_although_another_option_is_wrong() -> None:
    """The route that shows the error must not depend on it; nor may its protection."""
    environ = {
        "TRANSPORT_KIT_FLUSH_TOKEN": TOKEN,
        "TRANSPORT_KIT_HEALTH_DETAILS": "sometimes",
        "TRANSPORT_KIT_MAX_SENDERS": "9",
    }
    kit = make({"dsn": DSN, "path": "/internal", "max_senders": "two", "capture_errors": "maybe"}, environ)
    assert kit.match("/internal/health") == "health"
    assert kit.match("/transport/health") is None
    assert kit.options.flush_token == TOKEN
    assert kit.options.health_details == "token"
    assert kit.options.capture_errors is False


def test_an_error_that_is_not_ours_is_named_by_class_only(caplog: pytest.LogCaptureFixture) -> None:
    """The text of a foreign exception may contain the key."""

    class Broken(FunctionTransport):
        def __init__(self, options: TransportOptions | None = None) -> None:
            raise RuntimeError(f"can't use {DSN}")

    kit = make(dsn=Broken)
    (record,) = caplog.records
    assert "RuntimeError" in record.getMessage()
    assert KEY not in caplog.text
    assert kit.problem is not None
    with pytest.raises(RuntimeError):
        make(dsn=Broken, strict=True)


def test_a_missing_extra_says_what_to_install(caplog: pytest.LogCaptureFixture) -> None:
    """The message contains the install line."""

    class Needy(FunctionTransport):
        def __init__(self, options: TransportOptions | None = None) -> None:
            raise MissingExtra("compression", "brotli", "br")

    make(dsn=Needy)
    assert "pip install 'transport-kit[br]'" in caplog.text


def test_a_second_start_makes_a_new_transport_and_reporter() -> None:
    """A transport is closed for good, but test suites start the same app many times."""
    sink: list[Envelope] = []
    kit = make(dsn=sink.append)
    first = kit.transport
    kit.start()
    assert kit.transport is first
    assert kit.close().ok
    assert kit.capture_exception(ValueError("between")) is None
    assert health(kit)[0] == 503
    kit.start()
    assert kit.transport is not first
    assert kit.capture_exception(ValueError("after")) is not None
    assert health(kit)[0] == 200
    assert len(sink) == 1


def test_starts_at_the_same_time_agree_on_one_transport() -> None:
    """Otherwise captures of one thread would go to a transport that nobody closes."""
    kit = make(dsn=lambda envelope: None)
    kit.close()
    ready, transports = threading.Barrier(8), []

    def start() -> None:
        ready.wait(30)
        kit.start()
        transports.append(kit.transport)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(transports) == 8
    assert len(set(map(id, transports))) == 1
    assert not transports[0].closed


def test_a_transport_handed_in_is_flushed_and_stays_open() -> None:
    """Its creator closes it, as another app may use it."""
    own = SlowFlush()
    own.released.set()
    kit = make(dsn=own)
    assert kit.close(1.0).delivered == 1
    assert asyncio.run(kit.aclose(1.0)).delivered == 1
    assert not own.closed
    own.close()
    kit.start()
    assert kit.transport is own


def test_a_class_of_transport_is_made_by_the_kit_and_closed_with_it() -> None:
    """The kit owns a transport that it made."""
    kit = make(dsn=SlowFlush)
    own = kit.transport
    assert isinstance(own, SlowFlush)
    own.released.set()
    assert asyncio.run(kit.aclose(1.0)).ok
    assert own.closed


def test_the_four_leaves_match_exactly_under_the_path() -> None:
    """`/transport/healthy` belongs to the app."""
    kit = make(dsn="")
    assert {kit.match(f"/transport/{leaf}") for leaf in ("live", "ready", "health", "flush")} == {
        "live",
        "ready",
        "health",
        "flush",
    }
    for other in (
        "/transport",
        "/transport/",
        "/transport/health/",
        "/transport/Health",
        "/x/transport/health",
        "",
    ):
        assert kit.match(other) is None
    assert make(dsn="", path=None).match("/transport/health") is None


def flush(kit: Kit, query: bytes = b"timeout=10") -> dict[str, Any]:
    return {
        "leaf": "flush",
        "method": "POST",
        "query_string": query,
        "accept": None,
        "authorization": f"Bearer {TOKEN}",
    }


def test_a_flush_request_waits_for_the_transport_and_answers_its_report() -> None:
    """WSGI frameworks wait on the request's own thread."""
    own = SlowFlush()
    kit = make(dsn=own, flush_token=TOKEN)
    reply = kit.answer(**flush(kit, b"timeout=0"))
    assert (reply.status, json.loads(reply.body)["ok"]) == (504, False)
    own.released.set()
    reply = kit.answer(**flush(kit))
    assert (reply.status, json.loads(reply.body)["delivered"]) == (200, 1)


def test_a_flush_request_does_not_block_the_event_loop() -> None:
    """A slow flush must not block the other requests of an async server."""
    own = SlowFlush()
    kit = make(dsn=own, flush_token=TOKEN)

    async def scenario() -> Answer:
        waiting = asyncio.ensure_future(kit.aanswer(**flush(kit)))
        while not own.entered.is_set():
            await asyncio.sleep(0)
        live = await kit.aanswer("live", method="GET", query_string="", accept=None, authorization=None)
        assert live.status == 200
        assert not waiting.done()
        own.released.set()
        return await waiting

    reply = asyncio.run(scenario())
    assert reply.status == 200
    assert own.flushed_on[0] != threading.get_ident()


def test_by_default_the_environment_of_the_process_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deployments set variables there."""
    monkeypatch.setenv("TRANSPORT_KIT_DSN", DSN)
    kit = Kit({}, source="test")
    assert kit.transport.dsn == Dsn.parse(DSN)
    assert isinstance(kit.transport, Transport)
    kit.close(0)


def test_no_secret_is_in_the_repr() -> None:
    """Debuggers and error pages print objects."""
    assert KEY not in repr(make(dsn=DSN, flush_token=TOKEN))
    assert TOKEN not in repr(make(dsn=DSN, flush_token=TOKEN).options)


def test_kits_that_share_use_one_transport_for_equal_dsn_and_options() -> None:
    """Two apps of a process then are one client of the server, with one queue, connection and pause."""
    first, second = (
        make(dsn=target, shared=True, release=release) for target, release in ((DSN, "a"), (DSN, "b"))
    )
    assert first.transport is second.transport
    assert first.reporter.options.release != second.reporter.options.release
    assert make(dsn=Dsn.parse(DSN), shared=True).transport is first.transport
    assert make(dsn=DSN, shared=True, max_senders=1).transport is not first.transport
    assert make(dsn=DSN).transport is not first.transport
    assert first.close(0).ok
    second.start()
    assert second.transport is not first.transport
    assert make(dsn=DSN, shared=True).transport is second.transport
    assert second.close(0).ok


@pytest.mark.parametrize("target", ["", " ", "nonsense"])
def test_kits_without_a_usable_dsn_share_nothing(target: str) -> None:
    """Each app reports the error in its own settings."""
    first, second = make(dsn=target, shared=True), make(dsn=target, shared=True)
    assert isinstance(first.transport, NullTransport)
    assert first.transport is not second.transport
