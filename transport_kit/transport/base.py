"""The transport interface.

Owns `Transport`. Knows no worker's thread, no HTTP and no framework; `local.py` has the transports that need
no worker, `http.py` the one that delivers, `factory.py` picks one.

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
from transport_kit.runtime.interrupts import let_through
from transport_kit.runtime.log import log
from transport_kit.runtime.threads import off_loop
from transport_kit.runtime.version import SDK_NAME, VERSION
from transport_kit.transport.health import Health
from transport_kit.transport.worker.limits import KNOWN_CATEGORIES
from transport_kit.transport.worker.outcome import FlushReport

__all__ = ["is_deliverable", "Transport"]


class Transport:
    """Takes envelopes, and can say what became of each item. Subclasses fill in the hooks.

    A subclass overrides `capture_envelope`, `_lose`, `_flush`, `_close`, `kill`, `health` and, if it holds
    envelopes back, `pending`; what it must promise is DESIGN section 4: nothing raised into the app,
    nothing blocked on the network, every wait with a deadline.
    """

    #: The options it was built with.
    options: TransportOptions
    #: Where it delivers to; None when nowhere or not by DSN.
    dsn: Dsn | None = None
    #: Options that could not be used where it was configured; `health` shows them.
    option_problems: tuple[OptionProblem, ...] = ()

    def __init__(self, options: TransportOptions | None = None) -> None:
        self.options = options or TransportOptions()
        # Only appended to, which is atomic.
        self._buffers: list[Callable[[], object]] = []

    # -- capturing -------------------------------------------------------------------------------------

    def capture_envelope(self, envelope: Envelope) -> bool:
        """Take an envelope; True when accepted. Never raises, never waits for the network."""
        raise NotImplementedError

    def capture_event(self, event: dict[str, Any]) -> bool:
        """Take an error event, or a transaction when its `type` says so; True when accepted."""
        try:
            transaction = event.get("type") == "transaction"
            envelope = Envelope.transaction(event) if transaction else Envelope.event(event)
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
        """Count what was lost before it got here, such as by sampling.

        Args:
            reason: One of `LossReason`'s values.
            data_category: What was lost; not needed with `item`, whose own quantities are counted.
            quantity: In the category's unit; ignored with `item`.

        Raises:
            ValueError: The reason or the category is unknown, or the quantity is no whole number. Servers
                accept no invented names, and would refuse the report of all losses.
        """
        known = LossReason(reason)
        if item is not None:
            self._lose(known, estimated_quantities(item))
            return
        if data_category is None:
            return
        if data_category not in KNOWN_CATEGORIES:
            raise ValueError(f"{data_category!r} is not a data category")
        if not isinstance(quantity, int):
            raise ValueError(f"a quantity is a whole number, not {type(quantity).__name__}")
        if quantity > 0:
            self._lose(known, Quantities([(data_category, int(quantity))]))

    def _lose(self, reason: LossReason, quantities: Quantities) -> None:
        raise NotImplementedError

    # -- configuration ---------------------------------------------------------------------------------

    def note_option_problems(self, problems: Iterable[OptionProblem]) -> None:
        """Show these in `health` from now on; each once, however often it is noted."""
        known = self.option_problems
        self.option_problems = known + tuple(problem for problem in problems if problem not in known)

    def _failed_option(self) -> str | None:
        """The first option problem that makes health `fail`."""
        serious = (problem for problem in self.option_problems if problem.effect is not Effect.WARNS)
        return next(map(str, serious), None)

    # -- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin delivering now. Optional: the first capture does it."""

    def before_flush(self, callback: Callable[[], object]) -> None:
        """Call `callback` at the beginning of each flush and close: it captures what a buffer holds."""
        self._buffers.append(callback)

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
        return self._flush(self._after_buffers(timeout), until)

    def close(self, timeout: float | None = None) -> FlushReport:
        """Flush, then refuse captures for good. Idempotent; seconds as in `flush`."""
        return self._close(self._after_buffers(timeout))

    def kill(self) -> None:
        """Stop at once; what is left is counted (a durable queue keeps it)."""
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

    def _after_buffers(self, timeout: float | None) -> float:
        """Empty the buffers above; the seconds of `timeout` that are left after it."""
        seconds = self.options.shutdown_timeout if timeout is None else timeout
        began = time.monotonic()
        for callback in tuple(self._buffers):
            try:
                callback()
            except Exception as error:
                let_through(error)
                log.exception("a before_flush callback failed")
        # More than this no lock can wait; NaN becomes 0.
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

    def __repr__(self) -> str:
        target = "" if self.dsn is None else f" to {self.dsn}"
        return f"<{type(self).__name__}{target}{', closed' if self.closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a transport is not pickled: it belongs to its process; make one where it is used")


def is_deliverable(envelope: object) -> bool:
    """Whether it is an envelope with items; says so if not. What is none costs nothing when refused."""
    if not isinstance(envelope, Envelope):
        log.error("a capture was refused: %s is not an Envelope", type(envelope).__name__)
        return False
    if not envelope.items:
        log.error("an envelope was refused: it has no items, there is nothing to deliver")
        return False
    return True
