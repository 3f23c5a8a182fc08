"""Captures, flushes, faults, forks and ends in any order; the ledger balances after each step.

The first machine tests a worker, the second one a transport with scripted answers and forked children.
Pending quantities are counted from the contents of the queue, not taken from the ledger.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.core.worker_support import (
    CLASSES,
    NoThreads,
    balance,
    event,
    memory,
    quick,
    until,
)
from tests.timing import SOON
from transport_kit.config.dsn import Dsn
from transport_kit.config.options import TransportOptions
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.losses import LossReason
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.memory import MemoryQueue
from transport_kit.transport.http import BaseHttpTransport
from transport_kit.transport.wire.exchange import ExchangeError, Response
from transport_kit.transport.worker.outcome import Outcome
from transport_kit.transport.worker.worker import BackgroundWorker

# Python 3.12 warns of every fork of a process with threads, which these tests need.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

STEPS = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
CAMPAIGN = settings(STEPS, max_examples=1500, stateful_step_count=60)

FAULTS = [
    Outcome.retry(LossReason.NETWORK_ERROR),
    Outcome(LossReason.SEND_ERROR, server_fault=True),
    Outcome(LossReason.RATE_LIMITED),
    Outcome(LossReason.RATELIMIT_BACKOFF, answered=None),
    Outcome().with_lost(LossReason.RATELIMIT_BACKOFF, (("error", 1), ("span", 2))),
    ValueError("poison"),
    SystemExit(1),
]


class WorkerMachine(RuleBasedStateMachine):
    """A worker of three senders and a queue of twelve items."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self.faults: list[Outcome | BaseException] = []
        self.old: list[tuple[BackgroundWorker, MemoryQueue]] = []
        self._begin()

    def _begin(self) -> None:
        options = quick(
            max_queue_items=12,
            max_queue_bytes=60_000,
            max_senders=3,
            client_report_interval=0.01,
            shutdown_timeout=0.01,
        )
        self.no_threads = False
        self.queue = memory(options)
        self.worker = worker = BackgroundWorker(self.queue, self._deliver, options)
        self.old.append((worker, self.queue))

    def _deliver(self, sealed: SealedEnvelope | None, within: float) -> Outcome:
        self.open.wait(min(within, SOON))
        worker = self.worker
        report = worker.take_report(alone=sealed is None)
        try:
            fault = self.faults.pop()
        except IndexError:
            return Outcome()
        if isinstance(fault, BaseException):
            worker.give_back(report)
            # Without threads the caller delivers, and a SystemExit raised there reaches the caller.
            raise ValueError("poison") if self.no_threads else fault
        if fault.again:
            worker.give_back(report)
        return fault

    @rule(
        new=st.sampled_from(CLASSES), many=st.sampled_from([1, 2, 5, 20]), padding=st.sampled_from([0, 5000])
    )
    def capture(self, new: Callable[[str], SealedEnvelope], many: int, padding: int) -> None:
        for _ in range(many):
            self.worker.submit(new("x" * padding))

    @rule(many=st.integers(1, 15))
    def capture_inside_a_section(self, many: int) -> None:
        with self.queue.lock.rlock:
            for _ in range(many):
                self.worker.submit(event())

    @rule(threads=st.integers(2, 4))
    def capture_at_once(self, threads: int) -> None:
        barrier = threading.Barrier(threads)

        def run() -> None:
            barrier.wait(SOON)
            for _ in range(4):
                self.worker.submit(event())

        crowd = [threading.Thread(target=run) for _ in range(threads)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join(SOON)

    @rule(fault=st.sampled_from(FAULTS), many=st.sampled_from([1, 3, 10]))
    def fault(self, fault: Outcome | BaseException, many: int) -> None:
        self.faults += [fault] * many

    @rule()
    def hang(self) -> None:
        self.open.clear()

    @rule()
    def work(self) -> None:
        self.open.set()

    @rule(reason=st.sampled_from(list(LossReason)))
    def lose(self, reason: LossReason) -> None:
        self.worker.lose(reason, (("span", 2),))

    @rule(timeout=st.sampled_from([0.0, 0.002, 0.05]))
    def flush(self, timeout: float) -> None:
        report = self.worker.flush(timeout)
        assert report.ok == (report.pending == 0)

    @rule()
    def start(self) -> None:
        self.worker.start()

    @rule()
    def lose_all_threads(self) -> None:
        if self.open.is_set():
            self.no_threads = True
            NoThreads(self.worker)

    @rule(inside=st.booleans(), how=st.sampled_from(["close", "close in time", "kill", "end"]))
    def end(self, inside: bool, how: str) -> None:
        def call() -> None:
            if how == "kill":
                self.worker.kill()
            elif how == "end":
                self.worker.end(0.01)
            else:
                self.worker.close(0.0 if how == "close" else 0.05)

        if inside:
            with self.queue.lock.rlock:
                call()
        else:
            call()

    @precondition(lambda self: self.worker.closing)
    @rule()
    def begin_again(self) -> None:
        self._begin()

    @invariant()
    def nothing_disappears(self) -> None:
        for worker, queue in self.old:
            balance(worker, queue)

    @invariant()
    def the_bounds_hold(self) -> None:
        stats = self.queue.stats()
        assert stats.waiting + stats.claimed <= 12
        assert stats.size <= 60_000
        assert self.worker.facts().senders <= 3

    def teardown(self) -> None:
        self.faults.clear()
        self.open.set()
        assert self.worker.flush(SOON).ok
        self.nothing_disappears()
        for worker, queue in self.old:
            worker.kill()
            balance(worker, queue)
            assert until(lambda worker=worker: not worker.is_alive())  # type: ignore[misc]
        self.nothing_disappears()


class ScriptedTransport(BaseHttpTransport):
    """A transport that takes the server's answers from a list."""

    def __init__(self) -> None:
        self.faults: list[Response | ExchangeError] = []
        self.open = threading.Event()
        self.open.set()
        self.requests = 0
        options = TransportOptions(
            backoff_base=0.001,
            backoff_max=0.002,
            max_queue_items=12,
            max_senders=3,
            client_report_interval=0.01,
            retry_window=30.0,
        )
        super().__init__(Dsn.parse("https://0123456789abcdef0123456789abcdef@sentry.example/42"), options)

    def _make_pool(self) -> None:
        return None

    def _request(self, pool: Any, body: bytes, headers: Any, *, timeout: float) -> Response:
        self.open.wait(SOON)
        self.requests += 1
        try:
            fault = self.faults.pop()
        except IndexError:
            return Response(200, {}, b"{}", True)
        if isinstance(fault, ExchangeError):
            raise fault
        return fault


ANSWERS: list[Response | ExchangeError] = [
    Response(503, {"retry-after": "0"}, b"", True),
    Response(500, {}, b"", True),
    Response(413, {}, b"", True),
    Response(429, {"x-sentry-rate-limits": "1:transaction:key"}, b"", True),
    Response(200, {"x-sentry-rate-limits": "0.2:error:key"}, b"", True),
    ExchangeError("reset", "ConnectionResetError", body_sent=False),
    ExchangeError("timeout", "the deadline has passed", body_sent=True),
]


def _parts(transport: BaseHttpTransport) -> tuple[BackgroundWorker, MemoryQueue]:
    worker = transport._states.get().worker
    queue = worker._queue
    assert isinstance(queue, MemoryQueue)
    return worker, queue


class TransportMachine(RuleBasedStateMachine):
    """A transport, and child processes forked at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.transport = ScriptedTransport()

    @rule(kind=st.sampled_from(["event", "transaction", "session", "log"]), many=st.sampled_from([1, 4, 20]))
    def capture(self, kind: str, many: int) -> None:
        for n in range(many):
            if kind == "event":
                self.transport.capture_event({"message": str(n)})
                continue
            envelope = Envelope()
            if kind == "transaction":
                envelope.add_transaction({"type": "transaction", "spans": [{}]})
            elif kind == "session":
                envelope.add_session({"sid": str(n)})
            else:
                envelope.add_log([{"body": "x"}])
            self.transport.capture_envelope(envelope)

    @rule(fault=st.sampled_from(ANSWERS), many=st.sampled_from([1, 3]))
    def fault(self, fault: Response | ExchangeError, many: int) -> None:
        self.transport.faults += [fault] * many

    @rule()
    def hang(self) -> None:
        self.transport.open.clear()

    @rule()
    def work(self) -> None:
        self.transport.open.set()

    @rule(timeout=st.sampled_from([0.0, 0.02]))
    def flush(self, timeout: float) -> None:
        self.transport.flush(timeout)

    @rule()
    def lose(self) -> None:
        self.transport.record_lost_event("sample_rate", "transaction")

    @rule(inside=st.booleans())
    def fork(self, inside: bool) -> None:
        """A child starts with a new state in any state of its parent; the parent is unaffected."""
        transport = self.transport
        closed = transport.closed
        worker, queue = _parts(transport)
        before = worker.facts().totals.captured
        child = 0
        if inside:
            with queue.lock.rlock:
                child = os.fork()
                if child == 0:
                    self._child()
        else:
            child = os.fork()
            if child == 0:
                self._child()
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert transport.closed == closed
        assert _parts(transport)[0] is worker
        assert worker.facts().totals.captured == before

    def _child(self) -> None:
        try:
            signal.alarm(int(SOON))  # a child that hangs fails, and doesn't hang the test
            transport = self.transport
            transport.faults.clear()
            transport.open = threading.Event()
            transport.open.set()
            transport.requests = 0
            assert not transport.closed
            assert transport.pending == 0
            assert transport.health().captured == {}
            assert transport.capture_event({"message": "from the child"})
            assert transport.close(SOON).ok
            assert transport.requests == 1
            assert transport.health().delivered == {"error": 1}
            balance(*_parts(transport))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    @rule(how=st.sampled_from(["close", "kill"]))
    def end(self, how: str) -> None:
        if how == "kill":
            self.transport.kill()
        else:
            self.transport.close(0.02)

    @precondition(lambda self: self.transport.closed)
    @rule()
    def begin_again(self) -> None:
        balance(*_parts(self.transport))
        self.transport.open.set()
        self.transport = ScriptedTransport()

    @invariant()
    def nothing_disappears(self) -> None:
        balance(*_parts(self.transport))

    def teardown(self) -> None:
        self.transport.faults.clear()
        self.transport.open.set()
        assert self.transport.flush(SOON).ok
        self.transport.kill()
        balance(*_parts(self.transport))


def test_a_worker_s_books_balance_in_any_order_of_calls() -> None:
    """Invariant 1, nothing disappears, holds for any order of calls."""
    run_state_machine_as_test(WorkerMachine, settings=STEPS)


def test_a_transport_s_books_balance_in_any_order_of_calls_and_forks() -> None:
    """A forked child starts with a new state, and delivers only its own envelopes."""
    run_state_machine_as_test(TransportMachine, settings=settings(STEPS, max_examples=15))


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_worker_s_books_balance_in_a_long_campaign() -> None:
    """The same machine with many more examples."""
    run_state_machine_as_test(WorkerMachine, settings=CAMPAIGN)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_transport_s_books_balance_in_a_long_campaign() -> None:
    """The same machine with many more examples."""
    run_state_machine_as_test(TransportMachine, settings=settings(CAMPAIGN, max_examples=300))
