"""Refusals: answers that may be the fault of one envelope, or concern all of them.

A 500 may be caused by an envelope that the server can't stand, or be an outage. Only several in a row, for
different envelopes, show which. Owns the numbers of that rule.

Threads: instances never change. The `Dispatcher` replaces its own while holding its `StateLock`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from transport_kit.transport.worker.outcome import Outcome

__all__ = ["FAULT", "MAX_FAULTS", "OUTAGE_AFTER", "Refusals"]

#: The status of a fault inside the server.
FAULT: Final = 500
#: Number of answers with `FAULT` after which an envelope is given up.
MAX_FAULTS: Final = 5
#: Number of different envelopes that got `FAULT` in a row after which the server counts as failing.
OUTAGE_AFTER: Final = 3


@dataclass(frozen=True, slots=True)
class Refusals:
    """The refusals since the last other answer.

    Attributes:
        faults: Ids of the claims that got `FAULT`; no more than `OUTAGE_AFTER` of them.
    """

    faults: frozenset[int] = frozenset()

    def after(self, outcome: Outcome, claim_id: int) -> Refusals:
        """Return the refusals after an outcome. Only an answer that is no refusal ends the row."""
        if outcome.refusal == FAULT:
            return self if len(self.faults) >= OUTAGE_AFTER else Refusals(self.faults | {claim_id})
        return Refusals() if outcome.answered else self

    def judge(self, outcome: Outcome, faults: int) -> Outcome:
        """Return the outcome to act on, for the outcome that `after` was called with.

        Args:
            outcome: The outcome of the delivery alone.
            faults: Number of answers with `FAULT` to this envelope, including this one.
        """
        if outcome.refusal != FAULT:
            return outcome
        # Without an outage the breaker is left alone: only this envelope is delayed.
        answered = False if len(self.faults) >= OUTAGE_AFTER else None
        return replace(outcome, again=outcome.again and faults < MAX_FAULTS, answered=answered)
