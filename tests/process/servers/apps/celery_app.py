"""A Celery app whose tasks fail; as a program, a client that sends tasks."""

from __future__ import annotations

import tests.process.servers.noting  # noqa: F401  # isort: skip - watches before the app is made

import time

from celery import Celery

from tests.process.servers.apps.asking import send_tasks
from transport_kit import Kit
from transport_kit.celery import connect

__all__ = ["app"]

app = Celery(
    "shop",
    broker="filesystem://",
    broker_transport_options={
        "data_folder_in": "queue",
        "data_folder_out": "queue",
        "control_folder": "control",
        # Seconds that the broker sleeps between two looks into its folder.
        "polling_interval": 0.05,
    },
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
connect(Kit({}, source="environment"))


@app.task(name="shop.fail")  # type: ignore[untyped-decorator]
def fail() -> None:
    """Fail after longer than the interval between two tasks, so that every process is busy."""
    time.sleep(0.1)
    raise RuntimeError("a task")


if __name__ == "__main__":
    send_tasks(lambda: app.send_task("shop.fail"))
