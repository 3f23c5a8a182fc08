"""Pipeline: completes every event after it is built and passes it to the transport.

This module owns the facts that all events share, the order of the steps (scope, event processors,
`before_send`, sampling) and the counting of events that a step drops. Nothing in it raises.

Source of the order: the protocol's client pipeline.

Threads: every method may be called from any thread, and re-entered once (by a signal handler, a `__del__`, a
hook that reports); deeper calls are refused and counted. No lock is held.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from transport_kit.config.options import ReporterOptions
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.ids import new_uuid
from transport_kit.envelope.item import Item
from transport_kit.envelope.losses import LossReason
from transport_kit.reporting import runtime_facts
from transport_kit.reporting.request_info import RequestInfo, request_interface
from transport_kit.reporting.scope import Scope, known_level, usable_ip, user_facts
from transport_kit.reporting.tracing.propagation import Tracing, trace_facts
from transport_kit.reporting.values.bounded import clean, tidy
from transport_kit.runtime.interrupts import let_through
from transport_kit.runtime.log import log
from transport_kit.transport.base import Transport

__all__ = ["Event", "Pipeline", "set_name", "usable_release", "valid_event_id"]

_SOURCES: Final = frozenset({"custom", "url", "route", "view", "component", "task"})
_MAX_NESTING: Final = 2
_NAME_LENGTH: Final = 200
_EVENT_ID = re.compile(r"[0-9a-f]{32}")
_HEX = re.compile(r"[0-9a-fA-F]+")
_NOT_IN_A_RELEASE = re.compile(r"[\n\r\t\f\v/\\]")
_DIST = re.compile(r"[A-Za-z0-9_.\-]+")
_NO_ERROR: Final = frozenset({"debug", "info", "warning"})
#: Nested containers that a copy for a hook follows.
_COPY_DEPTH: Final = 64
#: Containers that such a copy may hold; events built by this library have fewer.
_MAX_COPIES: Final = 50_000
#: Data category of an item's type.
_CATEGORIES: Final = {"event": "error", "transaction": "transaction", "feedback": "feedback"}

Event = dict[str, Any]
_Hook = Callable[[Event, dict[str, Any]], Event | None]


class Pipeline:
    """Completes events and sends them.

    Args:
        transport: Takes the envelopes. Not owned.
        options: Control the content of events, hooks and sampling.
        tracing: Makes the trace context of an event.
        draw: Returns a random number in [0, 1), for `sample_rate`.
    """

    def __init__(
        self,
        transport: Transport,
        options: ReporterOptions,
        tracing: Tracing,
        draw: Callable[[], float] | None = None,
    ) -> None:
        self.transport = transport
        self.options = options
        self.tracing = tracing
        # Not the shared generator: the app may have seeded it and rely on its sequence.
        self._draw = draw or random.SystemRandom().random
        # Depth of nested captures on this thread (or greenlet, if `threading` was patched before).
        self._nesting = threading.local()
        self.fixed: Event = _fixed_facts(options)
        self._blank: Event = {"event_id": "", "timestamp": 0.0, "level": "", **self.fixed}

    # -- building --------------------------------------------------------------------------------------

    def event(self, level: object) -> Event:
        """Return a new event with the facts that all events share."""
        event = self._blank.copy()
        event["event_id"] = new_uuid()
        event["timestamp"] = time.time()
        event["level"] = known_level(level)
        event["contexts"] = runtime_facts.contexts()
        event["sdk"] = runtime_facts.sdk()
        return event

    def _request_of(self, request: RequestInfo) -> Event:
        try:
            return request_interface(
                request,
                send_pii=self.options.send_default_pii,
                bodies=self.options.max_request_body_size,
            )
        except Exception as problem:
            let_through(problem)
            # Fields of wrong types. The event is sent without its request.
            log.warning("a request could not be described: %s", type(problem).__name__)
            return {}

    # -- sending ---------------------------------------------------------------------------------------

    def capture(
        self,
        build: Callable[[], Event | None],
        hint: Mapping[str, Any],
        *,
        kind: str = "event",
        attachments: Iterable[Item] = (),
        request: RequestInfo | None = None,
        undo: Callable[[], None] | None = None,
    ) -> str | None:
        """Build, complete and send an event. Never raises.

        Args:
            build: Returns the event; None if there is nothing to report.
            hint: For the hooks.
            kind: `event`, `transaction` or `feedback`.
            attachments: Sent with the event; dropped and counted with it.
            request: The request of the event; None takes the running one.
            undo: Called if a failure kept the event from being sent.

        Returns:
            The event's id if the transport accepted it; None otherwise.
        """
        try:
            depth: int = getattr(self._nesting, "depth", 0)
            if depth >= _MAX_NESTING:
                self._lose(LossReason.REENTRANT, kind, ())
                return None
            self._nesting.depth = depth + 1
            try:
                event = build()
                if event is None:
                    return None
                files = () if kind == "transaction" else _files(attachments)
                return self._send(event, hint, kind, files, request)
            finally:
                self._nesting.depth = depth
        except Exception as problem:
            let_through(problem)
            self.failed(problem, _CATEGORIES[kind])
            if undo is not None:
                undo()
            return None

    def _send(
        self,
        event: Event,
        hint: Mapping[str, Any],
        kind: str,
        files: tuple[Item, ...],
        request: RequestInfo | None,
    ) -> str | None:
        if event.get("type") == "transaction":
            kind = "transaction"
        scope = Scope.current()
        files += scope.attachments if kind != "transaction" else ()
        self._complete(event, scope, kind, request)
        processed = self._call_hooks(event, hint, scope, kind, files)
        if processed is None:
            return None
        if kind == "event":
            if event["level"] not in _NO_ERROR:
                scope.unit.note_error()
            rate = self.options.sample_rate
            if rate < 1.0 and self._draw() >= rate:
                self._lose(LossReason.SAMPLE_RATE, kind, files)
                return None
        envelope = Envelope({"event_id": processed["event_id"], "sdk": runtime_facts.sdk()})
        trace = self.tracing.sampling_context(scope.unit, processed)
        if trace:
            envelope.headers["trace"] = trace
        envelope.add_item(Item.received({"type": kind}, processed))
        for file in files:
            envelope.add_item(file)
        return processed["event_id"] if self.transport.capture_envelope(envelope) else None

    def _complete(self, event: Event, scope: Scope, kind: str, request: RequestInfo | None) -> None:
        """Add the facts of the scope and its unit of work; the event's own values win."""
        unit = scope.unit
        address: dict[str, Any] = {}
        if kind != "feedback":
            if "transaction" not in event and (name := unit.name()) is not None:
                set_name(event, *name)
            info = request or unit.request()
            if info is not None:
                if "request" not in event and (interface := self._request_of(info)):
                    event["request"] = interface
                if self.options.send_default_pii and usable_ip(info.remote_addr):
                    address = {"ip_address": info.remote_addr}
        scope.apply(event)
        if self.options.send_default_pii:
            user = {**address, **(user_facts(unit.user()) or {}), **(event.get("user") or {})}
            if user:
                event["user"] = user
        contexts = event.get("contexts")
        if type(contexts) is dict:
            trace = contexts.get("trace")
            if trace is None:
                contexts["trace"] = trace_facts(unit, self.tracing)
            elif kind == "event" and not _is_trace(trace):
                # Made by the app, and servers would discard it.
                own = trace if type(trace) is dict else {}
                contexts["trace"] = {**own, **trace_facts(unit, self.tracing)}
        if kind == "event" and event.get("breadcrumbs") is None and self.options.max_breadcrumbs:
            crumbs = unit.breadcrumbs()[-self.options.max_breadcrumbs :]
            if crumbs:
                event["breadcrumbs"] = {"values": crumbs}

    def _call_hooks(
        self, event: Event, hint: Mapping[str, Any], scope: Scope, kind: str, files: tuple[Item, ...]
    ) -> Event | None:
        """Return the event as changed by the app's hooks; None if one drops it, which is counted."""
        hooks: list[tuple[LossReason, str, _Hook]] = []
        if kind != "feedback":
            hooks = [(LossReason.EVENT_PROCESSOR, "an event processor", hook) for hook in scope.processors]
        if kind == "event" and self.options.before_send is not None:
            hooks.append((LossReason.BEFORE_SEND, "before_send", self.options.before_send))
        for reason, name, hook in hooks:
            result = _call_hook(name, hook, event, hint)
            if result is None:
                self._lose(reason, kind, files, event)
                return None
            if result is not event:
                event = result
                event["event_id"] = valid_event_id(event.get("event_id"))
        return event

    # -- losses ----------------------------------------------------------------------------------------

    def _lose(self, reason: LossReason, kind: str, files: Iterable[Item], event: Event | None = None) -> None:
        if kind == "transaction":
            spans = None if event is None else event.get("spans")
            self.transport.record_lost_event(reason, "transaction")
            count = 1 + (len(spans) if type(spans) is list else 0)
            self.transport.record_lost_event(reason, "span", quantity=count)
        else:
            self.transport.record_lost_event(reason, _CATEGORIES[kind])
        for file in files:
            self.transport.record_lost_event(reason, item=file)

    def failed(self, problem: Exception, category: str | None) -> None:
        """Count and log an event lost to a failure. Logs the error's type only: its text may hold secrets."""
        try:
            self.transport.record_lost_event(LossReason.INTERNAL_SDK_ERROR, category)
            log.error("an event could not be made: %s", type(problem).__name__)
        except Exception as problem:
            let_through(problem)
            # Out of stack or memory: not even counting is possible.


def _call_hook(name: str, hook: _Hook, event: Event, hint: Mapping[str, Any]) -> Event | None:
    # The hook gets a copy, because parts of the event are shared with the scope and with caches. A failing
    # hook drops the event: it may have been there to remove data that must not leave the app.
    try:
        result: Any = hook(_copy(event, _COPY_DEPTH, [_MAX_COPIES]), dict(hint))
    except Exception as problem:
        let_through(problem)
        log.error("%s failed, the event is dropped: %s", name, type(problem).__name__)
        return None
    if result is None or isinstance(result, dict):
        return result
    log.error("%s must return an event or None, not %s; the event is dropped", name, type(result).__name__)
    return None


def _files(attachments: Iterable[Item]) -> tuple[Item, ...]:
    """Return the valid attachments. Invalid ones are logged and left out; the event is sent anyway."""
    try:
        items: tuple[Any, ...] = tuple(attachments)
    except Exception as problem:
        let_through(problem)
        log.error("attachments can't be read: %s", type(problem).__name__)
        return ()
    files = tuple(item for item in items if issubclass(type(item), Item))
    if len(files) < len(items):
        log.error("an attachment must be made by `attachment`; %s left out", len(items) - len(files))
    return files


def _is_trace(context: object) -> bool:
    """Return True if `context` is a trace context that servers accept."""
    return type(context) is dict and all(
        type(value) is str and len(value) == length and _HEX.fullmatch(value) is not None and value.strip("0")
        for value, length in ((context.get("trace_id"), 32), (context.get("span_id"), 16))
    )


def set_name(event: Event, name: object, source: object) -> None:
    """Set the event's transaction name and the name's source; an unknown source becomes `custom`."""
    event["transaction"] = tidy(name, _NAME_LENGTH)
    event["transaction_info"] = {"source": source if type(source) is str and source in _SOURCES else "custom"}


def valid_event_id(value: object) -> str:
    """Return the id as 32 lower-case hex digits; a new one if `value` is no UUID."""
    text = str.lower(str.replace(value, "-", "")) if issubclass(type(value), str) else ""  # type: ignore[arg-type]
    return text if _EVENT_ID.fullmatch(text) else new_uuid()


def _fixed_facts(options: ReporterOptions) -> Event:
    """Return the facts that are the same in all events, without values that a server would discard."""
    facts: Event = {"platform": "python"}
    for name, value, limit in (
        ("release", options.release, 200),
        ("environment", options.environment, 64),
        ("dist", options.dist, 64),
    ):
        if value is None:
            continue
        value = clean(value)
        problem = _unusable(name, value, limit)
        if problem is None:
            facts[name] = value
        else:
            log.warning("option %s %s; events go without it", name, problem)
    host = options.server_name or runtime_facts.host_name()
    if host:
        facts["server_name"] = tidy(host, _NAME_LENGTH)
    return facts


def usable_release(release: str | None) -> str | None:
    """Return the detected release; None if a server would discard it."""
    return None if release is None or _unusable("release", release, 200) else release


def _unusable(name: str, value: str, limit: int) -> str | None:
    """Return the reason why a server would discard this value; None if it accepts it."""
    if len(value) > limit:
        return f"has more than {limit} characters"
    if name == "dist":
        text = value.strip()
        return None if _DIST.fullmatch(text) else "has other characters than letters, digits and _.-"
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


def _copy(value: Any, depth: int, budget: list[int]) -> Any:
    """Return a copy of plain dicts, lists and tuples (as lists), `depth` levels deep; shares everything else.

    Args:
        value: The value to copy.
        depth: Levels still to copy.
        budget: One element: the number of containers that may still be copied. A container that holds itself
            twice would otherwise never end.
    """
    if depth and budget[0] > 0:
        kind = type(value)
        if kind is dict:
            budget[0] -= 1
            return {name: _copy(element, depth - 1, budget) for name, element in value.items()}
        if kind is list or kind is tuple:
            budget[0] -= 1
            return [_copy(element, depth - 1, budget) for element in value]
    return value
