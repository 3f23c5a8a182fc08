"""Log handler: turns records of `logging` into log items, breadcrumbs and events.

This module owns the handler and the form of a log item; `log_buffer.py` batches them. Records of this
library's own loggers and threads are skipped.

Threads: any. Unlike other handlers it holds no lock while it emits, because it calls the app's hooks.
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
from transport_kit.reporting.values.scrub import scrub_text
from transport_kit.reporting.values.secret_names import FILTERED, hidden, is_private, is_sensitive
from transport_kit.runtime.interrupts import let_through

__all__ = ["TransportHandler"]

_THREAD_NAME: Final = "transport-kit"
_BODY_LENGTH: Final = 8192
_VALUE: Final = Limits(text=1024, breadth=20, depth=3, hides=is_sensitive)
_VALUE_BYTES: Final = 2048
_MAX_EXTRA: Final = 50
_NAME_LENGTH: Final = 64
#: Attributes of every record; all others come from `extra`.
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
    """Passes the records of `logging` to a reporter: `logging.getLogger().addHandler(TransportHandler(r))`.

    Args:
        reporter: A reporter; or a function that returns the current one, such as `lambda: kit.reporter`.
        level: Records below it are ignored.
        log_level: Records of this level or above become log items; None turns that off.
        breadcrumb_level: Records of this level or above become breadcrumbs of the running unit of work; None
            turns that off.
        event_level: Records of this level or above become events, with their exception if it was not captured
            before; None, the default, turns that off.
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
        result: Any = self.filter(record)
        if result:
            # Python 3.12's filters may return another record.
            self.emit(result if isinstance(result, logging.LogRecord) else record)
        return bool(result)

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record as log item, event and breadcrumb, as its level demands. Never raises."""
        reporter: Reporter | None = None
        try:
            if is_own_logger(record.name) or str(record.threadName).startswith(_THREAD_NAME):
                return
            reporter = self._reporter() if callable(self._reporter) else self._reporter
            as_log, as_event, as_breadcrumb = [
                limit is not None and record.levelno >= limit
                for limit in (self._log_level, self._event_level, self._breadcrumb_level)
            ]
            if not (as_log or as_event or as_breadcrumb):
                return
            text = tidy(_message(record), _BODY_LENGTH)
            clean_text = scrub_text(text)
            if as_log:
                reporter.logs.add(_log(record, text, clean_text, reporter))
            if as_event:
                _capture(record, text, clean_text, reporter)
            if as_breadcrumb:
                # After the event, so that the event's breadcrumbs don't contain the event itself.
                level = _EVENT_LEVELS.get(_level(record.levelno)[0], _level(record.levelno)[0])
                Scope.current().add_breadcrumb(text, category=record.name, level=level, type="log")
        except Exception as problem:
            let_through(problem)
            # Not by `handleError`, which prints to stderr: the failure is ours, not the app's.
            if reporter is not None:
                reporter.pipeline.failed(problem, "log_item")


def _message(record: logging.LogRecord) -> str:
    """Return the record's text; parameters that are named like a secret are filtered before formatting."""
    try:
        args = record.args
        if isinstance(args, dict) and any(is_sensitive(str(name)) for name in args):
            safe_args = {
                key: hidden(str(key), value) if is_sensitive(str(key)) else value
                for key, value in args.items()
            }
            return str(record.msg) % safe_args
        return str(record.getMessage())
    except Exception as error:
        let_through(error)
        return record.msg if type(record.msg) is str else "<unprintable message>"


def _level(number: int) -> tuple[str, int]:
    for limit, name, severity in _LEVELS:
        if number >= limit:
            return name, severity
    return "trace", 1


def _log(record: logging.LogRecord, text: str, clean_text: str, reporter: Reporter) -> Log:
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
            parameter = (
                hidden(str(name), value) if is_private(str(name)) else _parameter(value, text, clean_text)
            )
            attributes[f"message.parameter.{tidy(name, _NAME_LENGTH)}"] = _attribute(parameter)
    for name, value in list(vars(record).items()):
        if name not in _USUAL and len(attributes) < 2 * _MAX_EXTRA:
            attributes[tidy(name, _NAME_LENGTH)] = _attribute(
                hidden(name, value) if is_private(name) else _value(value)
            )
    return {
        "timestamp": created if type(created) is float and math.isfinite(created) else time.time(),
        "trace_id": trace["trace_id"],
        "span_id": trace["span_id"],
        "level": level,
        "severity_number": severity,
        "body": clean_text,
        "attributes": attributes,
    }


def _value(value: object) -> object:
    return bounded(value, Room(_VALUE_BYTES), _VALUE)


def _parameter(value: object, text: str, clean_text: str) -> object:
    """Return a parameter of a message, or the marker if scrubbing removed it from the text.

    Such a parameter is a secret by its place in the text, as in `"password=%s"`.
    """
    result = _value(value)
    if clean_text != text:
        rendered = str(result)
        if clean_text.count(rendered) < max(1, text.count(rendered)):
            return FILTERED
    return result


def _attribute(value: object) -> Log:
    """Return a value with its type; a value of none of the four types becomes text."""
    cls = type(value)
    if cls is bool:
        return {"value": value, "type": "boolean"}
    if cls is int:
        return {"value": value, "type": "integer"}
    if cls is float:
        return {"value": value, "type": "double"}
    return {"value": value if cls is str else str(value), "type": "string"}


def _capture(record: logging.LogRecord, text: str, clean_text: str, reporter: Reporter) -> None:
    level = _level(record.levelno)[0]
    logentry: Log = {"formatted": clean_text}
    if record.args and isinstance(record.msg, str):
        logentry["message"] = scrub_text(tidy(record.msg, _BODY_LENGTH))
        if isinstance(record.args, tuple):
            logentry["params"] = [_parameter(value, text, clean_text) for value in record.args[:_MAX_EXTRA]]
    facts: Log = {"logger": tidy(tag_value(record.name), _NAME_LENGTH), "logentry": logentry}
    extra = {name: value for name, value in vars(record).items() if name not in _USUAL}
    if extra:
        facts["extra"] = bounded(extra, Room(8 * _VALUE_BYTES), _VALUE)
    level = _EVENT_LEVELS.get(level, level)
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if error is not None:
        reporter.capture_exception(error, mechanism="logging", level=level, facts=facts)
    else:
        reporter.capture_event({"level": level, **facts})
