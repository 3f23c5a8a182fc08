"""Helpers of the reporting tests: a reporter whose envelopes are stored, and readers of its items."""

from __future__ import annotations

from typing import Any

from transport_kit.config.options import ReporterOptions
from transport_kit.reporting import Reporter
from transport_kit.testing import CapturedTransport

TRACE = "771a43a4192642f0b136d5159a501700"
SPAN = "a0cfbde2bdff3adc"


class Kept(CapturedTransport):
    """A transport that stores envelopes and counts losses."""

    def lost(self) -> dict[str, dict[str, int]]:
        """The losses by reason and category."""
        return {reason: dict(counts) for reason, counts in self.health().discarded_by_category.items()}

    @property
    def transactions(self) -> list[dict[str, Any]]:
        """Return the payloads of all transactions, in order."""
        return self.payloads("transaction")

    def check_ins(self) -> list[dict[str, Any]]:
        """Return the payloads of all check-ins, in order."""
        return self.payloads("check_in")

    def logs(self) -> list[dict[str, Any]]:
        """Return all log items, in order."""
        return [log for container in self.payloads("log") for log in container["items"]]


def reporter_for(transport: Kept, **options: Any) -> Reporter:
    """Return a reporter with these options, none of which depends on the checkout."""
    return Reporter(transport, ReporterOptions(**{"detect_release": False, **options}))


def raised(error: BaseException) -> BaseException:
    """Return the exception with a traceback, as if it had been caught."""
    try:
        raise error
    except BaseException as caught:
        return caught
