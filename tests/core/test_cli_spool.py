"""`transport-kit spool`: its output on a spool, on damage and on dead letters, without keys."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import transport_kit.cli.spool as cli_spool
from tests.core.cli_support import run, run_json
from tests.core.spool_support import event, log_entry, session
from transport_kit import Dsn, Envelope
from transport_kit.cli import _tables
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.spool import FileSpool, identity_of
from transport_kit.queues.spool.inspection import Inspection

KEY = "0123456789abcdef0123456789abcdef"
DSN = Dsn.parse(f"https://{KEY}@sentry.example/42")
IDENTITY = identity_of(DSN)


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def spool(path: Path, *, drain: bool = False) -> FileSpool:
    return FileSpool(str(path), IDENTITY, drain=drain, credentials=DSN.reveal())


def fill(path: Path, *envelopes: SealedEnvelope) -> None:
    queue = spool(path)
    for sealed in envelopes:
        assert queue.put(sealed).accepted
    queue.close()


def bury(path: Path, *envelopes: SealedEnvelope, reason: str = "poison") -> None:
    """Make a dead letter, through the drainer."""
    fill(path, *envelopes)
    queue = spool(path, drain=True)
    for _ in envelopes:
        (claim,) = queue.claim(1, 5.0)
        queue.bury(claim, reason)
    queue.close()


def segments(path: Path) -> list[Path]:
    return sorted((path / IDENTITY / "seg").glob("*.log"))


def letters(path: Path) -> list[Path]:
    return sorted((path / IDENTITY / "dead").glob("*.envelope"))


def test_status_says_how_much_waits_and_who_drains(path: Path) -> None:
    """An incident begins with this question."""
    fill(path, event(1), event(2), session(3))
    result = run_json("spool", "status", str(path))
    (facts,) = result["identities"]
    assert (facts["identity"], facts["waiting"], facts["segments"]) == (IDENTITY, 3, 2)
    assert (facts["drainer"], facts["forwarder"], facts["published"]) == (None, None, None)
    assert facts["dsn"] == str(DSN)
    assert 0 <= facts["oldest_age"] < 60
    text = run("spool", "status", str(path)).output
    assert "waiting       3 envelopes" in text
    assert "drained by    nobody" in text
    assert KEY not in text + json.dumps(result)


def test_status_works_beside_a_drainer_and_shows_what_it_published(path: Path) -> None:
    """The command must not become the drainer itself."""
    fill(path, event(1), event(2))
    queue = spool(path, drain=True)
    (claim,) = queue.claim(1, 5.0)
    (facts,) = run_json("spool", "status", str(path))["identities"]
    assert facts["drainer"] == os.getpid()
    assert facts["published"]["pid"] == os.getpid()
    assert f"app process {os.getpid()}" in run("spool", "status", str(path)).output
    (under_way, waiting) = run_json("spool", "ls", str(path))["envelopes"]
    assert (under_way["under_way"], waiting["under_way"]) == (True, False)
    assert under_way["attempts"] == 1
    queue.ack([claim])
    assert queue.facts().draining
    assert run_json("spool", "ls", str(path))["total"] == 1
    queue.close()


def test_status_of_a_spool_that_nothing_was_put_into(path: Path) -> None:
    """An empty spool is valid."""
    spool(path).close()
    (path / IDENTITY / "seg").rmdir()
    assert run("spool", "status", str(path)).output == "nothing was ever put into it\n"


def test_ls_lists_by_class_and_age(path: Path) -> None:
    """The list is in the order of delivery; an envelope without an id gets a name that `show` accepts."""
    fill(path, log_entry(9), event(1), event(2))
    result = run_json("spool", "ls", str(path))
    assert [row["class"] for row in result["envelopes"]] == ["error", "error", "log"]
    assert [row["id"] for row in result["envelopes"][:2]] == [f"{1:032x}", f"{2:032x}"]
    reference = result["envelopes"][2]["id"]
    assert ":" in reference
    shown = run_json("spool", "show", reference, str(path))
    assert shown["items"][0]["type"] == "log"
    limited = run("spool", "ls", "--limit", "1", str(path)).output
    assert "3 wait, 1 shown" in limited
    assert f"{1:032x}\terror\terror 1" in limited
    assert "3 wait\n" in run("spool", "ls", str(path)).output


def test_show_prints_an_envelope_without_keys(path: Path) -> None:
    """Envelope headers contain the DSN's key, and messages may contain it by accident."""
    envelope = Envelope.event({"event_id": f"{7:032x}", "message": f"to {DSN.reveal()} with {KEY.upper()}"})
    envelope.headers["trace"] = {"public_key": KEY, "trace_id": "a" * 32}
    envelope.headers["dsn"] = DSN.reveal()
    envelope.add_attachment(b"\x1b[2Jbytes", filename="x")
    fill(path, envelope.seal())
    for id in (f"{7:032x}", str(f"{7:032X}"), "00000000-0000-0000-0000-000000000007"):
        result = run_json("spool", "show", id, str(path))
        assert result["state"] == "waiting"
        assert result["headers"]["trace"] == {"public_key": "***", "trace_id": "a" * 32}
        assert result["headers"]["dsn"] == "***"
        assert result["items"][0]["payload"]["message"] == "to https://***@sentry.example/42 with ***"
        assert result["items"][1]["payload"] is None
        assert KEY not in json.dumps(result).lower()
    text = run("spool", "show", f"{7:032x}", str(path)).output
    assert KEY not in text.lower()
    assert "(no JSON)" in text
    assert "\x1b" not in text


def test_show_leaves_words_whole_where_the_key_is_a_letter(path: Path) -> None:
    """A spool of a developer's machine: every message would be unreadable."""
    dsn = Dsn.parse("http://e@localhost/1")
    queue = FileSpool(str(path), identity_of(dsn), credentials=dsn.reveal())
    assert queue.put(Envelope.event({"event_id": f"{1:032x}", "message": "the server: e, key=e"}).seal())
    queue.close()
    result = run_json("spool", "show", f"{1:032x}", str(path))
    assert result["items"][0]["payload"]["message"] == "the server: ***, key=***"


def test_show_survives_what_is_nested_deeper_than_anyone_reads(path: Path) -> None:
    """An attacker may choose the depth."""
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    fill(path, event(1, extra={"deep": deep}))
    result = run_json("spool", "show", f"{1:032x}", str(path))
    assert "..." in json.dumps(result["items"][0]["payload"])


def test_an_id_that_is_not_there_is_status_1(path: Path) -> None:
    """The id is quoted without a key."""
    fill(path, event(1))
    result = run("spool", "show", f"https://{KEY}@host/1", str(path))
    assert result.exit_code == 1
    assert "is not there" in result.output
    assert KEY not in result.output


@pytest.mark.parametrize("id", ["", "-"])
def test_an_empty_id_is_a_wrong_call_and_names_nothing(path: Path, id: str) -> None:
    """An unset shell variable must not select the envelopes without an id."""
    fill(path, log_entry(1))
    assert run("spool", "show", "--", id, str(path)).exit_code == 2


@pytest.mark.parametrize("what", ["missing", "file", "open", "other"])
def test_what_is_no_spool_is_a_wrong_call(path: Path, what: str) -> None:
    """The command creates no spool."""
    if what == "file":
        path.write_text("x")
    elif what != "missing":
        path.mkdir(mode=0o755 if what == "open" else 0o700)
    for name in ("status", "ls", "verify", "dead", "replay"):
        result = run("spool", name, str(path))
        assert result.exit_code == 2
        assert "is no spool" in result.output or what == "file"
        assert "chmod" not in result.output, "no advice about a directory that may be anything"
    assert not path.exists() or path.is_file() or list(path.iterdir()) == []


def test_a_part_of_a_spool_that_is_open_to_others_is_named_with_its_whole_path(path: Path) -> None:
    """The user pastes the printed path into the next command."""
    fill(path, event(1))
    (path / IDENTITY / "seg").chmod(0o755)
    result = run("spool", "status", str(path))
    assert result.exit_code == 2
    assert f"chmod 700 {path}/{IDENTITY}/seg" in result.output


# -- damage --------------------------------------------------------------------------------------------


def test_verify_finds_nothing_wrong_with_a_sound_spool(path: Path) -> None:
    """Settled records are valid too."""
    fill(path, event(1), event(2))
    result = run_json("spool", "verify", str(path))
    assert (result["ok"], result["records"], result["flaws"], result["exit_code"]) == (True, 2, [], 0)
    assert "2 whole records in 1 file, no damage" in run("spool", "verify", str(path)).output


@pytest.mark.parametrize(
    ("at", "loss", "expected"),
    [
        ("body", True, f"body is damaged; its head is intact: event {2:032x}, error 1"),
        ("head", True, "the checksum of a record's head does not fit"),
        ("magic", True, "do not begin as a record does"),
        ("mark", True, "the mark of another segment"),
        ("version", True, "make no sense"),
        ("header", False, "costs nothing"),
    ],
)
def test_verify_explains_damage_by_offset(path: Path, at: str, loss: bool, expected: str) -> None:
    """The output shows the damaged part, the loss, and the place for a hex editor."""
    fill(path, event(1), event(2), event(3))
    (file,) = segments(path)
    rows = run_json("spool", "ls", str(path))["envelopes"]
    offset = {row["id"]: row["offset"] for row in rows}[f"{2:032x}"]
    ends = {row["id"]: row["offset"] for row in rows}[f"{3:032x}"]
    spot = {
        "body": ends - 2,
        "head": offset + 40,
        "magic": offset,
        "mark": offset + 5,
        "version": offset + 8,
        "header": 3,
    }[at]
    data = bytearray(file.read_bytes())
    data[spot] ^= 0xFF
    file.write_bytes(data)
    result = run_json("spool", "verify", str(path))
    (flaw,) = result["flaws"]
    assert expected in flaw["text"]
    assert (result["ok"], flaw["loss"], result["exit_code"]) == (not loss, loss, int(loss))
    assert (flaw["offset"], flaw["end"]) == ((offset, ends) if loss else (0, 32))
    assert f"byte {flaw['offset']} to {flaw['end']}" in run("spool", "verify", str(path)).output
    assert run_json("spool", "ls", str(path))["total"] >= 2


@pytest.mark.parametrize(
    ("length", "expected"), [(100, "never written to its end"), (20, "a write came short")]
)
def test_a_record_that_was_never_finished_is_no_damage(path: Path, length: int, expected: str) -> None:
    """Its envelope was never accepted."""
    fill(path, event(1), event(2))
    (file,) = segments(path)
    offset = run_json("spool", "ls", str(path))["envelopes"][1]["offset"]
    file.write_bytes(file.read_bytes()[: offset + length])
    result = run_json("spool", "verify", str(path))
    assert result["ok"]
    assert result["records"] == 1
    assert expected in result["flaws"][0]["text"]


def test_a_segment_that_was_made_longer_is_read_at_once_and_explained(path: Path) -> None:
    """A sparse file of 200 GB must not be read to its end."""
    fill(path, event(1))
    (segment,) = segments(path)
    end = segment.stat().st_size
    os.truncate(segment, 200 << 30)
    assert run_json("spool", "status", str(path))["identities"][0]["waiting"] == 1
    result = run_json("spool", "verify", str(path))
    (flaw,) = result["flaws"]
    assert (result["records"], flaw["offset"], flaw["end"], flaw["loss"]) == (1, end, 200 << 30, True)
    assert "nearly all of them are a hole: the file was made longer" in flaw["text"]


def test_verify_names_files_that_are_not_what_they_should_be(path: Path) -> None:
    """A FIFO must not block, a link is not followed, a later version is left alone."""
    fill(path, event(1))
    (file,) = segments(path)
    later = bytearray(file.read_bytes())
    other = file.with_name(file.name.replace(file.name[-20:-4], "f" * 16))
    os.mkfifo(other)
    link = file.with_name(file.name.replace(file.name[-20:-4], "e" * 16))
    link.symlink_to("/etc/passwd")
    flaws = run_json("spool", "verify", str(path))["flaws"]
    assert len(flaws) == 2
    assert all(flaw["loss"] for flaw in flaws)
    import struct
    import zlib

    later[8] = 2
    later[28:32] = struct.pack("<I", zlib.crc32(bytes(later[:28])))
    file.write_bytes(later)
    flaws = run_json("spool", "verify", str(path))["flaws"]
    assert any("another version" in flaw["text"] and not flaw["loss"] for flaw in flaws)
    assert run_json("spool", "ls", str(path))["total"] == 0


# -- dead letters --------------------------------------------------------------------------------------


def test_dead_letters_are_listed_shown_and_replayed(path: Path) -> None:
    """A person reads them and decides."""
    bury(path, event(1), event(2))
    result = run_json("spool", "dead", str(path))["dead"]
    assert {row["id"] for row in result} == {f"{1:032x}", f"{2:032x}"}
    assert result[0]["reason"] == "poison"
    assert result[0]["quantities"] == {"error": 1}
    assert "2 dead" in run("spool", "dead", str(path)).output
    assert run_json("spool", "show", f"{1:032x}", str(path))["state"] == "dead"
    some = run_json("spool", "replay", f"{1:032X}", "9" * 32, str(path))
    assert (some["replayed"], some["failed"], some["exit_code"]) == (
        [f"{1:032x}"],
        {"9" * 32: "is no dead letter"},
        1,
    )
    rest = run("spool", "replay", str(path))
    assert (rest.exit_code, rest.output) == (0, "replayed 1 dead letter\n")
    assert letters(path) == []
    assert run_json("spool", "ls", str(path))["total"] == 2
    queue = spool(path, drain=True)
    assert {claim.sealed.event_id for claim in queue.claim(2, 5.0)} == {f"{1:032x}", f"{2:032x}"}
    queue.close()


def test_a_dead_letter_that_is_no_envelope_stays_where_it_is(path: Path) -> None:
    """Files on a disk may contain anything, and so may the facts about them."""
    bury(path, event(1))
    (file,) = letters(path)
    file.write_bytes(b"nonsense")
    file.with_suffix(".json").write_text('["\\u001b[2J"]')
    (path / IDENTITY / "dead" / "evil name.envelope").write_bytes(b"{}")
    (row,) = run_json("spool", "dead", str(path))["dead"]
    assert (row["reason"], row["attempts"]) == ("unknown", 0)
    result = run_json("spool", "replay", str(path))
    assert result["exit_code"] == 1
    assert list(result["failed"]) == [f"{1:032x}"]
    assert f"not {1:032x}" in run("spool", "replay", str(path)).output
    assert letters(path)
    shown = run_json("spool", "show", f"{1:032x}", str(path))
    assert (shown["exit_code"], shown["state"], "items" in shown) == (1, "dead", False)
    assert run_json("spool", "dead", str(path))["dead"][0]["buried_age"] < 3600, "as old as its file"
    file.with_suffix(".json").write_text('{"reason": 1, "quantities": {"error": -1}, "attempts": "x"}')
    assert run_json("spool", "dead", str(path))["dead"][0]["quantities"] == {"error": 0}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("nonsense", "envelope_header"),
        ("empty", "empty"),
        ("cut", "truncated"),
        ("item", "item_header"),
        ("depth", "envelope_header"),
        ("folder", "Is a directory|not a file"),
        ("link", "symbolic"),
        ("key", "event_id"),
    ],
)
def test_a_damaged_dead_letter_is_shown_as_damaged(path: Path, damage: str, expected: str) -> None:
    """`dead` lists it, so `show` must not call it delivered or never taken."""
    bury(path, event(1), reason="refused by \x1b[2J")
    (file,) = letters(path)
    whole = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage == "link":
        file.symlink_to(path / "format")
    else:
        contents = {
            "nonsense": b"nonsense",
            "empty": b"",
            "cut": whole[:-10],
            "item": whole.replace(b'"type"', b'"typo"'),
            "depth": b'{"a":' * 5000,
            "key": whole.replace(f"{1:032x}".encode(), f"{KEY}!".encode(), 1),
        }
        file.write_bytes(contents[damage])
    (row,) = run_json("spool", "dead", str(path))["dead"]
    shown = run_json("spool", "show", row["id"], str(path))
    assert (shown["exit_code"], shown["state"]) == (1, "dead")
    assert (shown["id"], shown["reason"]) == (row["id"], row["reason"])
    assert re.search(expected, shown["unreadable"])
    result = run("spool", "show", row["id"], str(path))
    assert (result.exit_code, result.stderr) == (1, "")
    assert re.search(f"unreadable .*({expected})", result.stdout)
    assert "reason refused by [2J" in result.stdout
    assert KEY not in result.output


def test_a_damaged_envelope_that_waits_is_shown_as_damaged(path: Path) -> None:
    """`ls` reads the heads of records only, and lists it."""
    fill(path, event(1, "hello"), event(2, "other"))
    (file,) = segments(path)
    file.write_bytes(file.read_bytes().replace(b"hello", b"jello"))
    assert run_json("spool", "ls", str(path))["total"] == 2
    shown = run_json("spool", "show", f"{1:032x}", str(path))
    assert (shown["exit_code"], shown["state"]) == (1, "waiting")
    assert "damaged" in shown["unreadable"]
    assert run_json("spool", "show", f"{2:032x}", str(path))["exit_code"] == 0


def test_show_prefers_a_copy_that_can_be_read(path: Path) -> None:
    """The app may have put the envelope into the spool once more."""
    bury(path, event(1))
    letters(path)[0].write_bytes(b"nonsense")
    fill(path, event(1, "again"))
    shown = run_json("spool", "show", f"{1:032x}", str(path))
    assert (shown["exit_code"], shown["state"]) == (0, "waiting")
    assert shown["items"][0]["payload"]["message"] == "again"


def test_replay_into_a_full_spool_keeps_the_letter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A letter that can't be put is not removed."""
    bury(path, event(1))

    def full(*_: object, **__: object) -> None:
        from transport_kit.queues.spool.writer import Full

        raise Full

    monkeypatch.setattr("transport_kit.queues.spool.inspection.Writer.append", full)
    result = run_json("spool", "replay", str(path))
    assert result["failed"] == {f"{1:032x}": "the spool is full"}
    assert letters(path)


def test_purge_removes_dead_letters_of_an_age_and_asks_first(path: Path) -> None:
    """They are gone for good, so the command needs a confirmation or --yes."""
    bury(path, event(1), event(2))
    assert run("spool", "purge", str(path)).exit_code == 2
    young = run_json("spool", "purge", "--older-than", "1h", "--yes", str(path))
    assert (young["purged"], len(letters(path))) == ([], 2)
    (first, _) = letters(path)
    facts = json.loads(first.with_suffix(".json").read_text())
    facts["buried_ms"] = int((time.time() - 7200) * 1000)
    first.with_suffix(".json").write_text(json.dumps(facts))
    assert len(run_json("spool", "purge", "--older-than", "1h", "-y", str(path))["purged"]) == 1
    assert run("spool", "purge", "-y", str(path)).output == "purged 1 dead letter\n"
    assert list((path / IDENTITY / "dead").iterdir()) == []
    assert "such as 7d" in run("spool", "purge", "--older-than", "soon", str(path)).output


def test_purge_of_what_waits_leaves_what_somebody_is_at_and_counts_the_rest(path: Path) -> None:
    """The drainer reports removed envelopes as lost."""
    fill(path, event(1), event(2), event(3))
    writer = spool(path)
    writer.put(event(4))
    result = run_json("spool", "purge", "--waiting", "--older-than", "1h", "-y", str(path))
    assert result["waiting"] == 0
    assert len(segments(path)) == 2
    result = run_json("spool", "purge", "--waiting", "-y", str(path))
    assert result["waiting"] == 3
    assert run_json("spool", "ls", str(path))["total"] == 1
    drainer = spool(path, drain=True)
    assert [claim.sealed.event_id for claim in drainer.claim(1, 5.0)] == [f"{4:032x}"]
    assert {(r, c): n for r, c, n in drainer.take_losses()} == {("cache_overflow", "error"): 3}
    writer.close()
    drainer.close()


# -- at a terminal -------------------------------------------------------------------------------------


def test_a_terminal_gets_tables_and_is_not_steered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reason may come from a server; markup of rich in it must stay text."""
    bury(path, event(1), reason="[red]\x1b[2Jboom[/red]")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr("rich.console.Console.__init__", _wide(Console.__init__, shown))
    _tables.table(("id", "reason"), [("1", "[red]\x1b[2Jboom[/red]")])
    assert "[red] [2Jboom[/red]" in shown.getvalue()
    assert "\x1b[2J" not in shown.getvalue()


def _wide(original: Any, file: io.StringIO) -> Any:
    def init(self: Console, **options: Any) -> None:
        original(self, **{**options, "file": file, "width": 200})

    return init


def test_much_to_read_shows_its_progress(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large backlog takes a while; the bar is on stderr, so that a pipe stays clean."""
    fill(path, event(1))

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(cli_spool, "LONG", 1)
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    with Inspection(str(path), IDENTITY) as inspection, cli_spool._progress([inspection]) as progressed:
        assert len(list(inspection.waiting(progressed))) == 1
    assert "reading" in shown.getvalue()


def test_sizes_and_ages_are_written_for_people() -> None:
    """Three digits suffice."""
    assert [_tables.size(n) for n in (1, 2048, 3 << 20, 5 << 30)] == [
        "1 byte",
        "2.0 KiB",
        "3.0 MiB",
        "5.0 GiB",
    ]
    assert [_tables.age(n) for n in (5, 3700)] == ["5 s", "1:01:40"]
    assert [cli_spool._describe_drainer(*pair) for pair in ((None, None), (0, None), (5, 5), (5, None))] == [
        "nobody",
        "a process",
        "forwarder 5",
        "app process 5",
    ]
