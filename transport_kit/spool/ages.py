"""Ages by a clock that may jump: nothing is given up for its age because somebody set the clock.

Owns the comparison of the wall clock with the monotonic one. Threads: the drainer calls under its lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from transport_kit.spool.status import SpoolStatus

__all__ = ["JUMP", "Ages"]

#: Seconds by which the two clocks may drift apart before nothing is believed of the wall clock.
JUMP: Final = 86_400.0


class Ages:
    """Which records are too old.

    After a jump of more than a day ages are ignored for `max_age` monotonic seconds: by then whatever was
    stamped before the jump is that old.

    Args:
        max_age: Seconds.
        before: What the last drainer published: a jump while nobody drained is seen too, within one boot.
        boot: Names this start of the kernel.
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
        self._suspended_until = float("-inf")
        self._difference = wall() - clock()
        if before is not None and boot and before.boot == boot:
            self._difference = before.wall - before.at
        self.oldest_ms = self.look()

    def look(self) -> int:
        """Epoch milliseconds before which a record is too old; 0 while ages are ignored."""
        now, wall = self._clock(), self._wall()
        if abs(wall - now - self._difference) > JUMP:
            self._suspended_until = now + self._max_age
        self._difference = wall - now
        self.oldest_ms = 0 if now < self._suspended_until else int((wall - self._max_age) * 1000)
        return self.oldest_ms
