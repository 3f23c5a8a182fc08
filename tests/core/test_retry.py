"""Back-off and breaker: bounds, and histories of concurrent attempts."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from transport_kit.transport.worker.retry import Backoff, CircuitBreaker

BACKOFF = Backoff(base=0.5, cap=60.0)
draws = st.floats(min_value=0, max_value=1, exclude_max=True)


def opened(now: float = 100.0, *, draw: float = 0.5, not_before: float = 0.0) -> CircuitBreaker:
    return CircuitBreaker(BACKOFF).failed(now, began=now - 1, draw=draw, not_before=not_before)


@pytest.mark.parametrize(
    ("attempt", "ceiling"), [(1, 0.5), (2, 1.0), (3, 2.0), (7, 32.0), (8, 60.0), (9, 60.0), (10**9, 60.0)]
)
def test_the_ceiling_doubles_up_to_the_cap(attempt: int, ceiling: float) -> None:
    """Short outages delay little, and long ones cause few requests."""
    assert BACKOFF.delay(attempt, 0.0) == 0.0
    assert BACKOFF.delay(attempt, 0.5) == ceiling / 2


@given(
    st.floats(min_value=1e-3, max_value=3600),
    st.floats(min_value=1, max_value=1e6),
    st.integers(min_value=1, max_value=10**30),
    draws,
)
def test_every_delay_lies_between_nothing_and_its_ceiling(
    base: float, factor: float, attempt: int, draw: float
) -> None:
    """Full jitter spreads many clients over the whole range, and no number overflows."""
    backoff = Backoff(base, base * factor)
    delay = backoff.delay(attempt, draw)
    ceiling = min(backoff.cap, base * 2.0 ** min(attempt - 1, 64))
    assert 0 <= delay <= ceiling
    assert delay == pytest.approx(draw * ceiling)
    assert backoff.delay(attempt + 1, draw) >= delay


def test_an_endless_outage_costs_no_time_to_compute() -> None:
    """Computing a power of two with a billion digits would block the worker."""
    tracemalloc.start()
    try:
        assert BACKOFF.delay(10**9, 0.999) <= 60.0
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("base", "cap"), [(0, 1), (-1, 1), (2, 1), (1, math.inf), (math.nan, 1), (1, math.nan)]
)
def test_bounds_that_make_no_sense_are_refused(base: float, cap: float) -> None:
    """A back-off of 0 seconds would be a busy loop."""
    with pytest.raises(ValueError, match="base must be more than 0"):
        Backoff(base, cap)


def test_a_new_breaker_is_closed_and_lets_all_pass() -> None:
    """Before the first failure all attempts are permitted, and an attempt changes nothing."""
    breaker = CircuitBreaker(BACKOFF)
    assert breaker.state == "closed"
    assert breaker.permits(0.0)
    assert breaker.began(1.0) is breaker
    assert breaker.hastened(1.0) is breaker
    assert breaker.gave_up(1.0) is breaker


def test_a_failure_opens_it_until_the_drawn_delay_is_over() -> None:
    """One failure suffices: other attempts would probably fail as well."""
    breaker = opened(100.0, draw=0.5)
    assert breaker.state == "open"
    assert breaker.failures == 1
    assert breaker.next_probe == 100.25
    assert not breaker.permits(100.2)
    assert breaker.permits(100.25)


def test_the_receivers_own_date_moves_the_probe_later_only() -> None:
    """Retry-After can only delay the next probe."""
    assert opened(100.0, not_before=500.0).next_probe == 500.0
    assert opened(100.0, not_before=5.0).next_probe == 100.25


def test_only_one_probe_goes_out() -> None:
    """The requests of eight senders at once could overload a recovering server."""
    probing = opened().began(101.0)
    assert probing.state == "probing"
    assert not probing.permits(10_000.0)
    assert probing.began(102.0) is probing


def test_a_failed_probe_doubles_the_delay() -> None:
    """The longer the outage, the rarer the probes."""
    again = opened(100.0).began(101.0).failed(102.0, began=101.0, draw=0.5)
    assert again.state == "open"
    assert again.failures == 2
    assert again.next_probe == 102.5
    assert again.since == 100.0
    assert again.began(103.0).failed(104.0, began=103.0, draw=0.5, not_before=900.0).next_probe == 900.0


def test_failures_from_before_it_opened_change_nothing() -> None:
    """Eight attempts under way when the server dies are one failure, not eight."""
    breaker = opened(100.0)
    assert breaker.failed(101.0, began=99.5, draw=0.9) is breaker
    probing = breaker.began(101.0)
    assert probing.failed(102.0, began=99.5, draw=0.9) is probing


def test_an_old_failure_may_still_bring_the_receivers_date() -> None:
    """The time concerns the server, whichever attempt received it."""
    later = opened(100.0).failed(101.0, began=99.5, draw=0.9, not_before=700.0)
    assert later.next_probe == 700.0
    assert later.failures == 1
    probing = opened(100.0).began(101.0).failed(102.0, began=99.5, draw=0.9, not_before=700.0)
    assert probing.state == "probing"
    assert probing.failed(103.0, began=101.0, draw=0.0).next_probe == 700.0


def test_a_failure_without_a_probe_out_does_not_escalate() -> None:
    """A failure reported twice counts once."""
    again = opened(100.0).began(101.0).failed(102.0, began=101.0, draw=0.5)
    assert again.failed(102.0, began=101.0, draw=0.5) is again


def test_success_closes_whatever_the_state() -> None:
    """An answer shows that the server works, even if the attempt began long ago."""
    for breaker in (CircuitBreaker(BACKOFF), opened(), opened().began(101.0)):
        closed = breaker.succeeded(200.0)
        assert closed.state == "closed"
        assert closed.failures == 0
        assert closed.since == 200.0
        assert closed.permits(200.0)


def test_a_failure_from_before_the_last_success_does_not_open_it() -> None:
    """The receiver has answered since that attempt began, so that its failure does not count."""
    closed = opened(100.0).began(101.0).succeeded(102.0)
    assert closed.failed(103.0, began=101.0, draw=0.5, not_before=900.0) is closed
    assert closed.failed(103.0, began=102.0, draw=0.5).state == "open"


def test_a_flush_may_hasten_the_probe_but_not_double_it() -> None:
    """A waiting caller needs the outcome now, but a second probe adds no information."""
    breaker = opened(100.0, draw=0.9)
    hastened = breaker.hastened(100.1)
    assert hastened.permits(100.1)
    assert hastened.failures == 1
    assert hastened.hastened(100.2) is hastened
    probing = hastened.began(100.1)
    assert probing.hastened(100.2) is probing
    told_to_wait = probing.failed(100.2, began=99.5, draw=0.0, not_before=900.0)
    assert told_to_wait.hastened(100.3).next_probe == 900.0


def test_a_probe_without_a_verdict_makes_room_for_another() -> None:
    """The probe's envelope may be limited or expired; the breaker must not wait for it forever."""
    given_up = opened(100.0).began(101.0).gave_up(103.0)
    assert given_up.state == "open"
    assert given_up.failures == 1
    assert given_up.next_probe == 103.0
    assert given_up.permits(103.0)


def test_breakers_are_values() -> None:
    """Health reads a breaker while the worker replaces it."""
    assert opened(100.0) == opened(100.0)
    assert hash(opened(100.0)) == hash(opened(100.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        opened().failures = 0  # type: ignore[misc]


class Senders(RuleBasedStateMachine):
    """Concurrent attempts against one breaker, in any order, compared with a simple model."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker = CircuitBreaker(BACKOFF)
        # The start of each attempt, and True if it is the probe of the current opening.
        self.attempts: list[tuple[float, bool]] = []
        self.opened_at = math.inf

    def tick(self, step: float) -> None:
        self.now += step

    def current_probes(self) -> list[tuple[float, bool]]:
        return [attempt for attempt in self.attempts if attempt[1]]

    @rule(step=st.floats(min_value=0.001, max_value=100))
    def time_passes(self, step: float) -> None:
        self.tick(step)

    @rule()
    def begin(self) -> None:
        self.tick(0.001)
        if not self.breaker.permits(self.now):
            return
        is_probe = self.breaker.state != "closed"
        self.breaker = self.breaker.began(self.now)
        self.attempts.append((self.now, is_probe))

    @rule()
    def flush(self) -> None:
        self.tick(0.001)
        before, self.breaker = self.breaker, self.breaker.hastened(self.now)
        assert self.breaker.failures == before.failures
        assert before.state != "open" or self.breaker.permits(self.now)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), draw=draws, later=st.floats(min_value=0, max_value=50))
    def fail(self, data: st.DataObject, draw: float, later: float) -> None:
        self.tick(0.001)
        attempt = self.attempts.pop(data.draw(st.integers(0, len(self.attempts) - 1)))
        began, is_probe = attempt
        before = self.breaker
        not_before = self.now + later
        self.breaker = before.failed(self.now, began=began, draw=draw, not_before=not_before)
        if before.state == "closed":
            assert self.breaker.failures == (1 if began >= before.since else 0)
            if self.breaker.failures:
                self.opened_at = self.now
        elif is_probe:
            assert self.breaker.state == "open"
            assert self.breaker.failures == before.failures + 1
        else:
            assert began < self.opened_at
            assert self.breaker.failures == before.failures
            assert self.breaker.state == before.state
        if self.breaker.failures > before.failures:
            assert not_before <= self.breaker.next_probe
            assert self.breaker.next_probe <= max(self.now + BACKOFF.cap, not_before, before.next_probe)
        assert self.breaker.next_probe >= before.next_probe

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        self.tick(0.001)
        self.attempts.pop(data.draw(st.integers(0, len(self.attempts) - 1)))
        self.breaker = self.breaker.succeeded(self.now)
        # A probe that is still under way is now an attempt from before the last success.
        self.attempts = [(began, False) for began, _ in self.attempts]
        assert self.breaker.state == "closed"

    @precondition(lambda self: self.current_probes())
    @rule()
    def give_up(self) -> None:
        self.tick(0.001)
        self.attempts.remove(self.current_probes()[0])
        failures = self.breaker.failures
        self.breaker = self.breaker.gave_up(self.now)
        assert self.breaker.state == "open"
        assert self.breaker.failures == failures

    @invariant()
    def at_most_one_probe_is_out(self) -> None:
        assert len(self.current_probes()) == (1 if self.breaker.state == "probing" else 0)

    @invariant()
    def a_probe_always_comes(self) -> None:
        """After any sequence of events another probe is permitted eventually."""
        probing = self.breaker.state == "probing"
        assert probing or self.breaker.permits(max(self.now, self.breaker.next_probe))


TestSenders = Senders.TestCase
