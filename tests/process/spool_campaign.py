"""The SIGKILL campaign: processes that share a spool are killed at random moments; nothing accepted is lost.

Run as a program: `python tests/process/spool_campaign.py --trials 1000 [--seed N]`. Each trial forks
writers that capture through whole transports, kills some of them, and lets a last process deliver the
rest. A writer writes each accepted id to a file of its own, with one write; the receiver records the ids that
it answered with 200. Exit status 1 if an accepted id neither arrived nor is a dead letter, if an id arrived
that was not sent, or if there are more duplicates than dead drainers can have claimed. An envelope becomes a
dead letter when five drainers in a row were killed while they delivered it first.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from transport_kit.config.dsn import Dsn
from transport_kit.config.options import TransportOptions
from transport_kit.queues.spool import FileSpool, identity_of
from transport_kit.queues.spool.system import System
from transport_kit.testing import FaultServer
from transport_kit.transport.http import HttpTransport

MAX_SENDERS = 4
WRITERS = 3
#: Seconds in which the last process must have delivered everything.
PATIENCE = 100.0
KINDS = ("writer", "drainer", "all", "short", "fork", "threads", "full")


class Short(System):
    """A system on which every tenth record is written incompletely."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def write(self, fd: int, parts: Sequence[bytes]) -> int:
        if self._random.random() < 0.1:
            whole = b"".join(parts)
            return os.write(fd, whole[: self._random.randrange(len(whole))])
        return super().write(fd, parts)


@dataclass
class Tally:
    """The results of a campaign."""

    trials: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    lost: int = 0
    buried: set[str] = field(default_factory=set)
    duplicates: int = 0
    unknown: int = 0
    kills: int = 0
    drainer_kills: int = 0
    longest: float = 0.0
    failures: list[str] = field(default_factory=list)


def transport_on(dsn: str, path: Path, system: System | None = None) -> HttpTransport:
    """Return a transport as an app has it, on a spool with the given system."""
    parsed = Dsn.parse(dsn)
    identity = identity_of(parsed)

    def make_queue() -> FileSpool:
        return FileSpool(
            str(path), identity, system=system, segment_bytes=64 * 1024, max_bytes=1 << 30, strict=False
        )

    options = TransportOptions(max_senders=MAX_SENDERS, backoff_base=0.01, backoff_max=0.05)
    return HttpTransport(parsed, options, make_queue=make_queue)


def write(dsn: str, path: Path, notes: Path, trial: int, writer: int, kind: str) -> None:
    """Capture until killed; write down the accepted ids."""
    transport = transport_on(dsn, path, Short(trial) if kind == "short" else None)
    spool = transport._states.get().queue
    assert isinstance(spool, FileSpool)
    fd = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if kind == "fork" and writer == 0:
        transport.capture_event({"event_id": f"{trial:08x}{writer:04x}{0xFFFFFF:020x}"})
        os.setpgrp()
        if ctypes.PyDLL(None).fork() == 0:
            # A fork without hooks: this child keeps descriptors of segments open, and does nothing until its
            # group is killed.
            ctypes.PyDLL(None).pause()

    def run(thread: int) -> None:
        number = thread << 16
        padding = "x" * (4000 if kind == "full" else 300)
        while True:
            number += 1
            event_id = f"{trial:08x}{writer:04x}{number:020x}"
            before = spool.facts().fell_back
            accepted = transport.capture_event({"event_id": event_id, "extra": {"padding": padding}})
            # An envelope in memory is lost with the process; `fell_back` counts it.
            if accepted and spool.facts().fell_back == before:
                os.write(fd, event_id.encode() + b"\n")
            time.sleep(0.0005)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(1, 4)]
    for thread in threads if kind == "threads" else []:
        thread.start()
    run(0)


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a forked child, which ends without its parent's clean-up; return its id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(f"a child failed: {error!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid


def finish(dsn: str, path: Path) -> None:
    """Deliver everything that is left."""
    transport = transport_on(dsn, path)
    transport.start()
    deadline = time.monotonic() + PATIENCE
    # A flush counts only segments that the drainer has looked at, so it is repeated while files exist.
    while (files := list(path.glob("*/seg/*.log"))) and time.monotonic() < deadline:
        transport.flush(0.05, until="delivered")
    report = transport.flush(1.0, until="delivered")
    transport.close(1.0)
    if files or not report.ok:
        print(f"left behind: {len(files)} segments, {report}", file=sys.stderr)
        os._exit(2)


def drainer_of(path: Path) -> int | None:
    """Return the process id of the drainer, or None."""
    for lock in path.glob("*/drain.lock"):
        fd = os.open(lock, os.O_RDWR)
        try:
            return System().lockf_holder(fd)
        finally:
            os.close(fd)
    return None


def trial(number: int, dsn: str, root: Path, rng: random.Random, tally: Tally, small: Path | None) -> Path:
    """Run one trial; return the directory of the written ids."""
    kind = KINDS[number % len(KINDS)]
    if kind == "full" and small is None:
        kind = "all"
    tally.trials[kind] += 1
    path = (small if kind == "full" and small is not None else root) / f"spool-{number}"
    notes = root / f"notes-{number}"
    notes.mkdir()

    def start(writer: int) -> int:
        return forked(lambda: write(dsn, path, notes / str(writer), number, writer, kind))

    writers = {writer: start(writer) for writer in range(WRITERS)}
    first, spare = writers[0], WRITERS
    for _ in range(2):
        time.sleep(rng.uniform(0.02, 0.12))
        drainer = drainer_of(path)
        if kind == "drainer" and drainer in writers.values():
            victims = [writer for writer, pid in writers.items() if pid == drainer]
        elif kind in ("all", "full"):
            victims = list(writers)
        else:
            victims = [rng.choice(list(writers))]
        for writer in victims:
            pid = writers.pop(writer)
            tally.kills += 1
            tally.drainer_kills += pid == drainer_of(path)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            writers[spare] = start(spare)
            spare += 1
    for pid in writers.values():
        tally.drainer_kills += pid == drainer_of(path)
        tally.kills += 1
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    began = time.monotonic()
    last = forked(lambda: finish(dsn, path))
    if kind == "fork":
        time.sleep(0.3)  # everything is delivered while that child holds the locks, and removed after its end
        with contextlib.suppress(ProcessLookupError):  # the writer was killed before it had a group
            os.killpg(first, signal.SIGKILL)
    _, status = os.waitpid(last, 0)
    tally.longest = max(tally.longest, time.monotonic() - began)
    if status:
        tally.failures.append(f"trial {number} ({kind}): the last process failed with status {status}")
    tally.buried.update(letter.stem for letter in path.glob("*/dead/*.envelope"))
    shutil.rmtree(path)
    return notes


def serve(ready: int, stop: int, answers: Path) -> None:
    """Run the receiver, in a process that does not fork."""
    with FaultServer() as server:
        os.write(ready, server.dsn.encode())
        os.read(stop, 1)
        time.sleep(0.1)
        answers.write_text(json.dumps(server.event_ids()))


def campaign(trials: int, seed: int, seconds: float) -> Tally:
    """Run `trials` trials, but begin none after `seconds`."""
    rng = random.Random(seed)
    tally = Tally()
    root = Path(tempfile.mkdtemp(prefix="spool-campaign-"))
    small = root / "small"
    small.mkdir(mode=0o700)
    mounted = os.system(f"mount -t tmpfs -o size=2m,mode=700 tmpfs {small} 2>/dev/null") == 0
    ready, stop = os.pipe(), os.pipe()
    receiver = forked(lambda: serve(ready[1], stop[0], root / "answers"))
    try:
        dsn = os.read(ready[0], 4096).decode()
        deadline = time.monotonic() + seconds
        noted: set[str] = set()
        for number in range(trials):
            if time.monotonic() > deadline:
                break
            notes = trial(number, dsn, root, rng, tally, small if mounted else None)
            for file in notes.iterdir():
                noted.update(line for line in file.read_text().split("\n") if len(line) == 32)
        os.write(stop[1], b"x")
        os.waitpid(receiver, 0)
        arrived = Counter(json.loads((root / "answers").read_text()))
        tally.accepted = len(noted)
        lost = noted - arrived.keys() - tally.buried
        tally.lost = len(lost)
        tally.failures += [
            f"lost {event_id}, of trial {(number := int(event_id[:8], 16))} ({KINDS[number % len(KINDS)]}),"
            f" writer {int(event_id[8:12], 16)}, number {int(event_id[12:], 16):x}"
            for event_id in sorted(lost)[:20]
        ]
        tally.duplicates = sum(count - 1 for count in arrived.values())
        tally.unknown = sum(1 for event_id in arrived if int(event_id[:8], 16) >= trials)
    finally:
        if mounted:
            os.system(f"umount {small}")
        shutil.rmtree(root, ignore_errors=True)
    if tally.lost:
        tally.failures.append(f"{tally.lost} accepted envelopes never arrived")
    if tally.unknown:
        tally.failures.append(f"{tally.unknown} arrived that nobody sent")
    if tally.duplicates > MAX_SENDERS * tally.drainer_kills:
        tally.failures.append(f"{tally.duplicates} duplicates after {tally.drainer_kills} dead drainers")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no trial after this long")
    arguments = parser.parse_args()
    tally = campaign(arguments.trials, arguments.seed, arguments.seconds)
    print(
        f"seed {arguments.seed}: {dict(tally.trials)}; {tally.accepted} accepted, {tally.lost} lost, "
        f"{len(tally.buried)} buried, {tally.duplicates} duplicates, {tally.kills} kills of which "
        f"{tally.drainer_kills} drained, "
        f"longest end {tally.longest:.2f} s"
    )
    for failure in tally.failures:
        print(f"FAILED: {failure}")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
