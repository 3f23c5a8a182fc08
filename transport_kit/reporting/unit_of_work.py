"""Unit of work: a request, a task or a job, with its breadcrumbs, trace, transaction and outcome.

Nested scopes share their unit. The unit that integrations begin and finish is in `served_request.py`.

Threads: a unit is shared by all threads and tasks that run in its context. Each change is one atomic step.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from transport_kit.reporting.request_info import RequestInfo
from transport_kit.reporting.tracing.spans import Transaction
from transport_kit.reporting.tracing.trace import Trace

__all__ = ["MAX_BREADCRUMBS", "Unit"]

#: Breadcrumbs that a unit keeps; the oldest is dropped first.
MAX_BREADCRUMBS: Final = 100

_VARIABLES: Final = {"sentry-trace": "SENTRY_TRACE", "baggage": "SENTRY_BAGGAGE"}

Breadcrumb = dict[str, Any]


class Unit:
    """The unit of work outside of requests, such as a script, a shell or a background thread.

    Attributes:
        errored: True if an event of level `error` or `fatal` was captured in it; requests only.
        crashed: True if an exception escaped from it.
        finished: True after its end; tasks and threads started in its context may still run.
        transaction: The running transaction; None if it is not sampled or has ended.
    """

    __slots__ = ("__weakref__", "_breadcrumbs", "_settled", "crashed", "errored", "finished", "transaction")

    def __init__(self) -> None:
        self.errored = False
        self.crashed = False
        self.finished = False
        self.transaction: Transaction | None = None
        # At most one item, set by `dict.setdefault`, which is atomic: all threads see the same trace.
        self._settled: dict[str, Trace] = {}
        # Made with the first breadcrumb: most requests have none.
        self._breadcrumbs: deque[Breadcrumb] | None = None

    def add_breadcrumb(self, breadcrumb: Breadcrumb) -> None:
        """Add a breadcrumb, already bounded; sets its `timestamp` if it has none."""
        ring = self._breadcrumbs
        if ring is None:
            ring = self._breadcrumbs = deque(maxlen=MAX_BREADCRUMBS)
        breadcrumb.setdefault("timestamp", time.time())
        ring.append(breadcrumb)

    def breadcrumbs(self) -> list[Breadcrumb]:
        """Return copies of the breadcrumbs, oldest first."""
        ring = self._breadcrumbs
        return [] if ring is None else [crumb.copy() for crumb in ring.copy()]

    def note_error(self) -> None:
        """Record that an event of level `error` or `fatal` was captured. Does nothing outside of requests."""

    @property
    def trace(self) -> Trace | None:
        """The unit's trace; None until `settle_trace`."""
        return self._settled.get("trace")

    def settle_trace(self, trace: Trace) -> Trace:
        """Set the unit's trace unless it has one; return the unit's trace."""
        return self._settled.setdefault("trace", trace)

    def header(self, name: str) -> str | None:
        """Return a trace header that the caller sent; for a process, from its environment."""
        return os.environ.get(_VARIABLES.get(name, ""))

    def request(self) -> RequestInfo | None:
        """Return a new description of the request being served; None if there is none."""
        return None

    def name(self) -> tuple[str, str] | None:
        """Return the unit's name and the name's source (`url`, `route`, …); None if it has no name."""
        return None

    def user(self) -> Mapping[str, object] | None:
        """Return the user as the integration knows it, without I/O; None if unknown."""
        return None
