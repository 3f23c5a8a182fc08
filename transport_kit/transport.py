"""The transport interface, and the two transports that need no worker.

Owns `Transport`, `FlushReport`, `FunctionTransport` and `NullTransport`. Knows no worker, no HTTP and no
framework; `http.py` has the transport that delivers, `factory.py` picks one.

Threads: every public method may be called from any thread, from a signal handler, and from `__del__`.
"""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from transport_kit.dsn import Dsn
from transport_kit.envelope import Envelope, Item
from transport_kit.health import Health
from transport_kit.ledger import Ledger, LossReason, Quantities
from transport_kit.options import TransportOptions
from transport_kit.statelock import StateLock

__all__ = ["FlushReport", "FunctionTransport", "NullTransport", "Transport", "quantities_of"]

logger = logging.getLogger("transport_kit")


@dataclass(frozen=True, slots=True)
class FlushReport:
    """What became of the envelopes accepted before the call; truthy iff `ok`.

    Attributes:
        ok: Whether each of them is settled, or stored in a durable queue.
        delivered, discarded: Envelopes settled during the call. Discarded ones don't make it false.
        stored: Envelopes that a durable queue keeps.
        pending: Envelopes that are still waiting or on their way.
    """

    ok: bool
    delivered: int = 0
    discarded: int = 0
    stored: int = 0
    pending: int = 0

    def __bool__(self) -> bool:
        return self.ok


class Transport:
    """Takes envelopes, and can say what became of each item. Subclasses fill in the hooks.

    A subclass overrides `capture_envelope`, `_flush`, `_close`, `kill`, `health`, `pending` and
    `record_lost_event`; what it must promise is DESIGN section 4: nothing raised into the app, nothing
    blocked on the network, every wait with a deadline.
    """

    #: The options it was built with.
    options: TransportOptions
    #: Where it delivers to; None when nowhere or not by DSN.
    dsn: Dsn | None = None

    def __init__(self, options: TransportOptions | None = None) -> None:
        self.options = options or TransportOptions()
        # Replaced, never changed in place: flush may read it on any thread.
        self._before_flush: tuple[Callable[[], None], ...] = ()

    # -- capturing -------------------------------------------------------------------------------------

    def capture_envelope(self, envelope: Envelope) -> bool:
        """Take an envelope; True when accepted. Never raises, never waits for the network."""
        raise NotImplementedError

    def capture_event(self, event: dict[str, Any]) -> bool:
        """Take an error event, or a transaction when its `type` says so; True when accepted."""
        try:
            transaction = event.get("type") == "transaction"
            envelope = Envelope.transaction(event) if transaction else Envelope.event(event)
        except Exception as error:
            logger.error("an event could not be put into an envelope: %s", type(error).__name__)
            self.record_lost_event(LossReason.INTERNAL_SDK_ERROR, "error")
            return False
        return self.capture_envelope(envelope)

    def record_lost_event(
        self,
        reason: str,
        data_category: str | None = None,
        item: Item | None = None,
        *,
        quantity: int = 1,
    ) -> None:
        """Count what was lost before it got here, such as by sampling.

        Args:
            reason: One of `LossReason`'s values.
            data_category: What was lost; not needed with `item`, whose own quantities are counted.
            quantity: In the category's unit; ignored with `item`.

        Raises:
            ValueError: The reason is unknown: servers accept no invented ones.
        """
        known = LossReason(reason)
        if item is not None:
            self._lose(known, item.quantities)
        elif data_category is not None and quantity > 0:
            self._lose(known, ((data_category, quantity),))

    def _lose(self, reason: LossReason, quantities: Quantities) -> None:
        raise NotImplementedError

    # -- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin delivering now. Optional: the first capture does it."""

    def before_flush(self, callback: Callable[[], None]) -> None:
        """Call `callback` at the beginning of each flush and close: it captures what a buffer holds."""
        self._before_flush = (*self._before_flush, callback)

    def flush(self, timeout: float | None = None, until: str = "settled") -> FlushReport:
        """Wait for all envelopes accepted before the call.

        Args:
            timeout: Seconds; None means `shutdown_timeout`. The call returns within it plus 0.2 s.
            until: `settled`: in a durable queue stored is enough; `delivered`: wait for the receiver.

        Raises:
            ValueError: `until` is neither.
        """
        if until not in ("settled", "delivered"):
            raise ValueError(f"until must be 'settled' or 'delivered', not {until!r}")
        self._flush_buffers()
        return self._flush(self._seconds(timeout), until)

    def close(self, timeout: float | None = None) -> FlushReport:
        """Flush, then refuse captures for good. Idempotent; seconds as in `flush`."""
        self._flush_buffers()
        return self._close(self._seconds(timeout))

    def kill(self) -> None:
        """Stop at once; what is left is counted (a durable queue keeps it)."""
        raise NotImplementedError

    async def aflush(self, timeout: float | None = None, until: str = "settled") -> FlushReport:
        """`flush`, without blocking the event loop."""
        return await _off_loop(lambda: self.flush(timeout, until))

    async def aclose(self, timeout: float | None = None) -> FlushReport:
        """`close`, without blocking the event loop."""
        return await _off_loop(lambda: self.close(timeout))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _flush(self, timeout: float, until: str) -> FlushReport:
        raise NotImplementedError

    def _close(self, timeout: float) -> FlushReport:
        raise NotImplementedError

    def _flush_buffers(self) -> None:
        for callback in self._before_flush:
            try:
                callback()
            except Exception:
                logger.exception("a before_flush callback failed")

    def _seconds(self, timeout: float | None) -> float:
        return self.options.shutdown_timeout if timeout is None else max(0.0, timeout)

    # -- saying ----------------------------------------------------------------------------------------

    def health(self) -> Health:
        """A snapshot; no I/O."""
        raise NotImplementedError

    def is_healthy(self) -> bool:
        """Whether health is `pass`: what tracing asks before it samples less."""
        return self.health().status == "pass"

    @property
    def pending(self) -> int:
        """Envelopes accepted and not yet settled."""
        return 0

    @property
    def closed(self) -> bool:
        """Whether captures are refused for good."""
        return False


class FunctionTransport(Transport):
    """Hands each envelope to a function, in the caller.

    The function's exception is counted as `internal_sdk_error` and logged, not raised. A capture made by
    the function itself is refused and counted.
    """

    def __init__(
        self, function: Callable[[Envelope], object], options: TransportOptions | None = None
    ) -> None:
        super().__init__(options)
        self._function: Callable[[Envelope], object] | None = function
        self._busy = threading.local()
        self._reset()

    def _reset(self) -> None:
        # Guards the ledger and `_closed`.
        self._lock = StateLock()
        self._ledger = Ledger()
        self._closed = False
        self._pid = os.getpid()

    def capture_envelope(self, envelope: Envelope) -> bool:
        if self._pid != os.getpid():
            self._reset()
        quantities = quantities_of(envelope)
        if self._closed or self._function is None:
            self._lose(LossReason.CLOSED if self._closed else self._off_reason(), quantities)
            return False
        if getattr(self._busy, "now", False):
            self._lose(LossReason.REENTRANT, quantities)
            return False
        self._busy.now = True
        try:
            self._function(envelope)
        except Exception as error:
            logger.error("the transport function failed: %s", type(error).__name__)
            self._lose(LossReason.INTERNAL_SDK_ERROR, quantities)
            return False
        finally:
            self._busy.now = False
        self._record(lambda: self._deliver_locked(quantities))
        return True

    def _deliver_locked(self, quantities: Quantities) -> None:
        self._ledger.capture(quantities)
        self._ledger.deliver(quantities)

    def _lose(self, reason: LossReason, quantities: Quantities) -> None:
        self._record(lambda: self._ledger.lose(reason, quantities))

    def _record(self, action: Callable[[], object]) -> None:
        if self._lock.held():
            self._lock.later(action)
            return
        with self._lock.rlock:
            action()
        self._lock.drain()

    def _flush(self, timeout: float, until: str) -> FlushReport:
        return FlushReport(True)

    def _close(self, timeout: float) -> FlushReport:
        self._closed = True
        return FlushReport(True)

    def kill(self) -> None:
        self._closed = True

    @property
    def closed(self) -> bool:
        return self._closed

    def health(self) -> Health:
        with self._lock.rlock:
            totals = self._ledger.snapshot()
        self._lock.drain()
        return Health(
            pid=os.getpid(),
            state="closed" if self._closed else "running",
            kind=type(self).__name__,
            captured=totals.captured,
            delivered=totals.delivered,
            discarded={reason: sum(counts.values()) for reason, counts in totals.discarded.items()},
            discarded_by_category=totals.discarded,
            problem=self._problem(),
        )

    def _problem(self) -> str | None:
        return None

    def _off_reason(self) -> LossReason:
        return LossReason.DISABLED


class NullTransport(FunctionTransport):
    """Delivers nothing, and counts what it was given.

    Made for an empty DSN, which is valid and means off. With a `problem` (a DSN that can't be used) its
    health is `fail`.
    """

    def __init__(self, options: TransportOptions | None = None, *, problem: str | None = None) -> None:
        super().__init__(lambda envelope: None, options)
        self._function = None
        self._what = problem

    def _problem(self) -> str | None:
        return self._what

    def _off_reason(self) -> LossReason:
        return LossReason.DISABLED if self._what is None else LossReason.MISCONFIGURED


def quantities_of(envelope: Envelope) -> Quantities:
    """What to count when an envelope is lost whole; never raises, whatever its payloads are."""
    totals: dict[str, int] = {}
    try:
        for item in envelope.items:
            try:
                pairs = item.quantities
            except Exception:
                pairs = ((item.data_category or "default", 1),)
            for category, quantity in pairs:
                totals[category] = totals.get(category, 0) + quantity
    except Exception:
        return (("default", 1),)
    return tuple(totals.items())


async def _off_loop(call: Callable[[], FlushReport]) -> FlushReport:
    """Run `call` on a thread of its own: the loop's executor may be full, and is joined at exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[FlushReport] = loop.create_future()

    def settle(report: FlushReport | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        elif report is not None:
            done.set_result(report)

    def run() -> None:
        report, failure = None, None
        try:
            report = call()
        except Exception as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, report, failure)
        except RuntimeError:
            pass  # the loop was closed meanwhile: nobody waits any more

    try:
        _thread.start_new_thread(run, ())
    except RuntimeError:
        return call()  # no thread can start any more: the interpreter is ending, and waiting is right
    return await done
