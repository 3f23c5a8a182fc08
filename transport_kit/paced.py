"""A spool and its transport as a forwarder has them: at a pace, and with an end that claims nothing more.

Owns where the pace applies, and what a forwarder asks of one identity. How fast is `pace.py`'s, which
identities there are is `forwarder.py`'s. Delivering is the transport's, with the same worker as in an app.

Threads: as the spool and the transport; `ending` is set by the forwarder's thread, and read by senders.
"""

from __future__ import annotations

import os
import time
from typing import Any

from transport_kit.dsn import Dsn
from transport_kit.exchange import ExchangeError, Response
from transport_kit.factory import spool_arguments
from transport_kit.http import HttpTransport
from transport_kit.options import TransportOptions
from transport_kit.pace import Pace
from transport_kit.queue import Claim
from transport_kit.spool import FileSpool
from transport_kit.spool.directory import identity_of

__all__ = ["PacedSpool", "PacedTransport"]


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

    def want_report(self) -> None:
        """Report what is known to be lost now; `reporting` says whether that is over."""
        self._current_life().worker.want_report()

    @property
    def reporting(self) -> bool:
        return self._current_life().worker.reporting

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
