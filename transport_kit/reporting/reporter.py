"""Reporter: what the app and the integrations call.

Owns the public methods and how each kind of event is begun. What all events go through is `pipeline.py`;
the parts are `exceptions.py`, `frames.py`, `request_info.py`, `scope.py`, `spans.py` and `runtime_facts.py`.

Threads: every method may be called from any thread. No method raises, none waits for a lock, none does
I/O but read source lines.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from transport_kit.config.options import ReporterOptions
from transport_kit.envelope.item import Item
from transport_kit.reporting import runtime_facts
from transport_kit.reporting.exceptions import exception_values, traceback_of
from transport_kit.reporting.frames import FrameReader
from transport_kit.reporting.log_buffer import LogBuffer, is_own_logger
from transport_kit.reporting.monitors import Monitor, monitor_config
from transport_kit.reporting.pipeline import Event, Pipeline, event_id_of, set_name, usable_release
from transport_kit.reporting.release import detected_release
from transport_kit.reporting.request_info import RequestInfo
from transport_kit.reporting.scope import Scope, known_level, mark_captured, new_scope, take_mark_back
from transport_kit.reporting.served_request import Callbacks, ServedRequest
from transport_kit.reporting.sessions import Sessions
from transport_kit.reporting.tracing.propagation import Tracing
from transport_kit.reporting.tracing.sampling import Sampler
from transport_kit.reporting.tracing.spans import NO_SPAN, Span, running_span
from transport_kit.reporting.values.bounded import cut, tidy
from transport_kit.reporting.values.scrub import scrub_text
from transport_kit.runtime.interrupts import let_through
from transport_kit.transport.base import Transport

__all__ = ["Reporter"]

_MESSAGE_LENGTH: Final = 8192
_FEEDBACK_LENGTH: Final = 4096
_NAME_LENGTH: Final = 200
_MECHANISM_LENGTH: Final = 128
#: Calls within each other that a capture and a transport make, with a reserve.
_FRAMES_NEEDED: Final = 100


class Reporter:
    """Reports what happens in an app: exceptions, messages, requests, transactions and more.

    Holds no lock while it calls the app's code; one may be shared by all threads.

    Args:
        transport: Takes the envelopes. Not owned: closing it is the caller's.
        options: None takes the defaults.
    """

    def __init__(self, transport: Transport, options: ReporterOptions | None = None) -> None:
        self.transport = transport
        self.options = options or ReporterOptions()
        self._frames = FrameReader(
            self.options.in_app_include, self.options.in_app_exclude, send_pii=self.options.send_default_pii
        )
        if self.options.release is None and self.options.detect_release:
            self.options = dataclasses.replace(self.options, release=usable_release(detected_release()))
        self.tracing = Tracing(self.options, transport.dsn)
        # What a `ServedRequest` works with, beside the methods.
        self.sampler = Sampler(transport, self.options)
        self.pipeline = Pipeline(transport, self.options, self.tracing)
        said = self.pipeline.fixed
        self.sessions: Sessions | None = None
        if self.options.auto_session_tracking and "release" in said:
            attributes: dict[str, str] = {"release": said["release"]}
            if "environment" in said:
                attributes["environment"] = said["environment"]
            self.sessions = Sessions(transport, attributes)
        #: Batches log items; what a `TransportHandler` adds to.
        self.logs = LogBuffer(transport)
        #: Attributes of every log item.
        self.log_attributes = {
            f"sentry.{name}": {"value": said[name], "type": "string"}
            for name in ("environment", "release")
            if name in said
        }
        sdk = runtime_facts.sdk()
        self.log_attributes["sentry.sdk.name"] = {"value": sdk["name"], "type": "string"}
        self.log_attributes["sentry.sdk.version"] = {"value": sdk["version"], "type": "string"}
        if "server_name" in said:
            self.log_attributes["server.address"] = {"value": said["server_name"], "type": "string"}

    # -- around the app's work -------------------------------------------------------------------------

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
        """Something that is served, or a task: `with reporter.request(…) as served:`.

        What `Kit.serve` is for an integration with requests, from functions.

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
            op: `http.server`, `websocket.server`, `queue.task`, …. Only what a server does for a client
                counts as a session.
            mechanism: How exceptions are caught, such as `auto.http.flask`.
        """
        facts = Callbacks(named, describe, header, user, expected)
        return ServedRequest(self, facts, op, mechanism)

    def transaction(
        self,
        name: str,
        *,
        op: str = "task",
        source: str = "custom",
        headers: Mapping[str, str] | None = None,
    ) -> ServedRequest:
        """Measure a job that is no request: `with reporter.transaction("nightly import"):`.

        A fresh scope, a trace, a transaction when sampled; an exception that escapes is reported and
        raised on. Not counted as a session.

        Args:
            headers: `sentry-trace` and `baggage` as they came with the job, to continue its caller's trace.
        """
        given = {str(key).lower(): value for key, value in (headers or {}).items()}
        facts = Callbacks(lambda: (name, source), header=given.get)
        return ServedRequest(self, facts, tidy(op, _MECHANISM_LENGTH), "generic")

    def monitor(
        self,
        slug: str,
        *,
        schedule: str | tuple[int, str] | None = None,
        timezone: str | None = None,
        checkin_margin: int | None = None,
        max_runtime: int | None = None,
        failure_issue_threshold: int | None = None,
        recovery_threshold: int | None = None,
    ) -> Monitor:
        """Tell the server that a scheduled job ran: around a block, or as a decorator, plain or async.

        Args:
            slug: The monitor's name at the server.
            schedule: `"0 3 * * *"`, `"@daily"` or `(10, "minute")`: the server makes or changes the monitor.
                None leaves it as it is there; then the other settings are not sent.
            timezone: Of a crontab schedule, such as `Europe/Vienna`.
            checkin_margin: Minutes that a run may begin late.
            max_runtime: Minutes that a run may take.
            failure_issue_threshold: Failures in a row before there is an issue.
            recovery_threshold: Successes in a row before it is resolved.
        """
        config = monitor_config(
            schedule,
            timezone=timezone,
            checkin_margin=checkin_margin,
            max_runtime=max_runtime,
            failure_issue_threshold=failure_issue_threshold,
            recovery_threshold=recovery_threshold,
        )
        return Monitor(self.pipeline, self.capture_exception, slug, config)

    def span(self, op: str, description: str = "") -> Span:
        """Measure a piece of the running transaction: `with reporter.span("db", "SELECT …") as span:`.

        Spans within each other nest, also across `await`. In work that is not sampled the span measures
        nothing, and costs nearly nothing.
        """
        parent = running_span(Scope.current().unit)
        if parent is None or parent.transaction is None:
            return NO_SPAN
        return parent.transaction.child(parent, op, description)

    def scope(self) -> new_scope:
        """A scope for a block: `with reporter.scope() as scope:`; what is set in it stays in it."""
        return new_scope()

    def outgoing_headers(self, url: str | None = None, *, baggage: str = "") -> dict[str, str]:
        """Headers for a request to another service, so that it continues this trace.

        Args:
            url: Where the request goes; empty headers for one that is not among
                `trace_propagation_targets`, and for the server that events go to.
            baggage: The `baggage` that the request has already; its other entries are kept.
        """
        try:
            unit = Scope.current().unit
            span = running_span(unit)
            return self.tracing.outgoing_headers(unit, None if span is None else span.span_id, url, baggage)
        except Exception as problem:
            let_through(problem)
            self.pipeline.failed(problem, None)
            return {}

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
        attachments: Iterable[Item] = (),
        hint: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Report an exception, its causes and its group's members; never raises.

        Args:
            error: None takes the one being handled.
            mechanism: `generic` for calls by hand; integrations name themselves.
            handled: Whether the app goes on.
            request: The request it happened in; None takes the running one.
            transaction: What ran, such as a route; at most 200 characters. None takes what is running.
            transaction_source: `custom`, `url`, `route`, `view`, `component` or `task`.
            level: `fatal`, `error`, `warning`, `info` or `debug`.
            attachments: Made by `attachment`; sent with this event.
            hint: For the hooks, beside `exc_info`.
            facts: Further fields of the event.

        Returns:
            The event's id when the transport accepted it. None when it did not, when there is no
            exception, and when this exception was captured before in the current scope.
        """
        told: dict[str, Any] = dict(hint) if hint else {}
        marked: list[BaseException] = []

        def build() -> Event | None:
            found = sys.exc_info()[1] if error is None else error
            if found is None or not issubclass(type(found), BaseException) or not mark_captured(found):
                return None
            marked.append(found)
            if issubclass(type(found), RecursionError):
                _need_stack(_FRAMES_NEEDED)
            event = self.pipeline.event(level)
            event["exception"] = {
                "values": exception_values(
                    found,
                    self._frames,
                    mechanism=tidy(mechanism, _MECHANISM_LENGTH) or "generic",
                    handled=bool(handled),
                )
            }
            event.update(facts or {})
            if transaction:
                set_name(event, transaction, transaction_source)
            told["exc_info"] = (type(found), found, traceback_of(found))
            return event

        def undo() -> None:
            if marked:
                take_mark_back(marked[0])

        return self.pipeline.capture(build, told, attachments=attachments, request=request, undo=undo)

    def capture_message(
        self, text: str, level: str = "info", *, attachments: Iterable[Item] = ()
    ) -> str | None:
        """Report a text of at most 8192 characters; returns the event's id when accepted. Never raises."""

        def build() -> Event:
            event = self.pipeline.event(level)
            event["message"] = cut(scrub_text(tidy(text, 2 * _MESSAGE_LENGTH)), _MESSAGE_LENGTH)
            return event

        return self.pipeline.capture(build, {}, attachments=attachments)

    def capture_event(
        self,
        event: Mapping[str, Any],
        hint: Mapping[str, Any] | None = None,
        *,
        attachments: Iterable[Item] = (),
    ) -> str | None:
        """Report an event of your own making; what it doesn't say is filled in. Never raises.

        Args:
            event: Not changed. An `event_id` that is not a UUID is replaced. A `transaction` event passes
                without `before_send`.
            hint: For the hooks.
            attachments: Made by `attachment`; sent with this event.

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
            built = self.pipeline.event(level) | own
            built["event_id"] = event_id_of(own.get("event_id"))
            built["level"] = known_level(level)
            if isinstance(contexts, Mapping):
                built["contexts"] = {**runtime_facts.contexts(), **contexts}
            return built

        return self.pipeline.capture(build, {} if hint is None else hint, attachments=attachments)

    def capture_feedback(
        self,
        message: str,
        *,
        name: str | None = None,
        email: str | None = None,
        url: str | None = None,
        associated_event_id: str | None = None,
        attachments: Iterable[Item] = (),
    ) -> str | None:
        """Send what a user of the app wrote, at most 4096 characters; its id when accepted. Never raises.

        Hooks and sampling don't see it: somebody took the time to write.

        Args:
            associated_event_id: What `capture_exception` returned for the error that the user saw.
        """

        def build() -> Event:
            said: dict[str, str] = {"message": tidy(message, _FEEDBACK_LENGTH)}
            for key, value in (("name", name), ("contact_email", email), ("url", url)):
                if value is not None:
                    said[key] = tidy(value, _NAME_LENGTH)
            if associated_event_id is not None:
                said["associated_event_id"] = event_id_of(associated_event_id)
            event = self.pipeline.event("info")
            event["timestamp"] = time.time()
            event["contexts"] = {**event["contexts"], "feedback": said}
            return event

        return self.pipeline.capture(build, {}, kind="feedback", attachments=attachments)

    def add_breadcrumb(
        self,
        message: str = "",
        *,
        category: str = "",
        level: str = "info",
        type: str = "default",
        data: Mapping[str, object] | None = None,
    ) -> None:
        """Leave a breadcrumb in the running work; see `Scope.add_breadcrumb`. Never raises."""
        try:
            Scope.current().add_breadcrumb(message, category=category, level=level, type=type, data=data)
        except Exception as problem:
            let_through(problem)
            self.pipeline.failed(problem, None)


def _need_stack(frames: int) -> None:
    """Fail where the stack has no room for so many calls: what is half done there is refused, and lost."""
    if frames:
        _need_stack(frames - 1)
