"""Machine: what an event says about the process it was made in.

Owns the runtime, operating system, host and SDK facts. Each is asked once; none costs I/O.

Threads: stateless but for caches that any thread may fill.
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
    """`contexts.runtime` and `contexts.os`; the caller's own copy."""
    return {"runtime": _runtime().copy(), "os": _system().copy()}


def sdk() -> dict[str, str]:
    """The `sdk` of an event; the caller's own copy."""
    return {"name": SDK_NAME, "version": VERSION}


def host_name() -> str:
    """This host's name as the kernel knows it; empty when it has none."""
    return platform.node()
