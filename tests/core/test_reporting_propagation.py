"""Trace headers: continuing a trace, propagating it, and freezing its sampling context."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport_kit.config.dsn import Dsn
from transport_kit.config.options import ReporterOptions
from transport_kit.envelope import encoder
from transport_kit.reporting.tracing.propagation import Tracing, sentry_members
from transport_kit.reporting.tracing.trace import Trace
from transport_kit.reporting.unit_of_work import Unit

KEY = "0123456789abcdef0123456789abcdef"
DSN = Dsn.parse(f"https://{KEY}@o7.ingest.example/42")
TRACE = "771a43a4192642f0b136d5159a501700"
SPAN = "a0cfbde2bdff3adc"


class Called(Unit):
    """A unit of work whose caller sent headers."""

    def __init__(self, headers: Mapping[str, str] | None = None, name: tuple[str, str] | None = None) -> None:
        super().__init__()
        self.headers = headers or {}
        self.called = name

    def header(self, name: str) -> str | None:
        return self.headers.get(name)

    def name(self) -> tuple[str, str] | None:
        return self.called


def continued(headers: Mapping[str, str], dsn: Dsn | None = DSN, **options: Any) -> Trace:
    """Return the trace of a unit of work that received these headers."""
    return Tracing(ReporterOptions(**options), dsn).trace_of(Called(headers))


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (f"{TRACE}-{SPAN}", None),
        (f"{TRACE}-{SPAN}-1", True),
        (f"{TRACE}-{SPAN}-0", False),
        (f" {TRACE.upper()}-{SPAN.upper()}-1\t", True),
    ],
)
def test_a_trace_is_continued_as_its_caller_says(header: str, sampled: bool | None) -> None:
    """One trace id from the browser to the last service, with the decision made at its head."""
    trace = continued({"sentry-trace": header})
    assert (trace.trace_id, trace.parent_span_id, trace.parent_sampled) == (TRACE, SPAN, sampled)
    assert trace.span_id != SPAN


@pytest.mark.parametrize(
    "header",
    [
        "",
        "1",
        "-1",
        TRACE,
        f"{TRACE}-{SPAN}-2",
        f"{TRACE}-{SPAN}-",
        f"{TRACE}x-{SPAN}",
        f"{'0' * 32}-{SPAN}-1",
        f"{TRACE}-{'0' * 16}-1",
        "x" * 100_000,
        f"{TRACE}-{SPAN}-1\n",
        "٣" * 32 + "-" + SPAN,
    ],
)
def test_what_is_no_trace_begins_a_new_one(header: str) -> None:
    """Headers are untrusted: an id that servers refuse must not cost the transaction."""
    trace = continued({"sentry-trace": header})
    assert re.fullmatch("[0-9a-f]{32}", trace.trace_id)
    assert (trace.trace_id == TRACE, trace.parent_span_id, trace.parent_sampled) == (False, None, None)


def test_a_header_that_cannot_be_read_begins_a_new_trace() -> None:
    """A failure of the integration must not lose the event."""

    class Broken(Unit):
        def header(self, name: str) -> str | None:
            raise RuntimeError(name)

    trace = Tracing(ReporterOptions(), DSN).trace_of(Broken())
    assert len(trace.trace_id) == 32


def test_all_who_ask_see_one_trace() -> None:
    """The error in a thread and the transaction of its request belong to the same trace."""
    tracing, unit = Tracing(ReporterOptions(), DSN), Called()
    first = tracing.trace_of(unit)
    assert tracing.trace_of(unit) is first
    assert unit.settle_trace(Trace()) is first


def test_a_process_continues_the_trace_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cron job started by a traced service is a part of that trace."""
    monkeypatch.setenv("SENTRY_TRACE", f"{TRACE}-{SPAN}-1")
    monkeypatch.setenv("SENTRY_BAGGAGE", "sentry-release=a")
    unit = Unit()
    trace = Tracing(ReporterOptions(), DSN).trace_of(unit)
    assert (trace.trace_id, trace.parent_span_id) == (TRACE, SPAN)
    assert unit.header("traceparent") is None


@pytest.mark.parametrize(
    ("theirs", "strict", "goes_on"),
    [
        ("7", False, True),
        ("7", True, True),
        ("8", False, False),
        ("8", True, False),
        (None, False, True),
        (None, True, False),
    ],
)
def test_a_foreign_organisations_trace_is_not_continued(
    theirs: str | None, strict: bool, goes_on: bool
) -> None:
    """Another organisation's client must not decide our sampling, nor see our ids in its trace."""
    headers = {"sentry-trace": f"{TRACE}-{SPAN}-1"}
    if theirs:
        headers["baggage"] = f"sentry-org_id={theirs}"
    trace = continued(headers, strict_trace_continuation=strict)
    assert (trace.trace_id == TRACE) is goes_on


def test_without_an_organisation_of_our_own_only_strict_asks() -> None:
    """The DSN of a self-hosted server contains no organisation."""
    dsn = Dsn.parse(f"https://{KEY}@sentry.example/42")
    headers = {"sentry-trace": f"{TRACE}-{SPAN}-1", "baggage": "sentry-org_id=8"}
    assert continued(headers, dsn).trace_id == TRACE
    assert continued(headers, dsn, strict_trace_continuation=True).trace_id != TRACE


@pytest.mark.parametrize(
    ("header", "enabled", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", True, (True, True)),
        (f"00-{TRACE}-{SPAN}-00", True, (True, False)),
        (f"cc-{TRACE}-{SPAN}-03-what-will-be", True, (True, True)),
        (f"00-{TRACE}-{SPAN}-01", False, (False, None)),
        (f"ff-{TRACE}-{SPAN}-01", True, (False, None)),
        (f"00-{TRACE}-{'0' * 16}-01", True, (False, None)),
        ("00-1-2-3", True, (False, None)),
    ],
)
def test_traceparent_is_read_only_when_asked_for(
    header: str, enabled: bool, expected: tuple[bool, bool | None]
) -> None:
    """A service mesh may send one with every request, and would decide the app's sampling."""
    trace = continued({"traceparent": header}, propagate_traceparent=enabled)
    assert (trace.trace_id == TRACE, trace.parent_sampled) == expected


def test_sentry_trace_beats_traceparent() -> None:
    """Both arrive from a service that uses OpenTelemetry and a Sentry client."""
    headers = {"sentry-trace": f"{'a' * 32}-{SPAN}-1", "traceparent": f"00-{TRACE}-{SPAN}-00"}
    trace = continued(headers, propagate_traceparent=True)
    assert (trace.trace_id, trace.parent_sampled) == ("a" * 32, True)


def test_baggage_is_read_as_w3c_writes_it() -> None:
    """Percent-encoding, properties and foreign entries; what can't be read is left out."""
    baggage = (
        "other=1, sentry-release=shop%401.2%2C0 ;prop=1,sentry-transaction=%2Fcart%2F%7Bid%7D,"
        "sentry-,sentry-x,=,,sentry-user=%ff%f0,Sentry-no=1"
    )
    assert sentry_members(baggage) == {
        "release": "shop@1.2,0",
        "transaction": "/cart/{id}",
        "user": "\ufffd\ufffd",
    }


def test_baggage_is_bounded() -> None:
    """Each entry would be sent with every event."""
    many = sentry_members(",".join(f"sentry-k{number}={'v' * 100}" for number in range(1000)))
    assert len(many) <= 64
    assert len(sentry_members("sentry-a=" + "v" * 100_000)["a"]) <= 1024


@pytest.mark.parametrize("filling", ["x", "%22", "%01", "%ff"])
def test_a_stranger_cannot_make_our_envelopes_refused(filling: str) -> None:
    """Servers refuse an envelope with a header above 8 KiB, and the error in it would be lost."""
    baggage = ",".join(f"sentry-k{n}={filling * 200}" for n in range(60))
    assert len(encoder.dumps(sentry_members(baggage))) <= 4096


def sampling_context(tracing: Tracing, unit: Unit) -> dict[str, str]:
    trace = tracing.trace_of(unit)
    return tracing.sampling_context(unit, {"contexts": {"trace": {"trace_id": trace.trace_id}}})


def test_the_sampling_context_of_a_new_trace_says_what_servers_sample_by() -> None:
    """All values are strings; without tracing it has no rate, decision and transaction."""
    tracing = Tracing(ReporterOptions(release="shop@1", environment="staging"), DSN)
    unit = Called(name=("/cart/{id}", "route"))
    trace = tracing.trace_of(unit)
    found = sampling_context(tracing, unit)
    assert found == {
        "trace_id": trace.trace_id,
        "sample_rand": f"{trace.sample_rand:.6f}",
        "public_key": KEY,
        "release": "shop@1",
        "environment": "staging",
        "org_id": "7",
    }
    traced = Called(name=("/cart/{id}", "route"))
    trace = tracing.trace_of(traced)
    trace.sample_rate, trace.sampled = 0.25, True
    found = sampling_context(tracing, traced)
    assert (found["sample_rate"], found["sampled"], found["transaction"]) == ("0.25", "true", "/cart/{id}")


def test_a_name_taken_from_the_url_is_not_in_the_sampling_context() -> None:
    """Each id in a path would make a new time series at the server."""
    tracing, unit = Tracing(ReporterOptions(), DSN), Called(name=("/cart/17", "url"))
    trace = tracing.trace_of(unit)
    trace.sample_rate = 1.0
    found = sampling_context(tracing, unit)
    assert "transaction" not in found
    assert "sampled" not in found


def test_the_sampling_context_is_frozen_when_it_first_leaves() -> None:
    """Another service has decided by it: a later name must not change it."""
    tracing, unit = Tracing(ReporterOptions(), DSN), Called(name=("early", "route"))
    tracing.trace_of(unit).sample_rate = 1.0
    first = tracing.outgoing_headers(unit, None, None, "")["baggage"]
    unit.called = ("late", "route")
    assert "sentry-transaction=early" in first
    assert sampling_context(tracing, unit)["transaction"] == "early"
    assert tracing.outgoing_headers(unit, None, None, "")["baggage"] == first


def test_reporters_of_two_servers_each_name_their_own_key() -> None:
    """A library with its own DSN shares the process and the trace, but not the project."""
    unit = Called()
    first = sampling_context(Tracing(ReporterOptions(), None), unit)
    second = sampling_context(Tracing(ReporterOptions(), DSN), unit)
    assert "public_key" not in first
    assert second["public_key"] == KEY
    assert first["trace_id"] == second["trace_id"]


def test_an_incoming_sampling_context_is_handed_on_verbatim() -> None:
    """Only the head of a trace fills it: nothing is added here, not even the key."""
    headers = {
        "sentry-trace": f"{TRACE}-{SPAN}-1",
        "baggage": f"theirs=1,sentry-trace_id={TRACE},sentry-new=a%20b",
    }
    tracing, unit = Tracing(ReporterOptions(release="ours"), DSN), Called(headers, ("/x", "route"))
    assert sampling_context(tracing, unit) == {"trace_id": TRACE, "new": "a b"}
    out = tracing.outgoing_headers(unit, None, None, "")
    assert out["baggage"] == f"sentry-trace_id={TRACE},sentry-new=a%20b"


def test_a_caller_without_baggage_leaves_nothing_to_say() -> None:
    """Another kind of SDK began the trace: the context is frozen empty, and no header is sent."""
    tracing, unit = Tracing(ReporterOptions(), DSN), Called({"sentry-trace": f"{TRACE}-{SPAN}-1"})
    assert sampling_context(tracing, unit) == {}
    assert set(tracing.outgoing_headers(unit, None, None, "")) == {"sentry-trace"}


def test_an_event_of_another_trace_says_nothing_of_this_one() -> None:
    """An event forwarded with its own trace must not be sampled by this one."""
    tracing, unit = Tracing(ReporterOptions(), DSN), Called()
    assert tracing.sampling_context(unit, {"contexts": {"trace": {"trace_id": "b" * 32}}}) == {}
    assert tracing.sampling_context(unit, {"contexts": None}) == {}
    assert tracing.sampling_context(unit, {"contexts": {"trace": 7}}) == {}


def test_outgoing_headers_name_the_calling_span_and_keep_others_baggage() -> None:
    """The receiver's parent is the calling span; entries of other vendors must be preserved."""
    tracing = Tracing(ReporterOptions(propagate_traceparent=True), None)
    unit = Called({"sentry-trace": f"{TRACE}-{SPAN}-1", "baggage": "sentry-a=1,incoming=2"})
    out = tracing.outgoing_headers(unit, "b" * 16, "https://other.example/", "mine=3, sentry-old=4,,x=5;p=6")
    assert out == {
        "sentry-trace": f"{TRACE}-{'b' * 16}-1",
        "traceparent": f"00-{TRACE}-{'b' * 16}-01",
        "baggage": "mine=3,x=5;p=6,sentry-a=1",
    }


@pytest.mark.parametrize(("sampled", "ending"), [(True, "-1"), (False, "-0"), (None, "")])
def test_the_decision_travels_on(sampled: bool | None, ending: str) -> None:
    """A deferred decision stays deferred: the next service may decide."""
    trace = Trace()
    trace.sampled = sampled
    assert trace.header() == f"{trace.trace_id}-{trace.span_id}{ending}"


@pytest.mark.parametrize(
    ("targets", "url", "expected"),
    [
        (None, "https://anywhere.example/", True),
        ((), "https://anywhere.example/", False),
        (("shop",), "https://api.shop.example/x", True),
        (("shop",), "https://api.example/x", False),
        ((re.compile(r"^https://api\."),), "https://api.example/x", True),
        ((re.compile(r"^https://api\."),), "http://x/https://api.", False),
        (None, "https://o7.ingest.example/api/42/envelope/", False),
        (None, "http://[::1", False),
        (("/local",), "/local/path", True),
    ],
)
def test_headers_go_to_targets_only_and_never_to_the_server_of_events(
    targets: Any, url: str, expected: bool
) -> None:
    """Other hosts must not learn trace ids; requests to the event server must not be traced."""
    tracing = Tracing(ReporterOptions(trace_propagation_targets=targets), DSN)
    assert bool(tracing.outgoing_headers(Called(), None, url, "")) is expected


@given(
    rate=st.floats(0, 1).map(lambda rate: f"{rate:.6f}"),
    sampled=st.booleans(),
)
def test_a_missing_random_number_is_drawn_such_that_it_agrees_with_the_decision(
    rate: str, sampled: bool
) -> None:
    """Later services decide by it: sampled if and only if it is below the rate."""
    trace = continued(
        {"sentry-trace": f"{TRACE}-{SPAN}-{int(sampled)}", "baggage": f"sentry-sample_rate={rate}"}
    )
    assert 0.0 <= trace.sample_rand < 1.0
    assert trace.sample_rand == round(trace.sample_rand, 6)
    if 0.0 < float(rate) < 0.999999:
        assert (trace.sample_rand < float(rate)) is sampled


@pytest.mark.parametrize("given_rand", ["0.5", "0", "0.999999"])
def test_a_random_number_that_arrives_is_kept(given_rand: str) -> None:
    """With one number for the whole trace, all services select the same traces."""
    trace = continued({"sentry-trace": f"{TRACE}-{SPAN}", "baggage": f"sentry-sample_rand={given_rand}"})
    assert trace.sample_rand == float(given_rand)


@pytest.mark.parametrize("nonsense", ["1", "-1", "nan", "inf", "x", "", "1e400"])
def test_a_random_number_that_is_none_is_drawn(nonsense: str) -> None:
    """A hostile number would sample everything, or break the arithmetic."""
    trace = continued({"sentry-trace": f"{TRACE}-{SPAN}", "baggage": f"sentry-sample_rand={nonsense}"})
    assert 0.0 <= trace.sample_rand < 1.0


@given(
    sentry_trace=st.text(max_size=80),
    baggage=st.text(max_size=200) | st.text("sentry-=,;% \x00é", max_size=200),
    parent=st.text(max_size=80),
)
def test_no_header_raises_and_all_that_goes_on_is_sendable(
    sentry_trace: str, baggage: str, parent: str
) -> None:
    """Received text goes into outgoing headers: it must be one line of ASCII."""
    for first in (sentry_trace, f"{TRACE}-{SPAN}-1"):
        tracing = Tracing(ReporterOptions(propagate_traceparent=True), DSN)
        unit = Called({"sentry-trace": first, "baggage": baggage, "traceparent": parent})
        for value in tracing.outgoing_headers(unit, None, None, "").values():
            assert value.isascii()
            assert value.isprintable()
        for name, text in sampling_context(tracing, unit).items():
            assert (name + text).encode()
