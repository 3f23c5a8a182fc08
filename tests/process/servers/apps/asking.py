"""A client of a task queue: asks for one task after another, until it is ended or there were enough."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

__all__ = ["ask"]

MOST: Final = 1000
INTERVAL: Final = 0.02


def ask(one: Callable[[], object]) -> None:
    never = threading.Event()
    for _ in range(MOST):
        one()
        never.wait(INTERVAL)
