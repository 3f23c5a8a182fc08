"""Reporter: builds events and hands them to a transport.

Owns what every event says, `before_send`, and the promise that reporting never breaks the app: no method
raises, none waits for a lock, none does I/O but read source lines. The parts are `exceptions.py`,
`frames.py`, `request.py`, `scope.py` and `machine.py`; what becomes of an event is the transport's.

Threads: every method may be called from any thread, and from inside itself once (a signal handler, a
`__del__`, a hook that reports); deeper calls are refused and counted.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from transport_kit.options import ReporterOptions
from transport_kit.reporting import machine
from transport_kit.reporting.exceptions import exception_values, traceback_of
from transport_kit.reporting.frames import FrameReader
from transport_kit.reporting.request import RequestInfo, request_interface
from transport_kit.reporting.scope import Scope, known_level, mark_captured, take_mark_back, usable_ip
from transport_kit.reporting.serving import ServedRequest
from transport_kit.reporting.values import clean, cut

__all__ = ["EventSink", "is_own_logger", "Reporter"]

_LOGGER_NAME: Final = "transport_kit"
logger = logging.getLogger("transport_kit.reporting")

_SOURCES: Final = frozenset({"custom", "url", "route", "view", "component", "task"})
_MAX_NESTING: Final = 2
_MESSAGE_LENGTH: Final = 8192
_NAME_LENGTH: Final = 200
_MECHANISM_LENGTH: Final = 128
_EVENT_ID = re.compile(r"[0-9a-f]{32}")
_NOT_IN_A_RELEASE = re.compile(r"[\n\r\t\f\v/\\]")
#: Containers within each other that a copy for `before_send` follows.
_COPY_DEPTH: Final = 64

Event = dict[str, Any]


class EventSink(Protocol):
    """What a reporter needs of a transport."""

    def capture_event(self, event: dict[str, Any]) -> bool:
        """Take an event; True when accepted."""
        ...

    def record_lost_event(self, reason: str, data_category: str | None = None) -> None:
        """Count an event that was lost before it got here."""
        ...


def is_own_logger(name: object) -> bool:
    """Whether a logger is this library's: its records are never reported, or a failure would feed itself."""
    return isinstance(name, str) and (
        name == _LOGGER_NAME or name.startswith((_LOGGER_NAME + ".", _LOGGER_NAME + "_"))
    )


class Reporter:
    """Reports exceptions, messages and events of the app.

    Holds no lock and starts no thread; one may be shared by all threads.

    Args:
        transport: Takes the events. Not owned: closing it is the caller's.
        options: None takes the defaults.
    """

    def __init__(self, transport: EventSink, options: ReporterOptions | None = None) -> None:
        self.transport = transport
        self.options = options or ReporterOptions()
        self._frames = FrameReader(
            self.options.in_app_include, self.options.in_app_exclude, send_pii=self.options.send_default_pii
        )
        # How deep this thread (or greenlet, when patched before) is in captures of this reporter.
        self._nesting = threading.local()
        self._fixed = self._fixed_facts()

    def _fixed_facts(self) -> Event:
        """What is the same in all events, without what a server would null."""
        options = self.options
        facts: Event = {"platform": "python"}
        for name, value, limit in (
            ("release", options.release, 200),
            ("environment", options.environment, 64),
            ("dist", options.dist, 64),
        ):
            if value is None:
                continue
            problem = _unusable(name, value, limit)
            if problem is None:
                facts[name] = clean(value)
            else:
                logger.warning("option %s %s; events go without it", name, problem)
        host = options.server_name or machine.host_name()
        if host:
            facts["server_name"] = cut(clean(host), _NAME_LENGTH)
        return facts

    # -- around the app's work ------------------------------------------------------------------------

    def request(
        self,
        describe: Callable[[], RequestInfo | None] | None = None,
        *,
        named: Callable[[], tuple[str, str]],
        header: Callable[[str], str | None] | None = None,
        user: Callable[[], Mapping[str, object] | None] | None = None,
        expected: Callable[[BaseException], bool] | None = None,
        op: str = "http.server",
        mechanism: str = "generic",
    ) -> ServedRequest:
        """What an integration puts around each request: `with reporter.request(…) as served:`.

        Gives the request a fresh scope, continues the caller's trace, runs a transaction when the request
        is sampled, records the session's outcome, and reports the exception that escapes. Costs a few
        microseconds when nothing happens: the callbacks are called only when an event or a transaction is
        made, possibly several times, on the thread that makes it. They must not do I/O; what they raise is
        logged, and the event goes without.

        Args:
            describe: The request as plain values.
            named: `(name, source)` of what runs: the path and `url` before routing, the route and `route`
                (or the view and `view`) once it is known. Asked anew each time.
            header: The value of a request header by its lower-case name; None when it isn't there.
            user: Who the user is, only if already loaded. Sent with `send_default_pii` only.
            expected: Says of an escaped exception whether it is none to report (a client that went away, a
                404). None reports every `Exception`; other `BaseException`s never are.
            op: `http.server`, `websocket.server`, `queue.task`, ….
            mechanism: How exceptions are caught, such as `auto.http.flask`.
        """
        return ServedRequest(self, describe, named, header, user, expected, op, mechanism)

    # -- capturing -------------------------------------------------------------------------------------

    def capture_exception(
        self,
        error: BaseException | None = None,
        *,
        mechanism: str = "generic",
        handled: bool = True,
        request: RequestInfo | None = None,
        transaction: str | None = None,
        transaction_source: str = "url",
        level: str = "error",
    ) -> str | None:
        """Report an exception, its causes and its group's members; never raises.

        Args:
            error: None takes the one being handled.
            mechanism: `generic` for calls by hand; integrations name themselves.
            handled: Whether the app goes on.
            request: The request it happened in.
            transaction: What ran, such as a route; at most 200 characters.
            transaction_source: `custom`, `url`, `route`, `view`, `component` or `task`.
            level: `fatal`, `error`, `warning`, `info` or `debug`.

        Returns:
            The event's id when the transport accepted it. None when it did not, when there is no
            exception, and when this exception was captured before in the current scope.
        """

        def build() -> Event | None:
            found = sys.exc_info()[1] if error is None else error
            if found is None or not issubclass(type(found), BaseException) or not mark_captured(found):
                return None
            try:
                event = self._event(level)
                unit = Scope.current().unit
                if transaction:
                    _add_name(event, str(transaction), transaction_source)
                elif (name := unit.name()) is not None:
                    _add_name(event, *name)
                info = unit.request() if request is None else request
                if info is not None:
                    self._add_request(event, info)
                event["exception"] = {
                    "values": exception_values(
                        found,
                        self._frames,
                        mechanism=cut(clean(str(mechanism)), _MECHANISM_LENGTH),
                        handled=bool(handled),
                    )
                }
            except Exception:
                take_mark_back(found)
                raise
            hint["exc_info"] = (type(found), found, traceback_of(found))
            return event

        hint: dict[str, Any] = {}
        return self._capture(build, hint)

    def capture_message(self, text: str, level: str = "info") -> str | None:
        """Report a text of at most 8192 characters; returns the event's id when accepted. Never raises."""

        def build() -> Event:
            event = self._event(level)
            event["message"] = cut(clean(str(text)), _MESSAGE_LENGTH)
            return event

        return self._capture(build, {})

    def capture_event(self, event: Mapping[str, Any], hint: Mapping[str, Any] | None = None) -> str | None:
        """Report an event of your own making; what it doesn't say is filled in. Never raises.

        Args:
            event: Not changed. An `event_id` that is not a UUID is replaced. A `transaction` event passes
                without `before_send`.
            hint: For `before_send`.

        Returns:
            The id sent, when the transport accepted it. None otherwise, and for a record of this library's
            own logger.
        """

        def build() -> Event | None:
            own = dict(event)
            if is_own_logger(own.get("logger")):
                return None
            level = own.get("level", "error")
            contexts = own.get("contexts")
            built = self._event(level) | own
            built["event_id"] = _event_id(own.get("event_id"))
            built["level"] = known_level(level)
            if isinstance(contexts, Mapping):
                built["contexts"] = {**machine.contexts(), **contexts}
            return built

        return self._capture(build, {} if hint is None else hint)

    # -- building --------------------------------------------------------------------------------------

    def _event(self, level: object) -> Event:
        return {
            "event_id": uuid.uuid4().hex,
            "timestamp": time.time(),
            "level": known_level(level),
            **self._fixed,
            "contexts": machine.contexts(),
            "sdk": machine.sdk(),
        }

    def _add_request(self, event: Event, request: RequestInfo) -> None:
        pii = self.options.send_default_pii
        try:
            found = request_interface(request, send_pii=pii)
        except Exception as problem:
            # Fields of other types than they should have: the exception is worth more than its request.
            logger.warning("a request could not be described: %s", type(problem).__name__)
            return
        if found:
            event["request"] = found
        if pii and request.remote_addr and usable_ip(request.remote_addr):
            user = Scope.current().user() or {}
            event["user"] = {"ip_address": request.remote_addr, **user}

    # -- sending ---------------------------------------------------------------------------------------

    def _capture(self, build: Callable[[], Event | None], hint: Mapping[str, Any]) -> str | None:
        """Build, complete and send, whatever goes wrong."""
        try:
            depth: int = getattr(self._nesting, "depth", 0)
            if depth >= _MAX_NESTING:
                self.transport.record_lost_event("reentrant", "error")
                return None
            self._nesting.depth = depth + 1
            try:
                event = build()
                return None if event is None else self._send(event, hint)
            finally:
                self._nesting.depth = depth
        except Exception as problem:
            self._failed(problem)
            return None

    def _send(self, event: Event, hint: Mapping[str, Any]) -> str | None:
        Scope.current().apply(event)
        hook = self.options.before_send
        if hook is not None and event.get("type") != "transaction":
            kept = self._ask(hook, event, hint)
            if kept is None:
                self.transport.record_lost_event("before_send", "error")
                return None
            event = kept
            event["event_id"] = _event_id(event.get("event_id"))
        return event["event_id"] if self.transport.capture_event(event) else None

    def _ask(
        self,
        hook: Callable[[Event, dict[str, Any]], Event | None],
        event: Event,
        hint: Mapping[str, Any],
    ) -> Event | None:
        # The hook gets a copy: if it fails half-way, the event goes out as it was, not half-changed.
        try:
            kept: Any = hook(_copy(event, _COPY_DEPTH), dict(hint))
        except Exception as problem:
            logger.error("before_send failed, the event is sent unchanged: %s", type(problem).__name__)
            return event
        if kept is None:
            return None
        if isinstance(kept, dict):
            return kept
        logger.error(
            "before_send must return an event or None, not %s; the event is sent unchanged",
            type(kept).__name__,
        )
        return event

    def _failed(self, problem: Exception) -> None:
        """Count an event that could not be made, and say so in one line; the text may hold secrets."""
        try:
            self.transport.record_lost_event("internal_sdk_error", "error")
            logger.error("an event could not be made: %s", type(problem).__name__)
        except Exception:
            pass  # at the end of the stack or of the memory there is nothing left to do it with


def _add_name(event: Event, name: str, source: str) -> None:
    event["transaction"] = cut(clean(name), _NAME_LENGTH)
    event["transaction_info"] = {"source": source if source in _SOURCES else "custom"}


def _unusable(name: str, value: str, limit: int) -> str | None:
    """Why a server would null this value; None when it takes it."""
    if len(value) > limit:
        return f"has more than {limit} characters"
    if name == "dist":
        return None
    if not value.strip():
        return "is blank"
    if _NOT_IN_A_RELEASE.search(value):
        return "holds a slash, a backslash or a line break"
    reserved = ("None",) if name == "environment" else (".", "..", "latest")
    return (
        f"is {value}, which is reserved"
        if value.strip().lower() in {word.lower() for word in reserved}
        else None
    )


def _event_id(value: object) -> str:
    """The id as 32 lower-case hex digits; a new one when it isn't a UUID, as a server would do unasked."""
    text = value.replace("-", "").lower() if isinstance(value, str) else ""
    return text if _EVENT_ID.fullmatch(text) else uuid.uuid4().hex


def _copy(value: Any, depth: int) -> Any:
    """Plain dicts and lists copied, everything else shared; past `depth` shared too."""
    if depth and type(value) is dict:
        return {name: _copy(element, depth - 1) for name, element in value.items()}
    if depth and type(value) is list:
        return [_copy(element, depth - 1) for element in value]
    return value
