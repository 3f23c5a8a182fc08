"""Unit: one piece of work that the app does (a request, a task, a job), and what happened in it so far.

Owns the ring of breadcrumbs, the trace, the running transaction and whether an error was reported.
Scopes within each other share their unit. `served_request.py` has the unit that integrations begin and
finish.

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

#: Breadcrumbs that a unit keeps; the oldest goes first.
MAX_BREADCRUMBS: Final = 100

_VARIABLES: Final = {"sentry-trace": "SENTRY_TRACE", "baggage": "SENTRY_BAGGAGE"}

Breadcrumb = dict[str, Any]


class Unit:
    """The work outside of any request: what a script, a shell or a thread of its own does.

    Attributes:
        errored: Whether an event of level `error` or `fatal` was captured in it; of requests only.
        crashed: Whether an exception escaped from it.
        finished: Whether it has ended; what still runs in its context outlives it.
        transaction: The transaction that runs; None when it is not sampled, or has ended.
    """

    __slots__ = ("__weakref__", "_breadcrumbs", "_settled", "crashed", "errored", "finished", "transaction")

    def __init__(self) -> None:
        self.errored = False
        self.crashed = False
        self.finished = False
        self.transaction: Transaction | None = None
        # At most one item; `setdefault` on a dict is atomic, so that all threads see one trace.
        self._settled: dict[str, Trace] = {}
        # Made with the first breadcrumb: most requests leave none.
        self._breadcrumbs: deque[Breadcrumb] | None = None

    def add_breadcrumb(self, breadcrumb: Breadcrumb) -> None:
        """Keep a breadcrumb, already bounded; sets its `timestamp` when it has none."""
        ring = self._breadcrumbs
        if ring is None:
            ring = self._breadcrumbs = deque(maxlen=MAX_BREADCRUMBS)
        breadcrumb.setdefault("timestamp", time.time())
        ring.append(breadcrumb)

    def breadcrumbs(self) -> list[Breadcrumb]:
        """The breadcrumbs, oldest first; the caller's own copies."""
        ring = self._breadcrumbs
        return [] if ring is None else [crumb.copy() for crumb in ring.copy()]

    def note_error(self) -> None:
        """An event of level `error` or `fatal` was captured. A process has no outcome that this would be."""

    @property
    def trace(self) -> Trace | None:
        """The trace it takes part in; None until somebody asks for it."""
        return self._settled.get("trace")

    def settle_trace(self, trace: Trace) -> Trace:
        """Take part in this trace, or in the one that was settled before; the one it is."""
        return self._settled.setdefault("trace", trace)

    def header(self, name: str) -> str | None:
        """What the caller sent with the work; for a process by the environment."""
        return os.environ.get(_VARIABLES.get(name, ""))

    def request(self) -> RequestInfo | None:
        """The request being served, described anew; None when there is none."""
        return None

    def name(self) -> tuple[str, str] | None:
        """What runs, and where the name comes from (`url`, `route`, …); None when it has no name."""
        return None

    def user(self) -> Mapping[str, object] | None:
        """Who the integration says the user is, looked up without I/O; None when nobody knows."""
        return None
