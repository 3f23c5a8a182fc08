"""A check for django-health-check 4.8 and newer.

    HealthCheckView.as_view(checks=[..., "transport_kit_django.health_check.Transport"])

This module owns the translation of a status. The details, for permitted clients, are at the kit's own health
route.

Threads: the event loop's thread; the snapshot needs no I/O.
"""

from __future__ import annotations

import dataclasses

from health_check import HealthCheck
from health_check.exceptions import ServiceUnavailable, ServiceWarning

from transport_kit_django.conf import get_kit

__all__ = ["Transport"]


@dataclasses.dataclass
class Transport(HealthCheck):  # type: ignore[misc]  # the package has no types
    """Fails while nothing can be delivered without an intervention.

    Shows the reasons only with `HEALTH_DETAILS` set to `always`, as the page may be public.

    Args:
        warnings: True to fail for `warn` too. django-health-check answers 500 for a warning, so leave it off
            if a load balancer uses the page: an outage of the error server is no reason to take the site out
            of rotation.
    """

    warnings: bool = dataclasses.field(default=False, repr=False)

    async def run(self) -> None:
        kit = get_kit()
        health = kit.transport.health()
        if health.status == "pass":
            return
        text = f"error delivery says {health.status}"
        if kit.options.health_details == "always":
            text = "; ".join(health.reasons)
        if health.status == "fail":
            raise ServiceUnavailable(text)
        if self.warnings:
            raise ServiceWarning(text)
