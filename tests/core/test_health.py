"""Health: the verdict, its reasons, and three renderings."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.timing import SOON, steps
from transport_kit.envelope.envelope import Envelope
from transport_kit.testing import FaultServer
from transport_kit.transport.factory import make_transport
from transport_kit.transport.health import Health, LastError
from transport_kit.transport.http import HttpTransport

FULL = Health(
    pid=77,
    state="running",
    kind="HttpTransport",
    worker_alive=True,
    senders=2,
    waiting=3,
    claimed=1,
    queue_capacity=100,
    queue_bytes=5000,
    queue_bytes_capacity=1_000_000,
    oldest_pending_age=1.23456,
    last_success_age=2.5,
    last_error=LastError("http", 503, 0.75),
    failing=True,
    breaker="open",
    next_probe_in=4.2,
    limits={"session": 30.0, "*": 5.5},
    captured={"error": 9},
    delivered={"error": 4},
    discarded_by_category={"queue_overflow": {"error": 1, "log_item": 2}},
    pending={"error": 4},
    last_drop_age=3.0,
)


def healthy(**facts: Any) -> Health:
    return Health(**{"pid": 1, "state": "running", "kind": "HttpTransport", "worker_alive": True, **facts})


@pytest.mark.parametrize(
    ("facts", "status", "reason"),
    [
        ({}, "pass", None),
        ({"state": "new", "worker_alive": False}, "pass", None),
        ({"state": "draining"}, "pass", None),
        ({"worker_alive": False}, "pass", None),  # nothing waits; the next capture starts one
        ({"worker_alive": False, "oldest_pending_age": 0.5}, "pass", None),  # a sender is being started
        ({"worker_alive": False, "oldest_pending_age": 1.5}, "fail", "no sender thread is alive"),
        ({"worker_alive": None, "oldest_pending_age": 1.5}, "pass", None),  # this kind has no sender
        ({"state": "closed"}, "fail", "the transport is closed"),
        ({"problem": "dsn: no\nhost"}, "fail", "dsn: no host"),
        ({"paced": 30.0}, "pass", None),
        ({"paced": 31.0}, "warn", "paced: what waits goes out over 31 s"),
        ({"failing": True}, "warn", "deliveries fail"),
        ({"failing": True, "last_error": LastError("tls", None, 1.0)}, "warn", "deliveries fail: tls"),
        ({"failing": True, "last_error": LastError("http", 500, 1.0)}, "warn", "deliveries fail: http 500"),
        (
            {"last_error": LastError("http", 500, 1.0)},
            "pass",
            None,
        ),  # the failure is over, but its error is still known
        ({"limits": {"error": 5.0, "*": 1.0}}, "pass", None),  # on what this app never sends
        ({"queue_capacity": 10, "waiting": 4, "claimed": 4}, "pass", None),
        ({"queue_capacity": 10, "waiting": 5, "claimed": 4}, "warn", "the queue is 90% full"),
        ({"queue_bytes_capacity": 100, "queue_bytes": 81}, "warn", "the queue is 81% full"),
        ({"last_drop_age": 59.0}, "warn", "items were dropped 59 s ago"),
        ({"last_drop_age": 60.0}, "pass", None),
    ],
)
def test_the_verdict_and_its_reason(facts: dict[str, Any], status: str, reason: str | None) -> None:
    """`fail` and `warn` each have one reason, `pass` has none."""
    health = healthy(**facts)
    assert health.status == status
    assert len(health.reasons) == (reason is not None)
    assert reason is None or reason in health.reasons[0]


@pytest.mark.parametrize(
    ("limits", "discarded", "age", "reason"),
    [
        ({"error": 5.0}, {"ratelimit_backoff": {"error": 1}}, 1.0, "rate limited: error"),
        ({"error": 5.0, "session": 5.0}, {"rate_limited": {"error": 1}}, 1.0, "rate limited: error"),
        ({"*": 5.0}, {"ratelimit_backoff": {"span": 1}}, 1.0, "rate limited: *"),
        ({"error": 5.0}, {"ratelimit_backoff": {"error": 1}}, 61.0, None),
        ({"error": 5.0}, {"queue_overflow": {"error": 1}}, 1.0, "items were dropped 1 s ago"),
        ({"session": 5.0}, {"ratelimit_backoff": {"error": 1}}, 1.0, "items were dropped 1 s ago"),
        ({"*": 5.0}, {}, None, None),
    ],
)
def test_a_limit_is_a_reason_only_if_it_dropped_something_lately(
    limits: dict[str, float], discarded: dict[str, dict[str, int]], age: float | None, reason: str | None
) -> None:
    """A server that limits what an app never sends would otherwise keep its health at `warn` for ever."""
    health = healthy(limits=limits, discarded_by_category=discarded, last_drop_age=age)
    assert health.status == ("pass" if reason is None else "warn")
    assert next(iter(health.reasons), None) == reason


def test_the_most_serious_reason_comes_first() -> None:
    """An alert may show only the first one."""
    health = healthy(problem="the key is refused", failing=True, last_drop_age=1.0, state="closed")
    assert [reason.split()[0] for reason in health.reasons] == ["the", "the", "deliveries", "items"]
    assert health.reasons[0] == "the key is refused"


def test_every_fact_is_in_every_form() -> None:
    """A dict for code, health+json for monitors, lines for people; they always agree."""
    facts = FULL.as_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["status"] == "warn"
    assert facts["scope"] == "process"
    assert facts["oldest_pending_age"] == 1.235
    assert facts["last_error"] == {"kind": "http", "status": 503, "age": 0.75}
    assert facts["discarded"] == {"queue_overflow": {"error": 1, "log_item": 2}}
    assert set(facts) >= {
        "pid", "kind", "state", "worker_alive", "senders", "waiting", "claimed", "queue_capacity",
        "queue_bytes", "queue_bytes_capacity", "last_success_age", "breaker", "next_probe_in", "limits",
        "captured", "delivered", "pending", "last_drop_age", "reasons",
    }  # fmt: skip
    body = FULL.as_health_json()
    assert json.loads(json.dumps(body)) == body
    assert body["status"] == "warn"
    assert body["output"] == "; ".join(FULL.reasons)
    assert all(":" in name and isinstance(checks, list) for name, checks in body["checks"].items())
    observed = {name: checks[0]["observedValue"] for name, checks in body["checks"].items()}
    assert observed["queue:items"] == 4
    assert body["checks"]["queue:items"][0]["capacity"] == 100
    assert observed["delivery:lastError"] == facts["last_error"]
    assert observed["items:discarded"] == facts["discarded"]
    text = FULL.as_text()
    for line in (
        "status: warn",
        "process: 77",
        "worker alive: yes",
        "queue: 4 of 100 envelopes, 5000 of 1000000 bytes",
        "oldest pending: 1.2 s",
        "last success: 2.5 s ago",
        "breaker: open, next probe in 4.2 s",
        "last error: http 503, 0.8 s ago",
        "limited: * for 6 s",
        "delivered: error 4",
        "pending: error 4",
        "discarded: queue_overflow log_item 2",
    ):
        assert line in text.splitlines(), line
    assert all(": " in line for line in text.splitlines())


def test_strangers_see_the_status_alone() -> None:
    """A limit or a queue depth would help an attacker."""
    assert FULL.as_health_json(details=False) == {"status": "warn"}
    assert FULL.as_text(details=False) == "status: warn\n"


def test_absent_facts_are_written_as_absent() -> None:
    """A transport without a worker has no queue."""
    health = Health(pid=1, state="new", kind="NullTransport")
    assert "worker alive: no worker" in health.as_text()
    assert "last success: none" in health.as_text()
    assert "worker alive: no\n" in healthy(worker_alive=False).as_text()
    assert "output" not in health.as_health_json()


def test_each_state_shows_in_health() -> None:
    """Health of a transport that is new, running, draining and closed."""
    with FaultServer() as server:
        transport = make_transport(server.dsn, shutdown_timeout=SOON)
        new = transport.health()
        assert (new.state, new.worker_alive, new.status, new.pid) == ("new", False, "pass", os.getpid())
        assert new.last_success_age is None
        server.hold()
        transport.capture_event({"message": "x"})
        assert server.wait_for_requests(1, SOON)
        transport.capture_envelope(Envelope().add_session({"sid": "1"}))
        running = transport.health()
        assert (running.state, running.worker_alive) == ("running", True)
        assert running.pending == {"error": 1, "session": 1}
        assert running.waiting + running.claimed == 2
        assert running.queue_bytes > 0
        assert running.oldest_pending_age is not None
        assert running.oldest_pending_age < 10
        closing = threading.Thread(target=transport.close)
        closing.start()
        while not transport.closed:
            assert closing.is_alive()
        draining = transport.health()
        assert draining.state in ("draining", "closed")
        server.release()
        closing.join()
        closed = transport.health()
        assert (closed.state, closed.status, closed.pending) == ("closed", "fail", {})
        assert closed.delivered == {"error": 1, "session": 1}
        assert closed.last_success_age is not None
        assert closed.queue_bytes == 0


def test_a_flush_without_anything_to_send_leaves_health_alone() -> None:
    """With reports off a loss is never sent, so no sender is missing."""
    transport = make_transport("http://key@127.0.0.1:9/1", send_client_reports=False)
    transport.record_lost_event("sample_rate", "error")
    transport.flush(0.1)
    assert transport.health().status == "pass"
    transport.kill()


@pytest.fixture(name="busy")
def _busy() -> Iterator[Callable[[], Health]]:
    """Return the health of a transport in an outage with a queue in use."""
    transport = make_transport("http://key@127.0.0.1:9/1", backoff_base=60.0)
    assert isinstance(transport, HttpTransport)
    for category in ("error", "transaction", "session", "log_item"):
        for reason in ("sample_rate", "before_send", "queue_overflow"):
            transport.record_lost_event(reason, category)
    for number in range(1000):
        transport.capture_event({"message": str(number)})
    transport.flush(0.2)
    yield transport.health
    transport.kill()


def test_health_is_a_few_hundred_lines_whatever_waits(busy: Callable[[], Health]) -> None:
    """Every load balancer may probe once a second, in an outage with a thousand envelopes too."""
    assert steps(busy) < 600
    assert busy().pending == {"error": 1000}


def test_discarded_sums_each_reason_over_its_categories() -> None:
    """Monitoring needs the number of losses by reason first."""
    health = Health(
        pid=1,
        state="running",
        kind="HttpTransport",
        discarded_by_category={"queue_overflow": {"error": 2, "span": 3}, "send_error": {"error": 1}},
    )
    assert health.discarded == {"queue_overflow": 5, "send_error": 1}


def test_healths_combine_into_sums_and_the_worst_figures() -> None:
    """A forwarder shows one health for all that it serves."""
    idle = healthy(breaker="closed", paced=2.0, delivered={"session": 1, "error": 1}, last_success_age=9.0)
    combined = Health.combine([FULL, idle])
    assert (combined.waiting, combined.claimed, combined.queue_capacity) == (3, 1, 100)
    assert combined.delivered == {"error": 5, "session": 1}
    assert combined.discarded_by_category == {"queue_overflow": {"error": 1, "log_item": 2}}
    assert (combined.breaker, combined.next_probe_in, combined.paced) == ("open", 4.2, 2.0)
    assert (combined.oldest_pending_age, combined.last_success_age) == (1.23456, 2.5)
    assert (combined.last_drop_age, combined.worker_alive) == (3.0, True)
    assert not Health.combine([FULL, healthy(worker_alive=False)]).worker_alive
    nothing = Health.combine([])
    assert (nothing.worker_alive, nothing.paced, nothing.delivered) == (None, None, {})
    assert nothing.status == "pass"
