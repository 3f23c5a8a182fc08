"""The forwarder in process: pace, identities, credentials, health, metrics, and its end."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.timing import SOON, scaled
from transport_kit import Dsn, make_transport
from transport_kit.config.options import TransportOptions
from transport_kit.forwarder.forwarder import Forwarder, ForwarderView, Served, Summary
from transport_kit.forwarder.metrics import metrics_writer
from transport_kit.forwarder.pacing import Pace, Rate
from transport_kit.forwarder.status_server import MAX_REQUESTS, StatusServer
from transport_kit.queues.spool import FileSpool, identity_of
from transport_kit.runtime.errors import OptionsError
from transport_kit.testing import FaultServer
from transport_kit.transport.http import HttpTransport
from transport_kit.transport.wire.exchange import ExchangeError, Response
from transport_kit.transport.worker.retry import Backoff, CircuitBreaker


@pytest.fixture(name="server")
def _server() -> Iterator[FaultServer]:
    """Run the server to deliver to."""
    with FaultServer() as server:
        yield server


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> str:
    return str(tmp_path / "spool")


def options(path: str, **values: object) -> TransportOptions:
    given = {"queue": f"file://{path}", "handle_sigterm": False, "backoff_base": 0.01, "backoff_max": 0.05}
    return TransportOptions.from_mapping({**given, **values}, source="test")


def fill(dsn: str, path: str, begin: int, end: int, *, credentials: bool = True) -> None:
    transport = make_transport(dsn, queue=f"file://{path}", spool_drain=False, spool_credentials=credentials)
    for number in range(begin, end):
        assert transport.capture_event({"event_id": f"{number:032x}"})
    transport.close(0.0)


class Running:
    """A forwarder on a thread of its own."""

    def __init__(self, forwarder: Forwarder) -> None:
        self.forwarder = forwarder
        self.summary: Summary | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.summary = self.forwarder.run()

    def end(self) -> Summary:
        self.forwarder.stop()
        self._thread.join(SOON)
        assert self.summary is not None
        return self.summary


@pytest.fixture(name="running")
def _running() -> Iterator[Callable[[Forwarder], Running]]:
    """Return a function that runs forwarders; stopped after the test."""
    with contextlib.ExitStack() as stack:

        def run(forwarder: Forwarder) -> Running:
            stack.callback(forwarder.close)
            running = Running(forwarder)
            stack.callback(running.end)
            return running

        yield run


def once(forwarder: Forwarder) -> Summary:
    with contextlib.closing(forwarder):
        return forwarder.run(once=True)


# -- pace ----------------------------------------------------------------------------------------------


def test_a_rate_spaces_what_goes() -> None:
    """Unused time does not allow a burst later."""
    rate = Rate(10)
    assert rate.wait(100.0) <= 0
    rate.record_send(100.0)
    assert rate.wait(100.0) == pytest.approx(0.1)
    rate.record_send(200.0)
    assert rate.wait(200.0) == pytest.approx(0.1)
    unbound = Rate(None)
    unbound.record_send(5.0)
    assert unbound.wait(5.0) <= 0


class Clock:
    """Monotonic seconds that a test sets."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


ANSWER = Response(200, {}, b"", True)
FAILURE = ExchangeError("connect", "refused")


def after_outage(clock: Clock, **values: Any) -> Pace:
    """Return a pace whose outage ended now, with 1 as the time of its first failure and 8 as the time now."""
    pace = Pace(Rate(None), clock=clock, **values)
    for clock.now in (1.0, 3.0, 7.0):
        pace.record_answer(FAILURE)
    clock.now = 8.0
    pace.record_answer(ANSWER)
    return pace


def simulate(
    answers: Iterable[Response | ExchangeError], *, sent_before: int = 0, **values: Any
) -> tuple[float, float]:
    """Return the seconds of waiting that a pace imposes, and the duration of all requests, 1 ms each.

    The clock is simulated. After a failure the breaker's own delay passes, as it does in an app.

    Args:
        answers: The answer of each request.
        sent_before: The number of envelopes that went out before, a hundred a second.
        values: Of the pace.
    """
    clock = Clock()
    pace = Pace(Rate(None), clock=clock, **values)
    for _ in range(sent_before):
        clock.now += 0.01
        assert pace.admit()
    breaker, imposed, draws = CircuitBreaker(Backoff(0.5, 60.0)), 0.0, random.Random(1)
    began = clock.now
    for answer in answers:
        clock.now = max(clock.now, breaker.next_probe)
        wait = max(0.0, pace.wait())
        imposed += wait
        clock.now += wait
        breaker = breaker.began(clock.now)
        sent = clock.now
        assert pace.admit()
        clock.now += 0.001
        pace.record_answer(answer)
        if isinstance(answer, ExchangeError):
            breaker = breaker.failed(clock.now, began=sent, draw=draws.random())
        else:
            breaker = breaker.succeeded(clock.now)
    return imposed, clock.now - began


@pytest.mark.parametrize("failures", [1, 2])
def test_one_failed_answer_among_successes_imposes_no_wait(failures: int) -> None:
    """It is no outage. What was sent at full speed before it must not be charged afterwards either."""
    imposed, _ = simulate([*[ANSWER] * 8_000, *[FAILURE] * failures, *[ANSWER] * 4_000])
    assert imposed == 0.0


def test_a_burst_of_failures_at_one_moment_imposes_no_wait() -> None:
    """Eight senders lose their requests when a server restarts: that is one failure, not eight."""
    clock = Clock()
    pace = Pace(Rate(None), clock=clock)
    for _ in range(8):
        pace.record_answer(FAILURE)
    clock.now += 0.5
    pace.record_answer(ANSWER)
    assert pace.wait() <= 0


def test_a_server_that_fails_some_answers_is_drained_at_half_the_speed_of_an_app_or_more() -> None:
    """An app waits for the breaker only; a forwarder adds its pace to that."""
    draws = random.Random(20)
    for share in (0.05, 0.2, 0.5):
        answers = [FAILURE if draws.random() < share else ANSWER for _ in range(4_000)]
        _, app = simulate(answers, run=0)
        _, forwarder = simulate(answers)
        assert app / forwarder >= 0.5


@pytest.mark.parametrize("sent_before", [0, 20_000])
def test_the_pace_after_an_outage_ends_by_itself_whatever_was_sent_before(sent_before: int) -> None:
    """At most 50 envelopes go out slowly, 5 s long; what went out at full speed is not charged for."""
    imposed, _ = simulate([*[FAILURE] * 12, *[ANSWER] * 2_000], sent_before=sent_before, interval=0.1, run=50)
    assert imposed == pytest.approx(5.0, abs=0.2)


@pytest.mark.parametrize("status", [407, 408, 425, 500, 502, 503, 520])
def test_statuses_of_an_outage_count_as_failures(status: int) -> None:
    """A load balancer or a proxy in front of the server gives these answers."""
    clock = Clock()
    pace = Pace(Rate(None), clock=clock)
    for clock.now in (1.0, 3.0, 7.0):
        pace.record_answer(Response(status, {}, b"", False))
    pace.record_answer(Response(429, {}, b"", True))
    assert pace.slow_for() == pytest.approx(5.0)


def test_a_failure_during_the_slow_replay_does_not_prolong_it() -> None:
    """Only another outage begins another slow replay."""
    clock = Clock()
    pace = after_outage(clock, interval=0.1, run=10)
    assert pace.slow_for() == pytest.approx(1.0)
    clock.now += 0.5
    pace.record_answer(FAILURE)
    clock.now += 0.1
    pace.record_answer(ANSWER)
    assert pace.slow_for() == pytest.approx(0.4)
    clock.now += 0.4
    assert pace.slow_for() == pytest.approx(0.0)


def test_no_wait_of_a_pace_is_longer_than_what_is_left_of_it() -> None:
    """Senders that pass together are charged; that charge ends with the slow replay."""
    clock = Clock()
    pace = after_outage(clock, interval=10.0, run=2)
    for _ in range(8):
        assert pace.admit()
    assert pace.wait() == pytest.approx(20.0)
    clock.now += 20.0
    assert pace.wait() <= 0


def test_a_bound_on_all_servers_holds_beside_the_pace_of_one() -> None:
    """The longer wait holds."""
    clock = Clock()
    bound = Rate(1)
    bound.record_send(0.0)
    assert Pace(bound, clock=clock).wait() == pytest.approx(1.0)


def test_a_wait_that_a_forwarder_imposes_is_in_its_health() -> None:
    """Envelopes that wait because of `--max-rate` or of slow replay must not look forgotten."""
    clock = Clock()
    pace = Pace(Rate(10), clock=clock)
    assert pace.paced(0) is None
    assert pace.paced(200) == pytest.approx(19.9)
    assert Pace(Rate(None), clock=clock).paced(200) is None
    slow = after_outage(clock, interval=0.1, run=50)
    clock.now += 1.0
    assert slow.paced(0) == pytest.approx(4.0)
    clock.now += 4.0
    assert slow.paced(1) is None


@pytest.mark.parametrize("every", [30, 20, 7])
def test_a_spool_is_drained_at_full_speed_around_failed_answers(
    server: FaultServer, path: str, every: int, running: Callable[[Forwarder], Running]
) -> None:
    """Slow replay would take an hour for each envelope here."""
    fill(server.dsn, path, 0, 60)
    for _ in range(60 // every):
        server.answer(200, times=every - 1)
        server.answer(503, times=1)
    forwarder = Forwarder(path, options(path), interval=3_600.0)
    running(forwarder)
    assert server.wait_for(60, SOON)
    (health,) = forwarder.healths().values()
    assert health.paced is None


def test_a_backlog_behind_an_upper_bound_is_a_warning(server: FaultServer, path: str) -> None:
    """The status names the wait that the operator's own bound imposes."""
    fill(server.dsn, path, 0, 40)
    forwarder = Forwarder(path, options(path), max_rate=1.0)
    with contextlib.closing(forwarder):
        forwarder._look(first=True)
        deadline = time.monotonic() + SOON
        waited = threading.Event()
        while (forwarder.health().paced or 0.0) <= 30.0 and time.monotonic() < deadline:
            waited.wait(0.02)
        health = forwarder.health()
        (each,) = forwarder.healths().values()
        forwarder._settle(forwarder._served.values())
    assert health.paced is not None
    assert health.paced > 30.0
    assert (health.status, each.status) == ("warn", "warn")
    assert any("paced" in reason for reason in health.reasons)


def test_a_backlog_goes_out_one_by_one_after_an_outage(server: FaultServer, path: str) -> None:
    """A sender never holds an envelope while it waits, as a kill would duplicate it."""
    fill(server.dsn, path, 0, 12)
    clock = Clock()
    served = Served(Dsn.parse(server.dsn), options(path), path, after_outage(clock, interval=0.1, run=50))
    served.transport.start()
    try:
        for sent in (1, 2):
            assert server.wait_for(sent, SOON)
            assert until(lambda: sum(counts(served)) == 12 - sent and not counts(served)[1])  # noqa: B023
            assert len(server.requests) == sent
            clock.now += 0.1
        clock.now += 5.0
        assert server.wait_for(12, SOON)
    finally:
        served.transport.kill()


def until(condition: Callable[[], bool]) -> bool:
    """Wait until the condition holds; return False if it does not within `SOON`."""
    waited, deadline = threading.Event(), time.monotonic() + SOON
    while not condition() and time.monotonic() < deadline:
        waited.wait(0.005)
    return condition()


def counts(served: Served) -> tuple[int, int]:
    """Return the numbers of envelopes that wait and that senders hold."""
    stats = served.spool.stats()
    return stats.waiting, stats.claimed


def test_an_upper_bound_holds_for_all_identities_together(server: FaultServer, path: str) -> None:
    """The bound protects the network that they share."""
    fill(server.dsn, path, 0, 4)
    fill(server.dsn.replace("/1", "/2"), path, 4, 8)
    began = time.monotonic()
    assert once(Forwarder(path, options(path), max_rate=50)).ok
    assert time.monotonic() - began >= 6 / 50
    assert len(server.event_ids()) == 8


# -- identities ----------------------------------------------------------------------------------------


def test_each_identity_is_delivered_to_its_own_dsn(server: FaultServer, path: str) -> None:
    """Several apps may share one directory."""
    fill(server.dsn, path, 0, 1)
    other = server.dsn.replace("/1", "/77")
    fill(other, path, 1, 2, credentials=False)
    told: list[str] = []
    forwarder = Forwarder(
        path,
        options(path),
        dsns=lambda: [Dsn.parse(other)],
        on_event=lambda word, facts: told.append(f"{word} {dict(facts)}"),
    )
    assert once(forwarder).ok
    assert {(request.path, request.envelope.headers["event_id"]) for request in server.accepted} == {
        ("/api/1/envelope/", f"{0:032x}"),
        ("/api/77/envelope/", f"{1:032x}"),
    }
    assert len(told) == 2
    assert Dsn.parse(server.dsn).public_key not in "".join(told)


def test_what_comes_later_is_taken_on_and_what_is_unknown_waits(
    server: FaultServer, path: str, running: Callable[[Forwarder], Running]
) -> None:
    """A sidecar may start before its app, and before the directory exists."""
    forwarder = Forwarder(path, options(path), wait=True)
    run = running(forwarder)
    assert forwarder.health().status == "warn"
    fill(server.dsn, path, 0, 3, credentials=False)
    identity = identity_of(Dsn.parse(server.dsn))
    waited = threading.Event()
    deadline = time.monotonic() + SOON
    # Before that the reason is that the forwarder has not looked yet, or that nothing waits.
    while "no DSN" not in forwarder.waiting.get(identity, "") and time.monotonic() < deadline:
        waited.wait(0.02)
    assert "no DSN" in forwarder.waiting[identity]
    assert any("no DSN" in reason for reason in forwarder.health().reasons)
    fill(server.dsn, path, 3, 4)
    assert server.wait_for(4, SOON)
    assert dict(forwarder.served) == {identity: Dsn.parse(server.dsn)}
    assert forwarder.waiting == {}
    assert run.end().delivered == {"error": 4}


@pytest.mark.parametrize("what", ["nonsense", "another", "open", "link", "fifo", "bytes"])
def test_stored_credentials_that_cant_be_believed_are_not_used(
    server: FaultServer, path: str, what: str
) -> None:
    """Otherwise anyone who can write a DSN there would receive all events."""
    fill(server.dsn, path, 0, 1)
    file = Path(path) / identity_of(Dsn.parse(server.dsn)) / "dsn"
    if what == "nonsense":
        file.write_text("x" * 20_000)
    elif what == "another":
        file.write_text(server.dsn.replace("/1", "/2"))
    elif what == "bytes":
        file.write_bytes(b"\xff\xfe")
    elif what == "open":
        file.chmod(0o644)
    else:
        file.unlink()
        if what == "link":
            file.symlink_to("/etc/passwd")
        else:
            os.mkfifo(file, 0o600)
    summary = once(Forwarder(path, options(path)))
    (why,) = summary.left.values()
    assert why
    assert Dsn.parse(server.dsn).public_key not in why
    assert server.requests == []


def test_an_unknown_identity_without_envelopes_leaves_nothing(path: str) -> None:
    """The app's DSN was changed."""
    dsn = "https://0123456789abcdef0123456789abcdef@sentry.example/1"
    fill(dsn, path, 0, 0, credentials=False)
    assert once(Forwarder(path, options(path))).ok


def test_a_directory_that_is_not_to_be_trusted_is_an_error_at_the_start(path: str) -> None:
    """The start fails, so that the error is not only in a log."""
    os.mkdir(path, 0o755)
    for dsns in ((), (Dsn.parse("https://0123456789abcdef0123456789abcdef@sentry.example/1"),)):
        forwarder = Forwarder(path, options(path), dsns=functools.partial(tuple, dsns))
        with contextlib.closing(forwarder), pytest.raises(OptionsError, match="chmod 700"):
            forwarder.run(once=True)
    os.chmod(path, 0o700)
    with pytest.raises(OptionsError, match="is no spool"):
        once(Forwarder(path, options(path)))


@pytest.mark.parametrize("configured", [False, True])
@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("kind", ["missing", "no parent", "dangling link", "file as parent"])
def test_a_missing_directory_is_an_error_and_is_not_made(
    path: str, configured: bool, once: bool, kind: str
) -> None:
    """A misspelt path must not look like a spool in which nothing waits."""
    if kind == "no parent":
        path += "/deeper/spool"
    elif kind == "dangling link":
        os.symlink(path + "-elsewhere", path)
    elif kind == "file as parent":
        Path(path).write_text("")
        path += "/spool"
    dsns = [Dsn.parse("https://0123456789abcdef0123456789abcdef@sentry.example/1")] if configured else []
    forwarder = Forwarder(path, options(path), dsns=lambda: dsns)
    with contextlib.closing(forwarder), pytest.raises(OptionsError):
        forwarder.run(once=once)
    assert not os.path.exists(path)


def test_an_empty_directory_is_a_spool_that_is_not_used_yet(path: str) -> None:
    """Somebody made it for the service, as its manual says."""
    os.mkdir(path, 0o700)
    forwarder = Forwarder(path, options(path))
    with contextlib.closing(forwarder):
        forwarder._look(first=True)
        assert forwarder.ready
        assert forwarder.health().reasons == ("there is nothing to forward yet",)


@pytest.mark.parametrize("then", ["usable", "open to others"])
def test_a_forwarder_that_waits_for_its_directory_is_not_ready(
    server: FaultServer, path: str, running: Callable[[Forwarder], Running], then: str
) -> None:
    """Only with `wait`, as for a sidecar that starts before its app; nothing is made meanwhile."""
    forwarder = Forwarder(path, options(path), dsns=lambda: [Dsn.parse(server.dsn)], wait=True)
    running(forwarder)
    with StatusServer(
        "127.0.0.1", 0, subject=ForwarderView(forwarder), ready=lambda: forwarder.ready
    ) as status_server:

        def wait_for(reason: str | None) -> None:
            waited, deadline = threading.Event(), time.monotonic() + SOON
            while time.monotonic() < deadline:
                reasons = forwarder.health().reasons
                if (reason is None and not reasons) or any(reason and reason in each for each in reasons):
                    return
                waited.wait(0.02)
            raise AssertionError(f"{forwarder.health().reasons}, not {reason}")

        wait_for("directory missing")
        assert get(status_server, "/ready")[0] == 503
        assert get(status_server, "/live")[0] == 200
        status, body = get(status_server, "/health")
        assert (status, json.loads(body)["status"]) == (200, "warn")
        assert not os.path.exists(path)
        if then == "usable":
            fill(server.dsn, path, 0, 1)
            assert server.wait_for(1, SOON)
            assert get(status_server, "/ready")[0] == 200
            wait_for(None)
        else:
            os.mkdir(path, 0o755)
            wait_for("chmod 700")
            assert get(status_server, "/ready")[0] == 503


def test_once_gives_up_on_a_server_that_is_not_there(server: FaultServer, path: str) -> None:
    """The envelopes stay in the spool."""
    fill(server.dsn, path, 0, 2)
    server.down()
    summary = once(Forwarder(path, options(path), patience=scaled(0.2)))
    (why,) = summary.left.values()
    assert "deliveries fail: connect" in why
    server.up()
    assert once(Forwarder(path, options(path))).delivered == {"error": 2}


def test_a_second_forwarder_stands_by(
    server: FaultServer, path: str, running: Callable[[Forwarder], Running]
) -> None:
    """Started twice, by mistake or on purpose: one delivers."""
    fill(server.dsn, path, 0, 1)
    running(Forwarder(path, options(path)))
    assert server.wait_for(1, SOON)
    # In one process only one may have the locks, which is what another process would see.
    summary = once(Forwarder(path, options(path), patience=scaled(0.1)))
    (why,) = summary.left.values()
    assert why == "another process drains it"


def test_a_reload_keeps_what_it_has_when_the_new_cant_be_used(
    server: FaultServer, path: str, running: Callable[[Forwarder], Running]
) -> None:
    """Otherwise the forwarder uses the new DSNs."""
    fill(server.dsn, path, 0, 1)
    words: list[str] = []
    word = threading.Condition()

    def told(what: str, _: object) -> None:
        with word:
            words.append(what)
            word.notify_all()

    wrong = False

    def dsns() -> list[Dsn]:
        if wrong:
            raise OptionsError("dsn", "is wrong")
        return []

    forwarder = Forwarder(path, options(path), dsns=dsns, on_event=told)
    run = running(forwarder)
    assert server.wait_for(1, SOON)
    wrong = True
    forwarder.reload()
    with word:
        assert word.wait_for(lambda: "not reloaded" in words, SOON)
    assert forwarder.served
    wrong = False
    forwarder.reload()
    with word:
        assert word.wait_for(lambda: words.count("serving") == 2, SOON)
    fill(server.dsn, path, 1, 2)
    assert server.wait_for(2, SOON)
    assert run.end().left == {}


def test_an_end_that_takes_too_long_gives_up_the_request(
    server: FaultServer, path: str, running: Callable[[Forwarder], Running]
) -> None:
    """A server that hangs must not delay a deployment; the envelope is sent again later."""
    fill(server.dsn, path, 0, 1)
    server.hold()
    run = running(Forwarder(path, options(path, shutdown_timeout=0.1)))
    assert server.wait_for_requests(1, SOON)
    began = time.monotonic()
    assert run.end().delivered == {}
    assert time.monotonic() - began < SOON / 2  # the server never answers
    server.release()
    assert once(Forwarder(path, options(path))).delivered == {"error": 1}
    forwarder = Forwarder(path, options(path))
    forwarder.close()
    forwarder.stop()  # a signal after the end has no effect


@pytest.mark.parametrize("queue", ["memory", "spool"])
def test_an_envelope_that_a_gate_does_not_admit_stays_in_the_queue(
    server: FaultServer, path: str, queue: str
) -> None:
    """An end may come after the claim; the envelope is released unchanged, and goes out when it may."""
    refused = threading.Event()

    class Closing:
        """A gate that is closed between the claim and the delivery, and opened again by the test."""

        open = False

        def wait(self) -> float:
            return 0.0 if self.open or not refused.is_set() else 0.01

        def admit(self) -> bool:
            refused.set()
            return self.open

    gate = Closing()
    dsn = Dsn.parse(server.dsn)
    make_queue = (lambda: FileSpool(path, identity_of(dsn))) if queue == "spool" else None
    transport = HttpTransport(dsn, TransportOptions(handle_sigterm=False), make_queue=make_queue, gate=gate)
    try:
        assert transport.capture_event({"message": "x"})
        assert refused.wait(SOON)
        assert until(lambda: transport.health().claimed == 0)
        assert server.requests == []
        gate.open = True
        assert server.wait_for(1, SOON)
    finally:
        transport.kill()


def test_a_pace_that_has_ended_admits_nothing() -> None:
    """A forwarder that ends claims no more."""
    pace = Pace(Rate(None))
    pace.end()
    assert pace.wait() == float("inf")
    assert not pace.admit()


# -- health and metrics --------------------------------------------------------------------------------


def get(monitor: StatusServer, target: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", monitor.port, timeout=SOON)
    with contextlib.closing(connection):
        connection.request(method, target, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_health_and_metrics_tell_of_all_identities_without_keys(
    server: FaultServer, path: str, running: Callable[[Forwarder], Running]
) -> None:
    """health+json as from an app, and metrics for Prometheus."""
    fill(server.dsn, path, 0, 3)
    forwarder = Forwarder(path, options(path))
    running(forwarder)
    # The server has the last envelope a moment before the forwarder has its answer.
    assert until(lambda: forwarder.health().delivered == {"error": 3})
    identity = identity_of(Dsn.parse(server.dsn))
    with StatusServer(
        "127.0.0.1", 0, subject=ForwarderView(forwarder), metrics=metrics_writer(forwarder.healths)
    ) as monitor:
        status, body = get(monitor, "/health")
        found = json.loads(body)
        assert status == 200
        assert found["checks"]["items:delivered"][0]["observedValue"] == {"error": 3}
        spool = found["checks"]["spool:state"][0]["observedValue"]
        assert spool["identities"][identity]["draining"]
        assert get(monitor, "/live")[0] == get(monitor, "/ready")[0] == 200
        assert "<table>" in get(monitor, "/health", Accept="text/html")[1]
        text = get(monitor, "/metrics")[1]
        assert f'transport_kit_delivered_total{{category="error",identity="{identity}"}} 3.0' in text
        assert f'transport_kit_draining{{identity="{identity}"}} 1.0' in text
        assert Dsn.parse(server.dsn).public_key not in text + body
        assert get(monitor, "/metrics", "HEAD") == (200, "")
        assert get(monitor, "/metrics", "POST")[0] == 405
        assert get(monitor, "/flush", "POST")[0] == 404
        assert get(monitor, "/")[0] == 404
        server.answer(401, headers={"x-sentry-rate-limits": "60:transaction:key"})
        fill(server.dsn, path, 3, 4)
        assert server.wait_for_requests(4, SOON)
        assert until(lambda: forwarder.health().status == "fail")
        assert get(monitor, "/health")[0] == 503
        text = get(monitor, "/metrics")[1]
        labels = f'category="error",identity="{identity}",reason="send_error"'
        assert f"transport_kit_discarded_total{{{labels}}} 1.0" in text
        assert f'transport_kit_limited_seconds{{category="transaction",identity="{identity}"}}' in text
        assert f'transport_kit_health{{identity="{identity}",status="fail"}} 1.0' in text


def test_a_page_in_a_browser_cant_read_it_by_a_name_that_leads_to_loopback(path: str) -> None:
    """DNS rebinding: an attacker can guess the port."""
    forwarder = Forwarder(path, options(path))
    with (
        contextlib.closing(forwarder),
        StatusServer("127.0.0.1", 0, subject=ForwarderView(forwarder)) as monitor,
    ):
        assert get(monitor, "/health", Host="evil.example")[0] == 421
        assert get(monitor, "/health", Host="[")[0] == 421
        assert get(monitor, "/health", Host="localhost:1")[0] == 200
        assert get(monitor, "/metrics")[0] == 404


def test_strangers_on_other_addresses_see_the_status_only(path: str) -> None:
    """A container's probe needs no more."""
    forwarder = Forwarder(path, options(path))
    with (
        contextlib.closing(forwarder),
        StatusServer("0.0.0.0", 0, subject=ForwarderView(forwarder)) as monitor,
    ):
        assert get(monitor, "/health", Host="10.0.0.1")[1] == '{"status": "warn"}'


def test_a_monitor_says_why_it_cant_listen() -> None:
    """The error is one line."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OptionsError, match="Address already in use"):
            StatusServer("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(OptionsError, match="must be an IP address"):
        StatusServer("localhost", 0)
    with StatusServer("::1", 0) as monitor:
        assert monitor.url.startswith("http://[::1]:")


def test_a_monitor_serves_a_handful_at_a_time_and_survives_those_that_hang() -> None:
    """Silent connections must not fill the process with threads."""
    with StatusServer("127.0.0.1", 0) as monitor, contextlib.ExitStack() as stack:
        for _ in range(MAX_REQUESTS):
            stack.enter_context(socket.create_connection(("127.0.0.1", monitor.port)))
        refused = stack.enter_context(socket.create_connection(("127.0.0.1", monitor.port), timeout=SOON))
        with contextlib.suppress(ConnectionResetError):
            refused.sendall(b"GET /live HTTP/1.0\r\n\r\n")
            assert refused.recv(100) == b""


def test_metrics_without_their_package_name_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes when metrics are requested."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ModuleNotFoundError, match=r"transport-kit\[prometheus\]"):
        metrics_writer(dict)
