"""The effect of each answer of a server: delivered, retried and lost envelopes, and log lines."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.connections_support import HttpProxy
from tests.core.worker_support import until
from tests.process.arrivals import reported_losses
from tests.timing import SOON, scaled
from transport_kit.envelope.envelope import Envelope
from transport_kit.testing import FaultServer
from transport_kit.transport.factory import make_transport
from transport_kit.transport.http import HttpTransport

#: The DSN of a server that is reached by a proxy only.
ELSEWHERE = "{}://0123456789abcdef0123456789abcdef@sentry.invalid/1"
QUICK: dict[str, Any] = {"backoff_base": 0.01, "backoff_max": 0.01, "shutdown_timeout": SOON}


@pytest.fixture(name="server")
def _server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture(name="transport")
def _transport(server: FaultServer) -> Iterator[HttpTransport]:
    """Delivers to `server`, and repeats quickly."""
    transport = transport_to(server)
    yield transport
    transport.kill()


def transport_to(server: FaultServer, **options: Any) -> HttpTransport:
    made = make_transport(server.dsn, **{**QUICK, **options})
    assert isinstance(made, HttpTransport)
    return made


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert {record.name for record in caplog.records} <= {"transport_kit"}
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_a_delivery(status: int, server: FaultServer, transport: HttpTransport) -> None:
    """Servers that speak the protocol differ in what they answer to an accepted envelope."""
    server.answer(status)
    assert transport.capture_event({"message": "x"})
    assert transport.flush().ok
    assert transport.health().delivered == {"error": 1}
    assert transport.health().status == "pass"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(
    status: int, server: FaultServer, transport: HttpTransport, caplog: pytest.LogCaptureFixture
) -> None:
    """Following a 303 would turn the POST into an empty GET that counts as delivered.

    The log line shows the target, and so which DSN or proxy is wrong.
    """
    server.answer(status, {"Location": f"{server.url}/login?key={server.key}"})
    assert transport.capture_event({"message": "x"})
    assert transport.flush().ok
    assert {(request.method, "/login" in request.path) for request in server.requests} == {("POST", False)}
    assert transport.health().discarded_by_category == {"send_error": {"error": 1}}
    (line,) = lines(caplog)
    assert f"answered {status}" in line
    assert "/login" in line
    assert server.key not in line


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422, 501, 505, 510])
def test_a_refusal_is_final(
    status: int, server: FaultServer, transport: HttpTransport, caplog: pytest.LogCaptureFixture
) -> None:
    """The same bytes would be refused again: they are counted, the reason is logged, the next one is sent."""
    server.answer(status, body=b'{"detail":"bad envelope"}')
    assert transport.capture_event({"message": "refused"})
    assert transport.flush().ok
    health = transport.health()
    assert health.discarded_by_category == {"send_error": {"error": 1}}
    assert health.last_error is not None
    assert (health.last_error.kind, health.last_error.status) == ("http", status)
    assert health.status == ("fail" if status in (401, 403) else "warn")
    (line,) = lines(caplog)
    assert str(status) in line
    assert "bad envelope" in line
    server.answer(200)
    assert transport.capture_event({"message": "next"})
    assert transport.flush().ok
    assert transport.health().delivered == {"error": 1}
    # A report of the loss may come as well, where it was known before the flush began.
    assert len([request for request in server.requests if request.event_id is not None]) == 2


@pytest.mark.parametrize(
    "status", [408, 425, 502, 503, 504, 507, 508, 520, 521, 522, 523, 524, 525, 526, 529, 599]
)
def test_an_outage_behind_a_load_balancer_loses_nothing(
    status: int, server: FaultServer, transport: HttpTransport, caplog: pytest.LogCaptureFixture
) -> None:
    """A documented deviation: these statuses are how an outage looks from outside."""
    caplog.set_level(logging.INFO, "transport_kit")
    server.answer(status, times=2)
    assert transport.capture_event({"message": "x"})
    assert transport.flush().ok
    assert transport.health().delivered == {"error": 1}
    assert len(server.event_ids()) == 1
    assert transport.health().discarded_by_category == {}
    assert [line for line in lines(caplog) if str(status) in line] == [
        f"the server answered {status}; the delivery is repeated later"
    ]
    assert lines(caplog)[-1] == "deliveries work again"


def test_a_500_is_repeated_and_may_be_an_outage(server: FaultServer, transport: HttpTransport) -> None:
    """A real server answered 500 while its database was locked, and took the envelope a moment later."""
    server.answer(500, body=b"database is locked", times=4)
    assert transport.capture_event({"message": "x"})
    assert transport.flush().ok
    assert transport.health().delivered == {"error": 1}
    assert transport.health().discarded_by_category == {}


def test_an_envelope_is_given_up_after_five_answers_of_500(
    server: FaultServer, transport: HttpTransport, caplog: pytest.LogCaptureFixture
) -> None:
    """The fifth 500 to one envelope means that the server can't stand it; the next one is delivered."""
    server.answer(500, body=b"no such column", times=5)
    assert transport.capture_event({"message": "poison"})
    assert transport.flush().ok
    assert transport.health().discarded_by_category == {"send_error": {"error": 1}}
    assert transport.health().breaker == "closed"
    assert transport.capture_event({"message": "next"})
    assert transport.flush().ok
    assert transport.health().delivered == {"error": 1}
    (line,) = [line for line in lines(caplog) if "500" in line]
    assert line == "the server answered 500; the delivery is repeated later, at most 4 times: no such column"


def test_the_five_answers_of_500_are_counted_across_restarts_of_a_spool(
    server: FaultServer, tmp_path: Path
) -> None:
    """An envelope that the server can't stand must not be tried five times by each process."""
    queue = f"file://{tmp_path}/spool"
    server.answer(500, times=3)
    server.fault("reset")
    with transport_to(server, queue=queue, shutdown_timeout=0) as transport:
        assert transport.capture_event({"message": "poison"})
        assert server.wait_for_requests(4, SOON)
    server.answer(500)
    with transport_to(server, queue=queue) as transport:
        transport.start()
        assert until(lambda: transport.health().discarded_by_category == {"send_error": {"error": 1}})
        server.answer(200)
    faults = [request for request in server.requests if request.status == 500 and request.event_id]
    assert len(faults) == 5
    (letter,) = (tmp_path / "spool").rglob("dead/*.json")
    assert json.loads(letter.read_text())["reason"] == "send_error"


@pytest.mark.parametrize("made", [Envelope().add_session({"sid": "1"}), Envelope().add_log([{"body": "x"}])])
@pytest.mark.parametrize(
    ("status", "reason"),
    [(500, "send_error"), (504, "network_error"), (520, "network_error"), (524, "network_error")],
)
def test_an_answer_that_leaves_open_whether_it_was_stored_repeats_no_session(
    status: int, reason: str, made: Envelope, server: FaultServer, transport: HttpTransport
) -> None:
    """Servers recognise a repeated event by its id; a repeated session or log would count twice."""
    server.answer(status, times=1)
    assert transport.capture_envelope(made)
    assert transport.flush().ok
    assert list(transport.health().discarded_by_category) == [reason]
    assert transport.health().delivered == {}


@pytest.mark.parametrize("status", [408, 421, 425, 500, 503, 507, 520])
def test_the_strict_rule_makes_any_answer_final(status: int, server: FaultServer) -> None:
    """`retry_statuses=()` is for servers that count attempts."""
    with transport_to(server, retry_statuses=()) as transport:
        server.answer(status)
        assert transport.capture_event({"message": "x"})
        assert transport.flush().ok
    assert transport.health().discarded_by_category["send_error"] == {"error": 1}
    assert len(server.requests) >= 1


def test_under_the_strict_rule_a_503_with_retry_after_is_a_limit(server: FaultServer) -> None:
    """Without retries no envelope has a pause, so the next one would go to the same server."""
    with transport_to(server, retry_statuses=()) as transport:
        server.answer(503, {"Retry-After": "60"}, times=1)
        assert transport.capture_event({"message": "x"})
        assert transport.flush().ok
        health = transport.health()
        assert health.discarded_by_category == {"send_error": {"error": 1}}
        assert list(health.limits) == ["*"]
        transport.kill()


@pytest.mark.parametrize("fault", ["reset", "close", "half", "garbage", "html", "reset_on_accept"])
def test_no_usable_answer_means_another_attempt(
    fault: str, server: FaultServer, transport: HttpTransport
) -> None:
    """A broken proxy must cost time, not events."""
    server.fault(fault, times=1)
    assert transport.capture_event({"message": "x"})
    assert transport.flush().ok
    health = transport.health()
    assert health.delivered == {"error": 1}
    assert health.discarded_by_category == {}
    assert health.status == "pass"
    assert health.last_error is not None  # still known, and no longer a reason to warn


@pytest.mark.parametrize(("status", "letters"), [(413, 0), (400, 0), (500, 1)])
def test_only_an_envelope_that_breaks_the_server_becomes_a_dead_letter(
    server: FaultServer, tmp_path: Path, status: int, letters: int
) -> None:
    """A refused one would be refused again, and its bytes would take the room of what a person can save."""
    server.answer(status)
    with transport_to(server, queue=f"file://{tmp_path}/spool") as transport:
        transport.capture_event({"message": "x"})
        assert transport.flush(SOON, until="delivered").ok
        assert transport.health().discarded_by_category == {"send_error": {"error": 1}}
    assert len(list(tmp_path.glob("spool/*/dead/*.envelope"))) == letters


def test_an_early_413_is_read(server: FaultServer, transport: HttpTransport) -> None:
    """A server that refuses a large body answers before it has read it, then closes."""
    server.fault("early", times=1)
    envelope = Envelope.event({"message": "x"}).add_attachment(b"\0" * 3_000_000, filename="core")
    with transport_to(server, compression="none") as plain:
        assert plain.capture_envelope(envelope)
        assert plain.flush().ok
        assert plain.health().discarded_by_category["send_error"] == {"error": 1, "attachment": 3_000_000}


def test_a_server_that_is_away_and_comes_back_gets_everything(
    server: FaultServer, transport: HttpTransport, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage is logged once, for any number of attempts."""
    server.down()
    for number in range(20):
        assert transport.capture_event({"message": str(number)})
    assert not transport.flush(0.3)
    assert until(lambda: transport.health().breaker != "closed")
    health = transport.health()
    assert health.status == "warn"
    assert health.breaker != "closed"
    assert health.pending == {"error": 20}
    assert health.last_error is not None
    assert health.last_error.kind == "connect"
    server.up()
    assert transport.flush(SOON).ok
    assert len(set(server.event_ids())) == len(server.event_ids()) == 20
    assert len([line for line in lines(caplog) if "delivery failed" in line]) == 1


def test_an_ambiguous_timeout_repeats_what_a_server_recognises(server: FaultServer) -> None:
    """The server may have stored it: an event with its id can be sent again, a session would count twice."""
    with transport_to(server, request_timeout=scaled(0.2)) as transport:
        for envelope in (Envelope.event({"message": "x"}), Envelope().add_session({"sid": "1"})):
            server.fault("hang", times=1)
            transport.capture_envelope(envelope)
            assert transport.flush(SOON).ok
        health = transport.health()
    assert health.delivered == {"error": 1}
    assert health.discarded_by_category == {"network_error": {"session": 1}}


def test_a_drip_does_not_outlast_the_request_timeout(server: FaultServer) -> None:
    """A byte every 20 ms keeps each read alive; the deadline is for all of them together."""
    server.drip_interval = scaled(0.02)
    with transport_to(server, request_timeout=scaled(0.3)) as transport:
        server.fault("drip", times=1)
        transport.capture_event({"message": "x"})
        assert transport.flush(SOON).ok
        assert transport.health().delivered == {"error": 1}
        error = transport.health().last_error
    assert error is not None
    assert error.kind == "timeout"


@pytest.mark.parametrize(
    ("status", "problem"),
    [(407, "the proxy http://127.0.0.1:{port} wants a login (407)"), (511, "a network")],
)
def test_a_proxy_that_wants_a_login_is_named_and_costs_no_envelope(
    server: FaultServer, status: int, problem: str
) -> None:
    """A person has to act, and what was captured meanwhile is delivered then. The login is never shown."""
    proxy = f"http://bob:hunter2@127.0.0.1:{server.port}"
    server.answer(status)
    with make_transport(ELSEWHERE.format("http"), proxy=proxy, **QUICK) as transport:
        transport.capture_event({"message": "x"})
        assert until(lambda: transport.health().problem is not None)
        health = transport.health()
        assert health.status == "fail"
        assert health.problem is not None
        assert health.problem.startswith(problem.format(port=server.port))
        assert "hunter2" not in health.as_text()
        server.answer(200)
        assert transport.flush(SOON).ok
        assert transport.health().problem is None
        assert transport.health().delivered == {"error": 1}


def test_a_refused_tunnel_names_the_proxy() -> None:
    """The proxy's answer to CONNECT arrives as an error, before there is a connection to the server."""
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    with HttpProxy(refuse=refusal) as proxy:
        login = f"http://bob:hunter2@127.0.0.1:{proxy.port}"
        transport = make_transport(ELSEWHERE.format("https"), proxy=login, **QUICK)
        transport.capture_event({"message": "x"})
        assert until(lambda: transport.health().problem is not None)
        health = transport.health()
        transport.kill()
    assert health.problem == f"the proxy http://127.0.0.1:{proxy.port} wants a login (407)"
    assert health.status == "fail"
    assert health.discarded == {}


def test_a_403_through_a_proxy_may_be_the_proxys_own(server: FaultServer) -> None:
    """Company proxies answer 403 for a host that they do not allow."""
    server.answer(403)
    proxy = f"http://127.0.0.1:{server.port}"
    with make_transport(ELSEWHERE.format("http"), proxy=proxy, **QUICK) as transport:
        transport.capture_event({"message": "x"})
        transport.flush(SOON)
        problem = transport.health().problem
    assert problem == (
        f"the server refuses this DSN's key (403); the proxy http://127.0.0.1:{server.port} may have answered"
    )


def test_a_web_page_instead_of_an_answer_is_doubted(server: FaultServer, transport: HttpTransport) -> None:
    """Any site answers 200 to a POST; the envelope counts as delivered, and a person should look."""
    server.answer(200, {"Content-Type": "text/html; charset=utf-8"}, times=1)
    transport.capture_event({"message": "x"})
    assert transport.flush(SOON).ok
    health = transport.health()
    assert health.delivered == {"error": 1}
    assert health.status == "warn"
    assert health.reasons == ("a web page answers: probably no ingest server, check the DSN's host and path",)
    transport.capture_event({"message": "y"})
    assert transport.flush(SOON).ok
    assert transport.health().status == "pass"


@pytest.mark.parametrize("end", ["flush", "close"])
@pytest.mark.parametrize("status", [413, 501, 500])
def test_what_a_flush_lost_is_reported_within_it(server: FaultServer, end: str, status: int) -> None:
    """A process that ends afterwards has no other chance to report it."""
    server.answer(status, times=1)
    transport = transport_to(server, client_report_interval=3600)
    # A server does not recognise a repeated session, so that a 500 is final for it.
    envelope = Envelope()
    envelope.add_session({"sid": "0" * 32, "started": "2024-01-01T00:00:00Z", "status": "ok"})
    transport.capture_envelope(envelope)
    assert getattr(transport, end)(SOON).ok
    assert reported_losses(server.accepted) == {("send_error", "session"): 1}
    transport.close()


def test_a_401_is_a_failure_until_the_server_accepts_something(
    server: FaultServer, transport: HttpTransport
) -> None:
    """A wrong key needs a person; a key that works again needs nobody."""
    server.answer(403)
    transport.capture_event({"message": "refused"})
    transport.flush()
    health = transport.health()
    assert health.status == "fail"
    assert health.problem == "the server refuses this DSN's key (403)"
    server.answer(501)
    transport.capture_event({"message": "a 501 in between proves nothing"})
    transport.flush()
    assert transport.health().status == "fail"
    server.answer(200)
    transport.capture_event({"message": "accepted"})
    transport.flush()
    assert transport.health().problem is None
    assert not transport.is_healthy()  # items were dropped a moment ago
    assert transport.health().status == "warn"


def test_limits_on_a_200_are_obeyed_at_once(server: FaultServer, transport: HttpTransport) -> None:
    """Quotas are announced with accepted envelopes; what is over them need not travel."""
    server.answer(headers={"X-Sentry-Rate-Limits": "60:error:organization"}, times=1)
    transport.capture_event({"message": "accepted"})
    transport.flush()
    transport.capture_event({"message": "over the quota"})
    transport.capture_event({"type": "transaction", "transaction": "/", "spans": []})
    transport.flush()
    health = transport.health()
    assert health.delivered == {"error": 1, "transaction": 1, "span": 1}
    assert health.discarded_by_category == {"ratelimit_backoff": {"error": 1}}
    assert list(health.limits) == ["error"]
    assert 58 < health.limits["error"] <= 60
    assert "rate limited: error" in health.reasons
    transport.flush()  # the loss was found after the first flush began
    reports = [
        json.loads(item.get_bytes())["discarded_events"]
        for request in server.accepted
        for item in request.envelope.items
        if item.type == "client_report"
    ]
    assert reports == [[{"reason": "ratelimit_backoff", "category": "error", "quantity": 1}]]


def test_a_part_of_an_envelope_may_be_limited(server: FaultServer, transport: HttpTransport) -> None:
    """The attachment goes with its event; the session beside them is still wanted."""
    server.answer(headers={"X-Sentry-Rate-Limits": "60:error"}, times=1)
    transport.capture_event({"message": "first"})
    transport.flush()
    mixed = Envelope.event({"message": "x"}).add_attachment(b"123", filename="a").add_session({"sid": "1"})
    transport.capture_envelope(mixed)
    transport.flush()
    health = transport.health()
    assert health.delivered == {"error": 1, "session": 1}
    assert health.discarded_by_category == {"ratelimit_backoff": {"error": 1, "attachment": 3}}
    assert health.pending == {}


def test_a_bare_429_pauses_everything_for_a_minute(
    server: FaultServer, transport: HttpTransport, caplog: pytest.LogCaptureFixture
) -> None:
    """Bugsink's way. Repeating it would be hammering, and reporting the loss would be one more request."""
    server.answer(429, times=1)
    transport.capture_event({"message": "x"})
    assert transport.flush().ok
    transport.capture_event({"message": "y"})
    assert transport.flush().ok
    health = transport.health()
    assert len(server.requests) == 1
    assert health.discarded_by_category == {"rate_limited": {"error": 1}, "ratelimit_backoff": {"error": 1}}
    assert 58 < health.limits["*"] <= 60
    assert not health.failing
    assert health.status == "warn"
    assert len(lines(caplog)) == 1


def test_retry_after_beside_a_503_is_a_pause_and_drops_nothing(
    server: FaultServer, transport: HttpTransport
) -> None:
    """GlitchTip announces the length of its maintenance, which envelopes must survive."""
    server.answer(503, {"Retry-After": "1800"}, times=1)
    transport.capture_event({"message": "x"})
    assert not transport.flush(0.3)
    assert until(lambda: transport.health().last_error)
    health = transport.health()
    assert health.limits == {}
    assert health.pending == {"error": 1}
    assert health.next_probe_in is not None
    assert health.next_probe_in > 1700


def test_a_limit_beside_a_503_is_obeyed_as_well(server: FaultServer, transport: HttpTransport) -> None:
    """The limits header counts on any status; Retry-After next to it still is no limit on all."""
    server.answer(503, {"Retry-After": "50", "X-Sentry-Rate-Limits": "70:session"}, times=1)
    transport.capture_event({"message": "x"})
    transport.flush(0.3)
    assert until(lambda: transport.health().limits)
    assert list(transport.health().limits) == ["session"]


@pytest.mark.parametrize("asked", ["soon", "-5", "1e400", "99999999999999999999", "\x80\xff"])
def test_a_hostile_retry_after_pauses_no_longer_than_the_retry_window(
    asked: str, server: FaultServer
) -> None:
    """A server, or who poses as one, can't switch the transport off for years."""
    with transport_to(server, retry_window=5.0) as transport:
        server.answer(503, {"Retry-After": asked}, times=1)
        transport.capture_event({"message": "x"})
        transport.flush(0.3)
        assert until(lambda: transport.health().last_error)
        left = transport.health().next_probe_in
        assert left is None or left <= 5.0
        transport.kill()


def test_a_pause_of_a_day_is_cut_to_the_retry_window(server: FaultServer) -> None:
    """After the window no waiting envelope would be delivered, however long the requested pause is."""
    with transport_to(server, retry_window=600.0) as transport:
        server.answer(503, {"Retry-After": "86400"}, times=1)
        transport.capture_event({"message": "x"})
        transport.flush(0.3)
        assert until(lambda: transport.health().next_probe_in is not None)
        left = transport.health().next_probe_in
        assert left is not None
        assert 0 < left <= 600.0
        transport.kill()


def test_our_key_is_masked_where_a_server_echoes_it(
    server: FaultServer, transport: HttpTransport, caplog: pytest.LogCaptureFixture
) -> None:
    """Error pages show the request. However it is repeated, in either case, or cut, a log holds no key."""
    server.answer(400, body=(b"x" + server.key.upper().encode() * 40) + b"\r\n\x1b[31m" + server.key.encode())
    transport.capture_event({"message": "x"})
    transport.flush()
    (line,) = lines(caplog)
    assert server.key[:8] not in line.lower()
    assert "x***" in line
    assert line.isprintable()
    assert len(line) < 350


def test_a_key_is_masked_before_what_a_server_says_is_cut(
    server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A page of any length becomes one line, and the cut leaves no part of a key or secret key."""
    secret = "fedcba9876543210" * 2
    dsn = server.dsn.replace(f"{server.key}@", f"{server.key}:{secret}@")
    with make_transport(dsn, **QUICK) as transport:
        for status, key in ((400, server.key), (404, secret)):
            server.answer(status, body=b"x" * 180 + key.encode() + b"y" * 1000, times=1)
            transport.capture_event({"message": "x"})
            assert transport.flush().discarded == 1
            assert lines(caplog)[-1].endswith(": " + "x" * 180 + "***" + "y" * 17)


def test_a_placeholder_for_a_key_leaves_what_a_server_says_readable(
    server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    """In a test's DSN the key is often one letter, and the answer says what is wrong with it."""
    server.answer(400, body=b"there is no key e")
    with make_transport(server.dsn.replace(server.key, "e"), **QUICK) as transport:
        transport.capture_event({"message": "x"})
        assert transport.flush().discarded == 1
    assert lines(caplog)[-1].endswith("there is no key ***")


def test_each_kind_of_failure_is_said_once_until_deliveries_work_again(
    server: FaultServer, transport: HttpTransport, caplog: pytest.LogCaptureFixture
) -> None:
    """A day of 400s is one line, not a full disk; a new outage is a new line."""
    for _ in range(2):
        server.answer(404)
        server.answer(400, times=3)
        for number in range(5):
            transport.capture_event({"message": str(number)})
        transport.flush()
        assert len(lines(caplog)) == 2
        server.answer(200)
        transport.capture_event({"message": "accepted"})
        transport.flush()
        caplog.clear()
    assert len(server.accepted) == 2


def test_repeats_end_with_the_retry_window(server: FaultServer) -> None:
    """An envelope that was not accepted for an hour is dropped and counted once."""
    with transport_to(server, retry_window=0.2) as transport:
        server.answer(503)
        transport.capture_event({"message": "x"})
        assert transport.flush(SOON).ok
        assert transport.health().discarded_by_category == {"send_error": {"error": 1}}


def test_a_success_of_one_sender_outweighs_an_older_failure_of_another(server: FaultServer) -> None:
    """Health speaks of the last delivery, whichever thread it was on."""
    with transport_to(server, max_senders=4) as transport:
        server.answer(400, times=3)
        for number in range(40):
            transport.capture_event({"message": str(number)})
        assert transport.flush(SOON).ok
        assert not transport.health().failing
        assert transport.health().delivered == {"error": 37}


def test_the_transport_is_never_captured_by_a_handler_on_the_root_logger(server: FaultServer) -> None:
    """A logging integration that takes everything must not feed a failing transport with its failures."""
    transport = transport_to(server, shutdown_timeout=1.0)
    seen = threading.Event()

    class Capturing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.set()
            transport.capture_event({"message": record.getMessage()})

    handler = Capturing(logging.DEBUG)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        server.answer(400)
        transport.capture_event({"message": "x"})
        assert transport.flush(SOON).ok
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
    assert seen.is_set()
    health = transport.health()
    assert health.discarded_by_category["reentrant"] == {"error": 1}
    assert sum(health.captured.values()) == 2
    transport.close()
