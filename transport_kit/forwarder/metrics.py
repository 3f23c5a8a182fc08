"""Health as Prometheus metrics.

This module owns the names of the metrics. The package prometheus_client (extra `prometheus`) writes them; it
is imported only if metrics are requested.

Threads: any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from transport_kit.transport.health import Health

__all__ = ["metrics_writer"]

#: Name, help text, and a function that reads the value from a `Health`.
_GAUGES: Final[tuple[tuple[str, str, Callable[[Health], float | None]], ...]] = (
    ("waiting_envelopes", "Envelopes that wait.", lambda health: health.waiting),
    ("in_flight_envelopes", "Envelopes in the hands of senders.", lambda health: health.claimed),
    ("queue_bytes", "Bytes held.", lambda health: health.queue_bytes),
    ("queue_capacity_bytes", "Bytes that may be held.", lambda health: health.queue_bytes_capacity),
    (
        "oldest_pending_seconds",
        "Age of the oldest envelope that waits; 0 without one.",
        lambda health: health.oldest_pending_age or 0.0,
    ),
    (
        "last_success_seconds",
        "Seconds since a delivery succeeded; absent before the first.",
        lambda health: health.last_success_age,
    ),
    ("senders", "Threads that deliver.", lambda health: health.senders),
    ("failing", "1 while deliveries fail.", lambda health: float(health.failing)),
    ("breaker_open", "1 while the breaker is not closed.", lambda health: float(health.breaker != "closed")),
    (
        "paced_seconds",
        "Seconds for which the forwarder delays envelopes itself; 0 if it does not.",
        lambda health: health.paced or 0.0,
    ),
    (
        "draining",
        "1 while this process drains the spool.",
        lambda health: float(bool((health.spool or {}).get("draining"))),
    ),
    ("dead_letters", "Dead letters.", lambda health: (health.spool or {}).get("dead_letters", 0)),
)
_STATUSES: Final = ("pass", "warn", "fail")


def metrics_writer(healths: Callable[[], Mapping[str, Health]]) -> Callable[[], tuple[str, bytes]]:
    """Return a function that renders metrics in Prometheus's text format.

    Args:
        healths: Returns the health of each identity; called at each scrape.

    Returns:
        A function without arguments that returns the content type and the body.

    Raises:
        ModuleNotFoundError: prometheus_client is not installed; the text names the install line.
    """
    try:
        from prometheus_client import CollectorRegistry, exposition
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "metrics need the package prometheus_client: pip install 'transport-kit[prometheus]'",
            name=error.name,
        ) from error

    class Collector:
        def describe(self) -> list[Metric]:
            return []  # the registry needs no description, as the names never change

        def collect(self) -> Iterator[Metric]:
            snapshot = healths()
            for name, text, read in _GAUGES:
                gauge = GaugeMetricFamily(f"transport_kit_{name}", text, labels=["identity"])
                for identity, health in snapshot.items():
                    value = read(health)
                    if value is not None:
                        gauge.add_metric([identity], value)
                yield gauge
            status = GaugeMetricFamily(
                "transport_kit_health", "1 for the status that holds.", labels=["identity", "status"]
            )
            for identity, health in snapshot.items():
                for each in _STATUSES:
                    status.add_metric([identity, each], float(health.status == each))
            yield status
            limited = GaugeMetricFamily(
                "transport_kit_limited_seconds", "Left of a rate limit.", labels=["identity", "category"]
            )
            delivered = CounterMetricFamily(
                "transport_kit_delivered", "Quantity delivered.", labels=["identity", "category"]
            )
            discarded = CounterMetricFamily(
                "transport_kit_discarded", "Quantity given up.", labels=["identity", "reason", "category"]
            )
            for identity, health in snapshot.items():
                for category, left in health.limits.items():
                    limited.add_metric([identity, category], left)
                for category, n in health.delivered.items():
                    delivered.add_metric([identity, category], n)
                for reason, counts in health.discarded_by_category.items():
                    for category, n in counts.items():
                        discarded.add_metric([identity, reason, category], n)
            yield limited
            yield delivered
            yield discarded

    registry = CollectorRegistry()
    registry.register(Collector())

    def write() -> tuple[str, bytes]:
        return exposition.CONTENT_TYPE_LATEST, exposition.generate_latest(registry)

    return write
