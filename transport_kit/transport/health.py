"""Health: a snapshot of a transport's state, and its renderings.

This module owns the status (`pass`, `warn`, `fail`) and three renderings. No I/O, no framework; the transport
gathers the facts. None of them contains a key, a token or text from a server.

Source: docs/operations.md, Health; the format of `application/health+json` (draft-inadarei-api-health-check).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from transport_kit.envelope.losses import LossReason, Quantities
from transport_kit.transport.answers import ServerFacts
from transport_kit.transport.worker.limits import ALL
from transport_kit.transport.worker.outcome import WorkerFacts

__all__ = ["DROPS_MATTER_FOR", "Health", "LastError"]

#: Seconds during which a drop keeps the status at `warn`.
DROPS_MATTER_FOR = 60.0
#: Share of a queue's capacity above which the status is `warn`.
NEARLY_FULL = 0.8
#: Seconds that an envelope may wait without a sender thread. The next capture starts one, so a short gap is
#: normal.
UNATTENDED_FOR = 1.0
#: Seconds of `Health.paced` above which the status is `warn`.
PACED_FOR = 30.0


@dataclass(frozen=True, slots=True)
class LastError:
    """The last failed delivery.

    Attributes:
        kind: The class of failure, such as `timeout` or `http`.
        status: The HTTP status; None if there was no answer.
        age: Seconds since then.
    """

    kind: str
    status: int | None
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A snapshot of one transport in one process. Immutable; all ages and waits are in seconds.

    Attributes:
        state: `new`, `running`, `draining` or `closed`.
        worker_alive: True if a sender thread is alive; None if this kind of transport has none.
        captured: Quantity per data category.
        delivered: Quantity per data category.
        discarded_by_category: Quantity per data category, for each reason.
        pending: Quantity per data category that is neither delivered nor discarded.
        paced: For so long this process delays envelopes to limit its own rate: a bound such as `--max-rate`,
            or slow replay after an outage. None if it does not.
        limits: Seconds left per rate-limited category; `*` means all categories.
        last_drop_age: Since data was lost that should have been sent; None if none was.
        last_error: Kept after deliveries work again; see `failing`.
        failing: True if the last delivery failed.
        spool: Facts of the shared queue, host-wide figures included; None without one. Its `problems` are
            sentences.
        problem: The reason why nothing can be delivered without an intervention, or None.
        doubt: The reason to doubt that deliveries arrive where they should, or None.
        option_problems: Options that could not be used, each with the consequence, as sentences.
    """

    pid: int
    state: str
    kind: str
    worker_alive: bool | None = None
    senders: int = 0
    waiting: int = 0
    claimed: int = 0
    queue_capacity: int = 0
    queue_bytes: int = 0
    queue_bytes_capacity: int = 0
    oldest_pending_age: float | None = None
    last_success_age: float | None = None
    last_error: LastError | None = None
    failing: bool = False
    breaker: str = "closed"
    next_probe_in: float | None = None
    paced: float | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    captured: Mapping[str, int] = field(default_factory=dict)
    delivered: Mapping[str, int] = field(default_factory=dict)
    discarded_by_category: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    pending: Mapping[str, int] = field(default_factory=dict)
    last_drop_age: float | None = None
    spool: Mapping[str, Any] | None = None
    problem: str | None = None
    doubt: str | None = None
    option_problems: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        facts: WorkerFacts,
        server: ServerFacts,
        now: float,
        *,
        pid: int,
        kind: str,
        spool: Mapping[str, Any] | None,
        problem: str | None,
        option_problems: tuple[str, ...],
    ) -> Self:
        """Return the health of a transport with a worker.

        Args:
            facts: The worker's facts.
            server: The facts about the server.
            now: Monotonic seconds; the moment of `server`.
            pid: The process.
            kind: The transport's class.
            spool: See the attribute; likewise `option_problems`.
            problem: A problem of this process; one of the server takes precedence.
        """
        queue, totals, breaker = facts.queue, facts.totals, facts.breaker
        error = server.last_error
        return cls(
            pid=pid,
            state=facts.state.name.lower(),
            kind=kind,
            worker_alive=facts.senders > 0,
            senders=facts.senders,
            waiting=queue.waiting,
            claimed=queue.claimed,
            queue_capacity=queue.max_items,
            queue_bytes=queue.size,
            queue_bytes_capacity=queue.max_bytes,
            oldest_pending_age=_since(queue.oldest_put_at, now),
            last_success_age=_since(server.last_success, now),
            last_error=None if error is None else LastError(error[0], error[1], now - error[2]),
            failing=server.failing,
            breaker=breaker.state,
            next_probe_in=None if breaker.state == "closed" else max(0.0, breaker.next_probe - now),
            limits={category: until - now for category, until in server.limits.items()},
            captured=totals.captured,
            delivered=totals.delivered,
            discarded_by_category=totals.discarded,
            pending=totals.pending,
            last_drop_age=_since(facts.last_drop, now),
            spool=spool,
            problem=server.problem or problem,
            doubt=server.doubt,
            option_problems=option_problems,
        )

    @classmethod
    def combine(cls, healths: Iterable[Health]) -> Health:
        """Return one health for several transports of this process: sums, and the worst of other figures.

        `spool`, `problem`, `limits` and the last error are left out: the caller knows whose they are. Without
        any health the result has no worker and no figures.
        """
        parts = list(healths)
        alive = [part.worker_alive for part in parts]
        return cls(
            pid=os.getpid(),
            state="running",
            kind=cls.__name__,
            worker_alive=all(alive) if alive else None,
            senders=sum(part.senders for part in parts),
            waiting=sum(part.waiting for part in parts),
            claimed=sum(part.claimed for part in parts),
            queue_capacity=sum(part.queue_capacity for part in parts),
            queue_bytes=sum(part.queue_bytes for part in parts),
            queue_bytes_capacity=sum(part.queue_bytes_capacity for part in parts),
            oldest_pending_age=_known(max, (part.oldest_pending_age for part in parts)),
            last_success_age=_known(min, (part.last_success_age for part in parts)),
            breaker="closed" if all(part.breaker == "closed" for part in parts) else "open",
            next_probe_in=_known(min, (part.next_probe_in for part in parts)),
            paced=_known(max, (part.paced for part in parts)),
            captured=_sum(part.captured for part in parts),
            delivered=_sum(part.delivered for part in parts),
            discarded_by_category=_sum_by_reason(part.discarded_by_category for part in parts),
            pending=_sum(part.pending for part in parts),
            last_drop_age=_known(min, (part.last_drop_age for part in parts)),
        )

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons why the status is not `pass`, most serious first; empty if it is."""
        reasons = []
        if self.problem is not None:
            reasons.append(" ".join(self.problem.split()))  # each is one line of `as_text`
        reasons += [
            f"an option can't be used: {' '.join(problem.split())}"
            for problem in self.option_problems
            if problem != self.problem
        ]
        if self.state == "closed":
            reasons.append("the transport is closed")
        if self._is_unattended:
            reasons.append("envelopes wait and no sender thread is alive")
        if self.spool is not None:
            reasons.extend(self.spool.get("problems", ()))
        if self.failing:
            cause = ""
            if self.last_error is not None:
                status = "" if self.last_error.status is None else f" {self.last_error.status}"
                cause = f": {self.last_error.kind}{status}"
            reasons.append(f"deliveries fail{cause}")
        if self.doubt is not None:
            reasons.append(self.doubt)
        if self._dropped_lately and (limited := self._limits_with_losses()):
            reasons.append(f"rate limited: {', '.join(limited)}")
        if self.paced is not None and self.paced > PACED_FOR:
            reasons.append(f"paced: what waits goes out over {self.paced:.0f} s")
        if self._fill > NEARLY_FULL:
            reasons.append(f"the queue is {self._fill:.0%} full")
        if self._dropped_lately:
            reasons.append(f"items were dropped {self.last_drop_age:.0f} s ago")
        return tuple(reasons)

    @property
    def discarded(self) -> dict[str, int]:
        """Quantity per reason, over all categories."""
        return {reason: sum(totals.values()) for reason, totals in self.discarded_by_category.items()}

    @property
    def status(self) -> str:
        """`fail` if nothing can be delivered without an intervention, `warn` if there is another reason."""
        if self.problem is not None or self.state == "closed" or self._is_unattended:
            return "fail"
        return "warn" if self.reasons else "pass"

    @property
    def _dropped_lately(self) -> bool:
        return self.last_drop_age is not None and self.last_drop_age < DROPS_MATTER_FOR

    def _limits_with_losses(self) -> list[str]:
        """Return the limits in force that discarded something; others limit what this app never sends."""
        lost: set[str] = set()
        for reason in (LossReason.RATELIMIT_BACKOFF, LossReason.RATE_LIMITED):
            lost.update(self.discarded_by_category.get(reason, ()))
        return sorted(category for category in self.limits if category in lost or (category == ALL and lost))

    @property
    def _is_unattended(self) -> bool:
        oldest = self.oldest_pending_age
        return self.worker_alive is False and oldest is not None and oldest > UNATTENDED_FOR

    @property
    def _fill(self) -> float:
        items = (self.waiting + self.claimed) / self.queue_capacity if self.queue_capacity else 0.0
        size = self.queue_bytes / self.queue_bytes_capacity if self.queue_bytes_capacity else 0.0
        return max(items, size)

    def as_dict(self) -> dict[str, Any]:
        """Return all facts as plain values, for any JSON encoder."""
        return {
            "status": self.status,
            "reasons": list(self.reasons),
            "scope": "process",
            "pid": self.pid,
            "kind": self.kind,
            "state": self.state,
            "worker_alive": self.worker_alive,
            "senders": self.senders,
            "waiting": self.waiting,
            "claimed": self.claimed,
            "queue_capacity": self.queue_capacity,
            "queue_bytes": self.queue_bytes,
            "queue_bytes_capacity": self.queue_bytes_capacity,
            "oldest_pending_age": _rounded(self.oldest_pending_age),
            "last_success_age": _rounded(self.last_success_age),
            "last_error": None
            if self.last_error is None
            else {
                "kind": self.last_error.kind,
                "status": self.last_error.status,
                "age": _rounded(self.last_error.age),
            },
            "breaker": self.breaker,
            "next_probe_in": _rounded(self.next_probe_in),
            "paced": _rounded(self.paced),
            "limits": {category: _rounded(left) for category, left in self.limits.items()},
            "captured": dict(self.captured),
            "delivered": dict(self.delivered),
            "discarded": {reason: dict(counts) for reason, counts in self.discarded_by_category.items()},
            "pending": dict(self.pending),
            "last_drop_age": _rounded(self.last_drop_age),
            "spool": None if self.spool is None else dict(self.spool),
        }

    def as_health_json(self, *, details: bool = True) -> dict[str, Any]:
        """Return the body of `application/health+json`; without `details` only the status."""
        if not details:
            return {"status": self.status}
        facts = self.as_dict()
        checks: dict[str, list[dict[str, Any]]] = {
            "transport:state": [{"componentType": "component", "observedValue": self.state}],
            "worker:alive": [{"componentType": "component", "observedValue": self.worker_alive}],
            "queue:items": [_measure(self.waiting + self.claimed, "items", self.queue_capacity)],
            "queue:size": [_measure(self.queue_bytes, "bytes", self.queue_bytes_capacity)],
            "queue:oldestAge": [_measure(facts["oldest_pending_age"], "s")],
            "delivery:lastSuccessAge": [_measure(facts["last_success_age"], "s")],
            "delivery:lastError": [{"componentType": "system", "observedValue": facts["last_error"]}],
            "delivery:breaker": [
                {
                    "componentType": "system",
                    "observedValue": self.breaker,
                    "nextProbeIn": facts["next_probe_in"],
                }
            ],
            "delivery:paced": [_measure(facts["paced"], "s")],
            "delivery:limits": [{"componentType": "system", "observedValue": facts["limits"]}],
            "items:captured": [_totals(facts["captured"])],
            "items:delivered": [_totals(facts["delivered"])],
            "items:discarded": [_totals(facts["discarded"])],
            "items:pending": [_totals(facts["pending"])],
        }
        body: dict[str, Any] = {"status": self.status, "scope": "process", "pid": self.pid, "checks": checks}
        if self.spool is not None:
            checks["spool:state"] = [{"componentType": "datastore", "observedValue": facts["spool"]}]
        if self.reasons:
            body["output"] = "; ".join(self.reasons)
        return body

    def as_text(self, *, details: bool = True) -> str:
        """Return one line per fact, `name: value`, for people and for grep."""
        lines = [f"status: {self.status}"]
        if not details:
            return lines[0] + "\n"
        lines += [f"reason: {reason}" for reason in self.reasons]
        lines += [
            f"process: {self.pid}",
            f"state: {self.state}",
            f"worker alive: {'no worker' if self.worker_alive is None else _yes_or_no(self.worker_alive)}",
            f"queue: {self.waiting + self.claimed} of {self.queue_capacity} envelopes, "
            f"{self.queue_bytes} of {self.queue_bytes_capacity} bytes",
            f"oldest pending: {_age(self.oldest_pending_age)}",
            f"last success: {_age(self.last_success_age, ' ago')}",
            f"breaker: {self.breaker}"
            + ("" if self.next_probe_in is None else f", next probe in {self.next_probe_in:.1f} s"),
        ]
        if self.paced is not None:
            lines.append(f"paced: for {self.paced:.1f} s")
        if self.spool is not None:
            lines += [
                f"spool {name.replace('_', ' ')}: {'none' if value is None else value}"
                for name, value in self.spool.items()
                if name != "problems"
            ]
        if self.last_error is not None:
            status = "" if self.last_error.status is None else f" {self.last_error.status}"
            lines.append(f"last error: {self.last_error.kind}{status}, {_age(self.last_error.age, ' ago')}")
        lines += [f"limited: {category} for {left:.0f} s" for category, left in sorted(self.limits.items())]
        for name, totals in (
            ("captured", self.captured),
            ("delivered", self.delivered),
            ("pending", self.pending),
        ):
            lines += [f"{name}: {category} {quantity}" for category, quantity in sorted(totals.items())]
        for reason, totals in sorted(self.discarded_by_category.items()):
            lines += [
                f"discarded: {reason} {category} {quantity}" for category, quantity in sorted(totals.items())
            ]
        return "\n".join(lines) + "\n"


def _known(choose: Callable[[Iterable[float]], float], values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return choose(known) if known else None


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return Quantities.sum([Quantities(each.items()) for each in counts]).by_category


def _sum_by_reason(counts: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    parts: dict[str, list[Mapping[str, int]]] = {}
    for by_reason in counts:
        for reason, by_category in by_reason.items():
            parts.setdefault(reason, []).append(by_category)
    return {reason: _sum(each) for reason, each in parts.items()}


def _measure(value: float | None, unit: str, capacity: int | None = None) -> dict[str, Any]:
    measure: dict[str, Any] = {
        "componentType": "component",
        "observedValue": value,
        "observedUnit": unit,
    }
    if capacity is not None:
        measure["capacity"] = capacity
    return measure


def _totals(totals: Mapping[str, Any]) -> dict[str, Any]:
    return {"componentType": "component", "observedValue": totals}


def _since(moment: float | None, now: float) -> float | None:
    return None if moment is None else now - moment


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _age(seconds: float | None, suffix: str = "") -> str:
    return "none" if seconds is None else f"{seconds:.1f} s{suffix}"


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"
