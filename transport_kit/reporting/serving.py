"""Serving: what an integration begins with each request and finishes with its end.

Owns the order of things around a request: a fresh scope, the trace, the transaction, the exception that
escapes, the session's outcome. Calls the integration back only when something is to be told, so that a
request in which nothing happens pays for a scope and little more.

Threads: begun and finished on any thread, also different ones; finished once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from transport_kit.log import log
from transport_kit.reporting.request import RequestInfo
from transport_kit.reporting.scope import Scope, enter_scope, leave_scope
from transport_kit.reporting.unit import Unit

if TYPE_CHECKING:
    from transport_kit.reporting.reporter import Reporter

__all__ = ["ServedRequest"]

_T = TypeVar("_T")


class ServedRequest(Unit):
    """One request, task or job while it is served; made by `Reporter.request`.

    Use it as a context manager, or call `begin` and `finish`. Neither raises.

    Attributes:
        scope: The fresh scope of this request, from `begin` on.
        status: The response's HTTP status, set by the integration before `finish`; None when unknown.
    """

    __slots__ = (
        "_begun",
        "_describe",
        "_expected",
        "_header",
        "_mechanism",
        "_named",
        "_op",
        "_reporter",
        "_token",
        "_user",
        "scope",
        "status",
    )

    scope: Scope

    def __init__(
        self,
        reporter: Reporter,
        describe: Callable[[], RequestInfo | None] | None,
        named: Callable[[], tuple[str, str]],
        header: Callable[[str], str | None] | None,
        user: Callable[[], Mapping[str, object] | None] | None,
        expected: Callable[[BaseException], bool] | None,
        op: str,
        mechanism: str,
    ) -> None:
        super().__init__()
        self.status: int | None = None
        self._reporter = reporter
        self._describe = describe
        self._named = named
        self._header = header
        self._user = user
        self._expected = expected
        self._op = op
        self._mechanism = mechanism
        self._token: Token[Scope] | None = None
        self._begun = False

    # -- what integrations call ------------------------------------------------------------------------

    def begin(self) -> Self:
        """Enter a fresh scope, in the calling context."""
        self._begun = True
        self.scope, self._token = enter_scope(self)
        return self

    def finish(self, error: BaseException | None = None) -> None:
        """End the request: report what escaped from it, record its outcome, leave the scope.

        Idempotent. To be called after the response was handed over, where the framework allows it.

        Args:
            error: The exception that escaped from the app. Captured when it is an `Exception` that
                `expected` doesn't know and that was not captured before.
        """
        if not self._begun:
            return
        self._begun = False
        try:
            if error is not None and isinstance(error, Exception) and not self._is_expected(error):
                self.capture(error)
        finally:
            token, self._token = self._token, None
            leave_scope(token)

    def capture(self, error: BaseException, *, handled: bool = False) -> str | None:
        """Report an exception of this request, such as one that the framework turned into a response.

        Args:
            handled: Whether the app dealt with it; otherwise the session has crashed.

        Returns:
            The event's id when accepted; None otherwise, and when it was captured before.
        """
        if not handled:
            self.crashed = True
        return self._reporter.capture_exception(error, mechanism=self._mechanism, handled=handled)

    def __enter__(self) -> Self:
        return self.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(error)

    # -- what events ask -------------------------------------------------------------------------------

    def request(self) -> RequestInfo | None:
        """See `Unit.request`."""
        return None if self._describe is None else _asked(self._describe, "request")

    def name(self) -> tuple[str, str] | None:
        """See `Unit.name`."""
        return _asked(self._named, "name")

    def user(self) -> Mapping[str, object] | None:
        """See `Unit.user`."""
        return None if self._user is None else _asked(self._user, "user")

    def _is_expected(self, error: BaseException) -> bool:
        if self._expected is None:
            return False
        try:
            return self._expected(error)
        except Exception as problem:
            log.warning("whether an exception was expected could not be told: %s", type(problem).__name__)
            return False


def _asked(callback: Callable[[], _T], what: str) -> _T | None:
    """What an integration says; None when it fails: the event is worth more than its request."""
    try:
        return callback()
    except Exception as problem:
        log.warning("the %s of a request could not be told: %s", what, type(problem).__name__)
        return None
