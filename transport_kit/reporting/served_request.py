"""Served request: the unit of work that an integration begins and finishes around each request.

This module owns the order of the steps: a fresh scope, the trace, the transaction, the exception that
escapes, the session's outcome. It calls the integration back only if an event or transaction is made, so that
any other request costs little more than a scope.

Threads: begun and finished on any thread, also on different ones; finished once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import Token
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

from transport_kit.envelope.item import Item
from transport_kit.envelope.losses import LossReason
from transport_kit.reporting.pipeline import Event, Pipeline, set_name
from transport_kit.reporting.request_info import RequestInfo
from transport_kit.reporting.scope import Scope, enter_scope, leave_scope
from transport_kit.reporting.sessions import Sessions
from transport_kit.reporting.tracing.sampling import Sampler
from transport_kit.reporting.tracing.spans import Transaction
from transport_kit.reporting.unit_of_work import Unit
from transport_kit.runtime.interrupts import let_through
from transport_kit.runtime.log import log

__all__ = ["Callbacks", "Reports", "RequestFacts", "ServedRequest"]

#: Counted as lost for a transaction that is not sampled: the transaction and its root span.
_UNSAMPLED: Final = Item({"spans": []}, type="transaction")

_T = TypeVar("_T")


class RequestFacts:
    """Describes a request to the reporter; each integration has a subclass.

    Made for each request, so it holds references and computes nothing in advance. Methods are called possibly
    never, possibly several times, on the thread that makes an event. They must not do I/O; an exception they
    raise is logged, and the event is sent without the value.
    """

    __slots__ = ()

    def named(self) -> tuple[str, str]:
        """Return `(name, source)`.

        That is the path and `url` before routing, the route and `route` (or the view and `view`) after it.
        """
        raise NotImplementedError

    def describe(self) -> RequestInfo | None:
        """Return the request as plain values."""
        return None

    def header(self, name: str) -> str | None:
        """Return the value of a request header by its lower-case name; None if it is absent."""
        return None

    def user(self) -> Mapping[str, object] | None:
        """Return the user, only if already loaded. Sent with `send_default_pii` only."""
        return None

    @staticmethod
    def user_in(held: Mapping[str, object]) -> dict[str, str] | None:
        """Return `id`, `username` and `email` from the instance dict of a user object, if text or integer.

        Not by `getattr`: a property, or an expired attribute of a model, would query a database.
        """
        facts = {
            name: str(held[name])
            for name in ("id", "username", "email")
            if isinstance(held.get(name), str | int)
        }
        return facts or None

    def is_expected(self, error: BaseException) -> bool:
        """Return True for an escaped exception that is not to be captured: a disconnected client, a 404."""
        return False


class Callbacks(RequestFacts):
    """`RequestFacts` made of functions; see the arguments of `Reporter.request`."""

    __slots__ = ("_describe", "_expected", "_header", "_named", "_user")

    def __init__(
        self,
        named: Callable[[], tuple[str, str]],
        describe: Callable[[], RequestInfo | None] | None = None,
        header: Callable[[str], str | None] | None = None,
        user: Callable[[], Mapping[str, object] | None] | None = None,
        expected: Callable[[BaseException], bool] | None = None,
    ) -> None:
        self._named = named
        self._describe = describe
        self._header = header
        self._user = user
        self._expected = expected

    def named(self) -> tuple[str, str]:
        return self._named()

    def describe(self) -> RequestInfo | None:
        return None if self._describe is None else self._describe()

    def header(self, name: str) -> str | None:
        return None if self._header is None else self._header(name)

    def user(self) -> Mapping[str, object] | None:
        return None if self._user is None else self._user()

    def is_expected(self, error: BaseException) -> bool:
        return self._expected is not None and self._expected(error)


class Reports(Protocol):
    """The part of `Reporter` that `ServedRequest` uses."""

    pipeline: Pipeline
    sampler: Sampler
    sessions: Sessions | None

    def capture_exception(self, error: BaseException, *, mechanism: str, handled: bool) -> str | None:
        """Report an exception."""


class ServedRequest(Unit):
    """One request, task or job while it is served; made by `Kit.serve` and `Reporter.request`.

    Use it as a context manager, or call `begin` and `finish`. Neither raises.

    Attributes:
        scope: The fresh scope of this request, from `begin` to `finish`.
        status: The response's HTTP status, set by the integration before `finish`; None if unknown.
    """

    # Attributes that most requests never need are set on first use.
    __slots__ = (
        "_captures",
        "_facts",
        "_final_name",
        "_mechanism",
        "_op",
        "_reporter",
        "_started",
        "_token",
        "scope",
        "status",
    )

    scope: Scope
    _started: float
    _final_name: tuple[str, str] | None

    def __init__(
        self, reporter: Reports, facts: RequestFacts, op: str, mechanism: str, captures: bool = True
    ) -> None:
        super().__init__()
        self.status: int | None = None
        self._reporter = reporter
        self._facts = facts
        self._op = op
        self._mechanism = mechanism
        self._captures = captures
        # None before `begin` and after `finish`.
        self._token: Token[Scope] | None = None

    # -- begin, capture, finish ------------------------------------------------------------------------

    def begin(self) -> Self:
        """Enter a fresh scope in the calling context, and begin a transaction if the request is sampled."""
        reporter = self._reporter
        if reporter.sessions is not None:
            self._started = time.time()
        self.scope, self._token = enter_scope(self)
        if reporter.sampler.enabled:
            try:
                self._begin_transaction()
            except Exception as problem:
                let_through(problem)
                reporter.pipeline.failed(problem, "transaction")
        return self

    def finish(self, error: BaseException | None = None) -> None:
        """End the request: capture the exception that escaped, record the outcome, leave the scope.

        Idempotent. To be called after the response was sent, where the framework allows it.

        Args:
            error: The exception that escaped from the app. Captured if it is an `Exception` for which
                `is_expected` returns False, and if it was not captured before.
        """
        token, self._token = self._token, None
        if token is None:
            return
        reporter = self._reporter
        try:
            if error is not None and isinstance(error, Exception) and not self._is_expected(error):
                self.capture(error)
            if self.transaction is not None:
                self._finish_transaction(self.transaction, error)
            # Only what a server does for a client counts as a session.
            if reporter.sessions is not None and self._op.endswith(".server"):
                reporter.sessions.record(self._started, 2 if self.crashed else 1 if self.errored else 0)
        except Exception as problem:
            let_through(problem)
            reporter.pipeline.failed(problem, None)
        finally:
            self.finished = True
            leave_scope(token)
            # The scope refers to its unit; this breaks the cycle, so that request and body are freed at once.
            del self.scope

    def capture(self, error: BaseException, *, handled: bool = False) -> str | None:
        """Report an exception of this request, such as one that the framework turned into a response.

        Args:
            error: The exception.
            handled: True if the app handled it. Otherwise the session counts as crashed, and without
                `capture_errors` the exception is not captured.

        Returns:
            The event's id if it was accepted; None otherwise, and if the exception was captured before.
        """
        if not handled:
            if not self._captures:
                return None
            self.crashed = True
        return self._reporter.capture_exception(error, mechanism=self._mechanism, handled=handled)

    def __enter__(self) -> Self:
        return self.begin() if self._token is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(error)

    # -- the transaction -------------------------------------------------------------------------------

    def _begin_transaction(self) -> None:
        trace = self._reporter.pipeline.tracing.trace_of(self)
        reason = self._reporter.sampler.decide(trace, self._sampling_facts)
        if reason is None:
            self.transaction = Transaction(trace, self._op, self._mechanism)
        else:
            self._reporter.pipeline.transport.record_lost_event(reason, item=_UNSAMPLED)

    def _sampling_facts(self) -> dict[str, Any]:
        """Return the argument of `traces_sampler`."""
        name, source = self.name() or ("", "custom")
        trace = self._reporter.pipeline.tracing.trace_of(self)
        return {
            "name": name,
            "source": source,
            "op": self._op,
            "parent_sampled": trace.parent_sampled,
            "request": self.request(),
        }

    def _finish_transaction(self, transaction: Transaction, error: BaseException | None) -> None:
        if self.status is not None:
            transaction.set_http_status(self.status)
        elif error is not None:
            escaped = isinstance(error, Exception)
            transaction.set_status("internal_error" if escaped else "cancelled")
        elif self._op != "http.server":
            transaction.set_status("ok")
        transaction.finish()
        if transaction.dropped:
            self._reporter.pipeline.transport.record_lost_event(
                LossReason.BUFFER_OVERFLOW, "span", quantity=transaction.dropped
            )

        # Fixed here: the route can't change any more, and several parts of the envelope contain it.
        name = self._final_name = self.name()

        def build() -> Event:
            event = self._reporter.pipeline.event("info")
            transaction.describe(event)
            set_name(event, *(name or ("<unlabeled transaction>", "custom")))
            return event

        self._reporter.pipeline.capture(build, {}, kind="transaction")
        # Spans begun from here on measure nothing; tasks that still run keep the trace.
        self.transaction = None

    # -- facts for events ------------------------------------------------------------------------------

    def note_error(self) -> None:
        """See `Unit.note_error`."""
        self.errored = True

    def header(self, name: str) -> str | None:
        """See `Unit.header`."""
        value = self._facts.header(name)
        return value if isinstance(value, str) else None

    def request(self) -> RequestInfo | None:
        """See `Unit.request`."""
        info = _call_integration(self._facts.describe, "request")
        return info if isinstance(info, RequestInfo) else None

    def name(self) -> tuple[str, str] | None:
        """See `Unit.name`."""
        return getattr(self, "_final_name", None) or _call_integration(self._current_name, "name")

    def user(self) -> Mapping[str, object] | None:
        """See `Unit.user`."""
        return _call_integration(self._facts.user, "user")

    def _current_name(self) -> tuple[str, str]:
        name, source = self._facts.named()
        return str(name), str(source)

    def _is_expected(self, error: BaseException) -> bool:
        try:
            return self._facts.is_expected(error)
        except Exception as problem:
            let_through(problem)
            log.warning("whether an exception was expected could not be told: %s", type(problem).__name__)
            return False


def _call_integration(callback: Callable[[], _T], what: str) -> _T | None:
    """Return `callback()`; None if it raises, which is logged: the event is sent anyway."""
    try:
        return callback()
    except Exception as problem:
        let_through(problem)
        log.warning("the %s of a request could not be told: %s", what, type(problem).__name__)
        return None
