"""The transport interface.

This module owns `Transport`. Independent of worker threads, HTTP and frameworks: `local.py` has the
transports that need no worker, `http.py` the one that delivers over the network, and `factory.py` chooses
one.

Threads: every public method may be called from any thread, from a signal handler, and from `__del__`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, NoReturn, Self

from transport_kit.config.dsn import Dsn
from transport_kit.config.options import Effect, OptionProblem, TransportOptions
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.item import Item, estimated_quantities
from transport_kit.envelope.losses import LossReason, Quantities
from transport_kit.runtime import process
from transport_kit.runtime.event_loop import off_loop
from transport_kit.runtime.interrupts import let_through
from transport_kit.runtime.log import log
from transport_kit.runtime.version import SDK_NAME, VERSION
from transport_kit.transport.health import Health
from transport_kit.transport.worker.limits import KNOWN_CATEGORIES
from transport_kit.transport.worker.outcome import FlushReport

__all__ = ["is_deliverable", "Transport"]


class Transport:
    """The base class of transports: accepts envelopes, and accounts for each item.

    A subclass overrides `capture_envelope`, `_lose`, `_flush`, `_close`, `kill`, `health` and, if it queues
    envelopes, `pending`. Its methods must raise nothing into the app, must not block on the network, and
    must bound every wait.
    """

    #: The options of this transport.
    options: TransportOptions
    #: The DSN that it delivers to; None if it delivers nowhere, or not by DSN.
    dsn: Dsn | None = None
    #: Options that were given and could not be used; `health` shows them.
    option_problems: tuple[OptionProblem, ...] = ()

    def __init__(self, options: TransportOptions | None = None) -> None:
        self.options = options or TransportOptions()
        # Callbacks of `before_flush`. Only appended to, which is atomic.
        self._flush_callbacks: list[Callable[[], object]] = []

    # -- capturing -------------------------------------------------------------------------------------

    def capture_envelope(self, envelope: Envelope) -> bool:
        """Accept an envelope for delivery. Never raises, and never waits for the network.

        Returns:
            True if the envelope was accepted; otherwise its items are counted as lost.
        """
        raise NotImplementedError

    def capture_event(self, event: dict[str, Any]) -> bool:
        """Accept an error event, or a transaction if that is its `type`; see `capture_envelope`."""
        try:
            is_transaction = event.get("type") == "transaction"
            envelope = Envelope.transaction(event) if is_transaction else Envelope.event(event)
            envelope.headers["sdk"] = {"name": SDK_NAME, "version": VERSION}
        except Exception as error:
            let_through(error)
            log.error("an event could not be put into an envelope: %s", type(error).__name__)
            self._lose(LossReason.INTERNAL_SDK_ERROR, Quantities([("error", 1)]))
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
        """Count data that was lost before it was captured, such as by sampling.

        Args:
            reason: A value of `LossReason`.
            data_category: The category of the lost data; not needed with `item`.
            item: The lost item, if there is one; its own quantities are counted.
            quantity: The amount, in the category's unit; ignored with `item`.

        Raises:
            ValueError: The reason or the category is unknown, or the quantity is not a whole number. Servers
                refuse the whole client report if it holds an unknown name.
        """
        loss_reason = LossReason(reason)
        if item is not None:
            self._lose(loss_reason, estimated_quantities(item))
            return
        if data_category is None:
            return
        if data_category not in KNOWN_CATEGORIES:
            raise ValueError(f"{data_category!r} is not a data category")
        if not isinstance(quantity, int):
            raise ValueError(f"a quantity is a whole number, not {type(quantity).__name__}")
        if quantity > 0:
            self._lose(loss_reason, Quantities([(data_category, int(quantity))]))

    def _lose(self, reason: LossReason, quantities: Quantities) -> None:
        raise NotImplementedError

    # -- configuration ---------------------------------------------------------------------------------

    def note_option_problems(self, problems: Iterable[OptionProblem]) -> None:
        """Add problems that `health` shows from now on. A problem that was added before is ignored."""
        noted = self.option_problems
        self.option_problems = noted + tuple(problem for problem in problems if problem not in noted)

    def _failed_option(self) -> str | None:
        """Return the first option problem that makes health `fail`."""
        serious = (problem for problem in self.option_problems if problem.effect is not Effect.WARNS)
        return next(map(str, serious), None)

    # -- start, flush and close ------------------------------------------------------------------------

    def start(self) -> None:
        """Start delivering. Optional: the first capture does it."""

    def before_flush(self, callback: Callable[[], object]) -> None:
        """Register a callback that runs at the beginning of each flush and close.

        Args:
            callback: Captures the contents of a buffer. An exception that it raises is logged.
        """
        self._flush_callbacks.append(callback)

    def flush(self, timeout: float | None = None, until: str = "settled") -> FlushReport:
        """Wait for all envelopes accepted before the call.

        Args:
            timeout: Seconds; None means `shutdown_timeout`. The call returns at most 0.2 s after it.
            until: `settled`: an envelope stored in a durable queue is done. `delivered`: wait for the
                server's answer.

        Raises:
            ValueError: `until` is neither.
        """
        if until not in ("settled", "delivered"):
            raise ValueError(f"until must be 'settled' or 'delivered', not {until!r}")
        return self._flush(self._run_flush_callbacks(timeout), until)

    def close(self, timeout: float | None = None) -> FlushReport:
        """Flush, then refuse all further captures. Idempotent.

        Envelopes that are left are counted as `closed`, and one line on stderr has their number.

        Args:
            timeout: Seconds, as in `flush`.
        """
        report = self._close(self._run_flush_callbacks(timeout))
        if report.pending:
            process.report_left(
                report.pending, self.options.shutdown_timeout if timeout is None else timeout, "close"
            )
        return report

    def kill(self) -> None:
        """Stop without waiting. Undelivered envelopes are counted as lost; a durable queue keeps them."""
        raise NotImplementedError

    async def aflush(self, timeout: float | None = None, until: str = "settled") -> FlushReport:
        """`flush`, without blocking the event loop."""
        return await off_loop(lambda: self.flush(timeout, until))

    async def aclose(self, timeout: float | None = None) -> FlushReport:
        """`close`, without blocking the event loop."""
        return await off_loop(lambda: self.close(timeout))

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

    def _run_flush_callbacks(self, timeout: float | None) -> float:
        """Run the callbacks of `before_flush`; return the seconds of `timeout` that remain."""
        seconds = self.options.shutdown_timeout if timeout is None else timeout
        began = time.monotonic()
        for callback in tuple(self._flush_callbacks):
            try:
                callback()
            except Exception as error:
                let_through(error)
                log.exception("a before_flush callback failed")
        # TIMEOUT_MAX is the longest wait of a lock; NaN becomes 0.
        return max(0.0, min(seconds - (time.monotonic() - began), threading.TIMEOUT_MAX / 2))

    # -- hooks of `runtime.process`, documented in `Finalizable` there ----------------------------------

    def end_of_process(self, deadline: float) -> int:
        return 0

    def can_wait(self) -> bool:
        return True

    def renew_after_fork(self) -> None:
        pass

    def wants_sigterm(self) -> bool:
        return False

    # -- state -----------------------------------------------------------------------------------------

    def health(self) -> Health:
        """Return a snapshot of this transport's health. No I/O."""
        raise NotImplementedError

    def is_healthy(self) -> bool:
        """Return True if the health status is `pass`. Tracing samples less while it is not."""
        return self.health().status == "pass"

    @property
    def pending(self) -> int:
        """The number of envelopes that are accepted and not yet settled."""
        return 0

    @property
    def closed(self) -> bool:
        """True if all further captures are refused."""
        return False

    def __repr__(self) -> str:
        target = "" if self.dsn is None else f" to {self.dsn}"
        return f"<{type(self).__name__}{target}{', closed' if self.closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a transport is not pickled: it belongs to its process; make one where it is used")


def is_deliverable(envelope: object) -> bool:
    """Return True if `envelope` is an envelope with items; log an error if it is not. Nothing is counted."""
    if not isinstance(envelope, Envelope):
        log.error("a capture was refused: %s is not an Envelope", type(envelope).__name__)
        return False
    if not envelope.items:
        log.error("an envelope was refused: it has no items, there is nothing to deliver")
        return False
    return True
