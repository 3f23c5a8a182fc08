"""A model of processes that share a spool on a failing disk and die at any system call.

The invariants: an envelope accepted on the disk is delivered, unless it was damaged or evicted, and is then
counted; no envelope is delivered that was not put; none is delivered more often than dead drainers explain.
"""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.core.spool_disk import Died, Disk, DiskSystem
from tests.core.spool_support import event, log_entry, session
from tests.core.worker_support import Clock
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.protocol import Claim
from transport_kit.queues.spool import FileSpool

IDENTITY = "0123456789abcdef"
#: Most claims of one process, like the senders of a worker.
IN_HAND = 4
#: The envelopes that are put, by name.
KINDS: dict[str, Callable[[int], SealedEnvelope]] = {
    "event": event,
    "large": lambda number: event(number, "x" * 9000),
    "session": session,
    "log": log_entry,
}
#: The operations of a process, the usual ones more often.
WORK = [
    *KINDS,
    "event",
    "event",
    "claim",
    "claim",
    "claim",
    "claim",
    *["ack"] * 6,
    "release",
    "later",
    "bury",
]


def number_of(body: bytes) -> bytes:
    """Return the number of an envelope, as its bytes and those of its segment contain it."""
    match = re.search(rb"[0-9a-f]{32}", body)
    assert match is not None
    return match[0]


class Process:
    """One process with its spool and its claims."""

    def __init__(self, disk: Disk, pid: int, clock: Clock) -> None:
        self.system = DiskSystem(disk, pid)
        self.spool = FileSpool(
            "/spool",
            IDENTITY,
            system=self.system,
            clock=clock,
            wall=lambda: clock.now + 1e9,
            segment_bytes=64 * 1024,
            max_bytes=1 << 30,
            strict=False,
        )
        self.claims: list[Claim] = []


class SpoolMachine(RuleBasedStateMachine):
    """The model; see the module."""

    #: Operations on processes and the disk, in all examples so far.
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.disk = Disk()
        self.clock = Clock()
        self.pids = 100
        self.processes: list[Process] = []
        self.numbers = 0
        self.put: set[bytes] = set()
        self.accepted: set[bytes] = set()
        self.delivered: Counter[bytes] = Counter()
        self.buried: set[bytes] = set()
        self.repeats = 0  # repeated deliveries that dead drainers and lost ack logs explain
        self.acks_unsure = False
        self.hits = 0
        self.evicted: set[bytes] = set()

    # -- processes -------------------------------------------------------------------------------------

    def process(self, which: int) -> Process:
        while len(self.processes) < 2:
            self.begin()
        return self.processes[which % len(self.processes)]

    def begin(self) -> Process:
        self.pids += 1
        process = Process(self.disk, self.pids, self.clock)
        self.processes.append(process)
        return process

    def end(self, process: Process) -> None:
        """Forget a dead process; its claims may be delivered again."""
        self.repeats += len(process.claims) + IN_HAND
        if process in self.processes:
            self.processes.remove(process)

    # -- operations ------------------------------------------------------------------------------------

    @rule(steps=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(WORK)), min_size=5, max_size=25))
    def work(self, steps: list[tuple[int, str]]) -> None:
        """Do the usual operations of processes, in any order."""
        for which, step in steps:
            SpoolMachine.steps += 1
            process = self.process(which)
            try:
                if step in KINDS:
                    self.puts(process, step)
                elif step == "claim":
                    self.claims(process)
                elif process.claims:
                    self.settles(process, step)
            except Died:
                self.end(process)
            self.clock.now += 0.1

    def puts(self, process: Process, kind: str) -> None:
        self.numbers += 1
        sealed = KINDS[kind](self.numbers)
        body = sealed.serialize()
        self.put.add(body)
        before = process.spool.facts().fell_back
        if process.spool.put(sealed).accepted and process.spool.facts().fell_back == before:
            self.accepted.add(body)

    def claims(self, process: Process) -> None:
        process.claims += process.spool.claim(IN_HAND - len(process.claims), 0.0)
        for claim in process.claims:
            assert claim.sealed.unpacked().serialize() in self.put

    def settles(self, process: Process, how: str) -> None:
        claim = process.claims.pop(0)
        body = claim.sealed.unpacked().serialize()
        self.repeats += 1  # until the settling has returned
        if how == "ack":
            self.delivered[body] += 1
            process.spool.ack([claim])
        elif how == "bury":
            self.buried.add(body)
            process.spool.bury(claim, "poison")
        else:
            process.spool.release([claim], 0.0 if how == "release" else self.clock.now + 5)
        self.repeats -= 1

    @rule(which=st.integers(0, 2))
    def kills(self, which: int) -> None:
        SpoolMachine.steps += 1
        process = self.process(which)
        process.system.die()
        self.end(process)

    @rule(which=st.integers(0, 2), calls=st.integers(1, 60))
    def will_die(self, which: int, calls: int) -> None:
        SpoolMachine.steps += 1
        system = self.process(which).system
        system.dies_at = system.calls + calls

    @rule(which=st.integers(0, 2))
    def closes(self, which: int) -> None:
        SpoolMachine.steps += 1
        process = self.process(which)
        try:
            process.spool.close()
        except Died:
            pass
        self.end(process)
        if not process.system.dead:
            process.system.die()

    @rule(seconds=st.sampled_from([0.3, 1.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        SpoolMachine.steps += 1
        self.clock.now += seconds

    @rule(deaths=st.booleans(), share=st.sampled_from([0.5, 0.9, 0.99]))
    def has_less_room(self, deaths: bool, share: float) -> None:
        """Lower the limit of bytes for one round of eviction.

        With `deaths`, all other processes, which could append more, die just before.
        """
        SpoolMachine.steps += 1
        process = next((each for each in self.processes if each.spool.facts().draining), None)
        if process is None or process.system.dies_at is not None:
            return  # losses that a death during an eviction leaves uncounted are not tested here
        maintenance = process.spool._current().maintenance
        if maintenance is None:
            return
        for other in [each for each in self.processes if deaths and each is not process]:
            other.system.die()
            self.end(other)
        folder = self.disk.find(f"/spool/{IDENTITY}/seg")
        assert folder is not None
        before = dict(folder.names)
        maintenance._max_bytes, maintenance._next = int(maintenance._size * share), 0.0
        process.spool.claim(0, 0.0)
        maintenance._max_bytes = 1 << 30
        gone = [bytes(node.data) for name, node in before.items() if name not in folder.names]
        self.evicted |= {body for body in self.accepted if any(number_of(body) in data for data in gone)}

    @rule(
        call=st.sampled_from(["write", "create", "open", "read", "link", "unlink", "names", "stat"]),
        error=st.sampled_from([errno.EIO, errno.EACCES, errno.ENOSPC]),
    )
    def begins_to_fail(self, call: str, error: int) -> None:
        SpoolMachine.steps += 1
        self.disk.failing = {call: error}
        # An ack that can't be written is lost with the process.
        self.acks_unsure = True

    @rule(room=st.integers(0, 30_000))
    def is_nearly_full(self, room: int) -> None:
        SpoolMachine.steps += 1
        self.disk.capacity = self.disk.used() + room
        self.acks_unsure = True

    @rule()
    def is_well_again(self) -> None:
        SpoolMachine.steps += 1
        self.disk.failing = {}
        self.disk.capacity = 1 << 40

    @precondition(lambda self: self.hits < 3)
    @rule(data=st.data())
    def is_hit(self, data: st.DataObject) -> None:
        folder = self.disk.find(f"/spool/{IDENTITY}/seg")
        files = [] if folder is None else [node for node in folder.names.values() if len(node.data) > 40]
        if not files:
            return
        SpoolMachine.steps += 1
        node = data.draw(st.sampled_from(sorted(files, key=lambda node: node.number)), label="file")
        at = data.draw(st.integers(0, len(node.data) - 1), label="at")
        node.data[at] ^= data.draw(st.integers(1, 255), label="mask")
        self.hits += 1
        self.acks_unsure = True  # it may have been an ack log

    # -- invariants ------------------------------------------------------------------------------------

    @invariant()
    def nothing_comes_that_was_not_put(self) -> None:
        assert self.delivered.keys() <= self.put

    @invariant()
    def one_drains(self) -> None:
        assert sum(process.spool.facts().draining for process in self.processes) <= 1

    def teardown(self) -> None:
        self.is_well_again()
        for process in list(self.processes):
            process.system.die()
            self.end(process)
        self.clock.now += 10
        last = self.begin()
        for _ in range(len(self.put) * 3 + 50):
            claims = last.spool.claim(IN_HAND, 0.0)
            for claim in claims:
                self.delivered[claim.sealed.unpacked().serialize()] += 1
            last.spool.ack(claims)
            self.clock.now += 0.5
        assert last.spool.stats().waiting == 0
        missing = self.accepted - self.delivered.keys() - self.buried - self.evicted
        assert len(missing) <= 2 * self.hits, f"{len(missing)} lost"
        if not self.acks_unsure:
            assert sum(count - 1 for count in self.delivered.values()) <= self.repeats
        folder = self.disk.find(f"/spool/{IDENTITY}/seg")
        if folder is not None and not self.hits:
            self.clock.now += 10
            last.spool.claim(0, 0.0)
            assert [name for name in folder.names if name.endswith(".log")] == []
        last.spool.close()


def run(steps: int) -> None:
    """Run the model, in runs of some hundred steps, until it has made `steps`."""
    SpoolMachine.steps = 0
    while SpoolMachine.steps < steps:
        run_state_machine_as_test(
            SpoolMachine,
            settings=settings(
                max_examples=100,
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
            ),
        )


def test_twenty_thousand_steps_of_failing_disks_and_dying_processes_keep_the_invariants() -> None:
    """Whatever fails, each accepted envelope is delivered, or was damaged by the test and counted as lost."""
    run(20_000)
    assert SpoolMachine.steps >= 20_000


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_million_steps_keep_the_invariants() -> None:
    """The same with more steps."""
    run(1_000_000)
    assert SpoolMachine.steps >= 1_000_000
