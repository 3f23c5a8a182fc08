"""The lock of a worker, and actions deferred inside its critical sections."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from tests.timing import SOON
from transport_kit.runtime.lock import StateLock


@pytest.fixture(name="lock")
def _lock() -> StateLock:
    return StateLock()


@pytest.fixture(name="on_signal")
def _on_signal() -> Iterator[list[object]]:
    """Provide a list of functions to call in a signal handler; the old handler is restored."""
    calls: list[object] = []

    def handler(number: int, frame: FrameType | None) -> None:
        for call in calls:
            call()  # type: ignore[operator]

    before = signal.signal(signal.SIGUSR1, handler)
    yield calls
    signal.signal(signal.SIGUSR1, before)


def test_only_the_thread_inside_is_the_owner(lock: StateLock) -> None:
    """The owner of the lock must be recognised, as it must not wait for the lock."""
    seen: list[bool] = []
    with lock.rlock:
        assert lock.held()
        other = threading.Thread(target=lambda: seen.append(lock.held()))
        other.start()
        other.join()
    assert seen == [False]
    assert not lock.held()


def test_what_is_left_aside_runs_once_in_order_under_the_lock(lock: StateLock) -> None:
    """A deferred capture must neither be lost nor counted twice."""
    ran: list[tuple[int, bool]] = []
    with lock.rlock:
        for n in range(3):
            lock.defer(lambda n=n: ran.append((n, lock.held())))  # type: ignore[misc]
        lock.run_deferred()
        assert ran == [], "an owner's drain waits for its release: its state may be half changed"
    lock.run_deferred()
    lock.run_deferred()
    assert ran == [(0, True), (1, True), (2, True)]


def test_an_action_may_leave_another_one(lock: StateLock) -> None:
    """A signal may arrive while a deferred action runs."""
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        lock.defer(lambda: ran.append("second"))

    with lock.rlock:
        lock.defer(first)
    lock.run_deferred()
    assert ran == ["first", "second"]
    assert not lock.deferred


def test_a_signal_inside_a_section_is_made_up_for_by_its_end(
    lock: StateLock, on_signal: list[object]
) -> None:
    """The handler runs on the thread that owns the lock: it defers its action, and does not hang."""
    ran: list[bool] = []
    on_signal.append(lambda: lock.defer(lambda: ran.append(True)) if lock.held() else ran.append(False))
    with lock.rlock:
        signal.raise_signal(signal.SIGUSR1)
        assert ran == []
    lock.run_deferred()
    signal.raise_signal(signal.SIGUSR1)
    assert ran == [True, False]


def test_another_thread_runs_what_the_owner_left_and_only_after_it(lock: StateLock) -> None:
    """Any thread may run deferred actions, but only after the owner's critical section."""
    ran: list[int] = []
    entered, go = threading.Event(), threading.Event()

    def own() -> None:
        with lock.rlock:
            lock.defer(lambda: ran.append(threading.get_ident()))
            entered.set()
            go.wait(30)

    owner = threading.Thread(target=own)
    owner.start()
    assert entered.wait(30)
    drainer = threading.Thread(target=lock.run_deferred)
    drainer.start()
    assert ran == []
    go.set()
    drainer.join(30)
    owner.join(30)
    assert ran == [drainer.ident]


def test_an_exception_in_a_section_releases_the_lock(lock: StateLock) -> None:
    """A signal handler that raises must not leave the lock locked."""
    with pytest.raises(KeyboardInterrupt), lock.rlock:
        raise KeyboardInterrupt
    taken: list[bool] = []
    other = threading.Thread(target=lambda: taken.append(lock.rlock.acquire(timeout=SOON)))
    other.start()
    other.join()
    assert taken == [True]
