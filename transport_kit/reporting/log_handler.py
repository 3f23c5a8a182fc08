"""Logs: what the app logs, as log items, breadcrumbs and events.

Owns the `logging` handler and the form of a log item; `log_buffer.py` batches them. Records of this library's
own loggers and threads are skipped by all three ways.

Threads: any. Unlike other handlers it holds no lock while it emits: it calls hooks of the app.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, Final

from transport_kit.reporting.log_buffer import Log, is_own_logger
from transport_kit.reporting.reporter import Reporter
from transport_kit.reporting.scope import Scope
from transport_kit.reporting.tracing.propagation import trace_facts
from transport_kit.reporting.values.bounded import Limits, Room, bounded, tag_value, tidy
from transport_kit.reporting.values.scrub import FILTERED, is_private, is_sensitive, scrub_text
from transport_kit.runtime.interrupts import let_through

__all__ = ["TransportHandler"]

_THREAD_NAME: Final = "transport-kit"
_BODY_LENGTH: Final = 8192
_VALUE: Final = Limits(text=1024, breadth=20, depth=3, hides=is_sensitive)
_VALUE_BYTES: Final = 2048
_MAX_EXTRA: Final = 50
_NAME_LENGTH: Final = 64
#: What every record has; the rest was given as `extra`.
_USUAL: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
# Name and the lowest severity number of each level, highest first.
_LEVELS: Final = (
    (logging.CRITICAL, "fatal", 21),
    (logging.ERROR, "error", 17),
    (logging.WARNING, "warn", 13),
    (logging.INFO, "info", 9),
    (logging.DEBUG, "debug", 5),
)
_EVENT_LEVELS: Final = {"warn": "warning", "trace": "debug"}


class TransportHandler(logging.Handler):
    """Hands the records of `logging` to a reporter: `logging.getLogger().addHandler(TransportHandler(r))`.

    Args:
        reporter: A reporter; or a function that returns the current one, such as `lambda: kit.reporter`.
        level: Records below are not looked at.
        log_level: From here on records become log items; None turns that off.
        breadcrumb_level: From here on records become breadcrumbs of the running work; None turns that off.
        event_level: From here on records become events too, with the exception they carry, if it was not
            captured before; None, the default, turns that off.
    """

    def __init__(
        self,
        reporter: Reporter | Callable[[], Reporter],
        level: int | str = logging.NOTSET,
        *,
        log_level: int | None = logging.INFO,
        breadcrumb_level: int | None = logging.INFO,
        event_level: int | None = None,
    ) -> None:
        super().__init__(level)
        self._reporter: Any = reporter
        self._log_level = log_level
        self._breadcrumb_level = breadcrumb_level
        self._event_level = event_level

    def handle(self, record: logging.LogRecord) -> bool:
        """Emit the record unless a filter refuses it; without the handler's lock."""
        kept: Any = self.filter(record)
        if kept:
            # Python 3.12's filters may return another record.
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        """Make of a record what it is to be. Never raises."""
        reporter: Reporter | None = None
        try:
            if is_own_logger(record.name) or str(record.threadName).startswith(_THREAD_NAME):
                return
            reporter = self._reporter() if callable(self._reporter) else self._reporter
            wanted = [
                limit is not None and record.levelno >= limit
                for limit in (self._log_level, self._event_level, self._breadcrumb_level)
            ]
            if not any(wanted):
                return
            text = tidy(_message(record), _BODY_LENGTH)
            shown = scrub_text(text)
            if wanted[0]:
                reporter.logs.add(_log(record, text, shown, reporter))
            if wanted[1]:
                _capture(record, text, shown, reporter)
            if wanted[2]:
                # After the event, which is not to find itself among its breadcrumbs.
                level = _EVENT_LEVELS.get(_level(record.levelno)[0], _level(record.levelno)[0])
                Scope.current().add_breadcrumb(text, category=record.name, level=level, type="log")
        except Exception as problem:
            let_through(problem)
            # `handleError` would print to stderr, and the record was the app's, not ours.
            if reporter is not None:
                reporter.pipeline.failed(problem, "log_item")


def _message(record: logging.LogRecord) -> str:
    """The record's text; a parameter that is named like a secret is filtered before it is part of it."""
    try:
        named = record.args
        if isinstance(named, dict) and any(is_sensitive(str(name)) for name in named):
            shown = {key: FILTERED if is_sensitive(str(key)) else value for key, value in named.items()}
            return str(record.msg) % shown
        return str(record.getMessage())
    except Exception as error:
        let_through(error)
        return record.msg if type(record.msg) is str else "<unprintable message>"


def _level(number: int) -> tuple[str, int]:
    for limit, name, severity in _LEVELS:
        if number >= limit:
            return name, severity
    return "trace", 1


def _log(record: logging.LogRecord, text: str, shown: str, reporter: Reporter) -> Log:
    level, severity = _level(record.levelno)
    created = record.created
    trace = trace_facts(Scope.current().unit, reporter.tracing)
    attributes = reporter.log_attributes.copy()
    attributes["logger.name"] = _attribute(tidy(record.name, _VALUE.text))
    attributes["code.file.path"] = _attribute(tidy(record.pathname, _VALUE.text))
    attributes["code.function.name"] = _attribute(tidy(record.funcName, _VALUE.text))
    attributes["code.line.number"] = _attribute(_value(record.lineno))
    parameters = record.args
    if parameters:
        attributes["message.template"] = _attribute(_value(record.msg))
        pairs = parameters.items() if isinstance(parameters, dict) else enumerate(parameters)
        for name, value in list(pairs)[:_MAX_EXTRA]:
            told = FILTERED if is_private(str(name)) else _parameter(value, text, shown)
            attributes[f"message.parameter.{tidy(name, _NAME_LENGTH)}"] = _attribute(told)
    for name, value in list(vars(record).items()):
        if name not in _USUAL and len(attributes) < 2 * _MAX_EXTRA:
            attributes[tidy(name, _NAME_LENGTH)] = _attribute(FILTERED if is_private(name) else _value(value))
    return {
        "timestamp": created if type(created) is float and math.isfinite(created) else time.time(),
        "trace_id": trace["trace_id"],
        "span_id": trace["span_id"],
        "level": level,
        "severity_number": severity,
        "body": shown,
        "attributes": attributes,
    }


def _value(value: object) -> object:
    return bounded(value, Room(_VALUE_BYTES), _VALUE)


def _parameter(value: object, text: str, shown: str) -> object:
    """A parameter of a message; one that scrubbing the text took out was a secret by its place in it, as in
    `"password=%s"`."""
    told = _value(value)
    if shown != text:
        said = str(told)
        if shown.count(said) < max(1, text.count(said)):
            return FILTERED
    return told


def _attribute(value: object) -> Log:
    """A value with its type; what has none of the four types is written as text."""
    cls = type(value)
    if cls is bool:
        return {"value": value, "type": "boolean"}
    if cls is int:
        return {"value": value, "type": "integer"}
    if cls is float:
        return {"value": value, "type": "double"}
    return {"value": value if cls is str else str(value), "type": "string"}


def _capture(record: logging.LogRecord, text: str, shown: str, reporter: Reporter) -> None:
    level = _level(record.levelno)[0]
    said: Log = {"formatted": shown}
    if record.args and isinstance(record.msg, str):
        said["message"] = scrub_text(tidy(record.msg, _BODY_LENGTH))
        if isinstance(record.args, tuple):
            said["params"] = [_parameter(value, text, shown) for value in record.args[:_MAX_EXTRA]]
    facts: Log = {"logger": tidy(tag_value(record.name), _NAME_LENGTH), "logentry": said}
    given = {name: value for name, value in vars(record).items() if name not in _USUAL}
    if given:
        facts["extra"] = bounded(given, Room(8 * _VALUE_BYTES), _VALUE)
    level = _EVENT_LEVELS.get(level, level)
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if error is not None:
        reporter.capture_exception(error, mechanism="logging", level=level, facts=facts)
    else:
        reporter.capture_event({"level": level, **facts})
