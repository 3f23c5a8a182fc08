"""Invariant 11: idle costs nothing, and a capture at rest is on the wire at once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.timing import quickest
from transport_kit.testing import FaultServer


def switches(pid: int) -> dict[str, int]:
    """How often each thread of a process has gone to sleep of itself, by thread."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith("voluntary_ctxt_switches")]
        found[task.name] = int(line.split()[1])
    return found


IDLE = """
import sys, threading
from transport_kit import make_transport
transport = make_transport()
for n in range(20): transport.capture_event({"message": str(n)})
assert transport.flush(5.0).ok
# Awake for a second after work, then parked: senders that nobody needs have gone by then, too.
threading.Event().wait(2.5)
print(transport.health().senders, flush=True)
sys.stdin.readline()
"""


def test_an_idle_process_wakes_up_at_most_once_a_second(
    start: Callable[..., Any], server: FaultServer
) -> None:
    """A laptop's battery, and a host with a thousand containers: each wake-up is paid by somebody."""
    child = start(IDLE)
    assert child.line() == "1"
    before = switches(child.process.pid)
    with pytest.raises(subprocess.TimeoutExpired):
        child.process.wait(3.0)
    after = switches(child.process.pid)
    assert set(after) == set(before)
    assert sum(after.values()) - sum(before.values()) <= 3
    assert child.end().status == 0


REST = """
import json, sys, threading, time
from transport_kit import make_transport, memory_queue
from transport_kit.testing import FaultServer
memory_queue.AWAKE_FOR = 0.0  # at rest as soon as nothing waits, and not a second later
with FaultServer() as server:
    transport = make_transport(server.dsn)
    taken = []
    for n in range(101):
        began = time.monotonic()
        assert transport.capture_event({"message": str(n)})
        assert server.wait_for_requests(n + 1)
        taken.append(time.monotonic() - began)
        assert transport.flush(5.0).ok
        threading.Event().wait(0.01)  # the sender has parked by then
    transport.close()
print(json.dumps(taken[1:]))  # the first one opens the connection
"""


def test_a_capture_at_rest_is_on_the_wire_within_100_ms(run: Callable[..., Any]) -> None:
    """p99 of 100, each one waking a parked sender: nobody waits for a batch to fill."""

    def p99() -> float:
        ended = run(REST)
        assert ended.status == 0, ended.err
        taken = sorted(json.loads(ended.out))
        assert len(taken) == 100
        return float(taken[98])

    assert quickest(p99, 0.1) <= 0.1


SPOOL_IDLE = """
import sys, threading
from transport_kit import make_transport
from transport_kit.spool import duty
duty.QUIET_AFTER = 0.5  # at rest as soon as nothing came for half a second
transport = make_transport(queue="file://" + sys.argv[1])
transport.start()
if sys.argv[2] == "drains":
    for n in range(20): transport.capture_event({"message": str(n)})
    assert transport.flush(5.0, until="delivered").ok
threading.Event().wait(2.5)
print(transport.health().spool["draining"], flush=True)
sys.stdin.readline()
"""


def test_idle_processes_on_a_spool_wake_up_at_most_once_a_second_each(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    """One drains and looks for what others wrote, the other stands by to take over: both cost nothing."""
    children = []
    for role, draining in (("drains", "True"), ("stands by", "False")):
        children.append(start(SPOOL_IDLE, str(tmp_path / "spool"), role))
        assert children[-1].line() == draining
    before = [switches(child.process.pid) for child in children]
    with pytest.raises(subprocess.TimeoutExpired):
        children[0].process.wait(5.0)
    after = [switches(child.process.pid) for child in children]
    for old, new in zip(before, after, strict=True):
        assert set(new) == set(old)
        # Five seconds, give or take the moment of the first look.
        assert sum(new.values()) - sum(old.values()) <= 6
    for child in children:
        assert child.end().status == 0


SPOOL_REST = """
import json, sys, threading, time
from transport_kit import make_transport
from transport_kit.spool import duty
from transport_kit.testing import FaultServer
duty.QUIET_AFTER = 0.0  # the drainer looks once a second as soon as nothing waits
with FaultServer() as server:
    transport = make_transport(server.dsn, queue="file://" + sys.argv[1])
    taken = []
    for n in range(11):
        began = time.monotonic()
        assert transport.capture_event({"message": str(n)})
        assert server.wait_for_requests(n + 1)
        taken.append(time.monotonic() - began)
        assert transport.flush(5.0, until="delivered").ok
        threading.Event().wait(0.4)  # the drainer has parked by then
    transport.close()
print(json.dumps(taken[1:]))  # the first one opens the connection
"""


def test_a_capture_of_the_draining_process_wakes_its_drainer(run: Callable[..., Any], tmp_path: Path) -> None:
    """However seldom it looks by itself, its own process's captures are on the wire within 100 ms."""

    def slowest() -> float:
        ended = run(SPOOL_REST, str(tmp_path / "spool"))
        assert ended.status == 0, ended.err
        taken = json.loads(ended.out)
        assert len(taken) == 10
        return float(max(taken))

    assert quickest(slowest, 0.1) <= 0.1
