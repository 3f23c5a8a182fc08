"""Reporter: the methods that the app and the integrations call.

This module owns the public methods and the first form of each kind of event. `pipeline.py` completes all
events; their parts come from `exceptions.py`, `frames.py`, `request_info.py`, `scope.py`, `tracing/` and
`runtime_facts.py`.

Threads: every method may be called from any thread. No method raises, waits for a lock, or does I/O other
than reading source lines.
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
from transport_kit.reporting.captured_once import mark_captured, take_mark_back
from transport_kit.reporting.exceptions import exception_values, traceback_of
from transport_kit.reporting.frames import FrameReader
from transport_kit.reporting.log_buffer import LogBuffer, is_own_logger
from transport_kit.reporting.monitors import Monitor, monitor_config
from transport_kit.reporting.pipeline import Event, Pipeline, set_name, usable_release, valid_event_id
from transport_kit.reporting.release import detected_release
from transport_kit.reporting.request_info import RequestInfo
from transport_kit.reporting.scope import Scope, known_level, new_scope
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
#: Depth of nested calls of a capture including the transport, with a reserve.
_FRAMES_NEEDED: Final = 100


class Reporter:
    """Reports what happens in an app: exceptions, messages, requests, transactions and more.

    Holds no lock while it calls the app's code; one may be shared by all threads.

    Args:
        transport: Takes the envelopes. Not owned: the caller closes it.
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
        # Used by `ServedRequest`, beside the methods.
        self.sampler = Sampler(transport, self.options)
        self.pipeline = Pipeline(transport, self.options, self.tracing)
        fixed = self.pipeline.fixed
        self.sessions: Sessions | None = None
        if self.options.auto_session_tracking and "release" in fixed:
            attributes: dict[str, str] = {"release": fixed["release"]}
            if "environment" in fixed:
                attributes["environment"] = fixed["environment"]
            self.sessions = Sessions(transport, attributes)
        #: Batches log items; `TransportHandler` adds to it.
        self.logs = LogBuffer(transport)
        #: Attributes of every log item.
        self.log_attributes = {
            f"sentry.{name}": {"value": fixed[name], "type": "string"}
            for name in ("environment", "release")
            if name in fixed
        }
        sdk = runtime_facts.sdk()
        self.log_attributes["sentry.sdk.name"] = {"value": sdk["name"], "type": "string"}
        self.log_attributes["sentry.sdk.version"] = {"value": sdk["version"], "type": "string"}
        if "server_name" in fixed:
            self.log_attributes["server.address"] = {"value": fixed["server_name"], "type": "string"}

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
        """Return a context manager around a request or a task: `with reporter.request(…) as served:`.

        Like `Kit.serve`, with functions instead of a `RequestFacts`.

        Gives the request a fresh scope, continues the caller's trace, runs a transaction if the request is
        sampled, records the session's outcome, and captures an exception that escapes. Costs a few
        microseconds if nothing happens: the callbacks are called only when an event or a transaction is made,
        possibly several times, on the thread that makes it. They must not do I/O; an exception they raise is
        logged, and the event is sent without their value.

        Args:
            describe: The request as plain values.
            named: Returns `(name, source)`: the path and `url` before routing, the route and `route` (or the
                view and `view`) once it is known. Called anew each time.
            header: Returns the value of a request header by its lower-case name; None if it is absent.
            user: Returns the user, only if already loaded. Sent with `send_default_pii` only.
            expected: Returns True for an escaped exception that is not to be captured (a disconnected client,
                a 404). None captures every `Exception`; other `BaseException`s are never captured.
            op: `http.server`, `websocket.server`, `queue.task`, …. Only operations that end in `.server`
                count as sessions.
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

        Gives it a fresh scope, a trace, and a transaction if sampled. An exception that escapes is captured
        and propagates. Not counted as a session.

        Args:
            name: The transaction's name.
            op: The kind of work.
            source: Where the name comes from: `custom`, `url`, `route`, `view`, `component` or `task`.
            headers: `sentry-trace` and `baggage` received with the job, to continue its caller's trace.
        """
        lowered = {str(key).lower(): value for key, value in (headers or {}).items()}
        facts = Callbacks(lambda: (name, source), header=lowered.get)
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
        """Report the runs of a scheduled job: around a block, or as a decorator, plain or async.

        Args:
            slug: The monitor's name at the server.
            schedule: `"0 3 * * *"`, `"@daily"` or `(10, "minute")`: the server creates or updates the
                monitor. None leaves the server's monitor unchanged; then the other settings are not sent.
            timezone: Time zone of a crontab schedule, such as `Europe/Vienna`.
            checkin_margin: Minutes by which a run may start late.
            max_runtime: Minutes that a run may take.
            failure_issue_threshold: Consecutive failures that open an issue.
            recovery_threshold: Consecutive successes that resolve it.
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
        """Measure a part of the running transaction: `with reporter.span("db", "SELECT …") as span:`.

        Spans nest, also across `await`. In a unit of work that is not sampled the span measures nothing and
        costs nearly nothing.
        """
        parent = running_span(Scope.current().unit)
        if parent is None or parent.transaction is None:
            return NO_SPAN
        return parent.transaction.child(parent, op, description)

    def scope(self) -> new_scope:
        """Return a scope for a block: `with reporter.scope() as scope:`; changes to it end with the block."""
        return new_scope()

    def outgoing_headers(self, url: str | None = None, *, baggage: str = "") -> dict[str, str]:
        """Return headers for a request to another service, so that it continues this trace.

        Args:
            url: The request's URL. No headers for one that is not among `trace_propagation_targets`, and for
                the server that receives the events.
            baggage: The request's present `baggage`; entries of other vendors are kept.
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
        """Report an exception, its causes and its group's members. Never raises.

        Args:
            error: None takes the exception being handled.
            mechanism: `generic` for calls by the app; integrations use their own name.
            handled: True if the app handled it and continues.
            request: The request in which it was raised; None takes the running one.
            transaction: Name of the running work, such as a route; at most 200 characters. None takes the
                name of the current unit of work.
            transaction_source: `custom`, `url`, `route`, `view`, `component` or `task`.
            level: `fatal`, `error`, `warning`, `info` or `debug`.
            attachments: Made by `attachment`; sent with this event.
            hint: For the hooks, beside `exc_info`.
            facts: Further fields of the event.

        Returns:
            The event's id if the transport accepted it. None if it did not, if there is no exception, and if
            this exception was captured before in the current scope.
        """
        full_hint: dict[str, Any] = dict(hint) if hint else {}
        marks: list[BaseException] = []

        def build() -> Event | None:
            exception = sys.exc_info()[1] if error is None else error
            if (
                exception is None
                or not issubclass(type(exception), BaseException)
                or not mark_captured(exception)
            ):
                return None
            marks.append(exception)
            if issubclass(type(exception), RecursionError):
                _need_stack(_FRAMES_NEEDED)
            event = self.pipeline.event(level)
            event["exception"] = {
                "values": exception_values(
                    exception,
                    self._frames,
                    mechanism=tidy(mechanism, _MECHANISM_LENGTH) or "generic",
                    handled=bool(handled),
                )
            }
            event.update(facts or {})
            if transaction:
                set_name(event, transaction, transaction_source)
            full_hint["exc_info"] = (type(exception), exception, traceback_of(exception))
            return event

        def undo() -> None:
            if marks:
                take_mark_back(marks[0])

        return self.pipeline.capture(build, full_hint, attachments=attachments, request=request, undo=undo)

    def capture_message(
        self, text: str, level: str = "info", *, attachments: Iterable[Item] = ()
    ) -> str | None:
        """Report a text, cut to 8192 characters; return the event's id if it was accepted. Never raises."""

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
        """Report an event built by the caller; missing fields are filled in. Never raises.

        Args:
            event: Not changed. An `event_id` that is not a UUID is replaced. A `transaction` event skips
                `before_send`.
            hint: For the hooks.
            attachments: Made by `attachment`; sent with this event.

        Returns:
            The event's id if the transport accepted it. None otherwise, and for an event whose `logger` is
            one of this library's own.
        """

        def build() -> Event | None:
            own = dict(event)
            if is_own_logger(own.get("logger")):
                return None
            level = own.get("level", "error")
            contexts = own.get("contexts")
            built = self.pipeline.event(level) | own
            built["event_id"] = valid_event_id(own.get("event_id"))
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
        """Send feedback written by a user of the app; return its id if it was accepted. Never raises.

        Hooks and sampling don't apply to feedback.

        Args:
            message: The user's text, cut to 4096 characters.
            name: The user's name.
            email: The user's address.
            url: The page that the user was on.
            associated_event_id: Id of the event that the feedback is about, as `capture_exception` returned
                it.
            attachments: Made by `attachment`; sent with the feedback.
        """

        def build() -> Event:
            feedback: dict[str, str] = {"message": tidy(message, _FEEDBACK_LENGTH)}
            for key, value in (("name", name), ("contact_email", email), ("url", url)):
                if value is not None:
                    feedback[key] = tidy(value, _NAME_LENGTH)
            if associated_event_id is not None:
                feedback["associated_event_id"] = valid_event_id(associated_event_id)
            event = self.pipeline.event("info")
            event["timestamp"] = time.time()
            event["contexts"] = {**event["contexts"], "feedback": feedback}
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
        """Add a breadcrumb to the running unit of work; see `Scope.add_breadcrumb`. Never raises."""
        try:
            Scope.current().add_breadcrumb(message, category=category, level=level, type=type, data=data)
        except Exception as problem:
            let_through(problem)
            self.pipeline.failed(problem, None)


def _need_stack(frames: int) -> None:
    """Raise RecursionError if the stack has no room for `frames` more calls, before any work is half done."""
    if frames:
        _need_stack(frames - 1)
