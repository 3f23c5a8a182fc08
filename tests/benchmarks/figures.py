"""The figures of docs/performance.md: each in a process of its own, against a receiver in another one.

Run: make bench (some minutes), or python -m tests.benchmarks.figures [NAME ...] [--runs N]

The receiver is `FaultServer`, in Python: it bounds the throughput, so compare figures of one run only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import request_figures, spool_figures
from tests.benchmarks.exceptions import exception
from tests.benchmarks.load import event, resident_kb

ROOT = Path(__file__).parents[2]
#: Largest number of seconds for a figure.
LIMIT = 60.0


def capture(dsn: str) -> dict[str, float]:
    """Time of a capture on its thread; 80 captures at a time, so that the queue is never full."""
    from transport_kit import Envelope, make_transport

    spent = []
    with make_transport(dsn) as transport:
        for burst in range(10):
            envelopes = [Envelope.event(event(burst * 80 + i)) for i in range(80)]
            for envelope in envelopes:
                began = time.perf_counter_ns()
                transport.capture_envelope(envelope)
                spent.append(time.perf_counter_ns() - began)
            assert transport.flush(10)
    spent.sort()
    return {"p50 µs": spent[len(spent) // 2] / 1e3, "p99 µs": spent[len(spent) * 99 // 100] / 1e3}


def burst(dsn: str) -> dict[str, float]:
    """10 000 events at once with default options: number delivered, and growth of memory."""
    from transport_kit import make_transport

    with make_transport(dsn) as transport:
        transport.capture_event(event(0))
        assert transport.flush(10)
        before = resident_kb()
        for number in range(1, 10_001):
            transport.capture_event(event(number))
        after = resident_kb()
        transport.flush(LIMIT)
        delivered = transport.health().delivered["error"] - 1
    return {"delivered": delivered, "RSS growth MB": (after - before) / 1024}


def throughput(dsn: str) -> dict[str, float]:
    """Events a second for two seconds, captured as fast as the queue accepts them."""
    return _throughput(dsn, seconds=2.0)


def throughput_50ms(dsn: str) -> dict[str, float]:
    """Throughput with 50 ms from request to answer, as a real server has."""
    return _throughput(dsn, seconds=4.0)


def _throughput(dsn: str, seconds: float) -> dict[str, float]:
    from transport_kit import make_transport

    events = [event(number) for number in range(64)]
    with make_transport(dsn, max_queue_items=500) as transport:
        transport.capture_event(events[0])
        assert transport.flush(10)
        began, cpu, number = time.monotonic(), time.process_time(), 0
        while time.monotonic() - began < seconds:
            if transport.pending >= 400:
                transport.flush(0.001)
                continue
            number += 1
            transport.capture_event({**events[number % 64], "event_id": f"{number:032x}"})
        transport.flush(LIMIT)
        took, cpu = time.monotonic() - began, time.process_time() - cpu
        delivered = transport.health().delivered["error"] - 1
    return {"events/s": delivered / took, "CPU s per 1000": cpu * 1000 / delivered}


def health(dsn: str) -> dict[str, float]:
    """Time of a health probe in an outage with a thousand envelopes: the best of 50 turns of 10."""
    from transport_kit import make_transport

    transport = make_transport("http://0123456789abcdef0123456789abcdef@127.0.0.1:9/1", backoff_base=60.0)
    for number in range(1000):
        transport.capture_event({"message": str(number)})
    transport.flush(0.2)
    best = float("inf")
    for _ in range(50):
        began = time.perf_counter_ns()
        for _ in range(10):
            transport.health()
        best = min(best, (time.perf_counter_ns() - began) / 10)
    transport.kill()
    return {"µs": best / 1e3}


def at_rest(dsn: str) -> dict[str, float]:
    """Time from a capture to its answer when the sender was parked."""
    from transport_kit import make_transport
    from transport_kit.queues import memory

    memory.AWAKE_FOR = 0.0
    spent = []
    with make_transport(dsn) as transport:
        for number in range(101):
            began = time.perf_counter_ns()
            transport.capture_event(event(number))
            assert transport.flush(10)
            spent.append(time.perf_counter_ns() - began)
            threading.Event().wait(0.01)
    spent = sorted(spent[1:])  # the first one opens the connection
    return {"p50 ms": spent[49] / 1e6, "p99 ms": spent[98] / 1e6}


def importing(dsn: str) -> dict[str, float]:
    """Time of `import transport_kit`, which imports neither urllib3 nor ssl."""
    began = time.perf_counter()
    import transport_kit

    assert transport_kit.__version__
    return {"ms": (time.perf_counter() - began) * 1e3}


FIGURES: dict[str, tuple[Callable[[str], dict[str, float]], float]] = {
    "capture": (capture, 0.0),
    "burst": (burst, 0.0),
    "throughput": (throughput, 0.0),
    "throughput_50ms": (throughput_50ms, 0.05),
    "exception": (exception, 0.0),
    "health": (health, 0.0),
    "at_rest": (at_rest, 0.0),
    "importing": (importing, 0.0),
    **{name: (figure, 0.0) for name, figure in (request_figures.FIGURES | spool_figures.FIGURES).items()},
}

_RECEIVER = """
import sys
from transport_kit.testing import FaultServer
with FaultServer() as server:
    server.delay = float(sys.argv[1])
    print(server.dsn, flush=True)
    sys.stdin.read()
"""


def measure(name: str) -> dict[str, float]:
    """Return one figure, measured in a fresh process with a fresh receiver."""
    receiver = subprocess.Popen(
        [sys.executable, "-c", _RECEIVER, str(FIGURES[name][1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert receiver.stdout is not None
        dsn = receiver.stdout.readline().strip()
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.figures", "--child", name, dsn],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=LIMIT + 30,
        )
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr}")
        result: dict[str, float] = json.loads(done.stdout)
        return result
    finally:
        receiver.communicate("")


def _named(wanted: str) -> list[str]:
    """Return the figure of that name, or else all with that prefix, such as `spool`."""
    return [wanted] if wanted in FIGURES else [name for name in FIGURES if name.startswith(f"{wanted}_")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("--runs", type=int, default=3, help="runs of each figure (3)")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "DSN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(FIGURES[arguments.child[0]][0](arguments.child[1])))
        return
    names = [name for wanted in arguments.names for name in _named(wanted)] or list(FIGURES)
    unknown = [wanted for wanted in arguments.names if not _named(wanted)]
    if unknown:
        parser.error(f"unknown figure {unknown[0]}; known are {', '.join(FIGURES)}")
    print("| figure | median | smallest | largest |\n| --- | --- | --- | --- |")
    for name in names:
        runs = [measure(name) for _ in range(max(1, arguments.runs))]
        for label in runs[0]:
            values = sorted(run[label] for run in runs)
            cells = " | ".join(f"{v:.4g}" for v in (statistics.median(values), values[0], values[-1]))
            print(f"| {name}: {label} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
