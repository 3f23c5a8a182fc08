"""Sessions: counts of request outcomes per minute.

This module owns the aggregates of one release in one process. A request costs one append; outcomes are summed
before sending, or when the tally has grown long.

Source: the protocol's session aggregates: grouped by the minute in which they began; `crashed` if an
exception escaped, `errored` if an error was captured, `exited` otherwise. Nothing is sent without a release.

Threads: `record` may be called from any thread and never blocks. One thread at a time sums. A forked child
starts with an empty tally; the parent sends what it recorded before the fork.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from transport_kit.envelope.envelope import Envelope
from transport_kit.reporting import runtime_facts
from transport_kit.reporting.ticker import Ticker
from transport_kit.transport.base import Transport

__all__ = ["OUTCOMES", "Sessions"]

#: Seconds between two envelopes.
SEND_EVERY: Final = 60.0
OUTCOMES: Final = ("exited", "errored", "crashed")
#: Outcomes held one by one before they are summed: a few tens of kilobytes.
_TALLY: Final = 1000
#: Aggregates that servers accept in one item.
_MAX_BUCKETS: Final = 100
#: Seconds that a flush waits for another thread that is summing.
_PATIENCE: Final = 0.5


class Sessions:
    """Counts the outcomes of requests and sends the sums.

    Args:
        transport: Takes the envelopes; its flush sends the sums at once.
        attributes: `release`, and `environment` if there is one.
        seconds: Between two envelopes.
    """

    def __init__(self, transport: Transport, attributes: dict[str, str], seconds: float = SEND_EVERY) -> None:
        self._transport = transport
        self._attributes = attributes
        self._pid = os.getpid()
        # Minute and outcome as one number. `append` and `popleft` are atomic.
        self._tally: deque[int] = deque()
        # Guarded by `_counting`. The lock is only acquired without blocking or with a timeout, because a
        # signal handler may flush while this thread holds it.
        self._counts: Counter[int] = Counter()
        self._counting = threading.Lock()
        self._ticker = Ticker(self.send, seconds, "transport-kit-sessions")
        transport.before_flush(self.send)

    def record(self, started: float, outcome: int) -> None:
        """Count one request.

        Args:
            started: Seconds since the epoch.
            outcome: Index into `OUTCOMES`.
        """
        if self._pid != os.getpid():
            self._renew()
        self._tally.append(int(started) // 60 * 4 + outcome)
        self._ticker.arm()
        if len(self._tally) >= _TALLY and self._counting.acquire(blocking=False):
            try:
                self._count()
            finally:
                self._counting.release()

    def send(self) -> None:
        """Capture the sums so far."""
        if self._pid != os.getpid():
            self._renew()
        if not self._counting.acquire(timeout=_PATIENCE):
            return  # another thread is summing; the next request arms the ticker again
        try:
            self._count()
            counts, self._counts = self._counts, Counter()
        finally:
            self._counting.release()
        buckets: dict[int, dict[str, Any]] = {}
        for key, count in sorted(counts.items()):
            minute, outcome = divmod(key, 4)
            bucket = buckets.setdefault(minute, {"started": _iso(minute * 60)})
            bucket[OUTCOMES[outcome]] = count
        aggregates = list(buckets.values())
        for first in range(0, len(aggregates), _MAX_BUCKETS):
            envelope = Envelope({"sdk": runtime_facts.sdk()})
            envelope.add_sessions(
                {"aggregates": aggregates[first : first + _MAX_BUCKETS], "attrs": self._attributes}
            )
            self._transport.capture_envelope(envelope)

    def _count(self) -> None:
        pop: Callable[[], int] = self._tally.popleft
        counts = self._counts
        try:
            # Bounded by the length now, because other threads keep appending.
            for _ in range(len(self._tally)):
                counts[pop()] += 1
        except IndexError:
            pass

    def _renew(self) -> None:
        """Start afresh in a forked child.

        If its first requests arrive on several threads at once, each makes a new tally, and an outcome may be
        lost.
        """
        self._counting = threading.Lock()
        self._counts = Counter()
        self._tally = deque()
        self._pid = os.getpid()


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
