"""Idle processes hardly wake up, and a capture at rest is sent at once."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.timing import scaled
from transport_kit.testing import FaultServer


def switches(pid: int) -> dict[str, int]:
    """Return the number of voluntary context switches of each thread of a process, by thread."""
    counts = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith("voluntary_ctxt_switches")]
        counts[task.name] = int(line.split()[1])
    return counts


def wake_ups(children: list[Any], seconds: float) -> list[float]:
    """Return the wake-ups a second of each process, all threads together; no thread may start or end."""
    before = [switches(child.process.pid) for child in children]
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        children[0].process.wait(seconds)
    after = [switches(child.process.pid) for child in children]
    took = time.monotonic() - began
    assert [set(counts) for counts in after] == [set(counts) for counts in before]
    # One wake-up may have been caused by the first reading.
    return [
        (sum(new.values()) - sum(old.values()) - 1) / took for old, new in zip(before, after, strict=True)
    ]


IDLE = """
import sys, threading
from transport_kit import make_transport
transport = make_transport()
for n in range(20): transport.capture_event({"message": str(n)})
assert transport.flush(30.0).ok
# A sender stays awake for a second after work and then parks; senders without work end.
threading.Event().wait(1.5)
while transport.health().senders > 1: threading.Event().wait(0.1)
print("parked", flush=True)
sys.stdin.readline()
"""


def test_an_idle_process_wakes_up_at_most_once_a_second(
    start: Callable[..., Any], server: FaultServer
) -> None:
    """Wake-ups drain a laptop's battery, and add up on a host with a thousand containers."""
    child = start(IDLE)
    assert child.line() == "parked"
    assert wake_ups([child], 3.0)[0] <= 1.0
    assert child.end().status == 0


REST = """
import statistics, threading, time
from transport_kit import make_transport
from transport_kit.queues import memory
from transport_kit.testing import FaultServer
memory.AWAKE_FOR = 0.0  # at rest as soon as nothing waits, not a second later
with FaultServer() as server:
    transport = make_transport(server.dsn)
    queue = transport._states.get().worker._queue
    seconds = []
    for n in range(101):
        began = time.monotonic()
        assert transport.capture_event({"message": str(n)})
        assert server.wait_for_requests(n + 1, 30.0)
        seconds.append(time.monotonic() - began)
        assert transport.flush(30.0).ok
        while not queue._parked: threading.Event().wait(0.001)
    transport.close()
print(statistics.median(seconds))
"""


def test_a_capture_at_rest_is_on_the_wire_within_100_ms(run: Callable[..., Any]) -> None:
    """The median of a hundred captures, each of which wakes a parked sender; none waits for a batch."""
    ended = run(REST)
    assert ended.status == 0, ended.err
    assert float(ended.out) <= scaled(0.1)


SPOOL_IDLE = """
import sys, threading
from transport_kit import make_transport
from transport_kit.queues.spool import drain_loop
drain_loop.QUIET_AFTER = 0.5  # at rest half a second after the last envelope
transport = make_transport(queue="file://" + sys.argv[1])
transport.start()
if sys.argv[2] == "drains":
    for n in range(20): transport.capture_event({"message": str(n)})
    assert transport.flush(30.0, until="delivered").ok
threading.Event().wait(2.5)
print(transport.health().spool["draining"], flush=True)
sys.stdin.readline()
"""


def test_idle_processes_on_a_spool_wake_up_at_most_once_a_second_each(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    """One drains and looks for other processes' envelopes, the other stands by to take over."""
    children = []
    for role, draining in (("drains", "True"), ("stands by", "False")):
        children.append(start(SPOOL_IDLE, str(tmp_path / "spool"), role))
        assert children[-1].line() == draining
    assert max(wake_ups(children, 5.0)) <= 1.0
    for child in children:
        assert child.end().status == 0


SPOOL_REST = """
import statistics, sys, threading, time
from transport_kit import make_transport
from transport_kit.queues.spool import drain_loop
from transport_kit.testing import FaultServer
drain_loop.QUIET_AFTER = 0.0  # at rest as soon as nothing waits
drain_loop.LOOK_QUIET = 3600.0  # without a wake it does not look again
with FaultServer() as server:
    transport = make_transport(server.dsn, queue="file://" + sys.argv[1])
    seconds = []
    for n in range(11):
        began = time.monotonic()
        assert transport.capture_event({"message": str(n)})
        assert server.wait_for_requests(n + 1, 30.0)
        seconds.append(time.monotonic() - began)
        assert transport.flush(30.0, until="delivered").ok
        threading.Event().wait(0.4)  # the drainer has parked by then
    transport.close()
print(statistics.median(seconds))
"""


def test_a_capture_of_the_draining_process_wakes_its_drainer(run: Callable[..., Any], tmp_path: Path) -> None:
    """Captures of the drainer's own process are sent within 100 ms, however seldom it looks at the disk."""
    ended = run(SPOOL_REST, str(tmp_path / "spool"))
    assert ended.status == 0, ended.err
    assert float(ended.out) <= scaled(0.1)
