"""Delivery over HTTP: filter by rate limits, encode, send, and turn the answer into an outcome.

Owns the meaning of answers (`BaseHttpTransport`) and the transport that most apps use (`HttpTransport`). The
worker waits, retries and counts; `wire/connections.py` owns the connections.

Threads: captures run on any thread; `_deliver` and its callees run on the worker's senders, several at a
time. All state that a forked child must not share with its parent is in `TransportState`, which it replaces.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from transport_kit.config.dsn import Dsn, mask_keys
from transport_kit.config.options import TransportOptions
from transport_kit.envelope import encoder
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.losses import LossReason, Quantities, Report
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.memory import MemoryQueue
from transport_kit.queues.protocol import Queue
from transport_kit.runtime import process
from transport_kit.runtime.errors import OptionsError, SealError
from transport_kit.runtime.forks import PerProcess
from transport_kit.runtime.interrupts import let_through
from transport_kit.runtime.log import log
from transport_kit.runtime.version import CLIENT, SDK_NAME, VERSION
from transport_kit.transport.base import Transport, is_deliverable
from transport_kit.transport.health import Health, LastError
from transport_kit.transport.wire.compression import SMALLEST, codec
from transport_kit.transport.wire.connections import ConnectionPool
from transport_kit.transport.wire.exchange import ExchangeError, Response
from transport_kit.transport.worker.client_reports import report_items
from transport_kit.transport.worker.limits import RateLimits, retry_after_seconds
from transport_kit.transport.worker.outcome import FlushReport, Outcome
from transport_kit.transport.worker.worker import BackgroundWorker

__all__ = ["BaseHttpTransport", "HttpTransport"]

#: The number of characters of an error answer that are logged.
SHOWN = 200
_CONTENT_TYPE = "application/x-sentry-envelope"
_REPORT_HEADER = encoder.dumps({"sdk": {"name": SDK_NAME, "version": VERSION}})
_NO_LIMITS = RateLimits()


class TransportState:
    """The state of a transport in one process. A forked child builds its own and never touches its parent's.

    `guard` guards all attributes that are assigned after it. It is held for a few assignments at a time and
    never during I/O.
    """

    def __init__(self, worker: BackgroundWorker, pool: Any, queue: Queue) -> None:
        self.pid = os.getpid()
        self.worker = worker
        self.queue = queue
        self.pool = pool
        # Idents of the threads that are sealing; each thread adds and removes its own, in single steps. Part
        # of this state, as the threads don't exist in a forked child and their idents are used again.
        self.sealing: set[int] = set()
        # Senders write the following while holding `guard`; any thread reads them without it.
        self.guard = threading.Lock()
        self.limits = _NO_LIMITS
        self.last_success: float | None = None
        self.last_error: tuple[str, int | None, float] | None = None
        self.refused: int | None = None  # 401 or 403: the server refuses the DSN's key
        self.logged: set[int | str] = set()  # statuses and error kinds logged since the last success


class BaseHttpTransport(Transport):
    """The base class of HTTP transports: all but the request itself.

    A subclass implements `_make_pool` and `_request`.

    Args:
        dsn: The DSN to deliver to.
        options: The options of the transport.
        make_queue: Makes the queue, once per process; None makes a `MemoryQueue`.

    Raises:
        OptionsError: An option needs something that is missing, such as a codec that is not installed.
    """

    def __init__(
        self,
        dsn: Dsn,
        options: TransportOptions | None = None,
        *,
        make_queue: Callable[[], Queue] | None = None,
    ) -> None:
        super().__init__(options)
        encoder.announce()
        self.dsn: Dsn = dsn
        if make_queue is None and self.options.queue != "memory":
            raise OptionsError("queue", "is made by make_transport, or given as make_queue")
        self._make_queue = make_queue or self._memory_queue
        self._codec = codec(self.options.compression, self.options.compression_level)
        self._url = dsn.envelope_url
        self._headers = {
            "Content-Type": _CONTENT_TYPE,
            "User-Agent": CLIENT,
            "X-Sentry-Auth": dsn.auth_header(CLIENT),
        }
        self._states = PerProcess(self._new_state)
        process.watch(self)

    def _memory_queue(self) -> Queue:
        return MemoryQueue(self.options.max_queue_items, self.options.max_queue_bytes)

    def _new_state(self, parent: TransportState | None) -> TransportState:
        def deliver(sealed: SealedEnvelope | None, within: float) -> Outcome:
            return self._deliver(state, sealed, within)

        queue = self._make_queue()
        state = TransportState(BackgroundWorker(queue, deliver, self.options), self._make_pool(), queue)
        return state

    # -- hooks for subclasses --------------------------------------------------------------------------

    def _make_pool(self) -> Any:
        """Return the connection pool of one process. Must not connect, nor import slow modules."""
        raise NotImplementedError

    def _request(
        self, method: str, url: str, body: bytes, headers: dict[str, str], *, timeout: float
    ) -> Response:
        """Send one request and return the complete answer. Redirects are not followed.

        Args:
            timeout: Seconds for the whole exchange.

        Raises:
            ExchangeError: There is no usable answer.
        """
        raise NotImplementedError

    # -- capturing -------------------------------------------------------------------------------------

    def capture_envelope(self, envelope: Envelope) -> bool:
        """Seal the envelope and put it into the queue.

        May be called from any thread, from a signal handler and from `__del__`: it never raises, and never
        waits for a lock that is held during I/O. A capture made by this transport's own sealing or sending
        on the same thread is refused and counted.

        Returns:
            True if the envelope was accepted.
        """
        try:
            state = self._states.get()
            worker = state.worker
            if not is_deliverable(envelope):
                return False
            ident = threading.get_ident()
            if worker.on_own_thread or ident in state.sealing:
                worker.lose(LossReason.REENTRANT, envelope.item_counts())
                return False
            if worker.closing:
                worker.lose(LossReason.CLOSED, envelope.quantities())
                return False
            sealed = self._seal(state, envelope, ident)
            return sealed is not None and worker.submit(sealed)
        except Exception as error:
            let_through(error)
            log.error("a capture failed: %s", type(error).__name__)
            return False

    def _seal(self, state: TransportState, envelope: Envelope, ident: int) -> SealedEnvelope | None:
        worker = state.worker
        try:
            state.sealing.add(ident)
            sealed = envelope.seal(
                max_event_bytes=self.options.max_event_bytes,
                max_attachment_bytes=self.options.max_attachment_bytes,
                max_envelope_bytes=self.options.max_envelope_bytes,
            )
        except SealError as error:
            let_through(error)
            log.error("an envelope was refused: %s", error)
            worker.lose(LossReason.INTERNAL_SDK_ERROR, envelope.item_counts())
            return None
        finally:
            # A single call: a signal handler may raise after any call, and the ident must be removed.
            state.sealing.discard(ident)
        for problem, quantities in sealed.left_out:
            log.error("an item was left out: %s", problem)
            worker.lose(LossReason.INTERNAL_SDK_ERROR, quantities)
        return sealed

    def _lose(self, reason: LossReason, quantities: Quantities) -> None:
        self._states.get().worker.lose(reason, quantities)

    # -- start, flush and close ------------------------------------------------------------------------

    def renew_after_fork(self) -> None:
        self._states.get()

    def start(self) -> None:
        self._states.get().worker.start()

    def _flush(self, timeout: float, until: str) -> FlushReport:
        return self._states.get().worker.flush(timeout, until)

    def _close(self, timeout: float) -> FlushReport:
        state = self._states.get()
        report = state.worker.close(timeout)
        self._close_pool(state)
        return report

    def kill(self) -> None:
        state = self._states.get()
        state.worker.kill()
        self._close_pool(state)

    def _close_pool(self, state: TransportState) -> None:
        close = getattr(state.pool, "close", None)
        if close is not None:
            close()

    @property
    def closed(self) -> bool:
        return self._states.get().worker.closing

    @property
    def pending(self) -> int:
        return self._states.get().worker.pending

    def end_of_process(self, deadline: float) -> int:
        return self._states.get().worker.end(deadline - time.monotonic())

    def can_wait(self) -> bool:
        state = self._states.get()
        return state.worker.can_wait and threading.get_ident() not in state.sealing

    def wants_sigterm(self) -> bool:
        return self.options.handle_sigterm

    # -- delivering, on a sender thread ----------------------------------------------------------------

    def _deliver(self, state: TransportState, sealed: SealedEnvelope | None, within: float) -> Outcome:
        """Send an envelope together with the client report that is due; None sends only the report."""
        now = time.monotonic()
        limits = state.limits
        lost = Quantities()
        if sealed is not None:
            sealed = sealed.unpacked()
            if limits is not _NO_LIMITS:
                remaining, lost = sealed.filtered(lambda category: limits.is_limited(category, now))
                if remaining is None:
                    return Outcome(LossReason.RATELIMIT_BACKOFF, answered=None)
                sealed = remaining
        report: Report = ()
        if state.worker.unreported and not limits.is_limited("internal", now):
            report = state.worker.take_report(alone=sealed is None)
        if sealed is None:
            if not report:
                return Outcome(answered=None)
            sealed = SealedEnvelope.empty(_REPORT_HEADER)
        try:
            outcome = self._send(state, sealed, report, within)
        except BaseException:
            state.worker.give_back(report)
            raise
        if not outcome.answered or outcome.server_fault:
            state.worker.give_back(report)
        if lost:
            outcome = outcome.with_lost(LossReason.RATELIMIT_BACKOFF, lost)
        return outcome

    def _send(self, state: TransportState, sealed: SealedEnvelope, report: Report, within: float) -> Outcome:
        envelope = sealed.with_items(report_items(report)) if report else sealed
        body = envelope.serialize(datetime.now(UTC).isoformat().replace("+00:00", "Z"))
        headers = self._headers
        if self._codec.encoding is not None and len(body) >= SMALLEST:
            body = self._codec.compress(body)
            headers = {**headers, "Content-Encoding": self._codec.encoding}
        try:
            response = self._request("POST", self._url, body, headers, timeout=within)
        except ExchangeError as error:
            return self._outcome_of_error(state, sealed, error)
        return self._outcome_of_response(state, response)

    def _outcome_of_error(
        self, state: TransportState, sealed: SealedEnvelope, error: ExchangeError
    ) -> Outcome:
        with state.guard:
            state.last_error = (error.kind, None, time.monotonic())
        self._warn_once(state, error.kind, "a delivery failed and is repeated later: %s", error)
        if error.kind == "timeout" and error.body_sent and not sealed.repeatable:
            # The server may have received it, and would not recognise a repeat.
            return Outcome(LossReason.NETWORK_ERROR, answered=False)
        return Outcome.retry(LossReason.NETWORK_ERROR)

    def _outcome_of_response(self, state: TransportState, response: Response) -> Outcome:
        status, headers = response.status, response.headers
        now = time.monotonic()
        retried = status in self.options.retry_statuses
        with state.guard:
            if status == 429 or status == 503 or "x-sentry-rate-limits" in headers:
                # `Retry-After` with a status that is retried is a pause, not a rate limit: a limit would
                # discard waiting envelopes, and load balancers announce outages this way. Only the other
                # header counts then, as with a 200.
                state.limits = state.limits.updated(200 if retried else status, headers, now)
            if 200 <= status < 300:
                recovered = bool(state.logged)
                state.logged.clear()
                state.last_success = now
                state.refused = None
            else:
                state.last_error = ("http", status, now)
                if status in (401, 403):
                    state.refused = status
        if 200 <= status < 300:
            if recovered:
                log.info("deliveries work again")
            return Outcome()
        if retried:
            self._warn_once(state, status, "the server answered %d; the delivery is repeated later", status)
            pause = retry_after_seconds(headers, wall=time.time()) or 0.0
            return Outcome.retry(
                LossReason.SEND_ERROR, not_before=now + min(pause, self.options.retry_window)
            )
        if status == 429:
            self._warn_once(
                state, status, "the server answered 429; limited categories are dropped meanwhile"
            )
            return Outcome(LossReason.RATE_LIMITED)
        if 300 <= status < 400:
            self._warn_once(
                state,
                status,
                "the server answered %d and the envelope was discarded; a redirect is not followed: %s",
                status,
                self._excerpt(headers.get("location", "").encode()),
            )
            return Outcome(LossReason.SEND_ERROR)
        self._warn_once(
            state,
            status,
            "the server answered %d%s and the envelope was discarded: %s",
            status,
            _ADVICE.get(status, ""),
            self._excerpt(response.body),
        )
        return Outcome(LossReason.SEND_ERROR, server_fault=status >= 500)

    def _warn_once(self, state: TransportState, failure: int | str, message: str, *arguments: object) -> None:
        """Log one warning per kind of failure until deliveries work again."""
        with state.guard:
            is_new = failure not in state.logged
            state.logged.add(failure)
        if is_new:
            log.warning(message, *arguments)

    def _excerpt(self, answer: bytes) -> str:
        """Return the beginning of a server's text, printable and with the DSN's keys masked."""
        text = answer.decode("utf-8", "replace")
        # Masked before the text is cut: the cut could leave most of a key.
        text = mask_keys(text, (self.dsn.secret_key, self.dsn.public_key))
        return "".join(c if c.isprintable() else " " for c in text[:SHOWN])

    # -- health ----------------------------------------------------------------------------------------

    def health(self) -> Health:
        state = self._states.get()
        facts = state.worker.facts()
        now = time.monotonic()
        queue, totals, breaker = facts.queue, facts.totals, facts.breaker
        error, success = state.last_error, state.last_success
        oldest = queue.oldest_put_at
        return Health(
            pid=state.pid,
            state=facts.state.name.lower(),
            kind=type(self).__name__,
            worker_alive=facts.senders > 0,
            senders=facts.senders,
            waiting=queue.waiting,
            claimed=queue.claimed,
            queue_capacity=queue.max_items,
            queue_bytes=queue.size,
            queue_bytes_capacity=queue.max_bytes,
            oldest_pending_age=None if oldest is None else now - oldest,
            last_success_age=None if success is None else now - success,
            last_error=None if error is None else LastError(error[0], error[1], now - error[2]),
            # A 429 comes from a working server; `limits` shows it.
            failing=error is not None and error[1] != 429 and (success is None or error[2] > success),
            breaker=breaker.state,
            next_probe_in=None if breaker.state == "closed" else max(0.0, breaker.next_probe - now),
            limits={category: until - now for category, until in state.limits.active(now).items()},
            captured=totals.captured,
            delivered=totals.delivered,
            discarded_by_category=totals.discarded,
            pending=totals.pending,
            last_drop_age=None if facts.last_drop is None else now - facts.last_drop,
            spool=state.queue.describe() if state.queue.shared else None,
            problem=self._failed_option()
            if state.refused is None
            else f"the server refuses this DSN's key ({state.refused})",
            option_problems=tuple(map(str, self.option_problems)),
        )


class HttpTransport(BaseHttpTransport):
    """Delivers over HTTP/1.1. urllib3 opens the connections: TLS, client certificates, proxies."""

    def _make_pool(self) -> ConnectionPool:
        return ConnectionPool(self._url, self.options)

    @functools.cached_property
    def _target(self) -> str:
        return urlsplit(self._url).path

    def _request(
        self, method: str, url: str, body: bytes, headers: dict[str, str], *, timeout: float
    ) -> Response:
        pool: ConnectionPool = self._states.get().pool
        return pool.post(self._target, headers, body, timeout=timeout)


_ADVICE = {
    400: " (it could not read the envelope)",
    401: " (check the DSN's key)",
    403: " (check the DSN's key and project)",
    404: " (check the DSN's host and project)",
    405: " (check the DSN's host and project)",
    413: " (it is too large for this server)",
}
