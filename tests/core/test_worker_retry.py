"""Outcomes of a delivery: retries, back-off, the breaker, and what is counted as lost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from tests.core.worker_support import (
    DISCARD,
    RETRY,
    Clock,
    Deliverer,
    event,
    flushed,
    memory,
    quick,
    running,
    transaction,
    until,
)
from tests.timing import SOON
from transport_kit.envelope.losses import LossReason
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.memory import MemoryQueue
from transport_kit.queues.protocol import Claim
from transport_kit.transport.worker import dispatch
from transport_kit.transport.worker.outcome import Outcome
from transport_kit.transport.worker.worker import BackgroundWorker


def test_an_envelope_is_tried_again_until_it_is_delivered() -> None:
    """An outage delays envelopes, but loses none."""
    with running(Deliverer(RETRY, RETRY, RETRY), quick(max_senders=2)) as worker:
        worker.submit(event())
        assert flushed(worker) == (1, 0)
        assert worker.facts().totals.discarded == {}


def test_an_envelope_is_given_up_when_its_window_is_over() -> None:
    """The envelope is counted once, with the reason of its last failed attempt."""
    with running(Deliverer(*[RETRY] * 50), quick(retry_window=0.0)) as worker:
        worker.submit(event())
        assert flushed(worker) == (0, 1)
        assert worker.facts().totals.discarded == {"network_error": {"error": 1}}
        assert worker.facts().last_drop is not None


@pytest.mark.parametrize(("age", "kept"), [(9.5, True), (10.0, False)])
def test_the_window_is_over_for_what_is_as_old_as_it(age: float, kept: bool) -> None:
    """The age at the end of the attempt counts, not the age at its beginning."""
    clock, deliver = Clock(), Deliverer(RETRY)
    options = quick(retry_window=10.0)
    worker = BackgroundWorker(memory(options, clock), deliver, options, clock=clock, draw=lambda: 0.5)
    try:
        deliver.hold()
        worker.submit(event())
        assert deliver.wait_for(1)
        clock.now += age
        deliver.let_go()
        assert until(lambda: worker.facts().queue.claimed == 0)
        assert worker.pending == kept
        assert worker.facts().totals.discarded == ({} if kept else {"network_error": {"error": 1}})
    finally:
        worker.kill()


def test_the_server_s_pause_is_kept() -> None:
    """Neither the envelope nor a probe is sent before the time in `Retry-After`."""
    due = time.monotonic() + 0.3
    deliver = Deliverer(Outcome.retry(LossReason.SEND_ERROR, due))
    with running(deliver) as worker:
        worker.submit(event())
        worker.submit(event())
        assert deliver.wait_for(3)
        assert time.monotonic() >= due


def test_the_server_s_pause_holds_for_its_envelope_although_others_are_delivered() -> None:
    """Another sender's success closes the breaker, but the envelope still waits for its `Retry-After`."""
    clock = Clock()
    opened = {text: threading.Event() for text in ("asked", "other", "next")}
    opened["next"].set()
    outcomes = {"asked": Outcome.retry(LossReason.SEND_ERROR, not_before=clock.now + 30.0)}
    began: list[str] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        assert sealed is not None
        text = next(text for text in opened if text.encode() in sealed.serialize())
        began.append(text)
        opened[text].wait(SOON)
        return outcomes.pop(text, Outcome())

    options = quick(max_senders=2)
    # With a draw of 0 the back-off is 0, and the retry would precede envelopes that were never tried.
    worker = BackgroundWorker(memory(options, clock), deliver, options, clock=clock, draw=lambda: 0.0)
    try:
        for text in ("asked", "other"):
            worker.submit(transaction(text))
        assert until(lambda: sorted(began) == ["asked", "other"])
        opened["asked"].set()
        assert until(lambda: worker.facts().breaker.state == "open")
        opened["other"].set()
        assert until(lambda: worker.facts().breaker.state == "closed")
        worker.submit(transaction("next"))
        assert until(lambda: worker.facts().totals.delivered.get("transaction") == 2)
        assert began[2:] == ["next"]
        assert worker.pending == 1
        clock.now += 30.0
        assert until(lambda: worker.pending == 0)
        assert began[2:] == ["next", "asked"]
    finally:
        worker.kill()


def test_the_pause_of_an_envelope_doubles_with_each_of_its_attempts() -> None:
    """An envelope that always fails must be retried less often than one that failed once."""
    clock = Clock()
    pauses: list[float] = []

    class Noting(MemoryQueue):
        def release(self, claims: Iterable[Claim], not_before: float = 0.0) -> None:
            pauses.append(not_before - clock.now)
            super().release(claims, not_before)

    options = quick(backoff_base=0.01, backoff_max=0.05)
    worker = BackgroundWorker(
        Noting(10, 1 << 20, clock=clock), Deliverer(*[RETRY] * 5), options, clock=clock, draw=lambda: 0.5
    )
    try:
        worker.submit(event())
        for attempts in range(1, 6):
            assert until(lambda attempts=attempts: len(pauses) == attempts)  # type: ignore[misc]
            clock.now += 60.0
        assert until(lambda: worker.pending == 0)
        assert pauses == pytest.approx([0.005, 0.01, 0.02, 0.025, 0.025])
    finally:
        worker.kill()


def test_a_queue_that_can_t_be_claimed_from_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk or a lost mount persists: immediate retries would use a whole processor."""
    monkeypatch.setattr(dispatch, "CLAIM_AGAIN", 0.2)
    claimed_at: list[float] = []

    class Broken(MemoryQueue):
        def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
            claimed_at.append(time.monotonic())
            if len(claimed_at) == 1:
                raise OSError("no such disk")
            return super().claim(limit, timeout)

    with running(Deliverer(), quick(), Broken(10, 1 << 20)) as worker:
        worker.submit(event())
        assert flushed(worker) == (1, 0)
    assert claimed_at[1] - claimed_at[0] >= 0.2


def test_a_worker_ends_at_once_although_a_claim_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause after the failed claim ends with the worker, even if it has not begun yet."""
    monkeypatch.setattr(dispatch, "CLAIM_AGAIN", 3600.0)
    entered, go = threading.Event(), threading.Event()

    class Broken(MemoryQueue):
        def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
            entered.set()
            go.wait(SOON)
            raise OSError("no such disk")

    for late in (False, True):
        entered.clear()
        (go.clear if late else go.set)()
        with running(Deliverer(), quick(), Broken(10, 1 << 20)) as worker:
            worker.submit(event())
            assert entered.wait(SOON)
            worker.kill()
            go.set()


def test_a_flush_brings_the_next_attempt_forward_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush permits an early retry, but calling it in a loop must not bypass the back-off."""
    assert dispatch.EARLY_RETRY_INTERVAL == 1.0
    monkeypatch.setattr(dispatch, "EARLY_RETRY_INTERVAL", SOON)
    options = quick(backoff_base=3000.0, backoff_max=3000.0, max_senders=2)
    deliver = Deliverer(RETRY, RETRY, RETRY)
    with running(deliver, options) as worker:
        worker.submit(event())
        assert deliver.wait_done(1)
        assert until(lambda: worker.facts().breaker.state == "open")
        for _ in range(5):
            assert worker.flush(0.02).pending == 1
        assert deliver.wait_done(2)
        assert len(deliver.began) == 2
        monkeypatch.setattr(dispatch, "EARLY_RETRY_INTERVAL", 0.0)
        worker.flush(0.02)
        assert deliver.wait_done(3)
        assert flushed(worker) == (1, 0)


def test_while_the_breaker_is_open_one_probe_goes_out() -> None:
    """A server that recovers gets one probe, not the requests of all senders at once."""
    deliver = Deliverer(*[RETRY] * 8)
    deliver.hold()
    with running(deliver, quick(backoff_base=3000.0, backoff_max=3000.0)) as worker:
        for _ in range(30):
            worker.submit(event())
        assert deliver.wait_for(8)
        deliver.let_go()
        assert deliver.wait_done(8)
        assert until(lambda: worker.facts().queue.claimed == 0)
        assert worker.facts().breaker.failures == 1, "eight failures that began before are one"
        deliver.hold()
        deliver.at_once = 0
        worker.flush(0.0)
        assert deliver.wait_for(9)
        for _ in range(30):
            worker.submit(event())
        assert worker.flush(0.1).pending == 60
        assert worker.facts().breaker.state == "probing"
        assert (len(deliver.began), deliver.at_once) == (9, 1)
        deliver.let_go()
        assert worker.flush(SOON).ok
        assert worker.facts().breaker.state == "closed"


def test_whoever_waits_at_the_breaker_sleeps_until_something_changes() -> None:
    """Before a probe, and while one is under way, senders must not poll: an outage may last hours."""
    pauses: list[float | None] = []

    class Noting(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout)
            return super().wait(timeout)

    deliver = Deliverer(RETRY)
    options = quick(backoff_base=3000.0, backoff_max=3000.0)
    worker = BackgroundWorker(memory(options), deliver, options, draw=lambda: 0.5)
    worker._dispatcher._gate = Noting(worker._lock.rlock)
    try:
        worker.submit(event())
        assert until(lambda: pauses)
        assert pauses == [dispatch.LONGEST_PAUSE], "open"
        deliver.hold()
        worker.submit(event())
        worker.flush(0.0)
        assert deliver.wait_for(2)
        before = len(pauses)
        assert until(lambda: len(pauses) > before or worker.facts().senders == 2)
        assert until(lambda: pauses[1:])
        assert worker.facts().breaker.state == "probing"
        assert set(pauses) == {dispatch.LONGEST_PAUSE}
    finally:
        deliver.let_go()
        worker.kill()


def test_a_delivery_that_raises_is_no_verdict_on_the_server() -> None:
    """An error of the library neither opens the breaker nor, as a probe, closes it."""
    options = quick(backoff_base=3000.0, backoff_max=3000.0)
    with running(Deliverer(ValueError()), options) as worker:
        worker.submit(event())
        assert flushed(worker) == (0, 1)
        assert worker.facts().breaker.state == "closed"
    deliver = Deliverer(RETRY, ValueError())
    with running(deliver, options) as worker:
        worker.submit(event())
        assert until(lambda: worker.facts().breaker.state == "open")
        assert flushed(worker) == (0, 1)
        assert worker.facts().breaker.state == "open"
        worker.submit(event())
        assert flushed(worker) == (1, 1), "the probe's end made room for another"
        assert worker.facts().breaker.state == "closed"


def test_deliveries_that_raise_cost_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Later failures are only counted, so that ten thousand of them log one line."""
    with running(Deliverer(ValueError(), ValueError()), quick(max_senders=1)) as worker:
        worker.submit(event())
        worker.submit(event())
        assert flushed(worker) == (0, 2)
    assert len([record for record in caplog.records if "ValueError" in record.getMessage()]) == 1


def test_an_envelope_that_was_claimed_as_the_breaker_opened_waits() -> None:
    """The failure of another sender opened the breaker between the claim and the attempt."""
    failing, opened = threading.Event(), threading.Event()
    deliver = Deliverer(RETRY)
    options = quick(backoff_base=3000.0, backoff_max=3000.0)

    class Late(MemoryQueue):
        """A queue that returns the second envelope just after the first has failed."""

        def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
            claims = super().claim(limit, timeout)
            if claims and claims[0].id == 2:
                failing.set()
                deliver.let_go()
                opened.wait(SOON)
            return claims

    deliver.hold()
    queue = Late(100, 1 << 30)
    with running(deliver, options, queue) as worker:
        worker.submit(event())
        assert deliver.wait_for(1)
        worker.submit(event())
        assert failing.wait(SOON)
        assert until(lambda: worker.facts().breaker.state == "open")
        opened.set()
        assert until(lambda: worker.facts().queue.claimed == 0)
        assert len(deliver.began) == 1, "it went out while the breaker was open"
        assert worker.facts().queue.waiting == 2


def test_an_old_attempt_without_a_verdict_makes_no_room_for_a_second_probe() -> None:
    """Only the end of the probe itself permits another one."""
    options = quick(backoff_base=3000.0, backoff_max=3000.0, max_senders=3)
    opened = {text: threading.Event() for text in ("old", "failing", "probe", "next")}
    outcomes = {"old": Outcome(LossReason.RATELIMIT_BACKOFF, answered=None), "failing": RETRY}
    began: list[str] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        assert sealed is not None
        text = next(text for text in opened if text.encode() in sealed.serialize())
        began.append(text)
        opened[text].wait(SOON)
        return outcomes.pop(text, Outcome())

    with running(deliver, options) as worker:
        for text in ("old", "failing"):
            worker.submit(transaction(text))
        assert until(lambda: len(began) == 2)
        opened["failing"].set()
        assert until(lambda: worker.facts().breaker.state == "open")
        worker.submit(event("probe"))
        worker.flush(0.0)
        assert until(lambda: "probe" in began)
        opened["old"].set()
        assert until(lambda: worker.facts().totals.discarded)
        worker.submit(event("next"))
        worker.flush(0.1)
        assert worker.facts().breaker.state == "probing"
        assert "next" not in began
        for gate in opened.values():
            gate.set()
        assert worker.flush(SOON).ok


def test_an_envelope_the_server_can_t_stand_does_not_stop_the_others() -> None:
    """The envelope fails each time, also as the probe; other envelopes must be tried as probes as well."""
    delivered: list[bytes] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        assert sealed is not None
        body = sealed.serialize()
        if b"poison" in body:
            return RETRY
        delivered.append(body)
        return Outcome()

    with running(deliver, quick(backoff_base=0.001, backoff_max=0.01, max_senders=1)) as worker:
        worker.submit(event("poison"))
        for _ in range(30):
            worker.submit(event())
        assert until(lambda: worker.pending == 1)
        assert len(delivered) == 30
        assert worker.flush(0.0).pending == 1


def test_what_was_left_out_counts_once_however_often_it_is_tried() -> None:
    """A limit drops an item at each attempt; the loss is counted once."""
    sealed = transaction()
    lost = (("span", 3),)
    again = RETRY.with_lost(LossReason.RATELIMIT_BACKOFF, lost)
    final = Outcome().with_lost(LossReason.RATELIMIT_BACKOFF, lost)
    with running(Deliverer(again, again, final)) as worker:
        worker.submit(sealed)
        assert worker.flush(SOON).ok
        totals = worker.facts().totals
        assert totals.delivered == {"transaction": 1}
        assert totals.discarded == {"ratelimit_backoff": {"span": 3}}


def test_what_was_left_out_of_a_refused_envelope_has_its_own_reason() -> None:
    """Items left out before sending and items refused are counted with their own reasons."""
    outcome = DISCARD.with_lost(LossReason.RATELIMIT_BACKOFF, (("span", 3), ("error", 5)))
    with running(Deliverer(outcome)) as worker:
        worker.submit(transaction())
        worker.flush(SOON)
        discarded = worker.facts().totals.discarded
        assert discarded["send_error"] == {"transaction": 1}
        assert {category: n for category, n in discarded["ratelimit_backoff"].items() if n} == {"span": 3}


FAULT = Outcome(LossReason.SEND_ERROR, again=True, server_fault=True, refusal=500)


def failing_for(failing: set[bytes]) -> tuple[Callable[[SealedEnvelope | None, float], Outcome], list[bytes]]:
    """Return a deliverer that gets a 500 for envelopes with these words, and the words of each attempt."""
    attempts: list[bytes] = []

    def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
        if sealed is None:
            return Outcome()
        word = next((word for word in (b"one", b"two", b"three") if word in sealed.serialize()), b"")
        attempts.append(word)
        return FAULT if word in failing else Outcome()

    return deliver, attempts


def test_a_500_delays_its_envelope_alone() -> None:
    """Five failures of one envelope say nothing about the server: the breaker stays closed for the others."""
    deliver, attempts = failing_for({b"one"})
    states: set[str] = set()
    with running(deliver, quick(max_senders=1)) as worker:
        worker.submit(event("one"))
        while worker.pending:
            states.add(worker.facts().breaker.state)
        assert states == {"closed"}
        assert attempts == [b"one"] * 5
        assert worker.facts().totals.discarded == {"send_error": {"error": 1}}


def test_500s_for_two_envelopes_in_turn_leave_the_breaker_closed() -> None:
    """Two bad envelopes are not three different ones, however often they are tried."""
    deliver, attempts = failing_for({b"one", b"two"})
    with running(deliver, quick(max_senders=1)) as worker:
        worker.submit(event("one"))
        worker.submit(event("two"))
        assert worker.flush(SOON).ok
        assert worker.facts().breaker.state == "closed"
        assert Counter(attempts) == {b"one": 5, b"two": 5}


def test_500s_for_three_envelopes_in_a_row_open_the_breaker() -> None:
    """That is an outage: the queue must not be emptied into it, five attempts an envelope."""
    deliver, attempts = failing_for({b"one", b"two", b"three"})
    with running(deliver, quick(max_senders=1, backoff_base=60.0, backoff_max=60.0)) as worker:
        for word in ("one", "two", "three", "four"):
            worker.submit(event(word))
        assert until(lambda: worker.facts().breaker.state == "open")
        assert Counter(attempts) == {b"one": 1, b"two": 1, b"three": 1}
        assert worker.pending == 4


def test_an_answer_between_500s_ends_the_row() -> None:
    """A server that takes every other envelope works: the others may wait for their turn."""
    script = [FAULT, Outcome(), FAULT, Outcome(LossReason.SEND_ERROR), FAULT, Outcome(), FAULT]
    deliverer = Deliverer(*script)
    with running(deliverer, quick(max_senders=1, backoff_base=60.0, backoff_max=60.0)) as worker:
        for _ in script:
            worker.submit(event())
        assert deliverer.wait_done(len(script))
        assert until(lambda: worker.pending == 4)
        assert worker.facts().breaker.state == "closed"
