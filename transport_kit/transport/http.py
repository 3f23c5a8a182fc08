"""Delivery over HTTP: filter by rate limits, encode and send.

This module owns the base class (`BaseHttpTransport`) and the transport that most apps use (`HttpTransport`).
The worker waits, retries and counts; `answers.py` turns answers into outcomes; `wire/connections.py` owns
connections.

Threads: captures run on any thread; `_deliver` and its callees run on the worker's senders, several at a
time. All state that a forked child must not share with its parent is in `TransportState`, which it replaces.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from transport_kit.config.dsn import Dsn
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
from transport_kit.transport.answers import ServerState
from transport_kit.transport.base import Transport, is_deliverable
from transport_kit.transport.health import Health
from transport_kit.transport.wire.compression import SMALLEST, codec
from transport_kit.transport.wire.connections import ConnectionPool
from transport_kit.transport.wire.exchange import ExchangeError, Response
from transport_kit.transport.worker.client_reports import report_items
from transport_kit.transport.worker.outcome import FlushReport, Gate, Outcome
from transport_kit.transport.worker.worker import BackgroundWorker

__all__ = ["BaseHttpTransport", "HttpTransport"]

_CONTENT_TYPE = "application/x-sentry-envelope"
_REPORT_HEADER = encoder.dumps({"sdk": {"name": SDK_NAME, "version": VERSION}})


class TransportState:
    """The state of a transport in one process. A forked child builds its own, never touches its parent's."""

    def __init__(self, worker: BackgroundWorker, pool: Any, queue: Queue, server: ServerState) -> None:
        self.pid = os.getpid()
        self.worker = worker
        self.queue = queue
        self.pool = pool
        # Idents of the threads that are sealing; each thread adds and removes its own, in single steps. Part
        # of this state, as the threads don't exist in a forked child and their idents are used again.
        self.sealing: set[int] = set()
        self.server = server


class BaseHttpTransport(Transport):
    """The base class of HTTP transports: all but the request itself.

    A subclass implements `_make_pool` and `_request`.

    Args:
        dsn: The DSN to deliver to.
        options: The options of the transport.
        make_queue: Makes the queue, once per process; None makes a `MemoryQueue`.
        on_answer: Called on a sender with each answer, or with the error in its place, before it has an
            effect. Must neither block nor raise.
        gate: Limits the rate of deliveries; None for no limit.

    Raises:
        OptionsError: An option needs something that is missing, such as a codec that is not installed.
    """

    def __init__(
        self,
        dsn: Dsn,
        options: TransportOptions | None = None,
        *,
        make_queue: Callable[[], Queue] | None = None,
        on_answer: Callable[[Response | ExchangeError], object] | None = None,
        gate: Gate | None = None,
    ) -> None:
        super().__init__(options)
        encoder.announce()
        self.dsn: Dsn = dsn
        if make_queue is None and self.options.queue != "memory":
            raise OptionsError("queue", "is made by make_transport, or given as make_queue")
        self._make_queue = make_queue or self._memory_queue
        self._has_old_hook = _is_old_hook(type(self)._request)
        self._on_answer = on_answer
        self._gate = gate
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
        worker = BackgroundWorker(queue, deliver, self.options, gate=self._gate)
        pool = self._make_pool()
        # A subclass may have a pool of another kind.
        server = ServerState(
            self.dsn,
            self.options,
            getattr(pool, "proxy_url", None),
            forwarded=bool(getattr(pool, "forwards", False)),
        )
        state = TransportState(worker, pool, queue, server)
        return state

    # -- hooks for subclasses --------------------------------------------------------------------------

    def _make_pool(self) -> Any:
        """Return the connection pool of one process. Must not connect, nor import slow modules."""
        raise NotImplementedError

    def _request(self, pool: Any, body: bytes, headers: dict[str, str], *, timeout: float) -> Response:
        """POST the body to the DSN's URL and return the complete answer. Redirects are not followed.

        The old signature, `_request(method, url, body, headers, *, timeout)`, is deprecated.

        Args:
            pool: The pool that `_make_pool` returned in this process.
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

    @property
    def worker(self) -> BackgroundWorker:
        """The worker of this process."""
        return self._states.get().worker

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
        limits = state.server.limits
        lost = Quantities()
        if sealed is not None:
            sealed = sealed.unpacked()
            if limits:
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
            response = self._ask(state.pool, body, headers, timeout=within)
        except ExchangeError as error:
            if self._on_answer is not None:
                self._on_answer(error)
            return state.server.read_failure(error, sealed)
        if self._on_answer is not None:
            self._on_answer(response)
        return state.server.read(response, sealed)

    def _ask(self, pool: Any, body: bytes, headers: dict[str, str], *, timeout: float) -> Response:
        if not self._has_old_hook:
            return self._request(pool, body, headers, timeout=timeout)
        request: Any = self._request
        answer: Response = request("POST", self._url, body, headers, timeout=timeout)
        return answer

    # -- health ----------------------------------------------------------------------------------------

    def health(self) -> Health:
        state = self._states.get()
        now = time.monotonic()
        return Health.of(
            state.worker.facts(),
            state.server.facts(now),
            now,
            pid=state.pid,
            kind=type(self).__name__,
            spool=state.queue.describe() if state.queue.shared else None,
            problem=self._failed_option(),
            option_problems=tuple(map(str, self.option_problems)),
        )


def _is_old_hook(request: Callable[..., Response]) -> bool:
    """Return True if a subclass's hook takes method and URL; warn about it."""
    is_old = "url" in inspect.signature(request).parameters
    if is_old:
        warnings.warn(
            f"{request.__qualname__} must take (pool, body, headers, *, timeout); "
            "(method, url, body, headers, *, timeout) is deprecated",
            DeprecationWarning,
            stacklevel=2,
        )
    return is_old


class HttpTransport(BaseHttpTransport):
    """Delivers over HTTP/1.1. urllib3 opens the connections: TLS, client certificates, proxies."""

    def _make_pool(self) -> ConnectionPool:
        return ConnectionPool(self._url, self.options)

    @functools.cached_property
    def _target(self) -> str:
        return urlsplit(self._url).path

    def _request(self, pool: Any, body: Any, headers: Any, *old: Any, timeout: float) -> Response:
        if old:
            # A subclass whose hook has the old signature calls this one with it: method, URL, body, headers.
            pool, body, headers = self._states.get().pool, headers, old[0]
        response: Response = pool.post(self._target, headers, body, timeout=timeout)
        return response
