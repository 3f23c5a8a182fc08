"""Bounds in seconds that hold on a machine which does other things too."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["quickest"]


def quickest(measure: Callable[[], float], enough: float, attempts: int = 3) -> float:
    """The least of a few measurements: other load only ever adds, what is too slow is so each time.

    Args:
        measure: Does it once; seconds.
        enough: Nothing is measured again once it took no longer than this; the caller asserts it.
        attempts: How often at most; at least 1.
    """
    best = measure()
    for _ in range(attempts - 1):
        if best <= enough:
            break
        best = min(best, measure())
    return best
