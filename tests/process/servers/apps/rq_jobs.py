"""Jobs of RQ that fail, or report; as a program, a client that sends jobs."""

from __future__ import annotations

import tests.process.servers.noting  # noqa: F401  # isort: skip - watches before the app is made

import os
import sys

from redis import Redis
from rq import Queue

from tests.process.servers.apps.asking import send_tasks
from transport_kit import Kit

__all__ = ["fail", "report"]

_kit = Kit({}, source="environment")


def fail() -> None:
    """Fail; `transport_kit.rq.Worker` reports the error."""
    raise RuntimeError("a job")


def report() -> None:
    """Report an error by hand, as an app does under RQ's own worker."""
    _kit.capture_exception(RuntimeError("a job"))


if __name__ == "__main__":
    queue = Queue(connection=Redis.from_url(os.environ["SERVER_REDIS"]))
    send_tasks(lambda: queue.enqueue(f"tests.process.servers.apps.rq_jobs.{sys.argv[1]}"))
