"""The transport interface, and the transports that need no worker."""

from __future__ import annotations

import _thread
import asyncio
import functools
import os
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.core.worker_support import until
from tests.timing import SOON
from transport_kit.config.options import TransportOptions
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.item import Item
from transport_kit.envelope.losses import LossReason
from transport_kit.runtime.errors import OptionsError
from transport_kit.runtime.version import SDK_NAME, VERSION
from transport_kit.transport.base import Transport
from transport_kit.transport.local import FunctionTransport, NullTransport
from transport_kit.transport.worker.outcome import FlushReport

EVENT = {"message": "x"}


# -- capturing ---------------------------------------------------------------------------------------------


def test_a_function_is_called_in_the_caller_with_each_envelope() -> None:
    """For apps that have a way of delivering; no thread is involved."""
    threads: list[int] = []
    kept: list[Envelope] = []

    def keep(envelope: Envelope) -> None:
        kept.append(envelope)
        threads.append(threading.get_ident())

    transport = FunctionTransport(keep)
    assert transport.capture_event(EVENT)
    assert transport.capture_event({"type": "transaction", "transaction": "/", "spans": [{}]})
    assert threads == [threading.get_ident()] * 2
    assert [item.type for envelope in kept for item in envelope] == ["event", "transaction"]
    assert transport.health().delivered == {"error": 1, "transaction": 1, "span": 2}
    assert transport.health().status == "pass"
    assert transport.is_healthy()
    assert transport.pending == 0


def test_an_envelope_says_which_client_made_it() -> None:
    """Servers decide by it how to read what follows. The caller's event stays as it was."""
    kept: list[Envelope] = []
    event = {"message": "x"}
    FunctionTransport(kept.append).capture_event(event)
    assert kept[0].headers["sdk"] == {"name": SDK_NAME, "version": VERSION}
    assert event == {"message": "x"}


def test_a_failing_function_is_counted_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    """Its exception's text may hold anything, so the log names the class alone."""

    def fail(envelope: Envelope) -> None:
        raise ValueError("password=hunter2")

    transport = FunctionTransport(fail)
    assert transport.capture_event(EVENT) is False
    assert transport.health().discarded_by_category == {"internal_sdk_error": {"error": 1}}
    assert [record.getMessage() for record in caplog.records] == ["the transport function failed: ValueError"]


def test_what_is_meant_for_the_app_passes_a_function_and_is_counted() -> None:
    """Ctrl-C in the function is not ours to swallow."""

    def interrupted(envelope: Envelope) -> None:
        raise KeyboardInterrupt

    transport = FunctionTransport(interrupted)
    with pytest.raises(KeyboardInterrupt):
        transport.capture_event(EVENT)
    assert transport.health().discarded_by_category == {"internal_sdk_error": {"error": 1}}


def test_a_capture_made_by_the_function_is_refused_and_counted() -> None:
    """A function that logs, under a logging handler that captures, must come to an end."""
    results: list[bool] = []
    transport = FunctionTransport(lambda envelope: results.append(transport.capture_event(EVENT)))
    assert transport.capture_event(EVENT)
    assert transport.capture_event(EVENT)
    assert results == [False, False]
    assert transport.health().discarded_by_category == {"reentrant": {"error": 2}}


class Async:
    async def __call__(self, envelope: Envelope) -> None: ...


async def coroutine_function(envelope: Envelope) -> None: ...


@pytest.mark.parametrize("target", [coroutine_function, Async(), functools.partial(coroutine_function)])
def test_a_coroutine_function_is_no_transport_function(target: Callable[..., Any]) -> None:
    """Called and never awaited, it would count deliveries that never happened."""
    with pytest.raises(OptionsError, match=r"target .*coroutine function"):
        FunctionTransport(target)


def test_no_dsn_is_off_and_healthy_and_a_bad_one_is_a_failure() -> None:
    """Both count captures, so that health shows what is missing."""
    off, broken = NullTransport(), NullTransport(problem="dsn:\n  bad")
    for transport, reason in ((off, "disabled"), (broken, "misconfigured")):
        assert transport.capture_event(EVENT) is False
        assert transport.health().discarded_by_category == {reason: {"error": 1}}
        assert transport.flush(0).ok
    assert off.health().status == "pass"
    assert broken.health().status == "fail"
    assert broken.health().reasons == ("dsn: bad",)


@pytest.mark.parametrize("make", [lambda: FunctionTransport(lambda envelope: None), NullTransport])
@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_closed_one_refuses_and_counts(make: Callable[[], Transport], end: str) -> None:
    """The same sentence as for a transport with a worker."""
    transport = make()
    before = transport.closed
    getattr(transport, end)()
    assert (before, transport.closed) == (False, True)
    assert transport.capture_event(EVENT) is False
    health = transport.health()
    assert (health.state, health.status) == ("closed", "fail")
    assert health.discarded_by_category == {"closed": {"error": 1}}
    assert transport.close().ok


@pytest.mark.parametrize("what", [Envelope(), None, {"message": "x"}, "text"])
def test_what_is_no_envelope_is_refused_and_costs_nothing(
    what: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing was lost, so nothing is counted."""
    transport = FunctionTransport(lambda envelope: None)
    assert transport.capture_envelope(what) is False
    assert len(caplog.records) == 1
    assert transport.health().captured == {}


@pytest.mark.parametrize("what", [None, 42, [EVENT]])
def test_what_is_no_event_is_refused_and_counted(what: Any, caplog: pytest.LogCaptureFixture) -> None:
    """`capture_event(None)` after a `before_send` that returned None is a common slip."""
    transport = FunctionTransport(lambda envelope: None)
    assert transport.capture_event(what) is False
    assert len(caplog.records) == 1
    assert transport.health().discarded_by_category == {"internal_sdk_error": {"error": 1}}


def test_a_capture_inside_a_critical_section_is_booked_when_it_ends() -> None:
    """A signal handler that captures may have interrupted the counting of another capture."""
    transport = FunctionTransport(lambda envelope: None)
    lock = transport._states.get().lock
    with lock.rlock:
        assert transport.capture_event(EVENT)
        assert transport.health().captured == {}
    assert transport.health().delivered == {"error": 1}


# -- losses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("because", "error"), "because"),
        (("before_send", "errors"), "'errors' is not a data category"),
        (("before_send", "error", None, 1.5), "whole number"),
    ],
)
def test_invented_losses_are_refused(arguments: tuple[Any, ...], said: str) -> None:
    """A server refuses a whole client report that contains one unknown reason or category."""
    transport = NullTransport()
    reason, category, item, quantity = (*arguments, None, 1)[:4]
    with pytest.raises(ValueError, match=said):
        transport.record_lost_event(reason, category, item, quantity=quantity)
    assert transport.health().captured == {}


def test_losses_before_the_transport_are_counted() -> None:
    """By category and quantity, or by the item that was lost."""
    transport = NullTransport()
    transport.record_lost_event("sample_rate", "transaction")
    transport.record_lost_event("buffer_overflow", "log_byte", quantity=512)
    transport.record_lost_event("before_send", item=Item({"spans": [1, 2]}, type="transaction"))
    transport.record_lost_event("before_send", quantity=5)  # says neither what
    transport.record_lost_event("before_send", "error", quantity=0)
    assert transport.health().discarded_by_category == {
        "sample_rate": {"transaction": 1},
        "buffer_overflow": {"log_byte": 512},
        "before_send": {"transaction": 1, "span": 3},
    }


def test_counting_a_loss_never_fails_over_its_payload() -> None:
    """A payload that can't be written as JSON is still counted."""
    unwritable = Item(type("Path", (os.PathLike,), {"__fspath__": lambda self: 1 / 0})(), type="log")
    items = [unwritable, Item(b"abc", type="attachment"), Item(b"", type="odd")]
    assert Envelope(items=items).quantities() == (("log_item", 1), ("attachment", 3))


# -- flush and close ---------------------------------------------------------------------------------------


class Recording(Transport):
    """A transport of a user's own that notes how long it may take."""

    def __init__(self, options: TransportOptions | None = None) -> None:
        super().__init__(options)
        self.seconds: list[float] = []
        self.error: BaseException | None = None

    def _flush(self, timeout: float, until: str) -> FlushReport:
        self.seconds.append(timeout)
        if self.error is not None:
            raise self.error
        return FlushReport(True, delivered=7)

    _close = lambda self, timeout: self._flush(timeout, "settled")  # noqa: E731


def test_a_flush_report_is_true_when_it_is_ok() -> None:
    """`if not transport.flush(): ...` is what everyone writes."""
    assert FlushReport(True, discarded=3)
    assert not FlushReport(False, delivered=3, pending=1)


@pytest.mark.parametrize(
    ("asked", "given"),
    [(None, 1.5), (0, 0.0), (-5, 0.0), (float("nan"), 0.0), (0.25, 0.25)],
)
def test_how_long_a_flush_may_take(asked: float | None, given: float) -> None:
    """None is the option; nonsense is no wait."""
    transport = Recording(TransportOptions(shutdown_timeout=1.5))
    assert transport.flush(asked).delivered == 7
    assert transport.close(asked).delivered == 7
    assert transport.seconds == [pytest.approx(given, abs=0.05)] * 2


def test_an_endless_timeout_is_one_that_a_lock_can_wait() -> None:
    """`flush(timeout=float("inf"))` must not be an OverflowError."""
    transport = Recording()
    transport.flush(float("inf"))
    condition = threading.Condition()
    with condition:
        threading.Timer(0.01, lambda: _notify(condition)).start()
        assert condition.wait(transport.seconds[0])


def _notify(condition: threading.Condition) -> None:
    with condition:
        condition.notify_all()


def test_buffers_are_emptied_first_and_take_of_the_time(caplog: pytest.LogCaptureFixture) -> None:
    """Buffered logs and sessions must be captured before the wait; that time is part of the timeout."""
    kept: list[Envelope] = []
    transport = FunctionTransport(kept.append)
    transport.before_flush(lambda: 1 / 0)
    transport.before_flush(lambda: transport.capture_event(EVENT))
    assert transport.flush(SOON).ok
    assert transport.close(SOON).ok
    assert len(kept) == 2
    assert [record.getMessage() for record in caplog.records] == ["a before_flush callback failed"] * 2
    slow = Recording()
    slow.before_flush(lambda: threading.Event().wait(0.1))
    slow.flush(SOON)
    assert SOON / 2 < slow.seconds[0] < SOON - 0.09


def test_a_flush_knows_two_ends() -> None:
    """A typo must not silently mean the default."""
    with pytest.raises(ValueError, match="'settled' or 'delivered'"):
        NullTransport().flush(until="deliverd")


# -- async -------------------------------------------------------------------------------------------------


def test_awaiting_a_flush_leaves_the_loop_free() -> None:
    """On a thread of its own: a full executor must not hold up a shutdown."""
    transport = Recording()
    gate = threading.Event()
    transport.before_flush(lambda: gate.wait(30))

    async def main() -> tuple[FlushReport, FlushReport, bool]:
        flush = asyncio.create_task(transport.aflush(1.0))
        await asyncio.sleep(0)
        free = not flush.done()
        gate.set()
        async with transport:
            pass
        return await flush, await transport.aclose(0), free

    flushed, closed, free = asyncio.run(main())
    assert free
    assert flushed.delivered == closed.delivered == 7
    assert len(transport.seconds) == 3


@pytest.mark.parametrize("error", [RuntimeError("boom"), SystemExit(3)])
def test_what_a_flush_raises_reaches_whoever_awaits_it(error: BaseException) -> None:
    """Otherwise they would wait for ever."""
    transport = Recording()
    transport.error = error

    async def main() -> BaseException | None:
        try:
            await transport.aflush(0)
        except BaseException as raised:
            return raised
        return None

    assert asyncio.run(main()) is error


def test_a_cancelled_await_leaves_nothing_broken() -> None:
    """A shutdown may have its own deadline; the flush continues without an awaiting task."""
    transport = Recording()
    gate, done = threading.Event(), threading.Event()
    transport.before_flush(lambda: gate.wait(SOON))

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(transport.aflush(0), 0.01)
        gate.set()
        transport.before_flush(done.set)
        await transport.aflush(0)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert until(lambda: len(transport.seconds) == 2)


def test_a_loop_that_is_gone_when_the_flush_ends_is_nobodys_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread must not print a traceback into the app's stderr."""
    transport = Recording()
    gate = threading.Event()
    ended = threading.Event()
    transport.before_flush(lambda: gate.wait(30))
    start = _thread.start_new_thread

    def observed(function: Callable[[], None], arguments: tuple[()]) -> int:
        def run() -> None:
            function()
            ended.set()

        return start(run, arguments)

    monkeypatch.setattr(_thread, "start_new_thread", observed)
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    monkeypatch.setattr("sys.unraisablehook", failures.append)

    async def main() -> None:
        task = asyncio.create_task(transport.aflush(0))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(main())
    gate.set()
    assert ended.wait(30)
    assert failures == []


def test_without_threads_and_without_asyncio_the_wait_happens_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the end of an interpreter no thread starts; trio has a loop of its own. Both waits are bounded."""
    transport = Recording()
    with pytest.raises(StopIteration) as stopped:
        transport.aflush(0).send(None)  # as a loop that isn't asyncio's drives it
    assert stopped.value.value.delivered == 7

    def refuse(*arguments: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    assert asyncio.run(transport.aclose(0)).delivered == 7


# -- fork, pickling, the interface -------------------------------------------------------------------------


@pytest.mark.parametrize("hooked", [True, False])
def test_a_child_has_books_of_its_own(hooked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child counts from zero, whether a hook or the process id shows the fork.

    It never waits for a lock that another thread of its parent held.
    """
    transport = FunctionTransport(lambda envelope: None)
    transport.capture_event(EVENT)
    held, release = threading.Event(), threading.Event()

    def hold(lock: Any) -> None:
        with lock:
            held.set()
            release.wait(SOON)

    holder = threading.Thread(target=hold, args=(transport._states.get().lock.rlock,))
    holder.start()
    assert held.wait(30)
    try:
        parent = os.getpid()
        monkeypatch.setattr(os, "getpid", lambda: parent + 1)
        if hooked:
            transport.renew_after_fork()
        began = time.monotonic()
        assert transport.health().captured == {}
        transport.record_lost_event("before_send", "error")
        assert transport.capture_event(EVENT)
        assert time.monotonic() - began < SOON / 2
        assert transport.health().delivered == {"error": 1}
    finally:
        release.set()
        holder.join()


def test_a_transport_is_not_pickled() -> None:
    """It belongs to its process; sent to another it would be a second one with the same counts."""
    for transport in (NullTransport(), FunctionTransport(print)):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(transport)
    assert repr(NullTransport()) == "<NullTransport>"
    closed = FunctionTransport(print)
    closed.close()
    assert repr(closed) == "<FunctionTransport, closed>"


def test_the_interface_says_what_a_subclass_must_fill_in() -> None:
    """A user's own transport gets defaults where there is a safe one, and an error where there is none."""
    bare = Transport()
    assert bare.options == TransportOptions()
    assert bare.dsn is None
    assert (bare.pending, bare.closed) == (0, False)
    bare.start()
    for call in (
        bare.kill,
        bare.health,
        bare.flush,
        bare.close,
        lambda: bare.capture_event(EVENT),
        lambda: bare.record_lost_event(LossReason.IGNORED, "error"),
    ):
        with pytest.raises(NotImplementedError):
            call()
    assert bare.end_of_process(0.0) == 0
    assert bare.can_wait()
    assert not bare.wants_sigterm()
    bare.renew_after_fork()
