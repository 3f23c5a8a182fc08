"""Sampling: decides which units of work become transactions, and takes fewer while the queue fills.

This module owns the order of decisions (sampler, caller's decision, rate) and backpressure: checked at most
every 10 s, a queue over half full halves the rate of new traces, up to ten times; otherwise one halving is
undone.

Source: the protocol's sampling and backpressure rules.

Threads: any. The level of backpressure is one number; two threads that check at once take one step each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from transport_kit.config.options import ReporterOptions
from transport_kit.envelope.losses import LossReason
from transport_kit.reporting.tracing.trace import Trace
from transport_kit.runtime.interrupts import let_through
from transport_kit.runtime.log import log
from transport_kit.transport.base import Transport

__all__ = ["Sampler"]

#: Seconds between two checks of the queue.
LOOK_EVERY: Final = 10.0
_MAX_HALVINGS: Final = 10

Context = dict[str, Any]


class Sampler:
    """Makes the sampling decision of each unit of work.

    Args:
        transport: Its queue is checked for backpressure.
        options: `traces_sampler`, `traces_sample_rate`.
        clock: Monotonic seconds.
    """

    def __init__(
        self, transport: Transport, options: ReporterOptions, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._transport = transport
        self._sampler = options.traces_sampler
        self._rate = options.traces_sample_rate
        self._clock = clock
        self._halvings = 0
        self._next_check = clock() + LOOK_EVERY
        self._warned = False
        #: False without a rate and a sampler: then nothing is traced.
        self.enabled = self._sampler is not None or self._rate is not None

    def decide(self, trace: Trace, context: Callable[[], Context]) -> LossReason | None:
        """Set `trace.sampled` and `trace.sample_rate`.

        Args:
            trace: The trace of the unit of work.
            context: Returns the argument of `traces_sampler`: name, source, op, parent_sampled, request.

        Returns:
            None if it is sampled, else the reason.
        """
        rate: float | None = None
        if self._sampler is not None:
            rate = self._call_sampler(context)
        elif trace.parent_sampled is not None:
            trace.sample_rate = 1.0 if trace.parent_sampled else 0.0
            trace.sampled = trace.parent_sampled
            return None if trace.sampled else LossReason.SAMPLE_RATE
        if rate is None:
            rate = self._rate or 0.0
        reduced = rate / (1 << self.halvings())
        trace.sample_rate = reduced
        trace.sampled = trace.sample_rand < reduced
        if trace.sampled:
            return None
        return LossReason.BACKPRESSURE if trace.sample_rand < rate else LossReason.SAMPLE_RATE

    def _call_sampler(self, context: Callable[[], Context]) -> float | None:
        try:
            rate: Any = self._sampler(context()) if self._sampler is not None else None
        except Exception as problem:
            let_through(problem)
            self._warn_once("traces_sampler failed: %s; nothing is sampled by it", type(problem).__name__)
            return 0.0
        if rate is None:
            return None
        if isinstance(rate, bool | int | float) and 0.0 <= rate <= 1.0:
            return float(rate)
        self._warn_once(
            "traces_sampler must return a rate from 0 to 1 or None, not a %s; it counts as 0",
            type(rate).__name__,
        )
        return 0.0

    def _warn_once(self, message: str, what: str) -> None:
        if not self._warned:  # once: it would be logged with each request
            self._warned = True
            log.error(message, what)

    def halvings(self) -> int:
        """Return the number of times that the rate is halved now; checks the queue if a check is due."""
        now = self._clock()
        if now >= self._next_check:
            self._next_check = now + LOOK_EVERY
            if self._is_filling():
                self._halvings = min(self._halvings + 1, _MAX_HALVINGS)
            elif self._halvings:
                self._halvings -= 1
        return self._halvings

    def _is_filling(self) -> bool:
        health = self._transport.health()
        count = health.waiting + health.claimed
        return (
            count * 2 > health.queue_capacity > 0 or health.queue_bytes * 2 > health.queue_bytes_capacity > 0
        )
