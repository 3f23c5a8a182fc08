"""Runtime facts: the Python runtime, operating system, host and SDK of an event.

Each is read once; none costs I/O.

Threads: stateless except for caches that any thread may fill.
"""

from __future__ import annotations

import platform
import sys
from functools import cache

from transport_kit.runtime.version import SDK_NAME, VERSION

__all__ = ["contexts", "host_name", "sdk"]


@cache
def _runtime() -> dict[str, str]:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return {"name": platform.python_implementation(), "version": version, "build": sys.version}


@cache
def _system() -> dict[str, str]:
    return {"name": platform.system() or "unknown", "version": platform.release()}


def contexts() -> dict[str, dict[str, str]]:
    """Return a new dict with `contexts.runtime` and `contexts.os`."""
    return {"runtime": _runtime().copy(), "os": _system().copy()}


def sdk() -> dict[str, str]:
    """Return a new dict with the `sdk` of an event."""
    return {"name": SDK_NAME, "version": VERSION}


def host_name() -> str:
    """Return the kernel's name of this host; empty if it has none."""
    return platform.node()
