"""Exceptions of signal handlers reach the app; exceptions of the library's own work do not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from tests.timing import SOON
from transport_kit import Envelope, make_transport
from transport_kit.runtime.interrupts import let_through
from transport_kit.testing import FaultServer


class TimeLimit(Exception):
    """An exception such as Celery's soft time limit."""


@contextmanager
def handler(handle: Callable[..., object]) -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def by_name(signum: int, frame: FrameType | None) -> None:
    raise TimeLimit


def by_position(*arguments: object) -> None:
    raise TimeLimit


def through_a_call(signum: int, frame: FrameType | None) -> None:
    by_position()


def while_it_handles(signum: int, frame: FrameType | None) -> None:
    try:
        raise KeyError
    except KeyError as error:
        raise TimeLimit from error


def interrupted() -> None:
    """Work of the library in an `except` clause, interrupted by a signal handler."""
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
    except Exception as error:
        let_through(error)


def wrapped() -> None:
    """The same, but a layer catches the exception and raises its own."""
    try:
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
        except Exception as error:
            raise ValueError("can't be sealed") from error
    except ValueError as error:
        let_through(error)


def failing(failure: Exception) -> bool:
    """Work of the library that fails by itself; return True if the exception is suppressed."""
    try:
        raise failure
    except Exception as error:
        let_through(error)
    return True


@pytest.mark.parametrize("handle", [by_name, by_position, through_a_call, while_it_handles])
@pytest.mark.parametrize("work", [interrupted, wrapped])
def test_what_a_signal_handler_raises_goes_on(
    handle: Callable[..., object], work: Callable[[], object]
) -> None:
    """A suppressed time limit would let a task run forever; a layer may have wrapped it."""
    with handler(handle), pytest.raises(TimeLimit):
        work()


def test_a_failure_of_our_own_work_is_ours() -> None:
    """A broken `__repr__` in the app costs a log line, not the request."""
    assert failing(ValueError())


def test_a_failure_while_the_app_handles_an_interrupt_is_ours() -> None:
    """The app reports something while it handles its time limit; a failure then is not the interrupt."""
    with handler(by_name):
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
        except TimeLimit:
            assert failing(ValueError())


class Hostile(Exception):
    """An exception whose attributes raise."""

    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise RuntimeError

    @property
    def __context__(self) -> Any:  # type: ignore[override]
        raise RuntimeError


def test_a_hostile_exception_raises_nothing() -> None:
    """The app may redefine attributes of exceptions."""
    assert failing(Hostile())


def test_exceptions_in_a_circle_come_to_an_end() -> None:
    """An app may assign contexts that form a circle, which must not be followed forever."""
    first, second = ValueError(), KeyError()

    def circle() -> bool:
        try:
            raise first
        except ValueError:
            second.__traceback__ = first.__traceback__
            first.__context__, second.__context__ = second, first
            let_through(first)
        return True

    assert circle()


class SlowPath:
    """An attachment's path whose conversion takes longer than the time limit."""

    def __fspath__(self) -> str:
        os.kill(os.getpid(), signal.SIGUSR1)
        return "/nowhere"


def test_a_time_limit_inside_a_capture_reaches_the_app() -> None:
    """The interrupted envelope is not accepted, the next one is delivered, and all counts are right."""
    with FaultServer() as server, make_transport(server.dsn) as transport, handler(by_name):
        struck = Envelope.event({"event_id": "0" * 32}).add_attachment(SlowPath(), filename="a")
        with pytest.raises(TimeLimit):
            transport.capture_envelope(struck)
        assert transport.capture_envelope(Envelope.event({"event_id": "1" * 32}))
        assert transport.flush(SOON)
        assert transport.health().delivered == {"error": 1}
        assert transport.pending == 0
        assert server.event_ids() == ["1" * 32]
