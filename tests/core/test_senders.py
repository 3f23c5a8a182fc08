"""Sender threads with simple tasks: their start, the watch and their end."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType, SimpleNamespace
from typing import ClassVar

import pytest

from tests.core.worker_support import until
from tests.timing import SOON
from transport_kit.runtime.lock import StateLock
from transport_kit.transport.worker import senders
from transport_kit.transport.worker.senders import ANSWERED_WITHIN, Senders


class Errands:
    """A `Work` of functions to call; the watcher waits for the next one, or for the end."""

    def __init__(self, maximum: int = 4) -> None:
        self.lock = StateLock()
        self.waiting: deque[Callable[[], None]] = deque()
        self.watchers = 0
        self.over = False
        self.stranded_with: list[float | None] = []
        self.changed = threading.Condition(self.lock.rlock)
        self.senders: Senders[Callable[[], None]] = Senders(self.lock, maximum, self)

    def needed_locked(self) -> bool:
        return bool(self.waiting)

    def watch(self) -> Callable[[], None] | None:
        with self.changed:
            self.watchers += 1
            self.changed.notify_all()
            try:
                self.changed.wait_for(lambda: self.waiting or self.over)
            finally:
                self.watchers -= 1
            return self.waiting.popleft() if self.waiting else None

    def perform(self, task: Callable[[], None]) -> None:
        task()

    def stranded(self, deadline: float | None) -> None:
        self.stranded_with.append(deadline)

    def put(self, task: Callable[[], None]) -> None:
        with self.changed:
            self.waiting.append(task)
            self.changed.notify_all()
        self.senders.leave()

    def start_nothing(self) -> list[object]:
        """Make threads never arrive; return the list of their functions."""
        started: list[object] = []

        def start(run: Callable[[], None], _: tuple[()]) -> int:
            started.append(run)
            return 0

        self.senders._start_thread = start
        return started

    def end(self) -> None:
        with self.changed:
            self.over = True
            self.changed.notify_all()
        self.senders.leave()


class Held:
    """A task that goes on until it is let go, at the latest by the end of its test."""

    all: ClassVar[list[Held]] = []

    def __init__(self) -> None:
        self.begun, self._free = threading.Event(), threading.Event()
        self.ident = 0
        self.all.append(self)

    def __call__(self) -> None:
        self.ident = threading.get_ident()
        self.begun.set()
        self._free.wait(SOON)

    def let_go(self) -> None:
        self._free.set()


@pytest.fixture(name="make")
def _make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Errands]]:
    """Provide a factory of errands; idle senders stay, and calls are valid, longer than any test."""
    monkeypatch.setattr(senders, "LINGER", 10 * SOON)
    monkeypatch.setattr(senders, "ANSWERED_WITHIN", 10 * SOON)
    made: list[Errands] = []

    def make(maximum: int = 4) -> Errands:
        made.append(Errands(maximum))
        return made[-1]

    yield make
    while Held.all:
        Held.all.pop().let_go()
    for errands in made:
        errands.end()
        assert until(lambda: errands.senders.count == 0), "a sender outlives its work"  # noqa: B023


def test_a_sender_that_follows_is_called_and_no_thread_is_started(make: Callable[..., Errands]) -> None:
    """A sender that waits to become the watcher is notified immediately."""
    errands = make()
    pair = [Held(), Held()]
    for held in pair:
        errands.put(held)
        assert held.begun.wait(SOON)
    assert errands.senders.count == 2
    for held in pair:
        held.let_go()
    assert until(lambda: errands.senders._followers == 1 and errands.watchers == 1)
    again = [Held(), Held()]
    for held in again:
        errands.put(held)
        assert held.begun.wait(SOON)
    assert {held.ident for held in again} == {held.ident for held in pair}
    assert errands.senders.count == 2
    for held in again:
        held.let_go()


def test_there_are_never_more_senders_than_allowed(make: Callable[..., Errands]) -> None:
    """Further work is performed by the first sender that is free."""
    errands = make(2)
    tasks = [Held() for _ in range(3)]
    for held in tasks:
        errands.put(held)
    assert tasks[0].begun.wait(SOON)
    assert tasks[1].begun.wait(SOON)
    assert errands.senders.count == 2
    assert not tasks[2].begun.is_set()
    tasks[0].let_go()
    assert tasks[2].begun.wait(SOON)
    assert tasks[2].ident == tasks[0].ident
    for held in tasks:
        held.let_go()


def test_start_brings_one_sender_that_watches_without_work(make: Callable[..., Errands]) -> None:
    """Only a claim finds the backlog of a durable queue; a second start has no effect."""
    errands = make()
    errands.senders.start()
    assert until(lambda: errands.watchers == 1)
    errands.senders.start()
    assert errands.senders.count == 1


def test_without_work_nobody_is_called(make: Callable[..., Errands]) -> None:
    """Each critical section ends with a check, which must not start a thread without work."""
    errands = make()
    started = errands.start_nothing()
    errands.senders.leave()
    assert (started, errands.senders.count) == ([], 0)


def test_a_sender_is_counted_from_its_call_on(make: Callable[..., Errands]) -> None:
    """A called sender will perform the work: no second one is called for it."""
    errands = make()
    started = errands.start_nothing()
    assert errands.senders.count == 0
    errands.put(Held())
    errands.put(Held())
    errands.senders.start()
    assert (errands.senders.count, len(started)) == (1, 1)
    assert 0 < errands.senders._void_at - time.monotonic() <= 10 * SOON
    errands.waiting.clear()
    errands.senders._called = False


def test_a_call_that_nobody_answered_is_repeated_when_it_is_void(
    make: Callable[..., Errands], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calling thread was interrupted before it started the thread."""
    errands = make()
    started = errands.start_nothing()
    monkeypatch.setattr(senders, "ANSWERED_WITHIN", -1.0)
    errands.put(Held())
    errands.put(Held())
    assert len(started) == 2
    errands.waiting.clear()
    errands.senders._called = False


@pytest.mark.parametrize("deadline", [None, 7.0])
def test_without_any_thread_the_caller_is_stranded_with_the_work(
    make: Callable[..., Errands], deadline: float | None
) -> None:
    """If the system refuses a thread, the call ends, and the next one tries again."""
    errands = make()

    def refuse(run: Callable[[], None], _: tuple[()]) -> int:
        raise RuntimeError("can't start new thread")

    start, errands.senders._start_thread = errands.senders._start_thread, refuse
    with errands.changed:
        errands.waiting.append(Held())
    errands.senders.leave(deadline)
    assert errands.stranded_with == [deadline]
    assert errands.senders.count == 0
    errands.senders._start_thread = start
    held = errands.waiting[0]
    assert isinstance(held, Held)
    held.let_go()
    errands.senders.leave()
    assert held.begun.wait(SOON)


def test_a_caller_is_not_stranded_while_there_is_a_sender(make: Callable[..., Errands]) -> None:
    """The sender takes the work as soon as its task is done."""
    errands = make()
    first, second = Held(), Held()
    errands.put(first)
    assert first.begun.wait(SOON)

    def refuse(run: Callable[[], None], _: tuple[()]) -> int:
        raise MemoryError

    errands.senders._start_thread = refuse
    errands.put(second)
    assert errands.stranded_with == []
    first.let_go()
    assert second.begun.wait(SOON)
    second.let_go()


def test_who_acts_as_a_sender_is_known_by_its_thread(make: Callable[..., Errands]) -> None:
    """A sender must neither capture nor wait; other threads may."""
    errands = make()
    seen: list[bool] = []
    errands.put(lambda: seen.append(errands.senders.own))
    assert until(lambda: seen)
    for acts in (False, True, False, False):
        errands.senders.act(acts)
        seen.append(errands.senders.own)
    assert seen == [True, False, True, False, False]


def test_a_sender_that_nobody_needs_leaves_and_one_stays(
    make: Callable[..., Errands], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threads of a burst must not stay until the process ends."""
    errands = make()
    monkeypatch.setattr(senders, "LINGER", 0.01)
    burst = [Held() for _ in range(4)]
    for held in burst:
        errands.put(held)
        assert held.begun.wait(SOON)
    assert errands.senders.count == 4
    for held in burst:
        held.let_go()
    assert until(lambda: errands.senders.count == 1 and errands.watchers == 1)


def test_at_the_end_those_that_follow_leave_at_once(make: Callable[..., Errands]) -> None:
    """Otherwise idle senders would delay the end of the process."""
    errands = make()
    pair = [Held(), Held()]
    for held in pair:
        errands.put(held)
        assert held.begun.wait(SOON)
    for held in pair:
        held.let_go()
    assert until(lambda: errands.senders._followers == 1)
    errands.end()
    assert until(lambda: errands.senders.count == 0)


@pytest.mark.parametrize("kind", ["trace", "profile"])
def test_a_sender_obeys_the_tracer_and_the_profiler_of_threads(
    make: Callable[..., Errands], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender is no `threading.Thread`, but coverage and debuggers must trace it."""
    before = sys.gettrace(), sys.getprofile()
    errands = make()
    seen: list[str] = []

    def spy(frame: FrameType, what: str, argument: object) -> None:
        seen.append(frame.f_code.co_name)

    monkeypatch.setattr(threading, f"get{kind}", lambda: spy)
    done = threading.Event()
    errands.put(done.set)
    assert done.wait(SOON)
    assert "_serve" in seen
    assert (sys.gettrace(), sys.getprofile()) == before


# -- the calls in detail -------------------------------------------------------------------------------


def begun(errands: Errands, number: int) -> list[Held]:
    """Put so many tasks, each of which a sender has begun."""
    tasks = [Held() for _ in range(number)]
    for held in tasks:
        errands.put(held)
        assert held.begun.wait(SOON), "no sender came for it"
    return tasks


def let_go(errands: Errands, tasks: list[Held]) -> None:
    """End the tasks and wait until one sender watches and the others follow."""
    for held in tasks:
        held.let_go()
    assert until(lambda: errands.watchers == 1 and errands.senders._followers == len(tasks) - 1)


def test_a_follower_that_came_back_to_work_is_not_counted_as_one(make: Callable[..., Errands]) -> None:
    """It would be called while it performs, and the work would wait for it although a thread could start."""
    errands = make(3)
    let_go(errands, begun(errands, 2))
    let_go(errands, begun(errands, 2))
    busy = begun(errands, 3)
    assert errands.senders.count == 3
    for held in busy:
        held.let_go()


def test_at_the_bound_no_thread_is_started_for_what_waits(make: Callable[..., Errands]) -> None:
    """A thread that comes only to leave again costs a start for each envelope of a backlog."""
    errands = make(1)
    starts = count_starts(errands)
    done = threading.Event()
    with errands.changed:
        errands.waiting += [lambda: None, lambda: None, done.set]
    errands.senders.leave()
    assert done.wait(SOON)
    assert until(lambda: errands.watchers == 1)
    assert (len(starts), errands.senders.count) == (1, 1)


def count_starts(errands: Errands) -> list[object]:
    """Return a list to which each start of a thread adds an item."""
    starts: list[object] = []
    start = errands.senders._start_thread

    def start_and_count(run: Callable[[], None], arguments: tuple[()]) -> int:
        starts.append(run)
        return start(run, arguments)

    errands.senders._start_thread = start_and_count
    return starts


def test_while_one_is_on_its_way_a_busy_sender_calls_no_other(make: Callable[..., Errands]) -> None:
    """The one that comes takes what is left; two calls for one piece of work are one thread too many."""
    errands = make()
    (first,) = begun(errands, 1)
    started = errands.start_nothing()
    second, third = Held(), Held()
    errands.put(second)
    errands.put(third)
    first.let_go()
    assert second.begun.wait(SOON), "the sender that was busy takes it"
    assert len(started) == 1
    late = threading.Thread(target=started[0])  # type: ignore[arg-type]
    late.start()
    assert third.begun.wait(SOON)
    second.let_go()
    third.let_go()
    errands.end()
    late.join(SOON)
    assert not late.is_alive()


@pytest.mark.parametrize("state", ["watched", "called", "all busy"])
def test_a_caller_does_not_wait_for_the_lock_when_nobody_has_to_come(
    make: Callable[..., Errands], state: str
) -> None:
    """Every capture ends with this look; with eight senders at work it would queue up behind them."""
    errands = make(1)
    busy: list[Held] = []
    started: list[object] = []
    if state == "watched":
        errands.senders.start()
        assert until(lambda: errands.watchers == 1)
    elif state == "called":
        started = errands.start_nothing()
        errands.put(lambda: None)
    else:
        busy = begun(errands, 1)
    caller = threading.Thread(target=errands.senders.leave)
    with errands.lock.rlock:
        caller.start()
        caller.join(SOON)
        assert not caller.is_alive()
    for held in busy:
        held.let_go()
    for run in started:
        threading.Thread(target=run).start()  # type: ignore[arg-type]


def test_inside_a_critical_section_nobody_is_called(make: Callable[..., Errands]) -> None:
    """Whoever interrupted the section relies on its end, which calls."""
    errands = make()
    held = Held()
    starts = count_starts(errands)
    with errands.changed:
        errands.waiting.append(held)
        errands.senders.leave()
        assert starts == []
    errands.senders.leave()
    assert held.begun.wait(SOON)
    held.let_go()


@pytest.mark.parametrize("deadline", [None, 7.0])
def test_while_the_interpreter_ends_the_caller_is_stranded_with_the_work(
    make: Callable[..., Errands], monkeypatch: pytest.MonkeyPatch, deadline: float | None
) -> None:
    """No other thread runs any more, even one that watched. Inside a critical section nothing is done."""
    errands = make()
    errands.senders.start()
    assert until(lambda: errands.watchers == 1)
    starts = count_starts(errands)
    with monkeypatch.context() as ending:
        ending.setattr(sys, "is_finalizing", lambda: True)
        with errands.lock.rlock:
            errands.senders.leave(deadline)
        assert errands.stranded_with == []
        errands.senders.leave(deadline)
    assert errands.stranded_with == [deadline]
    assert starts == []


def test_what_interrupts_a_look_is_run_before_the_caller_goes_on(make: Callable[..., Errands]) -> None:
    """A signal handler that captures inside the section leaves its envelope aside, for the section's end."""
    errands = make()
    taken_in: list[str] = []
    looks: list[None] = []
    needed = errands.needed_locked

    def interrupted() -> bool:
        if not looks:
            errands.lock.defer(lambda: taken_in.append("envelope"))
        looks.append(None)
        return needed()

    errands.needed_locked = interrupted  # type: ignore[method-assign]
    errands.senders.leave()
    assert taken_in == ["envelope"]


def test_a_start_counts_from_its_call_on_and_is_done_once(make: Callable[..., Errands]) -> None:
    """Two transports of a process begin at once; a second thread would only wait."""
    errands = make()
    started = errands.start_nothing()
    errands.senders.start()
    errands.senders.start()
    assert (len(started), errands.senders.count) == (1, 1)
    threading.Thread(target=started[0]).start()  # type: ignore[arg-type]
    assert until(lambda: errands.watchers == 1)


def test_a_start_without_any_thread_strands_the_caller_without_a_deadline(
    make: Callable[..., Errands],
) -> None:
    """Whoever starts a worker has no time of its own: the worker's bound holds."""
    errands = make()

    def refuse(run: Callable[[], None], _: tuple[()]) -> int:
        raise RuntimeError("can't start new thread")

    errands.senders._start_thread = refuse
    errands.senders.start()
    assert errands.stranded_with == [float("inf")]
    assert errands.senders.count == 0


def test_a_call_holds_for_a_second(make: Callable[..., Errands], monkeypatch: pytest.MonkeyPatch) -> None:
    """So long a thread may take to come on a loaded machine; then another one is called."""
    monkeypatch.setattr(senders, "ANSWERED_WITHIN", ANSWERED_WITHIN)
    errands = make()
    now = [1000.0]
    monkeypatch.setattr(senders, "time", SimpleNamespace(monotonic=lambda: now[0]))
    started = errands.start_nothing()
    errands.put(lambda: None)
    starts = []
    for later in (0.0, 0.9, 1.0, 1.9, 2.0):
        now[0] = 1000.0 + later
        errands.senders.leave()
        starts.append(len(started))
    assert starts == [1, 1, 2, 2, 3]
    threading.Thread(target=started[0]).start()  # type: ignore[arg-type]
    assert until(lambda: errands.watchers == 1)


def test_a_caller_that_was_interrupted_before_its_thread_started_calls_again(
    make: Callable[..., Errands],
) -> None:
    """A signal handler raised in between; other threads wait until the call is void, this one need not."""
    errands = make()
    start, held, tries = errands.senders._start_thread, Held(), 0

    def interrupt(run: Callable[[], None], arguments: tuple[()]) -> int:
        nonlocal tries
        tries += 1
        raise KeyboardInterrupt

    errands.senders._start_thread = interrupt
    with pytest.raises(KeyboardInterrupt):
        errands.put(held)
    other = threading.Thread(target=errands.senders.leave)
    other.start()
    other.join(SOON)
    assert (tries, errands.senders.count) == (1, 1)
    errands.senders._start_thread = start
    errands.senders.leave()
    assert held.begun.wait(SOON)
    held.let_go()


def test_a_thread_whose_call_was_void_leaves_when_there_are_enough(
    make: Callable[..., Errands], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one came in its place, and both would be one more than allowed."""
    errands = make(1)
    started = errands.start_nothing()
    monkeypatch.setattr(senders, "ANSWERED_WITHIN", -1.0)
    errands.put(lambda: None)
    errands.senders.leave()
    first, second = (threading.Thread(target=run) for run in started)  # type: ignore[arg-type]
    first.start()
    assert until(lambda: errands.watchers == 1)
    second.start()
    second.join(SOON)
    assert not second.is_alive()
    assert errands.senders.count == 1
    errands.end()
    first.join(SOON)


def test_a_thread_ceases_to_be_a_sender_when_it_leaves(make: Callable[..., Errands]) -> None:
    """The number of a thread is used again by a later one, whose captures must not be refused."""
    errands = make()
    started = errands.start_nothing()
    seen: list[bool] = []
    errands.put(lambda: seen.append(errands.senders.own))
    errands.over = True
    (run,) = started
    run()  # type: ignore[operator]
    assert seen == [True]
    assert not errands.senders.own
    assert errands.senders.count == 0
