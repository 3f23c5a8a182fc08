"""Check-ins: that a scheduled job began, and how it ended.

Owns the monitor, as a context manager and as a decorator, and the form of a check-in.

Source: the protocol's check-ins: `in_progress` at the beginning, `ok` or `error` with the duration at the
end, under one id; the schedule travels along, so that the server knows the monitor without a click.

Threads: one monitor may be used by several threads and tasks at once: a run that was begun in a context is
ended in it, whatever others have begun meanwhile.
"""

from __future__ import annotations

import functools
import inspect
import re
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar, cast

from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.ids import new_uuid
from transport_kit.reporting import runtime_facts
from transport_kit.reporting.pipeline import Pipeline
from transport_kit.reporting.scope import Scope
from transport_kit.reporting.tracing.propagation import trace_facts
from transport_kit.reporting.values.bounded import tidy
from transport_kit.runtime.interrupts import let_through
from transport_kit.runtime.log import log

__all__ = ["Monitor", "monitor_config"]

_SLUG_LENGTH: Final = 50
_TIMEZONE = re.compile(r"[A-Za-z0-9_+\-/]{1,64}")
_ALIASES: Final = frozenset({"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@hourly"})
_UNITS: Final = frozenset({"year", "month", "week", "day", "hour", "minute"})

#: Id and beginning of a run.
_Run = tuple[str, float]
# The runs of all monitors that were begun in this context and the ones around it, innermost last.
_begun: ContextVar[tuple[_Run, ...]] = ContextVar("transport_kit_runs", default=())

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Reporter(Protocol):
    def __call__(self, error: BaseException, *, mechanism: str, handled: bool) -> str | None: ...


class Monitor:
    """Reports each run of a job; made by `Reporter.monitor`.

    `with monitor:` or `async with monitor:` around a run, or `@monitor` above a function, plain or async.
    An exception that escapes is reported, and raised on; the run has failed. Nothing of it raises.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        capture: _Reporter,
        slug: str,
        config: Mapping[str, Any],
    ) -> None:
        self._pipeline = pipeline
        self._capture = capture
        self._slug = tidy(slug, _SLUG_LENGTH)
        if not self._slug:
            log.error("a monitor needs a slug; without one its check-ins are refused")
        self._config = dict(config)
        # All that have not ended. Changed in single steps.
        self._runs: list[_Run] = []

    def __call__(self, function: _Function) -> _Function:
        """The function, each call of it reported as a run.

        A generator function is left as it is, and the log says so: its call does nothing yet, and would be
        told as a run that went well. Use `with` inside of it.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            log.error("a monitor can't decorate a generator function; its runs are not reported")
            return function
        # An object with an async `__call__` is as good as an async function.
        call = getattr(function, "__call__", None)  # noqa: B004 - looked at, not for whether it is there
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):

            @functools.wraps(function)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                with self._again():
                    return await function(*args, **kwargs)

            return cast(_Function, awaited)

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return function(*args, **kwargs)

        return cast(_Function, called)

    def _again(self) -> Monitor:
        return Monitor(self._pipeline, self._capture, self._slug, self._config)

    def __enter__(self) -> Self:
        run = (new_uuid(), time.monotonic())
        self._runs.append(run)
        _begun.set((*_begun.get(), run))
        self._send(run[0], "in_progress", None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        here = _begun.get()
        # Left in another context than it was entered in (by a callback): the newest is the likeliest.
        found = [run for run in here if run in self._runs] or self._runs.copy()
        try:
            run = found[-1]
            self._runs.remove(run)
        except (IndexError, ValueError):
            return  # none was begun, or another thread has ended it
        _begun.set(tuple(other for other in here if other is not run))
        duration = time.monotonic() - run[1]
        if isinstance(error, Exception):
            self._capture(error, mechanism="auto.monitor", handled=False)
        done = error is None or (isinstance(error, SystemExit) and error.code in (None, 0))
        self._send(run[0], "ok" if done else "error", duration)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _send(self, run: str, status: str, duration: float | None) -> None:
        try:
            check_in: dict[str, Any] = {"check_in_id": run, "monitor_slug": self._slug, "status": status}
            if duration is not None:
                check_in["duration"] = round(duration, 3)
            elif self._config:
                check_in["monitor_config"] = self._config
            for name in ("release", "environment"):
                if name in self._pipeline.fixed:
                    check_in[name] = self._pipeline.fixed[name]
            trace = trace_facts(Scope.current().unit, self._pipeline.tracing)
            check_in["contexts"] = {"trace": {"trace_id": trace["trace_id"]}}
            self._pipeline.transport.capture_envelope(
                Envelope({"sdk": runtime_facts.sdk()}).add_check_in(check_in)
            )
        except Exception as problem:
            let_through(problem)
            self._pipeline.failed(problem, "monitor")


def monitor_config(schedule: object, *, timezone: object, **numbers: object) -> dict[str, Any]:
    """A monitor's settings as servers take them; empty without a schedule.

    What they would not take is left out, and said in the log: a wrong setting must not stop the job.
    """
    known = None if schedule is None else _schedule(schedule)
    if known is None:
        return {}
    config: dict[str, Any] = {"schedule": known}
    if type(timezone) is str and _TIMEZONE.fullmatch(timezone):
        config["timezone"] = timezone
    elif timezone is not None:
        log.error("a monitor's timezone is a name such as Europe/Vienna")
    for name, number in numbers.items():
        if type(number) is int and number > 0:
            config[name] = number
        elif number is not None:
            log.error("a monitor's %s is a number of 1 or more", name)
    return config


def _schedule(schedule: object) -> dict[str, Any] | None:
    """`"0 3 * * *"`, `"@daily"`, or a number and a unit such as `(10, "minute")`."""
    if type(schedule) is str and (schedule.strip() in _ALIASES or len(schedule.split()) == 5):
        return {"type": "crontab", "value": schedule.strip()}
    if isinstance(schedule, tuple) and len(schedule) == 2:
        value, unit = schedule
        known = unit.removesuffix("s") if type(unit) is str else None
        if type(value) is int and value > 0 and known in _UNITS:
            return {"type": "interval", "value": value, "unit": known}
    log.error("a schedule is five crontab fields, or a number and a unit such as (10, 'minute')")
    return None
