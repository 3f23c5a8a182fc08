"""How fast a forwarder sends: an upper bound for all, and slowly to a server that comes back from an outage.

Owns the pace, and the spool and transport that keep it. Delivering is the transport's, with the same worker
as in an app; which identities there are is `forwarder.py`'s.

Threads: any; `ending` is set by the forwarder's thread, and read by senders.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Final

from transport_kit.config.dsn import Dsn
from transport_kit.config.options import TransportOptions
from transport_kit.queues.protocol import Claim
from transport_kit.queues.spool import FileSpool
from transport_kit.queues.spool.directory import identity_of
from transport_kit.transport.factory import spool_arguments
from transport_kit.transport.http import HttpTransport
from transport_kit.transport.wire.exchange import ExchangeError, Response

__all__ = ["Pace", "PacedSpool", "PacedTransport", "Rate", "REPLAY_INTERVAL", "REPLAY_RUN"]

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


class PacedSpool(FileSpool):
    """Hands out envelopes at a pace, and none once the end has come.

    The pace is kept where envelopes are claimed, so that none waits in a sender's hands: those are what a
    kill makes duplicates of.
    """

    def __init__(self, *arguments: Any, pace: Pace, **options: Any) -> None:
        self._pace = pace
        self.ending = False
        super().__init__(*arguments, **options)

    def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
        wait = self._pace.wait(time.monotonic())
        if limit and (self.ending or wait > 0):
            # It still looks after the spool: its bounds, the election, the figures.
            return super().claim(0, timeout if self.ending else min(wait, timeout))
        claims = super().claim(limit, timeout)
        if claims and self.ending:
            self.release(claims)
            return []
        for _ in claims:
            self._pace.took(time.monotonic())
        return claims


class PacedTransport(HttpTransport):
    """Tells its pace how the server answers."""

    def __init__(self, dsn: Dsn, options: TransportOptions, path: str, pace: Pace) -> None:
        self.pace = pace
        # Made with the transport; a forwarder does not fork.
        self.spool: PacedSpool

        def make_queue() -> FileSpool:
            self.spool = PacedSpool(
                path, identity_of(dsn), **spool_arguments(options), forwarder=True, pace=pace
            )
            return self.spool

        super().__init__(dsn, options, make_queue=make_queue)

    def _request(
        self, method: str, url: str, body: bytes, headers: dict[str, str], *, timeout: float
    ) -> Response:
        try:
            response = super()._request(method, url, body, headers, timeout=timeout)
        except ExchangeError:
            self.pace.failed()
            raise
        if response.status in self.options.retry_statuses:
            self.pace.failed()
        else:
            self.pace.succeeded()
        return response

    @property
    def in_flight(self) -> bool:
        """Whether a request has no answer yet."""
        return self.spool.stats().claimed > 0

    def request_report(self) -> None:
        """Report what is known to be lost now; `reporting` says whether that is over."""
        self._states.get().worker.want_report()

    @property
    def reporting(self) -> bool:
        return self._states.get().worker.reporting

    @property
    def empty(self) -> bool:
        """Whether the spool is known to hold nothing that waits, by this process, which drains it."""
        facts, stats = self.spool.facts(), self.spool.stats()
        status = facts.status
        return (
            facts.draining
            and not stats.waiting + stats.claimed
            and status is not None
            and status.pid == os.getpid()
            and status.complete
            and status.pending == 0
        )

    def why_left(self) -> str:
        """What keeps envelopes waiting."""
        if not self.spool.facts().draining:
            return "another process drains it"
        return "; ".join(self.health().reasons) or "envelopes wait"
