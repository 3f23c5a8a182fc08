"""RQ: workers that report jobs that fail, and deliver before a job's process ends.

`rq worker --worker-class transport_kit.rq.Worker`, with `TRANSPORT_KIT_DSN` in the environment. RQ forks a
process per job and ends it by `os._exit`, which no hook of Python's sees.

Owns what happens around one job. The one module that imports RQ; nothing else here imports it.

Threads: the one that runs the jobs.
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
    """Put it before any class of RQ worker: `class MyWorker(ReportingMixin, rq.Worker): kit = my_kit`.

    Each job gets a scope of its own, and its function's name as the transaction's. A job that fails is
    captured once, before RQ's own handlers. What waits is delivered after the job, up to
    `shutdown_timeout`: before the end of the job's process, or before the next job.

    Attributes:
        kit: Whose transport and reporter. None makes one of the environment, with the first job.
    """

    kit: ClassVar[Kit | None] = None

    def perform_job(self, job: Job, queue: Queue) -> bool:
        """RQ's, in the process of the job."""
        kit = self._own_kit()
        kit.start()
        try:
            facts = Callbacks(lambda: (_name(job), "task"))
            with kit.serve(facts, op="queue.task", mechanism=_MECHANISM):
                return bool(super().perform_job(job, queue))
        finally:
            kit.transport.flush()

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """RQ's, with what a job raised."""
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
        # The job can't be read, which is what its event will say.
        return "<unreadable job>"
