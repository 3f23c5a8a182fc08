"""Back-off and circuit breaker, as immutable values.

This module owns no clock, no random numbers and no thread: times and draws are parameters, so that a test can
replay any sequence of events.

Threads: instances never change. The `Dispatcher` replaces its breaker while holding its `StateLock`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Backoff", "CircuitBreaker"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter: a delay between 0 and a ceiling that doubles per failure.

    Attributes:
        base: Ceiling of the first delay, in seconds; more than 0.
        cap: Ceiling of all delays, in seconds; finite, and not less than `base`.

    Raises:
        ValueError: A value is out of these bounds.
    """

    base: float
    cap: float

    def __post_init__(self) -> None:
        if not 0 < self.base <= self.cap < math.inf:
            raise ValueError("base must be more than 0, and cap finite and not less than base")

    def delay(self, attempt: int, draw: float) -> float:
        """Return the seconds to wait after a failed attempt.

        Args:
            attempt: The number of the attempt, from 1 without an upper bound.
            draw: A random number in [0, 1).
        """
        # Halving the cap underflows to 0 for a large `attempt`; doubling the base would overflow.
        capped = math.ldexp(self.cap, 1 - attempt) <= self.base
        return draw * (self.cap if capped else math.ldexp(self.base, attempt - 1))


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """A circuit breaker: stops deliveries after a failure, then permits one probe at a time.

    Methods that change the state return a new breaker. All times are monotonic seconds. A failure counts
    only if its attempt *began* after the breaker last opened or saw a success: eight attempts under way when
    the receiver dies are one failure, not eight.

    Attributes:
        backoff: Delays before each probe.
        failures: Counted failures in a row; 0 while the breaker is closed.
        since: Time at which it last opened or saw a success. Failures of earlier attempts are not counted.
        next_probe: While open, the earliest time of the next probe.
        probe_began: Time at which the probe under way began; None without one.
    """

    backoff: Backoff
    failures: int = 0
    since: float = -math.inf
    next_probe: float = -math.inf
    probe_began: float | None = None

    @property
    def state(self) -> Literal["closed", "open", "probing"]:
        """`closed`: attempts are permitted; `open`: only a probe is; `probing`: a probe is under way."""
        if self.failures == 0:
            return "closed"
        return "open" if self.probe_began is None else "probing"

    def permits(self, now: float) -> bool:
        """Return True if an attempt may begin now. The caller then calls `began` under the same lock."""
        return self.failures == 0 or (self.probe_began is None and now >= self.next_probe)

    def began(self, now: float) -> CircuitBreaker:
        """Return the breaker after an attempt began that `permits` allowed; while open, it is the probe."""
        return replace(self, probe_began=now) if self.state == "open" else self

    def succeeded(self, now: float) -> CircuitBreaker:
        """Return a closed breaker: an attempt, whenever it began, got an answer."""
        return CircuitBreaker(self.backoff, since=now)

    def failed(self, now: float, *, began: float, draw: float, not_before: float = 0.0) -> CircuitBreaker:
        """Return the breaker after an attempt failed because the receiver is unreachable or overloaded.

        A closed breaker opens; a probe ends, and the ceiling of the delay doubles. The failure of an attempt
        that began before `since` has neither effect.

        Args:
            now: Time of the failure.
            began: Time at which the attempt began; for a probe not before the `now` given to `began`.
            draw: A random number in [0, 1) for the jitter.
            not_before: Earliest time of the next probe according to the receiver (`Retry-After`), or 0.0.
                It counts while open even from an old attempt, and never makes the next probe earlier.
        """
        state = self.state
        if began < self.since or state == "open":
            if state == "closed" or not_before <= self.next_probe:
                return self
            return replace(self, next_probe=not_before)
        failures = self.failures + 1
        pause_ends = now + self.backoff.delay(failures, draw)
        return CircuitBreaker(
            self.backoff,
            failures=failures,
            since=now if state == "closed" else self.since,
            # The old value is larger only if an old attempt's `not_before` moved it beyond this probe.
            next_probe=max(pause_ends, not_before, self.next_probe),
        )

    def gave_up(self, now: float) -> CircuitBreaker:
        """Return the breaker after a probe ended without asking the receiver; another one may begin."""
        if self.probe_began is None:
            return self
        return replace(self, next_probe=max(now, self.next_probe), probe_began=None)

    def hastened(self, now: float) -> CircuitBreaker:
        """Return a breaker whose next probe may begin now; no change while closed or probing."""
        if self.state != "open" or self.next_probe <= now:
            return self
        return replace(self, next_probe=now)
