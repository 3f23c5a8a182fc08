"""A client of a task queue: sends one task after another, until it is killed or has sent `LIMIT`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

__all__ = ["send_tasks"]

LIMIT: Final = 1000
INTERVAL: Final = 0.02


def send_tasks(send: Callable[[], object]) -> None:
    never = threading.Event()
    for _ in range(LIMIT):
        send()
        never.wait(INTERVAL)
