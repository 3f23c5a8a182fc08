"""CPU time of reporting an exception, for the thread that reports it; compared with sentry-sdk if installed.

Run: python -m tests.benchmarks.figures exception
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator

#: Alternating turns, so that a change in the machine's speed affects all alike, and captures in each. A turn
#: of sentry-sdk, which takes twenty times as long, has fewer. The first turn fills caches and does not count.
TURNS = 16
CAPTURES = 20
PEER_CAPTURES = 6


def fail(depth: int = 19) -> None:
    """Raise from the last of 20 frames, each with variables of a usual size."""
    items = list(range(50))
    table = {f"key{number}": number for number in range(20)}
    text = "x" * 200
    if depth == 0:
        raise ValueError("boom")
    fail(depth - 1)
    del items, table, text


def failures() -> Iterator[ValueError]:
    """Yield exceptions with tracebacks, each a new one."""
    while True:
        try:
            fail()
        except ValueError as error:
            yield error


def cpu(act: Callable[[], object]) -> float:
    """Return the microseconds of this thread's CPU that the call takes, the clock's own included."""
    began = time.thread_time_ns()
    act()
    return (time.thread_time_ns() - began) / 1e3


def median(figures: list[float]) -> float:
    """Return the median without the clock's own time."""
    return statistics.median(figures) - statistics.median(cpu(lambda: None) for _ in range(1000))


def exception(dsn: str) -> dict[str, float]:
    """Measure `capture_exception` with 20 frames, each with a list of 50, a dict of 20 and a long text."""
    from transport_kit import Envelope, make_transport
    from transport_kit.config.options import ReporterOptions
    from transport_kit.reporting import Reporter
    from transport_kit.transport.local import NullTransport

    errors = failures()
    with make_transport(dsn) as transport:
        in_transport: list[float] = []

        class Timed(NullTransport):
            """A transport that passes envelopes to the real one and measures that call."""

            def capture_envelope(self, envelope: Envelope) -> bool:
                in_transport.append(cpu(lambda: transport.capture_envelope(envelope)))
                return True

        options = ReporterOptions(detect_release=False)
        capture = Reporter(transport, options).capture_exception
        timed = Reporter(Timed(), options).capture_exception
        peer = _sentry(dsn)
        spent: list[float] = []
        peers: list[float] = []
        for turn in range(TURNS):
            if turn == 1:
                for figures in (spent, in_transport, peers):
                    figures.clear()
            spent += (cpu(functools.partial(capture, next(errors))) for _ in range(CAPTURES))
            assert transport.flush(10)
            for _ in range(CAPTURES):
                timed(next(errors))
            assert transport.flush(10)
            if peer is not None:
                peers += (cpu(functools.partial(peer, next(errors))) for _ in range(PEER_CAPTURES))
    ours = median(spent)
    result = {"CPU µs": ours, "of which transport µs": median(in_transport)}
    if peers:
        peer_median = median(peers)
        result.update({"sentry-sdk, CPU µs": peer_median, "sentry-sdk, times ours": peer_median / ours})
    return result


def _sentry(dsn: str) -> Callable[[BaseException], object] | None:
    """Return sentry-sdk's `capture_exception` with a transport that drops everything, or None."""
    try:
        import sentry_sdk
        from sentry_sdk.transport import Transport
    except ModuleNotFoundError:
        return None

    class Nowhere(Transport):  # type: ignore[misc, unused-ignore]  # Any where it is not installed
        def capture_envelope(self, envelope: object) -> None:
            """Drop the envelope."""

    sentry_sdk.init(dsn=dsn, transport=Nowhere)
    capture: Callable[[BaseException], object] = sentry_sdk.capture_exception
    return capture
