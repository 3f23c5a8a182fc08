"""Spans: timed operations within one unit of work, and the transaction that holds them.

This module owns the running span (a context variable), times, nesting and the payload of a transaction.
`sampling.py` decides whether a transaction is begun; the pipeline sends it.

Threads: a span is changed only by the task or thread that runs it. Spans of several tasks and threads may end
in any order; each is added to its transaction in one atomic step.
"""

from __future__ import annotations

import time
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final, Protocol, Self

from transport_kit.reporting.tracing.trace import Trace, new_span_id
from transport_kit.reporting.values.bounded import Limits, Room, bounded, cut, tag_key, tag_value, tidy
from transport_kit.reporting.values.scrub import scrub_text
from transport_kit.reporting.values.secret_names import is_sensitive

__all__ = ["NO_SPAN", "running_span", "Span", "status_of", "Transaction"]

#: Spans of one transaction; further ones are counted as lost.
MAX_SPANS: Final = 1000
_OP_LENGTH: Final = 128
_DESCRIPTION_LENGTH: Final = 2048
_DATA: Final = Limits(text=1024, breadth=50, depth=3, hides=is_sensitive)
_DATA_BYTES: Final = 4 * 1024
_MAX_DATA: Final = 50

_STATUSES: Final = frozenset(
    {
        "ok",
        "cancelled",
        "unknown",
        "unknown_error",
        "invalid_argument",
        "deadline_exceeded",
        "not_found",
        "already_exists",
        "permission_denied",
        "resource_exhausted",
        "failed_precondition",
        "aborted",
        "out_of_range",
        "unimplemented",
        "internal_error",
        "unavailable",
        "data_loss",
        "unauthenticated",
    }
)
_BY_HTTP: Final = {
    401: "unauthenticated",
    403: "permission_denied",
    404: "not_found",
    409: "already_exists",
    413: "failed_precondition",
    429: "resource_exhausted",
    499: "cancelled",
    501: "unimplemented",
    503: "unavailable",
    504: "deadline_exceeded",
}

_running: ContextVar[Span | None] = ContextVar("transport_kit_span", default=None)


def status_of(http: int) -> str:
    """Return the span status for an HTTP status."""
    status = _BY_HTTP.get(http)
    if status is not None:
        return status
    if http < 400:
        return "ok" if http >= 100 else "unknown_error"
    return "invalid_argument" if http < 500 else "internal_error" if http < 600 else "unknown_error"


class Span:
    """A timed operation: `with reporter.span("db", "SELECT …") as span:`.

    Changes after the end of its transaction are lost.

    Attributes:
        span_id: 16 hex digits.
        parent_span_id: Id of the span it runs in.
        op: Kind of work, such as `db` or `http.client`.
        description: Details of the work, without values that identify people.
    """

    __slots__ = (
        "_began",
        "_data",
        "_ended",
        "_status",
        "_tags",
        "_token",
        "description",
        "op",
        "parent_span_id",
        "span_id",
        "transaction",
    )

    def __init__(
        self,
        transaction: Transaction | None,
        parent_span_id: str | None,
        span_id: str,
        op: str,
        description: str,
    ) -> None:
        # None if the unit of work is not sampled; the span then measures nothing.
        self.transaction = transaction
        self.span_id = span_id
        self.parent_span_id = parent_span_id
        self.op = op
        self.description = description
        self._status: str | None = None
        self._data: dict[str, Any] | None = None
        self._tags: dict[str, str] | None = None
        self._began = time.perf_counter()
        self._ended: float | None = None
        self._token: Token[Span | None] | None = None

    def set_status(self, status: str) -> None:
        """Set the status (`ok`, `not_found`, `internal_error`, …); an unknown one becomes `unknown_error`."""
        self._status = status if type(status) is str and status in _STATUSES else "unknown_error"

    def set_http_status(self, status: int) -> None:
        """Set the status for an HTTP response, and its number as `http.response.status_code`."""
        if not issubclass(type(status), int):
            self._status = "unknown_error"
            return
        self._status = status_of(status)
        if self.transaction is not None:
            facts = {"http.response.status_code": int(status)}
            self._data = {**self._data, **facts} if self._data else facts

    def set_data(self, key: str, value: object) -> None:
        """Add a copy of a value; secrets are filtered by key. At most 50 values of 4 KiB."""
        if self.transaction is None:
            return
        data = self._data
        if data is None:
            data = self._data = {}
        name = tidy(key, _OP_LENGTH)
        if name in data or len(data) < _MAX_DATA:
            data[name] = bounded({name: value}, Room(_DATA_BYTES), _DATA).get(name)

    def set_tag(self, key: str, value: object) -> None:
        """Add a searchable tag; at most 50 tags of 200 characters."""
        if self.transaction is None:
            return
        tags = self._tags
        if tags is None:
            tags = self._tags = {}
        name, text = tag_key(key), tag_value(value)
        if name and text and (name in tags or len(tags) < _MAX_DATA):
            tags[name] = text

    def finish(self, error: BaseException | None = None) -> None:
        """End the span; an error sets the status if none was set. Idempotent."""
        transaction = self.transaction
        if self._ended is not None or transaction is None:
            return
        if error is not None and self._status is None:
            self._status = "internal_error" if isinstance(error, Exception) else "cancelled"
        self._ended = time.perf_counter()
        transaction.add(self)

    def __enter__(self) -> Self:
        if self.transaction is not None:
            self._token = _running.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        token, self._token = self._token, None
        if token is not None:
            try:
                _running.reset(token)
            except ValueError:
                pass  # left in another context, which never had this span
        self.finish(error)

    def context(self, trace_id: str) -> dict[str, Any]:
        """Return `contexts.trace` for events captured in this span."""
        facts: dict[str, Any] = {"trace_id": trace_id, "span_id": self.span_id}
        if self.parent_span_id is not None:
            facts["parent_span_id"] = self.parent_span_id
        facts["op"] = tidy(self.op, _OP_LENGTH)
        if self._status is not None:
            facts["status"] = self._status
        return facts

    def payload(self, transaction: Transaction, ended: float) -> dict[str, Any]:
        """Return the span's entry in its transaction's payload."""
        facts = self.context(transaction.trace.trace_id)
        facts["start_timestamp"] = transaction.wall(self._began)
        facts["timestamp"] = transaction.wall(ended if self._ended is None else self._ended)
        facts["origin"] = "manual"
        if description := tidy(self.description, 8192):
            facts["description"] = cut(scrub_text(description), _DESCRIPTION_LENGTH)
        if self._data:
            facts["data"] = self._data
        if self._tags:
            facts["tags"] = self._tags
        return facts


class Transaction(Span):
    """The root span of a unit of work; made only if the unit is sampled.

    Attributes:
        trace: The trace it belongs to.
        origin: The mechanism that began it.
        dropped: Number of spans left out: above the limit, or ended too late.
    """

    __slots__ = ("_spans", "_wall", "dropped", "origin", "trace")

    def __init__(self, trace: Trace, op: str, origin: str) -> None:
        super().__init__(self, trace.parent_span_id, trace.span_id, op, "")
        self.trace = trace
        self.origin = origin
        self.dropped = 0
        # The wall clock is read once: it may jump, and servers refuse a span that ends before it begins.
        self._wall = time.time() - self._began
        self._spans: list[Span] = []

    def wall(self, moment: float) -> float:
        """Convert a reading of `time.perf_counter` to seconds since the epoch."""
        # Microseconds; `round` takes five times as long.
        return int((self._wall + moment) * 1e6 + 0.5) / 1e6

    def child(self, parent: Span, op: str, description: str) -> Span:
        """Return a new span below `parent`, begun now."""
        return Span(self, parent.span_id, new_span_id(), op, description)

    def add(self, span: Span) -> None:
        """Add a span that has ended."""
        if span is self:
            return
        if self._ended is None and len(self._spans) < MAX_SPANS:
            self._spans.append(span)
        else:
            self.dropped += 1

    def describe(self, event: dict[str, Any]) -> None:
        """Add the transaction's fields to an event that has `contexts`. Call `finish` first."""
        ended = self._began if self._ended is None else self._ended
        trace = self.context(self.trace.trace_id)
        trace["origin"] = self.origin
        if self._data:
            trace["data"] = self._data
        event["type"] = "transaction"
        event["start_timestamp"] = self.wall(self._began)
        event["timestamp"] = self.wall(ended)
        event["spans"] = [span.payload(self, ended) for span in self._spans.copy()]
        if self._tags:
            event["tags"] = self._tags.copy()
        event["contexts"]["trace"] = trace


#: Stands for every span of a unit that is not sampled.
NO_SPAN: Final = Span(None, None, "0" * 16, "", "")


class _Unit(Protocol):
    @property
    def transaction(self) -> Transaction | None: ...


def running_span(unit: _Unit) -> Span | None:
    """Return the innermost span running in this context; None if the unit is not sampled or has ended."""
    root = unit.transaction
    if root is None:
        return None
    span = _running.get()
    # The running span may be of another unit that this one was begun in, as by a test client.
    return span if span is not None and span.transaction is root else root
