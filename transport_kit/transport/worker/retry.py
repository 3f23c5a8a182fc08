"""When to try again: back-off and circuit breaker, as values.

Owns two formulas and one small state machine. Owns no clock, no randomness and no thread: time and chance
are parameters, so every history can be replayed in a test.

Threads: instances never change. Whoever holds one replaces it under a lock of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Backoff", "CircuitBreaker"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter: a delay anywhere between nothing and a doubling ceiling.

    Attributes:
        base: Seconds; the ceiling of the first delay. More than 0.
        cap: Seconds; the ceiling of all delays. Finite, and not less than `base`.

    Raises:
        ValueError: A value is out of these bounds.
    """

    base: float
    cap: float

    def __post_init__(self) -> None:
        if not 0 < self.base <= self.cap < math.inf:
            raise ValueError("base must be more than 0, and cap finite and not less than base")

    def delay(self, attempt: int, draw: float) -> float:
        """Seconds to wait after the failure numbered `attempt`, counted from 1.

        Args:
            attempt: At least 1; no number is too large.
            draw: From 0 up to but not including 1, as `random.random` gives it.
        """
        # The cap is halved rather than the base doubled: the first underflows to 0, the second overflows.
        capped = math.ldexp(self.cap, 1 - attempt) <= self.base
        return draw * (self.cap if capped else math.ldexp(self.base, attempt - 1))


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """Stops deliveries after a failure and lets one probe at a time find out whether they work again.

    Every method returns the breaker that follows. All times are monotonic seconds. What decides whether
    an outcome counts is when its attempt *began*: eight attempts that were under way when the receiver
    died are one failure, not eight.

    Attributes:
        backoff: How long the breaker stays open after each failure.
        failures: Failures in a row that counted; 0 is closed.
        since: When it last opened or last saw a success; an attempt from before it is old news.
        next_probe: While open, the earliest moment of the next probe.
        probe_began: When the probe that is out began; None when none is.
    """

    backoff: Backoff
    failures: int = 0
    since: float = -math.inf
    next_probe: float = -math.inf
    probe_began: float | None = None

    @property
    def state(self) -> Literal["closed", "open", "probing"]:
        """`closed`: all may pass; `open`: none, or one probe; `probing`: one is out, all others wait."""
        if self.failures == 0:
            return "closed"
        return "open" if self.probe_began is None else "probing"

    def permits(self, now: float) -> bool:
        """Whether an attempt may begin now. Whoever acts on it calls `began` under the same lock."""
        return self.failures == 0 or (self.probe_began is None and now >= self.next_probe)

    def began(self, now: float) -> CircuitBreaker:
        """An attempt that `permits` allowed begins; unless closed, it is the probe."""
        return replace(self, probe_began=now) if self.state == "open" else self

    def succeeded(self, now: float) -> CircuitBreaker:
        """Some attempt got an answer, whenever it began: deliveries work, and the breaker closes."""
        return CircuitBreaker(self.backoff, since=now)

    def failed(self, now: float, *, began: float, draw: float, not_before: float = 0.0) -> CircuitBreaker:
        """An attempt failed in a way that says the receiver is not there.

        Closed, it opens; probing, the probe is over and the delay doubles. An attempt from before the
        breaker last changed does neither.

        Args:
            now: When it failed.
            began: When it began; for a probe no earlier than what `began` was told.
            draw: From 0 up to but not including 1, for the jitter.
            not_before: The earliest next probe if the receiver named one (`Retry-After`). It is honoured
                while open even from an old attempt, and never brings the next probe forward.
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
            # The old value counts only if an old attempt's `not_before` moved it past this probe.
            next_probe=max(pause_ends, not_before, self.next_probe),
        )

    def gave_up(self, now: float) -> CircuitBreaker:
        """The probe that is out ended without a verdict (nothing to send, shutdown): another may begin."""
        if self.probe_began is None:
            return self
        return replace(self, next_probe=max(now, self.next_probe), probe_began=None)

    def hastened(self, now: float) -> CircuitBreaker:
        """The next probe may begin now, as someone waits for the outcome; no change while one is out."""
        if self.state != "open" or self.next_probe <= now:
            return self
        return replace(self, next_probe=now)
