"""The pace of a forwarder: an upper bound for all servers, and slow replay to a server after an outage.

Owns the pace, and the spool and transport that observe it. The transport delivers with the same worker as in
an app; `forwarder.py` chooses the identities.

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

#: Seconds between two envelopes after an outage, and the number of successes in a row that ends this.
REPLAY_INTERVAL: Final = 0.1
REPLAY_RUN: Final = 50


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

    def record_send(self, now: float) -> None:
        """Count one envelope as sent."""
        with self._lock:
            self._next = max(self._next, now) + self._interval


class Pace:
    """The pace of one server: the shared bound, and slow replay after it could not be reached.

    After an outage every client has a backlog, which would overload the server. So after a failure envelopes
    are sent `interval` apart, until `run` of them in a row were answered.

    Args:
        rate: The bound that all servers share.
        interval: Seconds between two envelopes.
        run: Number of envelopes.

    Threads: any.
    """

    def __init__(self, rate: Rate, *, interval: float = REPLAY_INTERVAL, run: int = REPLAY_RUN) -> None:
        self._rate = rate
        self._replay = Rate(1.0 / interval)
        self._run = run
        self._lock = threading.Lock()
        self._remaining = 0  # guarded by `_lock`: successes until full speed

    @property
    def slow(self) -> bool:
        """True during slow replay."""
        return self._remaining > 0

    def wait(self, now: float) -> float:
        """Return the seconds until the next envelope may be sent; 0 or less means now."""
        wait = self._rate.wait(now)
        return max(wait, self._replay.wait(now)) if self.slow else wait

    def record_send(self, now: float) -> None:
        """Count one envelope as sent."""
        self._rate.record_send(now)
        self._replay.record_send(now)

    def succeeded(self) -> None:
        """Count an answer of the server towards full speed."""
        with self._lock:
            self._remaining = max(0, self._remaining - 1)

    def failed(self) -> None:
        """Begin slow replay: the server could not be reached, or answered with a status to retry."""
        with self._lock:
            self._remaining = self._run


class PacedSpool(FileSpool):
    """A spool that hands out envelopes at a pace, and none once `ending` is set.

    `claim` observes the pace, so that a sender never holds an envelope while it waits: a kill of the
    forwarder duplicates the claimed envelopes.
    """

    def __init__(self, *arguments: Any, pace: Pace, **options: Any) -> None:
        self._pace = pace
        self.ending = False
        super().__init__(*arguments, **options)

    def claim(self, limit: int = 1, timeout: float = 0.0) -> list[Claim]:
        wait = self._pace.wait(time.monotonic())
        if limit and (self.ending or wait > 0):
            # A claim of none still enforces the bounds, takes part in the election and publishes status.
            return super().claim(0, timeout if self.ending else min(wait, timeout))
        claims = super().claim(limit, timeout)
        if claims and self.ending:
            self.release(claims)
            return []
        for _ in claims:
            self._pace.record_send(time.monotonic())
        return claims


class PacedTransport(HttpTransport):
    """A transport that reports each answer of the server to its pace."""

    def __init__(self, dsn: Dsn, options: TransportOptions, path: str, pace: Pace) -> None:
        self.pace = pace
        # Assigned once, while the transport is built: a forwarder does not fork.
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
        """True while a request has no answer."""
        return self.spool.stats().claimed > 0

    def request_report(self) -> None:
        """Send the known losses now; `reporting` is False once that has ended."""
        self._states.get().worker.want_report()

    @property
    def reporting(self) -> bool:
        """True while losses are to be reported."""
        return self._states.get().worker.reporting

    @property
    def empty(self) -> bool:
        """True if this process drains the spool and knows that no envelope waits in it."""
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
        """Return the reason that envelopes wait."""
        if not self.spool.facts().draining:
            return "another process drains it"
        return "; ".join(self.health().reasons) or "envelopes wait"
