"""The age limit of a spool, by a wall clock that anybody may set.

This module owns the comparison of the wall clock with the monotonic one, and the time from which ages count.
An age is the difference of two readings of the wall clock, and is valid only if the clock was not set between
them. So after each sign that it was, the ages of all earlier records count from that moment: a record may be
kept too long, and none is given up too early.

Threads: an `Ages` belongs to the drainer, which calls under its lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from transport_kit.queues.spool.status import SpoolStatus

__all__ = ["Ages", "tolerance"]

#: Shares of the age limit: an error of an age that is accepted while the kernel runs, and across a reboot.
_STEP_SHARE: Final = 1 / 100
_REBOOT_SHARE: Final = 1 / 10
#: Least and most seconds by which the difference of the two clocks may change. Reading them one after the
#: other takes a moment on a busy machine. The kernel slews both alike, so only steps change the difference,
#: and the time during which a host is suspended, which the monotonic clock does not count.
_LEAST_STEP: Final = 1.0
_MOST_STEP: Final = 60.0


def tolerance(max_age: float) -> float:
    """Return the seconds by which the difference of the two clocks may change for an age limit."""
    return min(max(max_age * _STEP_SHARE, _LEAST_STEP), _MOST_STEP)


class Ages:
    """The age limit of records, safe against changes of the wall clock.

    Args:
        max_age: Seconds.
        clock: Monotonic seconds.
        wall: Epoch seconds.
        before: The status that was published last: shows a change of the clock during the time without a
            drainer. None, as for a spool that was begun just now, proves nothing about earlier records.
        boot: Id of this boot of the kernel; empty if unknown.

    Attributes:
        begin: Epoch seconds from which ages count: a record that was stamped before counts as stamped then.
        oldest_ms: The result of the last `look`.
    """

    def __init__(
        self,
        max_age: float,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        before: SpoolStatus | None,
        boot: str,
    ) -> None:
        self._max_age = max_age
        self._clock = clock
        self._wall = wall
        self._tolerance = tolerance(max_age)
        now, epoch = clock(), wall()
        self._difference = epoch - now
        self.begin = epoch
        if before is not None:
            # Within a boot the two clocks must agree. Across one, a clock that seems to have moved only a
            # little forward was not set.
            rebooted = before.boot != boot or not boot
            plausible = rebooted and 0.0 <= epoch - before.wall <= max_age * _REBOOT_SHARE
            if plausible or self._is_unchanged(before.wall - before.at):
                self.begin = before.ages_from
        self.oldest_ms = self.look()

    def _is_unchanged(self, difference: float) -> bool:
        return abs(difference - self._difference) <= self._tolerance

    def look(self) -> int:
        """Return the epoch milliseconds before which a record is too old; 0 if none can be."""
        now, epoch = self._clock(), self._wall()
        if not self._is_unchanged(epoch - now):
            self._difference = epoch - now
            self.begin = epoch
        oldest = epoch - self._max_age
        self.oldest_ms = int(oldest * 1000) if oldest > self.begin else 0
        return self.oldest_ms
