"""RQ: worker classes that report failing jobs, and flush before a job's process ends.

`rq worker --worker-class transport_kit.rq.Worker`, with `TRANSPORT_KIT_DSN` in the environment. RQ forks a
process per job and ends it by `os._exit`, which skips all exit hooks of Python.

This module owns the steps around one job. It is the only module that imports RQ.

Threads: the thread that runs the jobs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import rq

from transport_kit.kit.kit import Kit
from transport_kit.reporting import Scope, ServedRequest
from transport_kit.reporting.served_request import Callbacks

if TYPE_CHECKING:
    from rq.job import Job
    from rq.queue import Queue
    from rq.worker import BaseWorker as _Base
else:
    _Base = object

__all__ = ["ReportingMixin", "SimpleWorker", "Worker"]

_MECHANISM: Final = "auto.queue.rq"


class ReportingMixin(_Base):
    """Mixin for any RQ worker class: `class MyWorker(ReportingMixin, rq.Worker): kit = my_kit`.

    Each job gets its own scope, and its function's name becomes the transaction name. The exception of a
    failing job is captured once, before RQ's own handlers run. The queue is flushed after each job, for at
    most `shutdown_timeout` seconds: before the job's process ends, or before the next job.

    Attributes:
        kit: The kit to report to. None makes one from the environment, with the first job.
    """

    kit: ClassVar[Kit | None] = None

    def perform_job(self, job: Job, queue: Queue) -> bool:
        """RQ's hook that runs a job, in the job's process."""
        kit = self._own_kit()
        kit.start()
        try:
            facts = Callbacks(lambda: (_name(job), "task"))
            with kit.serve(facts, op="queue.task", mechanism=_MECHANISM):
                return bool(super().perform_job(job, queue))
        finally:
            kit.transport.flush()

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """RQ's hook for the exception of a job."""
        unit = Scope.current().unit
        if isinstance(unit, ServedRequest):
            unit.capture(exc_info[1])
        super().handle_exception(job, *exc_info)

    def _own_kit(self) -> Kit:
        cls = type(self)
        if cls.kit is None:
            cls.kit = Kit({}, source="environment")
        return cls.kit


class Worker(ReportingMixin, rq.Worker):
    """RQ's `Worker`: a process for each job."""


class SimpleWorker(ReportingMixin, rq.SimpleWorker):
    """RQ's `SimpleWorker`: all jobs in its own process."""


def _name(job: Job) -> str:
    try:
        return str(job.func_name)
    except Exception:
        # The job can't be deserialised; the exception of that is captured.
        return "<unreadable job>"
