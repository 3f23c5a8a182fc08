"""Pipeline: what every event goes through between being built and being handed to the transport.

Owns the facts that all events share, the order of completion (scope, event processors, `before_send`,
sampling), what is counted when one of them drops an event, and the promise that nothing of it raises.

Source of the order: the protocol's client pipeline.

Threads: every method may be called from any thread, and from inside itself once (a signal handler, a
`__del__`, a hook that reports); deeper calls are refused and counted. No lock is held.
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

__all__ = ["Event", "event_id_of", "Pipeline", "set_name", "usable_release"]

_SOURCES: Final = frozenset({"custom", "url", "route", "view", "component", "task"})
_MAX_NESTING: Final = 2
_NAME_LENGTH: Final = 200
_EVENT_ID = re.compile(r"[0-9a-f]{32}")
_HEX = re.compile(r"[0-9a-fA-F]+")
_NOT_IN_A_RELEASE = re.compile(r"[\n\r\t\f\v/\\]")
_DIST = re.compile(r"[A-Za-z0-9_.\-]+")
_NO_ERROR: Final = frozenset({"debug", "info", "warning"})
#: Containers within each other that a copy for a hook follows.
_COPY_DEPTH: Final = 64
#: Containers that it copies; one of our own making has fewer.
_MOST_COPIES: Final = 50_000
#: How an item's type is counted.
_CATEGORIES: Final = {"event": "error", "transaction": "transaction", "feedback": "feedback"}

Event = dict[str, Any]
_Hook = Callable[[Event, dict[str, Any]], Event | None]


class Pipeline:
    """Completes events and sends them.

    Args:
        transport: Takes the envelopes. Not owned.
        options: What events say and leave out.
        tracing: What the trace of an event is made with.
        draw: A number in [0, 1) for each event, for `sample_rate`.
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
        # Of our own: the app may have seeded the shared one, and count on its sequence.
        self._draw = draw or random.SystemRandom().random
        # How deep this thread (or greenlet, when patched before) is in captures of this reporter.
        self._nesting = threading.local()
        self.fixed: Event = _fixed_facts(options)
        self._blank: Event = {"event_id": "", "timestamp": 0.0, "level": "", **self.fixed}

    # -- building --------------------------------------------------------------------------------------

    def event(self, level: object) -> Event:
        """What every event says."""
        event = self._blank.copy()
        event["event_id"] = new_uuid()
        event["timestamp"] = time.time()
        event["level"] = known_level(level)
        event["contexts"] = runtime_facts.contexts()
        event["sdk"] = runtime_facts.sdk()
        return event

    def _described(self, request: RequestInfo) -> Event:
        try:
            return request_interface(
                request,
                send_pii=self.options.send_default_pii,
                bodies=self.options.max_request_body_size,
            )
        except Exception as problem:
            let_through(problem)
            # Fields of other types than they should have: the exception is worth more than its request.
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
        """Build, complete and send, whatever goes wrong; the event's id when accepted.

        Args:
            build: Makes the event; None when there is nothing to report.
            hint: For the hooks.
            kind: `event`, `transaction` or `feedback`.
            attachments: Sent with it; lost, and counted, with it.
            request: The request it was made in; None takes the running one.
            undo: Called when something failed on the way, and no event came of it.
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
        kept = self._processed(event, hint, scope, kind, files)
        if kept is None:
            return None
        if kind == "event":
            if event["level"] not in _NO_ERROR:
                scope.unit.note_error()
            rate = self.options.sample_rate
            if rate < 1.0 and self._draw() >= rate:
                self._lose(LossReason.SAMPLE_RATE, kind, files)
                return None
        envelope = Envelope({"event_id": kept["event_id"], "sdk": runtime_facts.sdk()})
        trace = self.tracing.sampling_context(scope.unit, kept)
        if trace:
            envelope.headers["trace"] = trace
        envelope.add_item(Item.received({"type": kind}, kept))
        for file in files:
            envelope.add_item(file)
        return kept["event_id"] if self.transport.capture_envelope(envelope) else None

    def _complete(self, event: Event, scope: Scope, kind: str, request: RequestInfo | None) -> None:
        """Add what the scope and its unit know; the event's own values win."""
        unit = scope.unit
        address: dict[str, Any] = {}
        if kind != "feedback":
            if "transaction" not in event and (name := unit.name()) is not None:
                set_name(event, *name)
            info = request or unit.request()
            if info is not None:
                if "request" not in event and (found := self._described(info)):
                    event["request"] = found
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
                # Of the app's own making, and servers would null it.
                own = trace if type(trace) is dict else {}
                contexts["trace"] = {**own, **trace_facts(unit, self.tracing)}
        if kind == "event" and event.get("breadcrumbs") is None and self.options.max_breadcrumbs:
            crumbs = unit.breadcrumbs()[-self.options.max_breadcrumbs :]
            if crumbs:
                event["breadcrumbs"] = {"values": crumbs}

    def _processed(
        self, event: Event, hint: Mapping[str, Any], scope: Scope, kind: str, files: tuple[Item, ...]
    ) -> Event | None:
        """The event as the app's hooks leave it; None, and counted, when one drops it."""
        hooks: list[tuple[LossReason, str, _Hook]] = []
        if kind != "feedback":
            hooks = [(LossReason.EVENT_PROCESSOR, "an event processor", hook) for hook in scope.processors]
        if kind == "event" and self.options.before_send is not None:
            hooks.append((LossReason.BEFORE_SEND, "before_send", self.options.before_send))
        for reason, name, hook in hooks:
            kept = _call_hook(name, hook, event, hint)
            if kept is None:
                self._lose(reason, kind, files, event)
                return None
            if kept is not event:
                event = kept
                event["event_id"] = event_id_of(event.get("event_id"))
        return event

    # -- losing ----------------------------------------------------------------------------------------

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
        """Count what could not be made, and say so in one line; the problem's text may hold secrets."""
        try:
            self.transport.record_lost_event(LossReason.INTERNAL_SDK_ERROR, category)
            log.error("an event could not be made: %s", type(problem).__name__)
        except Exception as problem:
            let_through(problem)
            # at the end of the stack or of the memory there is nothing left to do it with


def _call_hook(name: str, hook: _Hook, event: Event, hint: Mapping[str, Any]) -> Event | None:
    # The hook gets a copy, for parts of the event are shared with the scope and with caches. A hook that
    # fails drops the event: it may be what takes out things that must not leave the app.
    try:
        kept: Any = hook(_copy(event, _COPY_DEPTH, [_MOST_COPIES]), dict(hint))
    except Exception as problem:
        let_through(problem)
        log.error("%s failed, the event is dropped: %s", name, type(problem).__name__)
        return None
    if kept is None or isinstance(kept, dict):
        return kept
    log.error("%s must return an event or None, not %s; the event is dropped", name, type(kept).__name__)
    return None


def _files(attachments: Iterable[Item]) -> tuple[Item, ...]:
    """The attachments that are ones: what the caller got wrong must not cost the event."""
    try:
        given: tuple[Any, ...] = tuple(attachments)
    except Exception as problem:
        let_through(problem)
        log.error("attachments can't be read: %s", type(problem).__name__)
        return ()
    files = tuple(item for item in given if issubclass(type(item), Item))
    if len(files) < len(given):
        log.error("an attachment must be made by `attachment`; %s left out", len(given) - len(files))
    return files


def _is_trace(context: object) -> bool:
    """Whether a context says a trace as servers take it; one that the app made up may not."""
    return type(context) is dict and all(
        type(value) is str and len(value) == length and _HEX.fullmatch(value) is not None and value.strip("0")
        for value, length in ((context.get("trace_id"), 32), (context.get("span_id"), 16))
    )


def set_name(event: Event, name: object, source: object) -> None:
    """What ran, and where its name comes from; an unknown source becomes `custom`."""
    event["transaction"] = tidy(name, _NAME_LENGTH)
    event["transaction_info"] = {"source": source if type(source) is str and source in _SOURCES else "custom"}


def event_id_of(value: object) -> str:
    """The id as 32 lower-case hex digits; a new one when it isn't a UUID, as a server would do unasked."""
    text = str.lower(str.replace(value, "-", "")) if issubclass(type(value), str) else ""  # type: ignore[arg-type]
    return text if _EVENT_ID.fullmatch(text) else new_uuid()


def _fixed_facts(options: ReporterOptions) -> Event:
    """What is the same in all events, without what a server would null."""
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
    """The release that was found, unless a server would null it."""
    return None if release is None or _unusable("release", release, 200) else release


def _unusable(name: str, value: str, limit: int) -> str | None:
    """Why a server would null this value; None when it takes it."""
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


def _copy(value: Any, depth: int, left: list[int]) -> Any:
    """Plain dicts and lists copied, tuples as lists, everything else shared; past `depth` shared too.

    Args:
        left: How many containers may still be copied, as its one element: what holds itself twice has no end.
    """
    if depth and left[0] > 0:
        kind = type(value)
        if kind is dict:
            left[0] -= 1
            return {name: _copy(element, depth - 1, left) for name, element in value.items()}
        if kind is list or kind is tuple:
            left[0] -= 1
            return [_copy(element, depth - 1, left) for element in value]
    return value
