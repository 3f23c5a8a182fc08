"""Trace: the identity of one trace, as a unit of work takes part in it.

Owns its ids, its random number, and when its dynamic sampling context (DSC) is frozen: when it arrives from
outside, or when it first leaves this process. How it travels is `propagation.py`.

Threads: a trace is shared by all threads of its unit of work; what is decided once is decided atomically.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from transport_kit.envelope.ids import random_bytes

__all__ = ["new_span_id", "Trace"]


class Trace:
    """One trace, as a unit of work takes part in it.

    Attributes:
        trace_id: 32 hex digits.
        span_id: 16 hex digits: the unit's own span, recorded or not.
        parent_span_id: The caller's span; None at the head of the trace.
        parent_sampled: What the caller decided; None when it left it open, and at the head.
        sample_rand: In [0, 1), the same for the whole trace; below the sample rate means sampled.
        sampled: What is decided here; None when it isn't, such as without tracing.
        sample_rate: The rate it was decided with; None when it wasn't.
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
        # As it arrived, under no key; else as it was made under each public key: two reporters with DSNs of
        # their own may share a process. `setdefault` on a dict is atomic.
        self._frozen: dict[str, Mapping[str, str]] = {} if frozen is None else {"": frozen}
        drawn = int.from_bytes(chance[24:]) / 2.0**64
        self.sample_rand = _rand(frozen, parent_sampled, drawn) if frozen else _six_decimals(drawn)

    def header(self, span_id: str | None = None) -> str:
        """`sentry-trace` for a call made by `span_id`, by default the unit's own span."""
        flag = {True: "-1", False: "-0", None: ""}[self.sampled]
        return f"{self.trace_id}-{span_id or self.span_id}{flag}"

    def frozen(self, key: str, make: Callable[[], Mapping[str, str]]) -> Mapping[str, str]:
        """The DSC: as it arrived, or as `make` made it the first time it was asked for under this key."""
        found = self._frozen.get("")
        if found is None:
            found = self._frozen.get(key)
        return self._frozen.setdefault(key, make()) if found is None else found


def new_span_id() -> str:
    """16 hex digits, never all zeros in the life of this universe."""
    return random_bytes(8).hex()


def _rand(dsc: Mapping[str, str], sampled: bool | None, drawn: float) -> float:
    """`sample_rand`: as it arrived, or drawn such that it agrees with the caller's rate and decision."""
    given = _fraction(dsc.get("sample_rand"))
    if given is not None and given < 1.0:
        return given
    rate = _fraction(dsc.get("sample_rate"))
    if rate is not None and sampled is not None:
        if not sampled:
            # Upwards: six decimals must not bring it below the rate.
            return min(math.ceil((rate + drawn * (1.0 - rate)) * 1e6) / 1e6, 0.999999)
        drawn *= rate
    return _six_decimals(drawn)


def _six_decimals(drawn: float) -> float:
    """As it is written; downwards, so that it stays below 1."""
    return math.floor(drawn * 1e6) / 1e6


def _fraction(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0.0 <= value <= 1.0 else None
