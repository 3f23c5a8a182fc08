"""How fast a forwarder sends: an upper bound for all, and slowly to a server that comes back from an outage.

Owns no clock and no waiting: the moment is a parameter, and the answer is how long to wait.

Threads: any.
"""

from __future__ import annotations

import threading
from typing import Final

__all__ = ["REPLAY_INTERVAL", "REPLAY_RUN", "Pace", "Rate"]

#: Seconds between two envelopes after an outage, and how many in a row have to arrive to end that.
REPLAY_INTERVAL: Final = 0.1
REPLAY_RUN: Final = 50


class Rate:
    """An upper bound for all that share it.

    Args:
        per_second: Envelopes; None for no bound.

    Threads: any. The bound holds on average: two that ask at the same moment may both go, and then wait.
    """

    def __init__(self, per_second: float | None) -> None:
        self._interval = 0.0 if per_second is None else 1.0 / per_second
        self._lock = threading.Lock()
        self._next = 0.0  # guarded by `_lock`

    def wait(self, now: float) -> float:
        """Seconds until one may go; 0 or less: now."""
        return self._next - now

    def took(self, now: float) -> None:
        """One goes."""
        with self._lock:
            self._next = max(self._next, now) + self._interval


class Pace:
    """How fast one server is sent to: at the bound of all, and slowly after it could not be reached.

    A server that comes back finds every client with a backlog. So after a failure envelopes go one by
    one, `interval` apart, until `run` of them in a row were answered.

    Args:
        rate: The bound that is shared with others.
        interval: Seconds.
        run: Envelopes.

    Threads: any.
    """

    def __init__(self, rate: Rate, *, interval: float = REPLAY_INTERVAL, run: int = REPLAY_RUN) -> None:
        self._rate = rate
        self._replay = Rate(1.0 / interval)
        self._run = run
        self._lock = threading.Lock()
        self._left = 0  # guarded by `_lock`: successes until full speed

    @property
    def slow(self) -> bool:
        """Whether it replays one by one."""
        return self._left > 0

    def wait(self, now: float) -> float:
        """Seconds until the next envelope may go; 0 or less: now."""
        wait = self._rate.wait(now)
        return max(wait, self._replay.wait(now)) if self.slow else wait

    def took(self, now: float) -> None:
        """One goes."""
        self._rate.took(now)
        self._replay.took(now)

    def succeeded(self) -> None:
        """The server answered."""
        with self._lock:
            self._left = max(0, self._left - 1)

    def failed(self) -> None:
        """It could not be reached, or said that it can't work."""
        with self._lock:
            self._left = self._run
