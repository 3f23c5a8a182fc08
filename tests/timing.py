"""Time bounds that hold on a slow machine too: scaled seconds, counted steps, and ratios.

A measurement of speed belongs in `tests/benchmarks`. A test counts steps (`steps`) or compares two inputs in
one run (`growth`). Where a deadline is the behaviour under test, both the deadline and its bound are
`scaled`, so that their distance stays in proportion to the speed of the machine.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

__all__ = ["growth", "quickest", "scaled", "SOON", "steps"]

#: Seconds that starting an interpreter and importing asyncio took on the machine for which the bounds were
#: chosen.
_REFERENCE: Final = 0.1


def _start() -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-I", "-c", "import asyncio"], check=True)
    return time.monotonic() - began


#: Slowness of this machine relative to that one; at least 1. Measured when the tests are collected. Starting
#: a process and importing modules depends on the file system, the CPU and other load, as the tests do.
_SLOWNESS: Final = max(1.0, sorted(_start() for _ in range(3))[1] / _REFERENCE)


def scaled(seconds: float) -> float:
    """Return the seconds on this machine that correspond to `seconds` on the reference machine."""
    return round(seconds * _SLOWNESS, 2)


#: Seconds after which a wait in a test is a failure.
SOON: Final = scaled(30.0)


def quickest(measure: Callable[[], float], enough: float, attempts: int = 3) -> float:
    """Return the least of several measurements. Other load only adds time, and slow code is slow every time.

    Args:
        measure: Measures once; returns seconds.
        enough: A result up to this many seconds ends the measurements; the caller asserts it.
        attempts: Largest number of measurements; at least 1.
    """
    best = measure()
    for _ in range(attempts - 1):
        if best <= enough:
            break
        best = min(best, measure())
    return best


def steps(call: Callable[[], object]) -> int:
    """Count the lines of Python that a call executes on its thread, the same on every machine."""
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
    """Return the ratio of the CPU times of a large and a small input, each the best of `attempts`.

    Measures the CPU time of this thread and alternates, so that other load affects both alike.
    """
    best = [float("inf"), float("inf")]
    for _ in range(attempts):
        for index, call in enumerate((small, large)):
            began = time.thread_time_ns()
            call()
            best[index] = min(best[index], time.thread_time_ns() - began)
    return best[1] / max(best[0], 1)
