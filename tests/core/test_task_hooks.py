"""Celery's signals and RQ's worker classes in this process; `tests/process` uses real workers."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, signals

import transport_kit.rq
from transport_kit import Kit, Scope
from transport_kit.celery import connect
from transport_kit.rq import ReportingMixin
from transport_kit.testing import CapturedTransport

app = Celery("shop", broker="memory://", set_as_current=False)


@app.task(throws=(KeyError,))  # type: ignore[untyped-decorator]
def work(error: BaseException | None, inner: BaseException | None = None) -> None:
    """A task that raises its argument."""
    Scope.current().set_tag("own", "task")
    if inner is not None:
        work.apply(args=(inner,))
    if error is not None:
        raise error


@pytest.fixture(name="transport")
def _transport() -> Iterator[CapturedTransport]:
    """Return the transport of the connected kit."""
    with CapturedTransport() as transport:
        yield transport


@pytest.fixture(name="kit")
def _kit(transport: CapturedTransport) -> Iterator[Kit]:
    """Return the connected kit. Celery's signals are global, so the fixture disconnects it."""
    kit = Kit({"dsn": transport, "traces_sample_rate": 1.0}, environ={})
    connect(kit)
    yield kit
    for signal in (
        signals.worker_process_init,
        signals.worker_process_shutdown,
        signals.task_prerun,
        signals.task_failure,
        signals.task_postrun,
    ):
        assert signal.disconnect(dispatch_uid="auto.queue.celery")


def values(transport: CapturedTransport) -> list[str]:
    return [event["exception"]["values"][-1]["value"] for event in transport.events]


@pytest.mark.usefixtures("kit")
def test_a_task_that_fails_is_captured_once_in_its_own_scope(transport: CapturedTransport) -> None:
    """Developers look for the task's name first."""
    work.apply(args=(ValueError("broken"),))
    (event,) = transport.events
    assert event["transaction"] == "tests.core.test_task_hooks.work"
    assert event["transaction_info"] == {"source": "task"}
    assert event["tags"] == {"own": "task"}
    assert event["exception"]["values"][-1]["mechanism"]["type"] == "auto.queue.celery"
    (transaction,) = transport.payloads("transaction")
    assert transaction["contexts"]["trace"]["op"] == "queue.task"
    assert Scope.current().unit.errored is False


@pytest.mark.usefixtures("kit")
def test_what_a_task_declares_as_expected_is_not_captured(transport: CapturedTransport) -> None:
    """Celery calls these `throws`; a task that succeeds is not captured either."""
    work.apply(args=(KeyError("known"),))
    work.apply(args=(None,))
    assert transport.events == []


@pytest.mark.usefixtures("kit")
def test_tasks_within_tasks_keep_apart(transport: CapturedTransport) -> None:
    """Eager tasks run inside the caller's task."""
    work.apply(args=(ValueError("outer"), ValueError("inner")))
    assert values(transport) == ["inner", "outer"]


@pytest.mark.usefixtures("kit")
def test_a_failure_of_a_process_that_is_gone_is_captured_too(transport: CapturedTransport) -> None:
    """The worker reports that a task ran out of time, without a `task_prerun` in its own process."""
    signals.task_failure.send(sender=work, task_id="gone", exception=TimeoutError("killed"))
    signals.task_postrun.send(sender=work, task_id="gone", task=work)
    (event,) = transport.events
    assert event["transaction"] == "tests.core.test_task_hooks.work"


def test_no_task_is_captured_when_capturing_is_off(transport: CapturedTransport, kit: Kit) -> None:
    """The same for a process that was killed; transactions do not depend on the option."""
    assert kit.options.capture_errors
    connect(Kit({"dsn": transport, "capture_errors": False, "traces_sample_rate": 1.0}, environ={}))
    work.apply(args=(ValueError("broken"),))
    signals.task_failure.send(sender=work, task_id="gone", exception=TimeoutError("killed"))
    assert transport.events == []
    assert len(transport.payloads("transaction")) == 1


def test_a_workers_process_starts_and_closes_the_transport() -> None:
    """The kit owns its transport here; a second `connect` replaces the first."""
    seen: list[str] = []

    class Watched(CapturedTransport):
        def start(self) -> None:
            seen.append("start")

        def close(self, timeout: float | None = None) -> Any:
            seen.append("close")
            return super().close(timeout)

    connect(Kit({"dsn": Watched}, environ={}))
    connect(Kit({"dsn": Watched}, environ={}))
    try:
        signals.worker_process_init.send(sender=None)
        signals.worker_process_shutdown.send(sender=None, pid=1, exitcode=0)
    finally:
        connect(Kit({"dsn": ""}, environ={}))
    assert seen == ["start", "close"]


class Base:
    """The work of RQ's workers around a job, without a Redis."""

    def __init__(self) -> None:
        self.handled: list[object] = []

    def perform_job(self, job: Any, queue: Any) -> bool:
        Scope.current().set_tag("own", "job")
        try:
            job.perform()
        except Exception as error:
            self.handle_exception(job, type(error), error, error.__traceback__)
            return False
        return True

    def handle_exception(self, job: Any, *exc_info: Any) -> None:
        self.handled.append(exc_info[1])


class Reporting(ReportingMixin, Base):
    """A worker class of a user."""


new_worker: Any = Reporting  # mypy takes it for one of RQ's own classes


class UnreadableJob:
    """A job whose data can't be deserialised."""

    @property
    def func_name(self) -> str:
        raise RuntimeError("not a pickle")

    def perform(self) -> None:
        raise ValueError("unreadable")


def test_a_job_that_fails_is_captured_and_handed_on(
    transport: CapturedTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RQ's own handlers still run."""
    flushed: list[bool] = []
    monkeypatch.setattr(Reporting, "kit", Kit({"dsn": transport}, environ={}))
    monkeypatch.setattr(transport, "flush", lambda: flushed.append(True))
    worker, error = new_worker(), ValueError("broken")

    def fail() -> None:
        raise error

    assert worker.perform_job(SimpleNamespace(func_name="jobs.fail", perform=fail), None) is False
    assert worker.perform_job(SimpleNamespace(func_name="jobs.fine", perform=int), None) is True
    assert worker.perform_job(UnreadableJob(), None) is False
    assert worker.handled[0] is error
    assert [event["transaction"] for event in transport.events] == ["jobs.fail", "<unreadable job>"]
    assert transport.events[0]["tags"] == {"own": "job"}
    assert flushed == [True] * 3


def test_an_exception_handled_outside_of_a_job_is_only_handed_on(transport: CapturedTransport) -> None:
    """A worker class of the app may call the method itself."""
    worker = new_worker()
    error = ValueError("elsewhere")
    worker.handle_exception(SimpleNamespace(), ValueError, error, None)
    assert worker.handled == [error]
    assert transport.events == []


def test_without_a_kit_one_is_made_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--worker-class` takes a name only."""
    monkeypatch.setenv("TRANSPORT_KIT_DSN", "http://0123456789abcdef0123456789abcdef@127.0.0.1:9/42")
    monkeypatch.setattr(transport_kit.rq.Worker, "kit", None)
    worker = transport_kit.rq.Worker.__new__(transport_kit.rq.Worker)
    kit = worker._own_kit()
    assert kit.transport.dsn is not None
    assert worker._own_kit() is kit
    assert issubclass(transport_kit.rq.SimpleWorker, ReportingMixin)
