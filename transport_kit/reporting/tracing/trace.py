"""Trace: ids, random number, sampling decision and frozen sampling context of a trace.

The dynamic sampling context (DSC) is frozen when it arrives from outside, or when it first leaves this
process. `propagation.py` has the headers.

Threads: a trace is shared by all threads of its unit of work; the DSC is frozen in one atomic step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from transport_kit.envelope.ids import random_bytes

__all__ = ["new_span_id", "Trace"]


class Trace:
    """The part of one unit of work in a trace.

    Attributes:
        trace_id: 32 hex digits.
        span_id: 16 hex digits: the unit's own span, recorded or not.
        parent_span_id: The caller's span; None at the head of the trace.
        parent_sampled: The caller's decision; None if it made none, and at the head.
        sample_rand: In [0, 1), the same for the whole trace; below the sample rate means sampled.
        sampled: The decision for this unit; None if none was made, such as without tracing.
        sample_rate: The rate of that decision; None if none was made.
    """

    __slots__ = (
        "_frozen",
        "parent_sampled",
        "parent_span_id",
        "sample_rand",
        "sample_rate",
        "sampled",
        "span_id",
        "trace_id",
    )

    def __init__(
        self,
        trace_id: str | None = None,
        parent_span_id: str | None = None,
        parent_sampled: bool | None = None,
        frozen: Mapping[str, str] | None = None,
    ) -> None:
        chance = random_bytes(32)
        self.trace_id = trace_id or chance[:16].hex()
        self.span_id = chance[16:24].hex()
        self.parent_span_id = parent_span_id
        self.parent_sampled = parent_sampled
        self.sampled: bool | None = parent_sampled
        self.sample_rate: float | None = None
        # The received DSC under the key ""; else one DSC per public key, as two reporters with different DSNs
        # may share a process. `dict.setdefault` is atomic.
        self._frozen: dict[str, Mapping[str, str]] = {} if frozen is None else {"": frozen}
        random_number = int.from_bytes(chance[24:]) / 2.0**64
        self.sample_rand = (
            _rand(frozen, parent_sampled, random_number) if frozen else _six_decimals(random_number)
        )

    def header(self, span_id: str | None = None) -> str:
        """Return `sentry-trace` for a call made by `span_id`, by default by the unit's own span."""
        flag = {True: "-1", False: "-0", None: ""}[self.sampled]
        return f"{self.trace_id}-{span_id or self.span_id}{flag}"

    def frozen(self, key: str, make: Callable[[], Mapping[str, str]]) -> Mapping[str, str]:
        """Return the DSC: the received one, or the first one that `make` returned for this key."""
        dsc = self._frozen.get("")
        if dsc is None:
            dsc = self._frozen.get(key)
        return self._frozen.setdefault(key, make()) if dsc is None else dsc


def new_span_id() -> str:
    """Return 16 random hex digits. All zeros, an invalid id, is too unlikely to check for."""
    return random_bytes(8).hex()


def _rand(dsc: Mapping[str, str], sampled: bool | None, random_number: float) -> float:
    """Return the received `sample_rand`, or one that agrees with the caller's rate and decision."""
    received = _fraction(dsc.get("sample_rand"))
    if received is not None and received < 1.0:
        return received
    rate = _fraction(dsc.get("sample_rate"))
    if rate is not None and sampled is not None:
        if not sampled:
            # Rounded up: six decimals must not bring it below the rate.
            return min(math.ceil((rate + random_number * (1.0 - rate)) * 1e6) / 1e6, 0.999999)
        random_number *= rate
    return _six_decimals(random_number)


def _six_decimals(random_number: float) -> float:
    """Round down to the six decimals that are sent, so that it stays below 1."""
    return math.floor(random_number * 1e6) / 1e6


def _fraction(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0.0 <= value <= 1.0 else None
