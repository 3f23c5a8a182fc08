"""Calls of a worker in which a signal handler raises, at every instruction of them.

Celery's soft time limit, and the timeouts of gunicorn workers and test runners, are raised by a signal
handler at any point of the main thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.core.interruption import Interrupted, every_instruction, strike, untraced
from tests.core.worker_support import Deliverer, balance, event, memory, quick, session, transaction, until
from tests.timing import SOON
from transport_kit.envelope.losses import LossReason
from transport_kit.queues.memory import MemoryQueue
from transport_kit.transport.worker.worker import BackgroundWorker

pytestmark = untraced

SMALL = event("small")
SESSION = session("one")
BATCH = transaction("two spans")


@dataclass
class Case:
    """A worker and the call to interrupt."""

    worker: BackgroundWorker
    queue: MemoryQueue
    deliver: Deliverer
    call: Callable[[], object]


def _first() -> Case:
    return _case(lambda worker: worker.submit(BATCH))


def _full() -> Case:
    """A full queue: each put evicts an envelope. Deliveries wait, so that nothing else changes the queue."""
    case = _case(lambda worker: worker.submit(SMALL), max_queue_items=4, max_senders=1)
    case.deliver.hold()
    case.worker.submit(SMALL)
    assert case.deliver.wait_for(1)
    for sealed in (BATCH, BATCH, SESSION):
        assert case.worker.submit(sealed)
    return case


def _refused() -> Case:
    case = _full()
    case.call = lambda: case.worker.submit(LOW)
    return case


LOW = transaction("late")


def _lost() -> Case:
    return _case(lambda worker: worker.lose(LossReason.SAMPLE_RATE, (("transaction", 1), ("span", 3))))


def _watched(call: Callable[[BackgroundWorker], object]) -> Callable[[], Case]:
    def make() -> Case:
        case = _case(call, max_senders=2)
        case.deliver.hold()
        for sealed in (SMALL, BATCH, SESSION, SMALL, BATCH):
            case.worker.submit(sealed)
        assert case.deliver.wait_for(2)
        return case

    return make


def _case(call: Callable[[BackgroundWorker], object], **fields: object) -> Case:
    options = quick(**fields)
    queue, deliver = memory(options), Deliverer()
    worker = BackgroundWorker(queue, deliver, options)
    return Case(worker, queue, deliver, lambda: call(worker))


CALLS: dict[str, Callable[[], Case]] = {
    "the first capture": _first,
    "a capture into a full queue": _full,
    "a capture that is refused": _refused,
    "a loss": _lost,
    "a capture": _watched(lambda worker: worker.submit(SMALL)),
    "facts": _watched(lambda worker: worker.facts()),
    "pending": _watched(lambda worker: worker.pending),
    "a flush": _watched(lambda worker: worker.flush(0.0)),
    "a close": _watched(lambda worker: worker.close(0.0)),
    "a kill": _watched(lambda worker: worker.kill()),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CALLS)
def test_a_handler_that_raises_at_any_instruction_spoils_nothing(name: str) -> None:
    """The exception reaches the app, the lock is released, all counts are right, and the worker continues."""
    ends = name in ("a close", "a kill")
    for instruction in every_instruction():
        case = CALLS[name]()
        worker, queue, deliver = case.worker, case.queue, case.deliver
        struck, raised = strike(case.call, instruction)
        where = f"at instruction {instruction}"
        if struck:
            assert isinstance(raised, Interrupted), f"the exception was lost {where}: {raised!r}"
        else:
            assert raised is None, where
        assert not queue.lock.held(), f"the lock was left behind {where}"
        balance(worker, queue)
        deliver.let_go()
        if ends:
            worker.kill()
        else:
            assert worker.submit(SMALL), f"refused {where}"
            report = worker.flush(SOON)
            assert report.ok, f"something is not delivered {where}: {report}"
            assert worker.pending == 0, where
            assert len(deliver.began) - deliver.began.count(None) == deliver.done - deliver.began.count(None)
            totals = worker.facts().totals
            assert sum(totals.delivered.get(category, 0) for category in ("error", "session")) + (
                totals.delivered.get("transaction", 0)
            ) == len([one for one in deliver.began if one is not None]), where
            worker.kill()
        balance(worker, queue)
        assert until(lambda worker=worker: not worker.is_alive()), where  # type: ignore[misc]
        if not struck:
            assert instruction > 20
            return
