"""The transports that need no worker: a function is called with each envelope, or nothing is delivered.

Owns `FunctionTransport`, `NullTransport`, and the counting that they share.

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
    """The ledger of one process, its lock, and whether the transport is closed there."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = StateLock()
        # Guarded by `lock`.
        self.ledger = Ledger()
        # Set once, read by anyone.
        self.closed = False


def _new_state(parent: _CountingState | None) -> _CountingState:
    return _CountingState()


class CountingTransport(Transport):
    """What the transports without a worker share: each envelope is settled in its capture, and counted."""

    def __init__(self, options: TransportOptions | None = None) -> None:
        super().__init__(options)
        self._states = PerProcess(_new_state)
        process.watch(self)

    def renew_after_fork(self) -> None:
        self._states.get()

    def _deliver(self, envelope: Envelope) -> LossReason | Quantities | None:
        """Do with the envelope what this transport is for; why it was lost, or what of it was left out."""
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
                # What is no Exception, such as Ctrl-C, is meant for the app. Counted all the same.
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
    """Hands each envelope to a function, in the caller.

    The function's exception is counted as `internal_sdk_error` and logged, not raised. A capture made by
    the function itself is refused and counted.

    Raises:
        OptionsError: The function is a coroutine function: nobody would await what it returns.
    """

    def __init__(
        self, function: Callable[[Envelope], object], options: TransportOptions | None = None
    ) -> None:
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - not a test for being callable
        ):
            raise OptionsError("target", "is a coroutine function; a plain function is needed")
        self._function = function
        self._busy = threading.local()
        super().__init__(options)

    def _deliver(self, envelope: Envelope) -> LossReason | None:
        if getattr(self._busy, "now", False):
            return LossReason.REENTRANT
        try:
            self._busy.now = True
            self._function(envelope)
        except Exception as error:
            let_through(error)
            log.error("the transport function failed: %s", type(error).__name__)
            return LossReason.INTERNAL_SDK_ERROR
        finally:
            self._busy.now = False
        return None


class NullTransport(CountingTransport):
    """Delivers nothing, and counts what it was given.

    Made for an empty DSN, which is valid and means off. With a `problem` (a DSN that can't be used) its
    health is `fail`.
    """

    def __init__(self, options: TransportOptions | None = None, *, problem: str | None = None) -> None:
        self._what = problem
        super().__init__(options)

    def _deliver(self, envelope: Envelope) -> LossReason | None:
        return LossReason.DISABLED if self._what is None else LossReason.MISCONFIGURED

    @property
    def problem(self) -> str | None:
        """Why nothing is delivered; None for an empty DSN, where that is meant."""
        return self._what

    def _problem(self) -> str | None:
        return self._what
