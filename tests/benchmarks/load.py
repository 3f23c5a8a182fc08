"""The load of the benchmarks, and readings of their process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["event", "percentiles", "resident_kb"]


def event(number: int) -> dict[str, Any]:
    """Return an event of about 10 kB as JSON: 20 frames with context lines."""
    frames = [
        {
            "filename": f"shop/module_{i}.py",
            "abs_path": f"/srv/app/shop/module_{i}.py",
            "module": f"shop.module_{i}",
            "function": "checkout",
            "lineno": 40 + i,
            "pre_context": [f"    line {line} of {i} before {number * 7919 % 10007}" for line in range(5)],
            "context_line": f"    return self.total(request, cart_{i}, {number})",
            "post_context": [f"    line {line} of {i} after" for line in range(5)],
            "in_app": i % 3 == 0,
        }
        for i in range(20)
    ]
    return {
        "event_id": f"{number:032x}",
        "platform": "python",
        "level": "error",
        "exception": {"values": [{"type": "CartError", "value": "x", "stacktrace": {"frames": frames}}]},
    }


def resident_kb(key: str = "VmRSS") -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise LookupError(key)


def percentiles(name: str, spent: list[int]) -> dict[str, float]:
    """Return the median and the 99th percentile of nanoseconds, in microseconds."""
    ordered = sorted(spent)
    return {
        f"{name} p50 µs": ordered[len(ordered) // 2] / 1e3,
        f"{name} p99 µs": ordered[len(ordered) * 99 // 100] / 1e3,
    }
