"""The transports without a worker: `FunctionTransport`, `NullTransport`, and their common base.

Threads: every public method may be called from any thread, from a signal handler, and from `__del__`.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable

from transport_kit.config.options import TransportOptions
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.losses import LossReason, Quantities
from transport_kit.runtime import process
from transport_kit.runtime.errors import OptionsError
from transport_kit.runtime.forks import PerProcess
from transport_kit.runtime.interrupts import let_through
from transport_kit.runtime.lock import StateLock
from transport_kit.runtime.log import log
from transport_kit.transport.base import Transport, is_deliverable
from transport_kit.transport.health import Health
from transport_kit.transport.worker.ledger import Ledger
from transport_kit.transport.worker.outcome import FlushReport

__all__ = ["CountingTransport", "FunctionTransport", "NullTransport"]


class _CountingState:
    """The state of one process: the ledger, its lock, and the closed flag."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = StateLock()
        # Guarded by `lock`.
        self.ledger = Ledger()
        # Set once, by any thread; read without the lock.
        self.closed = False


def _new_state(parent: _CountingState | None) -> _CountingState:
    return _CountingState()


class CountingTransport(Transport):
    """The base class of transports without a worker: each envelope is settled and counted in its capture."""

    def __init__(self, options: TransportOptions | None = None) -> None:
        super().__init__(options)
        self._states = PerProcess(_new_state)
        process.watch(self)

    def renew_after_fork(self) -> None:
        self._states.get()

    def _deliver(self, envelope: Envelope) -> LossReason | Quantities | None:
        """Deliver the envelope.

        Returns:
            None if all was delivered, the quantities that were left out, or the reason why all was lost.
        """
        raise NotImplementedError

    def capture_envelope(self, envelope: Envelope) -> bool:
        if not is_deliverable(envelope):
            return False
        quantities = envelope.quantities()
        outcome: LossReason | Quantities | None = LossReason.CLOSED
        if not self._states.get().closed:
            try:
                outcome = self._deliver(envelope)
            except BaseException:
                # KeyboardInterrupt and the like are meant for the app, but the loss is counted.
                self._lose(LossReason.INTERNAL_SDK_ERROR, quantities)
                raise
        if isinstance(outcome, LossReason):
            self._lose(outcome, quantities)
            return False
        if outcome:
            self._lose(LossReason.INTERNAL_SDK_ERROR, outcome)
            quantities -= outcome
        ledger = self._states.get().ledger
        self._record(lambda: ledger.capture_delivered(quantities))
        return True

    def _lose(self, reason: LossReason, quantities: Quantities) -> None:
        ledger = self._states.get().ledger
        self._record(lambda: ledger.lose(reason, quantities))

    def _record(self, action: Callable[[], object]) -> None:
        lock = self._states.get().lock
        if lock.held():
            lock.defer(action)
            return
        with lock.rlock:
            action()
        lock.run_deferred()

    def _flush(self, timeout: float, until: str) -> FlushReport:
        return FlushReport(True)

    def _close(self, timeout: float) -> FlushReport:
        self._states.get().closed = True
        return FlushReport(True)

    def kill(self) -> None:
        self._states.get().closed = True

    @property
    def closed(self) -> bool:
        return self._states.get().closed

    def health(self) -> Health:
        state = self._states.get()
        state.lock.run_deferred()
        with state.lock.rlock:
            totals = state.ledger.snapshot()
        state.lock.run_deferred()
        return Health(
            pid=state.pid,
            state="closed" if state.closed else "running",
            kind=type(self).__name__,
            captured=totals.captured,
            delivered=totals.delivered,
            discarded_by_category=totals.discarded,
            problem=self._problem() or self._failed_option(),
            option_problems=tuple(map(str, self.option_problems)),
        )

    def _problem(self) -> str | None:
        return None


class FunctionTransport(CountingTransport):
    """Calls a function with each envelope, on the capturing thread.

    An exception of the function is logged and counted as `internal_sdk_error`, not raised. A capture that the
    function itself makes is refused and counted.

    Args:
        function: Called with each envelope; its result is ignored.
        options: The options of the transport.

    Raises:
        OptionsError: The function is a coroutine function, whose result would never be awaited.
    """

    def __init__(
        self, function: Callable[[Envelope], object], options: TransportOptions | None = None
    ) -> None:
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - not a test for being callable
        ):
            raise OptionsError("target", "is a coroutine function; a plain function is needed")
        self._function = function
        self._calling = threading.local()
        super().__init__(options)

    def _deliver(self, envelope: Envelope) -> LossReason | None:
        if getattr(self._calling, "active", False):
            return LossReason.REENTRANT
        try:
            self._calling.active = True
            self._function(envelope)
        except Exception as error:
            let_through(error)
            log.error("the transport function failed: %s", type(error).__name__)
            return LossReason.INTERNAL_SDK_ERROR
        finally:
            self._calling.active = False
        return None


class NullTransport(CountingTransport):
    """Delivers nothing; counts all items as discarded.

    It stands for an empty DSN, which is valid and means off.

    Args:
        options: The options of the transport.
        problem: The reason why nothing can be delivered, such as an unusable DSN; health is then `fail`.
    """

    def __init__(self, options: TransportOptions | None = None, *, problem: str | None = None) -> None:
        self._reason = problem
        super().__init__(options)

    def _deliver(self, envelope: Envelope) -> LossReason | None:
        return LossReason.DISABLED if self._reason is None else LossReason.MISCONFIGURED

    @property
    def problem(self) -> str | None:
        """The reason why nothing is delivered; None for an empty DSN, where that is intended."""
        return self._reason

    def _problem(self) -> str | None:
        return self._reason
