"""Figures of a spool: time of a put, speed of draining, and wake-ups at rest.

Part of `figures.py`, which runs each in a process of its own. Beside each `put` there is `bare`: one
`os.writev` of the same bytes to a plain file, at the same pace in the same run. It is the lower bound.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from tests.benchmarks.load import event, percentiles, resident_kb

ROOT = Path(__file__).parents[2]
IDENTITY = "0123456789abcdef"


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="spool-figures-") as folder:
        yield folder


@contextlib.contextmanager
def _process(code: str, *arguments: object) -> Iterator[IO[str]]:
    """Run a child that ends when its standard input is closed; yield its standard output."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert child.stdout is not None
    try:
        yield child.stdout
    finally:
        child.communicate("")


class _Puts:
    """Times of puts into a spool by a process that only writes, as beside a forwarder, and of bare writes."""

    def __init__(self, folder: str, spool: str = "spool") -> None:
        from transport_kit.queues.spool import FileSpool

        self._spool = FileSpool(f"{folder}/{spool}", IDENTITY, drain=False, max_bytes=4 << 30)
        # An app's worker claims all the time.
        threading.Thread(target=self._claim_forever, daemon=True).start()
        self._fd = os.open(f"{folder}/bare-{os.getpid()}", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self.spent: list[int] = []
        self.bare: list[int] = []

    def _claim_forever(self) -> None:
        while True:
            self._spool.claim(1, 60.0)

    def put(self, sealed: Any) -> None:
        began = time.perf_counter_ns()
        accepted = self._spool.put(sealed).accepted
        self.spent.append(time.perf_counter_ns() - began)
        assert accepted

    def write(self, sealed: Any) -> None:
        item = sealed.items[0]
        parts = (sealed.header, item.header, item.payload)
        began = time.perf_counter_ns()
        os.writev(self._fd, parts)
        self.bare.append(time.perf_counter_ns() - began)

    def figures(self) -> dict[str, float]:
        return percentiles("put", self.spent) | percentiles("bare", self.bare)


def _sealed(number: int) -> Any:
    from transport_kit import Envelope

    return Envelope.event(event(number)).seal()


def put(dsn: str) -> dict[str, float]:
    """80 puts back to back, three times a second: a burst of errors in an app.

    The first one after each pause is not counted, as its caches are cold; `put_paced` measures those.
    """
    envelopes = [_sealed(number) for number in range(64)]
    with _folder() as folder:
        puts = _Puts(folder)
        for _ in range(25):
            for do, spent in ((puts.put, puts.spent), (puts.write, puts.bare)):
                do(envelopes[-1])
                spent.pop()
                for number in range(80):
                    do(envelopes[number % 64])
            time.sleep(0.33)
        return puts.figures()


def put_sustained(dsn: str) -> dict[str, float]:
    """Puts back to back without a pause: one in a hundred creates a file, as none was prepared in time."""
    envelopes = [_sealed(number) for number in range(64)]
    with _folder() as folder:
        puts = _Puts(folder)
        for do in (puts.put, puts.write) * 25:
            for number in range(200):
                do(envelopes[number % 64])
        return puts.figures()


def put_paced(dsn: str) -> dict[str, float]:
    """200 puts a second for six seconds, each right after its sealing, and a bare write after each."""
    with _folder() as folder:
        puts = _Puts(folder)
        _paced(puts, time.monotonic(), 200.0, 1200)
        return puts.figures()


def _paced(puts: _Puts, begin: float, rate: float, number: int) -> None:
    from transport_kit import Envelope

    events = [event(n) for n in range(64)]
    for step in range(2 * number):
        pause = begin + step / (2 * rate) - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        sealed = Envelope.event(events[step // 2 % 64]).seal()
        (puts.write if step % 2 else puts.put)(sealed)


_DRAINER = """
import sys
from tests.benchmarks.spool_figures import drain_until_killed
drain_until_killed(sys.argv[1])
"""
_WRITER = """
import sys
from tests.benchmarks.spool_figures import write_paced
write_paced(sys.argv[1], float(sys.argv[2]))
"""


def put_four(dsn: str) -> dict[str, float]:
    """Puts of four processes, 50 a second each for eight seconds, beside one that drains."""
    with _folder() as folder, _process(_DRAINER, folder), contextlib.ExitStack() as stack:
        begin = time.monotonic() + 2.0
        outputs = [stack.enter_context(_process(_WRITER, folder, begin)) for _ in range(4)]
        spent: list[int] = []
        bare: list[int] = []
        for output in outputs:
            times = json.loads(output.readline())
            spent += times[0]
            bare += times[1]
        return percentiles("put", spent) | percentiles("bare", bare)


def write_paced(folder: str, begin: float) -> None:
    puts = _Puts(folder)
    _paced(puts, begin, 50.0, 400)
    print(json.dumps((puts.spent, puts.bare)), flush=True)
    sys.stdin.read()


def drain_until_killed(folder: str) -> None:
    from transport_kit.queues.spool import FileSpool

    spool = FileSpool(f"{folder}/spool", IDENTITY)

    def drain() -> None:
        while True:
            spool.ack(spool.claim(8, 1.0))

    threading.Thread(target=drain, daemon=True).start()
    sys.stdin.read()


_FILL = """
import sys
from tests.benchmarks.spool_figures import fill
fill(sys.argv[1], int(sys.argv[2]))
"""


def fill(folder: str, number: int) -> None:
    from transport_kit.queues.spool import FileSpool

    spool = FileSpool(f"{folder}/spool", IDENTITY, drain=False, max_bytes=4 << 30)
    envelopes = [_sealed(each) for each in range(64)]
    for each in range(number):
        assert spool.put(envelopes[each % 64]).accepted
    spool.close()
    print("filled", flush=True)


def drain(dsn: str) -> dict[str, float]:
    """Events a second of one sender that drains 20 000 events of 10 kB and sends none."""
    from transport_kit.config.options import TransportOptions
    from transport_kit.queues.spool import FileSpool
    from transport_kit.transport.worker.outcome import Outcome
    from transport_kit.transport.worker.worker import BackgroundWorker

    with _folder() as folder:
        with _process(_FILL, folder, 20_000) as output:
            assert output.readline() == "filled\n"
        done = threading.Event()
        delivered = 0

        def deliver(sealed: Any, within: float) -> Outcome:
            nonlocal delivered
            delivered += sealed is not None
            if delivered == 20_000:
                done.set()
            return Outcome()

        spool = FileSpool(f"{folder}/spool", IDENTITY, max_bytes=4 << 30)
        worker = BackgroundWorker(spool, deliver, TransportOptions(max_senders=1))
        began = time.monotonic()
        worker.start()
        assert done.wait(60.0)
        took = time.monotonic() - began
        worker.kill()
        return {"events/s": 20_000 / took}


def recover(dsn: str) -> dict[str, float]:
    """Time from the start to the first envelope of a backlog of 500 MB, and memory while all are drained."""
    from transport_kit.queues.spool import FileSpool

    with _folder() as folder:
        with _process(_FILL, folder, 50_000) as output:
            assert output.readline() == "filled\n"
        before = resident_kb()
        began = time.monotonic()
        spool = FileSpool(f"{folder}/spool", IDENTITY, max_bytes=4 << 30)
        claims = spool.claim(1, 10.0)
        first = time.monotonic() - began
        number = 0
        while claims:
            spool.ack(claims)
            number += len(claims)
            claims = spool.claim(8, 0.0)
        assert number == 50_000
        peak = resident_kb("VmHWM")
        spool.close()
        return {"first ms": first * 1e3, "peak RSS MiB": peak / 1024, "of it before": before / 1024}


def recover_files(dsn: str) -> dict[str, float]:
    """Time from the start to the first envelope of a backlog of 10 000 files, as short processes make."""
    from tests.core.spool_support import NOW_MS, record
    from transport_kit.queues.spool import FileSpool
    from transport_kit.queues.spool.segments import SegmentName, segment_header

    with _folder() as folder:
        FileSpool(f"{folder}/spool", IDENTITY).close()
        for number in range(10_000):
            salt = number.to_bytes(8, "big")
            name = SegmentName(4, NOW_MS * 1_000_000 + number, 42, salt)
            path = Path(folder, "spool", IDENTITY, "seg", str(name))
            path.write_bytes(segment_header(name) + record(_sealed(number), salt=salt))
        began = time.monotonic()
        spool = FileSpool(f"{folder}/spool", IDENTITY, max_bytes=4 << 30)
        assert spool.claim(1, 60.0)
        first = time.monotonic() - began
        spool.close()
        return {"first ms": first * 1e3}


_IDLE = """
import sys
from transport_kit import make_transport
transport = make_transport(sys.argv[1], queue="file://" + sys.argv[2])
transport.start()
transport.capture_event({"message": "x"})
transport.flush(5.0, until="delivered")
print(transport.health().spool["draining"], flush=True)
sys.stdin.read()
"""


def idle(dsn: str) -> dict[str, float]:
    """Wake-ups a second of a process that drains and of one that stands by, at rest for six seconds."""
    with (
        _folder() as folder,
        _process_id(_IDLE, dsn, f"{folder}/spool") as drains,
        _process_id(_IDLE, dsn, f"{folder}/spool") as stands_by,
    ):
        time.sleep(6.5)
        before = [_switches(pid) for pid in (drains, stands_by)]
        time.sleep(10.0)
        after = [_switches(pid) for pid in (drains, stands_by)]
        rates = [(b - a) / 10.0 for a, b in zip(before, after, strict=True)]
    return {"drains": rates[0], "stands by": rates[1]}


@contextlib.contextmanager
def _process_id(code: str, *arguments: object) -> Iterator[int]:
    with _process("import os; print(os.getpid(), flush=True)" + code, *arguments) as output:
        pid = int(output.readline())
        output.readline()
        yield pid


def _switches(pid: int) -> int:
    """Return the number of voluntary context switches of all threads of a process."""
    switches = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                switches += int(line.split()[1])
    return switches


def work_lost(dsn: str) -> dict[str, float]:
    """Share of its work that a computing caller loses to 200 captures a second beside a forwarder.

    Measured in turns of a tenth of a second in random order, so that a change in the machine's speed affects
    all alike: with captures, with the least possible work (sealing and one bare write), and twice with
    neither. The difference between these two is noise.
    """
    from transport_kit import make_transport

    with _folder() as folder:
        forwarder = subprocess.Popen(
            [sys.executable, "-m", "transport_kit", "forward", f"{folder}/spool", "--dsn", dsn],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
        )
        try:
            transport = make_transport(dsn, queue=f"file://{folder}/spool")
            transport.start()
            while transport.health().spool["drainer"] != forwarder.pid:  # type: ignore[index]
                transport.capture_event({"message": "who drains?"})
                time.sleep(0.2)
            return _work_lost(transport, folder)
        finally:
            forwarder.terminate()
            forwarder.wait(20)


def _work_lost(transport: Any, folder: str) -> dict[str, float]:
    from transport_kit import Envelope

    events = [event(number) for number in range(64)]
    fd = os.open(f"{folder}/bare", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)

    def bare(payload: dict[str, Any]) -> None:
        sealed = Envelope.event(payload).seal()
        item = sealed.items[0]
        os.writev(fd, (sealed.header, item.header, item.payload))

    def work(do: Callable[[dict[str, Any]], object] | None) -> tuple[float, float]:
        """Return rounds of work a second, and µs of CPU for each of 200 calls of `do` a second."""
        begin, spent, rounds, number = time.perf_counter(), 0, 0, 0
        while (now := time.perf_counter()) - begin < 0.1:
            if do is not None and now - begin >= number / 200:
                number += 1
                payload = {**events[number % 64], "event_id": os.urandom(16).hex()}
                began = time.thread_time_ns()
                do(payload)
                spent += time.thread_time_ns() - began
            total = 0
            for each in range(400):
                total += each * each % 7
            rounds += 1
        return rounds / (time.perf_counter() - begin), spent / 1e3 / max(number, 1)

    steps = {"neither": None, "again": None, "captures": transport.capture_event, "least": bare}
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    order = [name for name in steps for _ in range(60)]
    random.shuffle(order)
    for name in (*steps, *order):
        turns[name].append(work(steps[name]))
    transport.close(0.0)
    rates = {name: statistics.median(rate for rate, _ in turn[1:]) for name, turn in turns.items()}
    spent = {name: statistics.mean(each for _, each in turn[1:]) for name, turn in turns.items()}
    neither = (rates["neither"] + rates["again"]) / 2
    return {
        "work %": 100 - 100 * rates["captures"] / neither,
        "work % of sealing and a bare write": 100 - 100 * rates["least"] / neither,
        "work % of nothing": 100 - 100 * rates["again"] / rates["neither"],
        "CPU µs a capture": spent["captures"],
        "CPU µs of sealing and a bare write": spent["least"],
    }


FIGURES: dict[str, Callable[[str], dict[str, float]]] = {
    "spool_put": put,
    "spool_put_sustained": put_sustained,
    "spool_put_paced": put_paced,
    "spool_put_four": put_four,
    "spool_drain": drain,
    "spool_recover": recover,
    "spool_recover_files": recover_files,
    "spool_idle": idle,
    "spool_work_lost": work_lost,
}
