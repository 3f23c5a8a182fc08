"""What reporting an exception costs the thread it happened in, beside sentry-sdk where that is installed.

Run: python -m tests.benchmarks.figures exception
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator

#: Turns that each takes, so that all meet the same machine, and captures in a turn. Of sentry-sdk's, which
#: take twenty times as long, a turn has fewer. The first turn fills caches, and doesn't count.
TURNS = 16
CAPTURES = 20
PEER_CAPTURES = 6


def fail(depth: int = 19) -> None:
    """Raises from the last of 20 frames, each with variables as large as they usually get."""
    items = list(range(50))
    table = {f"key{number}": number for number in range(20)}
    text = "x" * 200
    if depth == 0:
        raise ValueError("boom")
    fail(depth - 1)
    del items, table, text


def failures() -> Iterator[ValueError]:
    """Exceptions with tracebacks, each a new one."""
    while True:
        try:
            fail()
        except ValueError as error:
            yield error


def cpu(act: Callable[[], object]) -> float:
    """Microseconds of this thread's CPU, the clock's own included."""
    began = time.thread_time_ns()
    act()
    return (time.thread_time_ns() - began) / 1e3


def median(figures: list[float]) -> float:
    """The median without what taking the time takes."""
    return statistics.median(figures) - statistics.median(cpu(lambda: None) for _ in range(1000))


def exception(dsn: str) -> dict[str, float]:
    """`capture_exception` with 20 frames whose variables are a list of 50, a dict of 20 and a long text."""
    from transport_kit import Envelope, make_transport
    from transport_kit.config.options import ReporterOptions
    from transport_kit.reporting import Reporter
    from transport_kit.transport.local import NullTransport

    errors = failures()
    with make_transport(dsn) as transport:
        shares: list[float] = []

        class Timed(NullTransport):
            """Hands over to the real one, and takes the time."""

            def capture_envelope(self, envelope: Envelope) -> bool:
                shares.append(cpu(lambda: transport.capture_envelope(envelope)))
                return True

        options = ReporterOptions(detect_release=False)
        all_of_it = Reporter(transport, options).capture_exception
        timed = Reporter(Timed(), options).capture_exception
        peer = _sentry(dsn)
        spent: list[float] = []
        peers: list[float] = []
        for turn in range(TURNS):
            if turn == 1:
                for figures in (spent, shares, peers):
                    figures.clear()
            spent += (cpu(functools.partial(all_of_it, next(errors))) for _ in range(CAPTURES))
            assert transport.flush(10)
            for _ in range(CAPTURES):
                timed(next(errors))
            assert transport.flush(10)
            if peer is not None:
                peers += (cpu(functools.partial(peer, next(errors))) for _ in range(PEER_CAPTURES))
    ours = median(spent)
    found = {"CPU µs": ours, "of which transport µs": median(shares)}
    if peers:
        theirs = median(peers)
        found.update({"sentry-sdk, CPU µs": theirs, "sentry-sdk, times ours": theirs / ours})
    return found


def _sentry(dsn: str) -> Callable[[BaseException], object] | None:
    """Its `capture_exception`, with a transport that drops everything; None when it isn't installed."""
    try:
        import sentry_sdk
        from sentry_sdk.transport import Transport
    except ModuleNotFoundError:
        return None

    class Nowhere(Transport):  # type: ignore[misc, unused-ignore]  # Any where it is not installed
        def capture_envelope(self, envelope: object) -> None:
            """Costs nothing."""

    sentry_sdk.init(dsn=dsn, transport=Nowhere)
    capture: Callable[[BaseException], object] = sentry_sdk.capture_exception
    return capture
