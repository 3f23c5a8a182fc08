"""Whose turn it is among the classes of envelopes: higher ones more often, lower ones still.

Owns the weights and the credits; what waits in a class is its queue's. Threads: whoever owns an object calls
under a lock of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from transport_kit.sealing import Priority

__all__ = ["HIGHEST_FIRST", "ORDERED", "Turns"]

#: How many of a class are claimed before a lower one gets a turn, lowest class first.
_WEIGHTS: Final = (1, 2, 3, 4, 5)
#: The class of sessions and check-ins, which are one first-in-first-out lane.
ORDERED: Final = int(Priority.SESSION)
HIGHEST_FIRST: Final = tuple(sorted((int(priority) for priority in Priority), reverse=True))


class Turns:
    """See the module."""

    __slots__ = ("_credits",)

    def __init__(self) -> None:
        self._credits = list(_WEIGHTS)

    def choose(self, ready: Iterable[int]) -> int | None:
        """The first of the classes that have something, highest first, that has credit left; None for none.

        When those that are ready have spent theirs, everyone gets it anew.
        """
        highest = None
        for rank in ready:
            if self._credits[rank]:
                self._credits[rank] -= 1
                return rank
            if highest is None:
                highest = rank
        if highest is not None:
            self._credits[:] = _WEIGHTS
            self._credits[highest] -= 1
        return highest
