"""The pace of a forwarder: an upper bound for all servers, and slow replay to a server after an outage.

A transport with this gate delivers with the same worker as in an app; `forwarder.py` chooses the identities.

Threads: any.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Final

from transport_kit.transport.wire.exchange import ExchangeError, Response

__all__ = ["Pace", "Rate", "REPLAY_INTERVAL", "REPLAY_RUN"]

#: Seconds between two envelopes after an outage, and the number of envelopes that go out so.
REPLAY_INTERVAL: Final = 0.1
REPLAY_RUN: Final = 50
#: Least seconds from the first to the last failure of an outage, and the least number of its failures.
OUTAGE: Final = 5.0
OUTAGE_FAILURES: Final = 3
#: Statuses below 500 that are kept and retried: a proxy's login, a timeout of the server, too early.
_OUTAGE_STATUSES: Final = frozenset({407, 408, 425})


class Rate:
    """An upper bound on the envelopes a second of all senders that share it.

    Args:
        per_second: Envelopes a second; None for no bound.

    Threads: any. The bound holds on average: two senders that call `wait` at the same moment may both send;
    the next ones then wait longer.
    """

    def __init__(self, per_second: float | None) -> None:
        self._interval = 0.0 if per_second is None else 1.0 / per_second
        self._lock = threading.Lock()
        self._next = 0.0  # guarded by `_lock`

    def wait(self, now: float) -> float:
        """Return the seconds until the next envelope may be sent; 0 or less means now."""
        return self._next - now

    def wait_of(self, envelopes: int, now: float) -> float:
        """Return the seconds until the last of so many waiting envelopes may be sent; 0 means now."""
        return max(0.0, self._next - now) + self._interval * max(0, envelopes - 1) if envelopes else 0.0

    def record_send(self, now: float) -> None:
        """Count one envelope as sent."""
        with self._lock:
            self._next = max(self._next, now) + self._interval


class Pace:
    """The pace of one server: the shared bound, and slow replay after an outage.

    After an outage every client has a backlog, which would overload the server. So for `interval * run`
    seconds after the first answer envelopes are sent `interval` apart. An outage is `OUTAGE_FAILURES`
    failures or more, without an answer in between, over `OUTAGE` seconds or more: after a shorter trouble
    nobody has much of a backlog. During the outage the breaker permits one probe at a time.

    Envelopes are charged for during slow replay only, and no charge outlasts it. As the gate of a transport a
    pace holds envelopes back before they are claimed: a kill of the forwarder duplicates the claimed ones.

    Args:
        rate: The bound that all servers share.
        interval: Seconds between two envelopes.
        run: Number of envelopes.
        clock: Monotonic seconds.

    Threads: any.
    """

    def __init__(
        self,
        rate: Rate,
        *,
        interval: float = REPLAY_INTERVAL,
        run: int = REPLAY_RUN,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = rate
        self._interval = interval
        self._slow_seconds = interval * run
        self._clock = clock
        self._lock = threading.Lock()
        # `_lock` guards the following.
        self._failures = 0  # since the last answer
        self._first_failure = self._last_failure = 0.0  # of these failures
        self._slow_until = -math.inf
        self._next = -math.inf  # time of the next envelope during slow replay
        # True after `end`. Not guarded: it is assigned once.
        self._ended = False

    # -- the gate --------------------------------------------------------------------------------------

    def wait(self) -> float:
        """Return the seconds until the next envelope may be claimed; 0 or less means now."""
        if self._ended:
            return math.inf
        now = self._clock()
        with self._lock:
            replay = min(self._next, self._slow_until) - now
        return max(self._rate.wait(now), replay)

    def admit(self) -> bool:
        """Count one envelope as sent; return False after `end`."""
        if self._ended:
            return False
        now = self._clock()
        self._rate.record_send(now)
        with self._lock:
            if now < self._slow_until:
                self._next = max(self._next, now) + self._interval
        return True

    def end(self) -> None:
        """Admit nothing from now on."""
        self._ended = True

    # -- answers ---------------------------------------------------------------------------------------

    def record_answer(self, answer: Response | ExchangeError) -> None:
        """Record an answer or an error; the first answer after an outage begins slow replay."""
        now = self._clock()
        failed = (
            isinstance(answer, ExchangeError) or answer.status >= 500 or answer.status in _OUTAGE_STATUSES
        )
        with self._lock:
            if failed:
                if not self._failures:
                    self._first_failure = now
                self._failures += 1
                self._last_failure = now
                return
            failures, self._failures = self._failures, 0
            if failures >= OUTAGE_FAILURES and self._last_failure - self._first_failure >= OUTAGE:
                self._slow_until = now + self._slow_seconds
                self._next = now

    # -- health ----------------------------------------------------------------------------------------

    def slow_for(self) -> float:
        """Return the seconds of slow replay that are left; 0 without."""
        return max(0.0, self._slow_until - self._clock())

    def paced(self, waiting: int) -> float | None:
        """Return the seconds for which this pace delays envelopes; None if it does not.

        Args:
            waiting: The number of envelopes that wait for all servers together.
        """
        seconds = max(self.slow_for(), self._rate.wait_of(waiting, self._clock()))
        return seconds if seconds > 0 else None
