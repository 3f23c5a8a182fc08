"""Bounds that hold on a slow machine too: seconds scaled by a calibration, and work that is counted.

A test of speed belongs in `tests/benchmarks`. A test counts what is done (`steps`), or compares two
things in one run (`growth`). Where a deadline is the behaviour, both the deadline and its bound are
`scaled`, so that the distance between them stays the same multiple of what this machine needs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

__all__ = ["growth", "quickest", "scaled", "SOON", "steps"]

#: Seconds that a new interpreter with asyncio takes on the machine the bounds were written on.
_REFERENCE: Final = 0.1


def _start() -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-I", "-c", "import asyncio"], check=True)
    return time.monotonic() - began


#: How many times slower this machine is; at least 1. Measured when the tests are collected: a process,
#: its imports and its end take the same file system, CPU and competition as what the bounds are for.
_SLOWNESS: Final = max(1.0, sorted(_start() for _ in range(3))[1] / _REFERENCE)


def scaled(seconds: float) -> float:
    """As many seconds on this machine as `seconds` are on the one the bounds were written on."""
    return round(seconds * _SLOWNESS, 2)


#: Seconds that a test waits for what must happen; a wait this long is a failure.
SOON: Final = scaled(30.0)


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


def steps(call: Callable[[], object]) -> int:
    """Lines of Python that a call executes on its thread; the same number on every machine."""
    count = 0

    def line(frame: FrameType, what: str, argument: Any) -> Any:
        nonlocal count
        count += what == "line"
        return line

    before = sys.gettrace()
    sys.settrace(line)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def growth(small: Callable[[], object], large: Callable[[], object], attempts: int = 5) -> float:
    """How many times more CPU time the larger of two inputs takes than the smaller, each at its best.

    In CPU time of this thread and by turns, so that other load falls on both or on neither.
    """
    best = [float("inf"), float("inf")]
    for _ in range(attempts):
        for index, call in enumerate((small, large)):
            began = time.thread_time_ns()
            call()
            best[index] = min(best[index], time.thread_time_ns() - began)
    return best[1] / max(best[0], 1)
