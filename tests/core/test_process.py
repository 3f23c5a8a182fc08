"""The hooks, without real processes, which are in tests/process."""

from __future__ import annotations

import _thread
import gc
import os
import signal
import subprocess
import sys
import threading
import types
from typing import Any

import pytest

from tests.timing import SOON
from transport_kit.config.options import TransportOptions
from transport_kit.runtime import process
from transport_kit.runtime.log import log
from transport_kit.transport.base import Transport
from transport_kit.transport.worker.outcome import FlushReport


class Ending(Transport):
    """A transport that leaves `left` envelopes, and records the order of the calls."""

    def __init__(self, left: int = 0, *, timeout: float = 2.0, error: Exception | None = None) -> None:
        super().__init__(TransportOptions(shutdown_timeout=timeout))
        self.left = left
        self.error = error
        self.calls: list[str] = []
        self.deadlines: list[float] = []
        self.free = True
        self.sigterm = False

    def _flush(self, timeout: float, until: str) -> FlushReport:
        self.calls.append(f"flush {timeout:g}")
        return FlushReport(True)

    def end_of_process(self, deadline: float) -> int:
        self.calls.append("end")
        self.deadlines.append(deadline)
        if self.error is not None:
            raise self.error
        return self.left

    def renew_after_fork(self) -> None:
        self.calls.append("renew")

    def can_wait(self) -> bool:
        return self.free

    def wants_sigterm(self) -> bool:
        return self.sigterm


@pytest.fixture(name="registry", autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Remove transports of other tests, and the mark of a report."""
    registry: dict[int, object] = {}
    monkeypatch.setattr(process, "_watched", registry)
    monkeypatch.setattr(process, "_reported_in", None)
    yield registry
    log.renew()


def watched(*transports: Ending) -> None:
    for transport in transports:
        process.watch(transport)


def test_all_transports_begin_before_one_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Two servers that hang cost the longer of both times, not the sum."""
    first, second = Ending(timeout=1.0), Ending(timeout=3.0)
    order: list[str] = []
    first.calls = second.calls = order
    watched(first, second)
    process.end_all()
    assert order == ["flush 0", "flush 0", "end", "end"]
    assert second.deadlines[0] - first.deadlines[0] == pytest.approx(2.0)
    assert capsys.readouterr().err == ""


def test_what_is_left_behind_is_one_line_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """`atexit` and multiprocessing's finalizer may both run."""
    endings = [Ending(2), Ending(), Ending(1, timeout=0.5)]
    watched(*endings)
    process.end_all()
    process.end_all()
    assert capsys.readouterr().err == "transport-kit: 3 envelopes not delivered within 2 s of exit\n"


def test_one_envelope_is_not_plural(capsys: pytest.CaptureFixture[str]) -> None:
    """People read the line."""
    only = Ending(1)
    watched(only)
    process.end_all()
    assert "1 envelope not delivered" in capsys.readouterr().err


def test_a_transport_that_fails_does_not_take_the_others_down(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A class of the user's may raise; the other transports must still deliver."""
    bad, good = Ending(error=RuntimeError("boom")), Ending(1)
    watched(bad, good)
    process.end_all()
    assert good.calls == ["flush 0", "end"]
    assert "1 envelope" in capsys.readouterr().err
    assert [record.getMessage() for record in caplog.records] == [
        "a transport failed at the end of the process: RuntimeError"
    ]


def test_a_closed_stderr_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons close stderr, and pythonw has none."""
    only = Ending(1)
    watched(only)
    monkeypatch.setattr(sys, "stderr", None)
    process.end_all()
    assert only.calls == ["flush 0", "end"]


def test_a_transport_is_held_weakly(registry: dict[int, object]) -> None:
    """A hook must not keep a transport alive that the app has dropped."""
    only = Ending()
    watched(only)
    assert len(registry) == 1
    del only
    gc.collect()
    assert registry == {}


def test_the_hooks_are_installed_once() -> None:
    """Otherwise there would be two lines at exit, and two renewals after a fork."""
    code = (
        "import atexit, os, sys\n"
        "calls = []\n"
        "atexit.register = lambda *a: calls.append('exit')\n"
        "os.register_at_fork = lambda **k: calls.append('fork')\n"
        "import transport_kit\n"
        "calls.clear()\n"  # logging and random have hooks of their own
        "kept = [transport_kit.make_transport('') for _ in range(3)]\n"
        "assert calls == ['exit', 'fork'], calls\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_fork_renews_every_transport_once() -> None:
    """It happens in the child, before the app's code runs."""
    one, two = Ending(), Ending()
    watched(one, two)
    process.renew_all()
    assert one.calls == two.calls == ["renew"]


def test_a_fork_leaves_renewal_to_the_first_use_where_gevent_may_still_patch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gunicorn's gevent worker patches after the fork.

    Locks and threads from before the patch are not gevent's, and crash the process.
    """
    monkeypatch.setitem(sys.modules, "gevent", types.ModuleType("gevent"))
    one = Ending()
    watched(one)
    process.renew_all()
    assert one.calls == []


def test_sigterm_is_left_alone_off_the_main_thread_and_where_it_is_taken() -> None:
    """Python sets handlers on the main thread only; an existing handler belongs to a server."""
    before = signal.getsignal(signal.SIGTERM)
    only = Ending()
    only.sigterm = True
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        thread = threading.Thread(target=process.watch, args=(only,))
        thread.start()
        thread.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        for taken in (signal.SIG_IGN, lambda number, frame: None):
            signal.signal(signal.SIGTERM, taken)
            process.watch(only)
            assert signal.getsignal(signal.SIGTERM) is taken
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        process.watch(only)
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN, None)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(name="kills")
def _kills(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a transport's handler; record the signals that the process sends to itself."""
    sent: list[tuple[int, Any]] = []
    arrived = threading.Event()

    def kill(pid: int, number: int) -> None:
        sent.append((number, signal.getsignal(number)))
        arrived.set()

    monkeypatch.setattr(os, "kill", kill)
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    installing = Ending()
    installing.sigterm = True
    process.watch(installing)
    yield sent, arrived
    signal.signal(signal.SIGTERM, before)


def test_sigterm_drains_and_is_sent_again_with_its_default_action(kills: Any) -> None:
    """A supervisor must see that SIGTERM ended the process."""
    only = Ending()
    watched(only)
    signal.raise_signal(signal.SIGTERM)
    assert only.calls == ["flush 0", "end"]
    assert kills[0] == [(signal.SIGTERM, signal.SIG_DFL)]


def test_sigterm_in_a_critical_section_comes_back_a_moment_later(kills: Any) -> None:
    """The senders need the lock of the interrupted thread, which must continue first."""
    only = Ending()
    only.free = False
    watched(only)
    ours = signal.getsignal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert only.calls == []
    assert kills[1].wait(SOON)
    assert kills[0] == [(signal.SIGTERM, ours)]


def test_sigterm_in_a_critical_section_without_threads_ends_the_process(
    kills: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost envelopes are better than a process that never ends."""
    only = Ending()
    only.free = False
    watched(only)

    def refuse(*arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    signal.raise_signal(signal.SIGTERM)
    assert only.calls == []
    assert kills[0] == [(signal.SIGTERM, signal.SIG_DFL)]


def test_a_handler_that_calls_ours_decides_about_the_end(kills: Any) -> None:
    """A handler that replaced ours and calls it ends the process itself."""
    only = Ending()
    watched(only)
    ours = signal.getsignal(signal.SIGTERM)
    assert callable(ours)
    signal.signal(signal.SIGTERM, ours_called := lambda number, frame: ours(number, frame))
    signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is ours_called
    assert only.calls == []
    assert kills[0] == []


def test_silence_waits_for_lines_that_are_being_written() -> None:
    """A daemon thread that is stopped in a handler leaves stderr locked, and the interpreter aborts."""
    import logging

    entered, release = threading.Event(), threading.Event()
    lines: list[str] = []

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            entered.set()
            release.wait(SOON)
            lines.append(record.getMessage())

    handler = Slow()
    logging.getLogger("transport_kit").addHandler(handler)
    try:
        thread = threading.Thread(target=log.warning, args=("one",))
        thread.start()
        assert entered.wait(SOON)
        log.silence(0.05)
        assert lines == []
        threading.Timer(0.05, release.set).start()
        log.silence(SOON)
        thread.join()
        log.warning("two")
        log.renew()
        log.warning("three")
    finally:
        logging.getLogger("transport_kit").removeHandler(handler)
    assert lines == ["one", "three"]


def test_children_of_multiprocessing_are_seen_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The finalizer is registered in this process and in each child, which drops inherited ones."""
    import multiprocessing.util as util

    finalizers: list[dict[str, Any]] = []
    after_fork: list[Any] = []
    monkeypatch.setattr(util, "Finalize", lambda obj, call, **more: finalizers.append({"call": call, **more}))
    monkeypatch.setattr(util, "register_after_fork", lambda obj, call: after_fork.append(call))
    monkeypatch.setattr(process, "_watches_multiprocessing", False)
    for _ in range(2):
        process.watch(Ending())
    assert finalizers == [{"call": process.end_all, "exitpriority": -100}]
    (call,) = after_fork
    call(None)
    assert len(finalizers) == 2
    monkeypatch.delitem(sys.modules, "multiprocessing.util")
    monkeypatch.setattr(process, "_watches_multiprocessing", False)
    process.watch(Ending())  # the app does not use it, so it is not imported
    assert len(finalizers) == 2
    assert "multiprocessing.util" not in sys.modules


def test_at_the_exit_nothing_is_logged_any_more(caplog: pytest.LogCaptureFixture) -> None:
    """Only atexit silences the log: the other hooks may run long before the interpreter ends."""
    process.end_all()
    log.warning("after the end")
    process._at_exit()
    log.warning("after the exit")
    assert [record.getMessage() for record in caplog.records] == ["after the end"]
