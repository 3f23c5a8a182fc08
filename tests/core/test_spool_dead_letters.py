"""Dead letters that share an event id, and ack logs that are damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.core.spool_support import NAME, SALT, drained, event, ids, segment
from tests.timing import steps
from transport_kit.queues.spool import FileSpool
from transport_kit.queues.spool.acklog import MAX_DAMAGE, AckLog, Op, ack_name, read_log, read_progress
from transport_kit.queues.spool.inspection import Inspection
from transport_kit.queues.spool.system import System

IDENTITY = "0123456789abcdef"


def test_dead_letters_with_one_event_id_are_all_kept(tmp_path: Path) -> None:
    """Two envelopes of one event, or a client that repeats ids: the first was overwritten."""
    path = tmp_path / "spool"
    spool = FileSpool(str(path), IDENTITY)
    for text in ("first", "second", "third"):
        spool.put(event(1, text))
    while claims := spool.claim(1, 0.0):
        spool.bury(claims[0], "failed")
    spool.close()
    with Inspection(str(path), IDENTITY) as inspection:
        letters = inspection.letters()
        bodies = [inspection.read_letter(letter).serialize() for letter in letters]
    assert len({letter.name for letter in letters}) == 3
    assert {text for text in ("first", "second", "third") for body in bodies if text.encode() in body} == {
        "first",
        "second",
        "third",
    }
    facts = [json.loads(file.read_bytes()) for file in (path / IDENTITY / "dead").glob("*.json")]
    assert [each["event_id"] for each in facts] == ids(1, 1, 1)


def test_a_dead_letter_whose_facts_alone_are_left_is_not_mixed_with_another(tmp_path: Path) -> None:
    """A person removed the envelope; its facts would describe the new one, or the new ones the old."""
    path = tmp_path / "spool"
    spool = FileSpool(str(path), IDENTITY)
    for text in ("first", "second"):
        spool.put(event(1, text))
    (claim,) = spool.claim(1, 0.0)
    spool.bury(claim, "why the first")
    dead = path / IDENTITY / "dead"
    (dead / f"{1:032x}.envelope").unlink()
    (claim,) = spool.claim(1, 0.0)
    spool.bury(claim, "why the second")
    spool.close()
    reasons = {file.stem: json.loads(file.read_bytes())["reason"] for file in dead.glob("*.json")}
    (envelope,) = dead.glob("*.envelope")
    assert reasons.pop(f"{1:032x}") == "why the first"
    assert reasons == {envelope.stem: "why the second"}


def _log(directory: Path, entries: list[tuple[Op, int]]) -> bytes:
    """Return the bytes of an ack log."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        log = AckLog(System(), fd, NAME)
        for op, offset in entries:
            assert log.append(op, offset)
        log.close()
        path = directory / ack_name(NAME)
        data = path.read_bytes()
        path.unlink()
        return data
    finally:
        os.close(fd)


def test_damage_of_an_ack_log_costs_no_step_per_byte(tmp_path: Path) -> None:
    """4 MiB of zeros between two entries took 3.6 s, inside the lock of the drainer."""
    entries = _log(tmp_path, [(Op.ACK, 100), (Op.ACK, 200)])
    damaged = entries[:16] + bytes(MAX_DAMAGE - 100) + entries[16:]
    found: list[int] = []
    assert steps(lambda: found.extend(read_progress(damaged, SALT))) < 200
    assert found == [100, 200]


def test_damage_in_the_form_of_entries_ends_the_reading(tmp_path: Path) -> None:
    """Each of a million wrong entries costs a checksum: without its log a segment is delivered again."""
    entries = _log(tmp_path, [(Op.ACK, 100), (Op.ACK, 200)])
    damaged = entries[:16] + b"\x01\x00\x00\x00" * 1_000_000 + entries[16:]
    found: list[int] = []
    assert steps(lambda: found.extend(read_progress(damaged, SALT))) < 300_000
    assert found == [100]


def test_a_short_write_in_an_ack_log_costs_one_entry(tmp_path: Path) -> None:
    """The next one begins at any byte."""
    entries = _log(tmp_path, [(Op.ACK, 100), (Op.ACK, 200), (Op.ACK, 300)])
    for cut in range(1, 16):
        damaged = entries[:16] + entries[16 : 32 - cut] + entries[32:]
        assert list(read_progress(damaged, SALT)) == [100, 300]


def test_a_hole_in_an_ack_log_is_not_read(tmp_path: Path) -> None:
    """A sparse log of 2 GiB stopped the drain for good; what was logged behind the hole counts."""
    before, after = _log(tmp_path, [(Op.ACK, 100)]), _log(tmp_path, [(Op.ACK, 200)])
    path = tmp_path / ack_name(NAME)
    with path.open("wb") as file:
        file.write(before)
        file.seek(2 << 30)
        file.write(after)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        data = read_log(System(), NAME, fd)
    finally:
        os.close(fd)
    assert len(data) <= 3 << 20
    assert list(read_progress(data, SALT)) == [100, 200]


def test_a_sparse_ack_log_does_not_stop_the_drain(tmp_path: Path) -> None:
    """Not even one that holds nothing."""
    path = tmp_path / "spool"
    spool = FileSpool(str(path), IDENTITY)
    seg = path / IDENTITY / "seg"
    (seg / str(NAME)).write_bytes(segment([event(1), event(2)]))
    (seg / ack_name(NAME)).touch()
    os.truncate(seg / ack_name(NAME), 2 << 30)
    assert drained(spool) == ids(1, 2)
    spool.close()
