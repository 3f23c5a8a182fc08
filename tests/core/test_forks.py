"""Forks: one hook for the package, guarded sections, and one value per process."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from transport_kit.runtime import forks
from transport_kit.runtime.forks import ForkGuard, PerProcess, after_fork

# Python 3.12 warns about each fork of a process with threads, which these tests need.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
SOON = 30.0
#: A fork that hooks see, and one made in C, which no hook sees.
FORKS: dict[str, Callable[[], int]] = {"os.fork": os.fork, "in C": lambda: ctypes.PyDLL(None).fork()}


def in_child(work: Callable[[], bool], fork: Callable[[], int] = os.fork) -> bool:
    """Return what `work` returns in a forked child; False if it raises."""
    pid = fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Process:
    """A process id that a test changes, to simulate a fork that no hook sees."""

    def __init__(self) -> None:
        self.pid = 1

    def __call__(self) -> int:
        return self.pid


class Value:
    """A value that refers to the one it was built from."""

    def __init__(self, parent: Value | None) -> None:
        self.parent = parent


# -- one value per process ---------------------------------------------------------------------------------


def test_a_value_is_built_at_once_and_only_once() -> None:
    """A transport whose queue can't be made must raise in its constructor."""
    parents: list[Value | None] = []

    def build(parent: Value | None) -> Value:
        parents.append(parent)
        return Value(parent)

    values = PerProcess(build)
    assert values.get() is values.get()
    assert parents == [None]
    assert values.inherited() is None


@pytest.mark.parametrize("fork", FORKS.values(), ids=FORKS)
def test_a_forked_child_builds_its_own(fork: Callable[[], int]) -> None:
    """The parent's value does not change in either process."""
    values = PerProcess(Value)
    parent = values.get()

    def child() -> bool:
        assert values.inherited() is parent
        own = values.get()
        assert own is not parent
        assert own.parent is parent
        assert values.inherited() is None
        return values.get() is own

    assert in_child(child, fork)
    assert values.get() is parent
    assert values.inherited() is None


@pytest.mark.parametrize("used", [True, False], ids=["used by the child", "unused by the child"])
def test_a_grandchild_builds_from_its_nearest_ancestor_with_a_value(used: bool) -> None:
    """A server may fork a worker, and the worker a task, before either has captured anything."""
    values = PerProcess(Value)
    first = values.get()

    def child() -> bool:
        ancestor = values.get() if used else first

        def grandchild() -> bool:
            return values.inherited() is ancestor and values.get().parent is ancestor

        return in_child(grandchild)

    assert in_child(child)


def test_what_an_ancestor_built_is_never_finalised_in_a_descendant() -> None:
    """Its finalizer could wait for a lock that was locked at the fork."""
    process = Process()
    built: list[weakref.ref[Value]] = []

    def build(parent: Value | None) -> Value:
        value = Value(None)
        built.append(weakref.ref(value))
        return value

    values = PerProcess(build, process=process)
    for pid in (2, 3, 4):
        process.pid = pid
        values.get()
    gc.collect()
    assert all(ref() is not None for ref in built)
    assert len(built) == 4


def test_threads_that_build_at_the_same_time_get_the_same_value() -> None:
    """Two values would be two queues, of which the end of the process would know one."""
    process = Process()
    together = threading.Barrier(8)
    built: list[Value] = []
    adopted: list[Value] = []

    def build(parent: Value | None) -> Value:
        if parent is not None:
            together.wait(SOON)
        value = Value(parent)
        built.append(value)
        return value

    values = PerProcess(build, adopted.append, process)
    process.pid = 2
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda n: values.get(), range(8)))
    assert len(built) == 9
    assert {id(value) for value in got} == {id(values.get())}
    assert adopted == [values.get()]


def test_a_value_is_adopted_once_and_after_it_is_current() -> None:
    """`adopt` may use the holder itself, and after an exception in it the value is not built again."""
    process = Process()
    seen: list[Value] = []

    def adopt(value: Value) -> None:
        assert values.get() is value
        seen.append(value)
        raise OSError("the directory is gone")

    values = PerProcess(Value, adopt, process)
    assert seen == []  # the first value is adopted by its maker
    process.pid = 2
    with pytest.raises(OSError, match="gone"):
        values.get()
    assert seen == [values.get()]


def test_a_build_that_raises_is_tried_again() -> None:
    """A fork while the disk is full must not make the child lose all its captures."""
    process = Process()
    failing = False

    def build(parent: Value | None) -> Value:
        if failing:
            raise OSError("full")
        return Value(parent)

    values = PerProcess(build, process=process)
    first = values.get()
    process.pid, failing = 2, True
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            values.get()
        assert values.inherited() is first
    failing = False
    assert values.get().parent is first


def test_what_fails_to_build_at_first_raises_in_the_constructor() -> None:
    """A configuration error must be raised where it was made."""
    with pytest.raises(ZeroDivisionError):
        PerProcess(lambda parent: 1 // 0)


# -- the hook ----------------------------------------------------------------------------------------------


@pytest.fixture(name="registered")
def _registered(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Callable[[], object]]]:
    """Record the hooks that are registered with Python; the package has none yet."""
    hooks: list[dict[str, Callable[[], object]]] = []
    monkeypatch.setattr(os, "register_at_fork", lambda **given: hooks.append(given))
    monkeypatch.setattr(forks, "_callbacks", [])
    monkeypatch.setattr(forks, "_unregistered", [True])
    monkeypatch.setattr(forks, "fork_guard", ForkGuard())
    return hooks


def test_one_hook_calls_all_in_order(registered: list[dict[str, Callable[[], object]]]) -> None:
    """Callbacks that release a parent's resources come before those that open new ones."""
    calls: list[str] = []

    def renew() -> None:
        calls.append("renew")

    def release() -> None:
        calls.append("release")

    def last() -> None:
        calls.append("last")

    after_fork(renew)
    after_fork(release, first=True)
    after_fork(last)
    after_fork(release, first=True)  # registered once
    after_fork(renew)
    (hooks,) = registered
    assert set(hooks) == {"before", "after_in_parent", "after_in_child"}
    hooks["after_in_child"]()
    assert calls == ["release", "renew", "last"]


def test_a_callback_that_raises_keeps_none_from_its_turn(
    registered: list[dict[str, Callable[[], object]]], caplog: pytest.LogCaptureFixture
) -> None:
    """A transport of the app may fail; the descriptors of the others must be closed all the same."""
    calls: list[str] = []

    def bad() -> None:
        raise ValueError("text that may hold anything")

    after_fork(bad)
    after_fork(lambda: calls.append("good"))
    registered[0]["after_in_child"]()
    assert calls == ["good"]
    assert [record.getMessage() for record in caplog.records] == ["a fork hook failed: ValueError"]


def test_threads_that_register_at_once_register_one_hook(
    registered: list[dict[str, Callable[[], object]]],
) -> None:
    """A second hook would wait before each fork for the lock that the first one holds."""
    together = threading.Barrier(8)

    def register(number: int) -> None:
        together.wait(SOON)
        after_fork(lambda: number)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(register, range(8)))
    assert len(registered) == 1
    assert len(forks._callbacks) == 8


def test_an_import_registers_nothing_and_a_child_calls_what_was_registered() -> None:
    """An import has no effect on forks; a real fork runs the callbacks, in the child only."""
    code = (
        "import os\n"
        "register, calls = os.register_at_fork, []\n"
        "os.register_at_fork = lambda **hooks: (calls.append('hook'), register(**hooks))\n"
        "import transport_kit\n"
        "from transport_kit.runtime.forks import after_fork, fork_guard\n"
        "calls.clear()\n"  # logging and random have hooks of their own
        "with fork_guard: pass\n"
        "assert calls == [], calls\n"
        "after_fork(lambda: calls.append('second'))\n"
        "after_fork(lambda: calls.append('first'), first=True)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    with fork_guard: os._exit(0 if calls == ['hook', 'first', 'second'] else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert calls == ['hook'], calls\n"
        "with fork_guard: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


# -- sections that a fork does not interrupt -----------------------------------------------------------------


@pytest.fixture(name="guard")
def _guard() -> ForkGuard:
    """Return a guard whose hooks the test calls itself."""
    guard = ForkGuard()
    guard.install()
    return guard


def test_a_fork_waits_for_a_section_and_a_section_for_a_fork(guard: ForkGuard) -> None:
    """In the child, another thread's section would never end."""
    forked, entered = threading.Event(), threading.Event()

    def fork() -> None:
        guard.before_fork()
        forked.set()

    with guard:
        forker = threading.Thread(target=fork)
        forker.start()
        assert not forked.wait(0.05)
    assert forked.wait(SOON)
    forker.join()

    def section() -> None:
        with guard:
            entered.set()

    threading.Thread(target=section).start()
    assert not entered.wait(0.05)
    guard._forkers = {threading.get_ident()}  # as in the child of a fork by this thread
    guard.after_fork_in_parent()
    assert entered.wait(SOON)


def test_a_fork_does_not_wait_for_ever(guard: ForkGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A section that hangs must not stop the app; the child takes the risk."""
    monkeypatch.setattr(forks, "LONGEST", 0.01)
    entered, leave = threading.Event(), threading.Event()

    def section() -> None:
        with guard:
            entered.set()
            leave.wait(SOON)

    thread = threading.Thread(target=section)
    thread.start()
    assert entered.wait(SOON)
    guard.before_fork()
    guard.after_fork_in_parent()
    assert guard._lock.locked()  # the section still holds it
    leave.set()
    thread.join()
    assert not guard._lock.locked()


def test_a_fork_inside_a_section_waits_for_nothing(guard: ForkGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module, or a signal handler, that forks during an import continues in both processes."""

    def never(*_: Any, **__: Any) -> bool:
        raise AssertionError("it would wait for itself")

    with guard:
        lock = guard._lock
        with monkeypatch.context() as patch:
            patch.setattr(guard, "_lock", type("Lock", (), {"acquire": never}))
            guard.before_fork()
        guard.after_fork_in_parent()
        assert lock.locked()
    assert not lock.locked()
    with guard:
        guard.before_fork()
        guard.after_fork_in_child()
    with guard:
        pass


def test_a_child_has_an_open_guard(guard: ForkGuard) -> None:
    """The child does not have the thread that held the lock."""
    guard.before_fork()
    guard.after_fork_in_child()
    with guard:
        assert guard._forkers == set()


def test_before_the_first_transport_no_section_is_guarded() -> None:
    """A lock made at import could precede the patch of gevent."""
    guard = ForkGuard()
    with guard as nothing:
        assert nothing is None
        guard.install()
        assert not guard._lock.locked()
    assert not guard._lock.locked()
