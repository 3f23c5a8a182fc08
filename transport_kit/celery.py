"""Celery: `connect(kit)` reports failing tasks, and flushes before a worker's process ends.

This module owns the receivers of Celery's signals for one kit. It is the only module that imports Celery.

Threads: Celery sends its signals on the thread (process, greenlet) that runs the task; several tasks may
run at once.
"""

from __future__ import annotations

from typing import Any, Final

from celery import signals

from transport_kit.kit.kit import Kit
from transport_kit.reporting import ServedRequest
from transport_kit.reporting.served_request import Callbacks

__all__ = ["connect"]

_MECHANISM: Final = "auto.queue.celery"


def connect(kit: Kit) -> None:
    """Report failing tasks through this kit. Call it where the Celery app is made.

    - Each task gets its own scope, and its name becomes the transaction name. The exception of a failing
      task is captured once; exceptions of its `throws`, `Retry`, `Ignore` and `Reject` are not.
    - A process of a prefork worker delivers its queue before it ends, for at most `shutdown_timeout`
      seconds. Other pools end with the worker, which needs no hook.

    Connecting another kit replaces the first.
    """
    tasks = _Tasks(kit)
    for signal, receiver in (
        (signals.worker_process_init, tasks.process_begins),
        (signals.worker_process_shutdown, tasks.process_ends),
        (signals.task_prerun, tasks.task_begins),
        (signals.task_failure, tasks.task_failed),
        (signals.task_postrun, tasks.task_ends),
    ):
        signal.disconnect(dispatch_uid=_MECHANISM)
        signal.connect(receiver, weak=False, dispatch_uid=_MECHANISM)


class _Tasks:
    """The running tasks of one process."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        # Item operations on a dict are atomic. A forked child starts while no task runs.
        self._running: dict[str, ServedRequest] = {}

    def process_begins(self, **_: object) -> None:
        self._kit.start()

    def process_ends(self, **_: object) -> None:
        self._kit.close()

    def task_begins(self, *, task_id: str, task: Any, **_: object) -> None:
        facts = Callbacks(lambda: (task.name, "task"))
        self._running[task_id] = self._kit.serve(facts, op="queue.task", mechanism=_MECHANISM)

    def task_failed(self, *, sender: Any, task_id: str, exception: BaseException, **_: object) -> None:
        if isinstance(exception, sender.throws):
            return
        served = self._running.get(task_id)
        if served is not None:
            served.capture(exception)
        else:
            # Sent by the worker's main process, for a task process that was killed or timed out.
            facts = Callbacks(lambda: (sender.name, "task"))
            self._kit.capture_unhandled(exception, mechanism=_MECHANISM, facts=facts)

    def task_ends(self, *, task_id: str, **_: object) -> None:
        served = self._running.pop(task_id, None)
        if served is not None:
            served.finish()
