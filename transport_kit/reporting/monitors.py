"""Monitors: check-ins that report start and outcome of scheduled jobs.

This module owns the monitor, a context manager and decorator, and the form of a check-in.

Source: the protocol's check-ins: `in_progress` at the start, `ok` or `error` with the duration at the end,
under one id. The schedule is sent along, so that the server can create the monitor by itself.

Threads: one monitor may be used by several threads and tasks at once; leaving it ends the run that was begun
in the same context.
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

#: Id of a run, and its start in monotonic seconds.
_Run = tuple[str, float]
# The running runs of all monitors begun in this context or a surrounding one, innermost last.
_context_runs: ContextVar[tuple[_Run, ...]] = ContextVar("transport_kit_runs", default=())

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Reporter(Protocol):
    def __call__(self, error: BaseException, *, mechanism: str, handled: bool) -> str | None: ...


class Monitor:
    """Reports each run of a job; made by `Reporter.monitor`.

    Use `with monitor:` or `async with monitor:` around a run, or `@monitor` above a function, plain or async.
    An exception that escapes is captured and propagates; the run counts as failed. The monitor itself never
    raises.
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
        # Runs that have not ended, in all contexts. Changed in atomic steps.
        self._runs: list[_Run] = []

    def __call__(self, function: _Function) -> _Function:
        """Return the function wrapped so that each call is reported as a run.

        A generator function is returned unchanged, with an error in the log: calling it runs nothing yet and
        would be reported as a success. Use `with` inside of it.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            log.error("a monitor can't decorate a generator function; its runs are not reported")
            return function
        # An object with an async `__call__` counts as an async function.
        call = getattr(function, "__call__", None)  # noqa: B004 - the method itself is inspected
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):

            @functools.wraps(function)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                with self._copy():
                    return await function(*args, **kwargs)

            return cast(_Function, awaited)

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with self._copy():
                return function(*args, **kwargs)

        return cast(_Function, called)

    def _copy(self) -> Monitor:
        return Monitor(self._pipeline, self._capture, self._slug, self._config)

    def __enter__(self) -> Self:
        run = (new_uuid(), time.monotonic())
        self._runs.append(run)
        _context_runs.set((*_context_runs.get(), run))
        self._send(run[0], "in_progress", None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        context_runs = _context_runs.get()
        # Left in another context than it was entered in (by a callback): take the newest run.
        candidates = [run for run in context_runs if run in self._runs] or self._runs.copy()
        try:
            run = candidates[-1]
            self._runs.remove(run)
        except (IndexError, ValueError):
            return  # no run was begun, or another thread ended it
        _context_runs.set(tuple(other for other in context_runs if other is not run))
        duration = time.monotonic() - run[1]
        if isinstance(error, Exception):
            self._capture(error, mechanism="auto.monitor", handled=False)
        succeeded = error is None or (isinstance(error, SystemExit) and error.code in (None, 0))
        self._send(run[0], "ok" if succeeded else "error", duration)

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
    """Return a monitor's settings in the form that servers accept; empty without a schedule.

    Invalid settings are left out and logged: they must not stop the job.
    """
    known_schedule = None if schedule is None else _schedule(schedule)
    if known_schedule is None:
        return {}
    config: dict[str, Any] = {"schedule": known_schedule}
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
    """Return the protocol's form of `"0 3 * * *"`, `"@daily"` or `(10, "minute")`; None if it is invalid."""
    if type(schedule) is str and (schedule.strip() in _ALIASES or len(schedule.split()) == 5):
        return {"type": "crontab", "value": schedule.strip()}
    if isinstance(schedule, tuple) and len(schedule) == 2:
        value, unit = schedule
        known_unit = unit.removesuffix("s") if type(unit) is str else None
        if type(value) is int and value > 0 and known_unit in _UNITS:
            return {"type": "interval", "value": value, "unit": known_unit}
    log.error("a schedule is five crontab fields, or a number and a unit such as (10, 'minute')")
    return None
