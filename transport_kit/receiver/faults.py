"""Outages on demand: faults and rate limits that the receiver plays.

This module owns the current fault, its end, and the announced rate limits. `app.py` reads them and plays
them; `serve.py` resets connections.

Threads: the state is one immutable value, replaced as a whole; every method may be called from any thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from transport_kit.envelope.item import Item
from transport_kit.runtime.errors import OptionsError
from transport_kit.transport.worker.limits import RateLimits

__all__ = ["FAULTS", "Faults", "RateLimit"]

FAULTS: Final = ("503", "429", "reset", "hang", "slow")
_DEFAULT_PAUSE = 60
# Relay drops these with their event, without which they are useless.
_DEPENDENTS = frozenset({"attachment", "profile", "user_report", "replay_recording", "replay_video"})
_LEADERS = frozenset({"event", "transaction", "feedback", "replay_event"})


class RateLimit:
    """A quota that is used up: items of its categories are refused, and every answer announces it.

    Args:
        text: Value of X-Sentry-Rate-Limits, such as `60:error:key`.

    Raises:
        OptionsError: It limits no known category.
    """

    def __init__(self, text: str) -> None:
        limits = RateLimits().updated(200, {"X-Sentry-Rate-Limits": text}, 0.0)
        active = limits.active(0.0)
        if not active or not text.isascii() or not text.isprintable():
            raise OptionsError("rate_limit", "must look like 60:error:key (seconds:categories:scope)")
        self.text = text
        self.seconds = math.ceil(max(active.values()))
        self._limits = limits

    def split(self, items: Iterable[Item]) -> tuple[list[Item], list[Item]]:
        """Return the accepted and the refused items; attachments of a refused event are refused."""
        candidates = list(items)
        refused = [item for item in candidates if self._limits.is_limited(item.data_category, 0.0)]
        if any(item.type in _LEADERS for item in refused):
            refused = [item for item in candidates if item in refused or item.type in _DEPENDENTS]
        return [item for item in candidates if item not in refused], refused


@dataclass(frozen=True, slots=True)
class _Plan:
    kind: str | None = None
    rate_limit: RateLimit | None = None
    until: float = math.inf


class Faults:
    """The outage being played, if any.

    Args:
        kind: One of `FAULTS`; None for none.
        seconds: Duration in seconds, from now; None means until `clear`.
        rate_limit: Value of X-Sentry-Rate-Limits to announce and enforce for the same time.
        slow_by: Seconds that a `slow` answer takes.
        clock: Returns monotonic seconds.

    Raises:
        OptionsError: The kind is unknown, a time is not a positive number, or the limit limits nothing.
    """

    def __init__(
        self,
        kind: str | None = None,
        *,
        seconds: float | None = None,
        rate_limit: str | None = None,
        slow_by: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not (math.isfinite(slow_by) and slow_by > 0):
            raise OptionsError("slow_by", f"must be a positive number of seconds, not {slow_by}")
        self.slow_by = slow_by
        self._clock = clock
        self._plan = _Plan()
        self.play(kind, seconds=seconds, rate_limit=rate_limit)

    def play(
        self, kind: str | None = None, *, seconds: float | None = None, rate_limit: str | None = None
    ) -> None:
        """Replace the outage from now on; arguments and errors are those of the class."""
        if kind is not None and kind not in FAULTS:
            raise OptionsError("fail", f"must be one of {', '.join(FAULTS)}, not {kind!r}")
        if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
            raise OptionsError("fail_for", f"must be a positive number of seconds, not {seconds}")
        until = math.inf if seconds is None else self._clock() + seconds
        self._plan = _Plan(kind, None if rate_limit is None else RateLimit(rate_limit), until)

    def clear(self) -> None:
        """End the outage and the limits."""
        self._plan = _Plan()

    @property
    def kind(self) -> str | None:
        """The fault to play now, or None."""
        plan = self._plan
        return plan.kind if self._clock() < plan.until else None

    @property
    def rate_limit(self) -> RateLimit | None:
        """The limit in force now, or None."""
        plan = self._plan
        return plan.rate_limit if self._clock() < plan.until else None

    @property
    def pause(self) -> int:
        """Whole seconds for the Retry-After of a played 429: the rest of the outage, from 1 to 60."""
        return max(1, math.ceil(min(_DEFAULT_PAUSE, self._plan.until - self._clock())))
