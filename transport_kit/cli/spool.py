"""`transport-kit spool`: lists and verifies a spool, and replays or removes its dead letters.

This module owns the subcommands and their output: tables for people, one JSON object for machines.
`queues/spool/inspection.py` reads and changes the files. It works beside writers and a drainer.

The contents of a spool are hostile input: `_tables.py` makes them printable, `_contents.py` masks keys.

Threads: main thread only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

from transport_kit.cli._connection import interruptible
from transport_kit.cli._contents import contents
from transport_kit.cli._tables import age, counted, quantities, size, table
from transport_kit.cli._text import MaskedCommand, MaskedGroup, masked, one_line
from transport_kit.runtime.errors import InvalidEnvelope, OptionsError, SealError

if TYPE_CHECKING:
    from transport_kit.envelope.sealed import SealedEnvelope
    from transport_kit.queues.spool.inspection import Inspection, Letter, Progressed, SegmentFacts, Waiting

__all__ = ["command"]

#: Envelopes that `ls` lists for people, unless --limit is given.
SHOWN: Final = 50
#: Bytes of segments from which a command shows a progress bar.
LONG: Final = 32 * 1024 * 1024
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_AGE: Final = re.compile(r"([0-9]{1,9})([smhdw])")
_CLASSES: Final = ("replay", "log", "transaction", "session", "error")


class _Age(click.ParamType[float]):
    """A length of time such as 90s, 15m, 12h, 7d or 2w, in seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = _AGE.fullmatch(str(value))
        if match is None:
            self.fail("must be a number and s, m, h, d or w, such as 7d", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


_directory = click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
_ids = click.argument("ids", metavar="[ID]...", nargs=-1)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for machines.")
_yes = click.option("--yes", "-y", is_flag=True, help="Don't ask.")


@click.group(name="spool", cls=MaskedGroup)
def command() -> None:
    """Looks into a spool, checks it, and deals with its dead letters.

    DIR is the directory of queue="file:///DIR". Everything works while apps write and deliver. An ID is an
    event id, or what `ls` shows for envelopes that have none.

    Exit status: 0 when all is well, 1 when it is not (damage, an ID that is not there, something that could
    not be done), 2 when the call or the directory can't be used, 130 after Ctrl-C.

    \b
    Examples:
      transport-kit spool status /var/spool/shop
      transport-kit spool ls /var/spool/shop --json
      transport-kit spool show 9ec79c33ec9942ab8353589fcb2e04dc /var/spool/shop
      transport-kit spool verify /var/spool/shop
      transport-kit spool replay /var/spool/shop
      transport-kit spool purge --older-than 30d /var/spool/shop
    """


@command.command(cls=MaskedCommand)
@_directory
@_as_json
def status(directory: Path, as_json: bool) -> None:
    """How much waits, since when, who delivers it."""
    identities: list[dict[str, Any]] = []
    with _open_spool(directory) as inspections, _progress(inspections) as progressed:
        identities += [_status(each, progressed) for each in inspections]
    if as_json:
        _print_json({"path": str(directory), "identities": identities})
        return
    if not identities:
        click.echo("nothing was ever put into it")
    for facts in identities:
        click.echo(f"{facts['identity']}  {facts['dsn'] or 'no DSN is stored'}")
        published = facts["published"] or {}
        for name, text in (
            ("waiting", _describe_waiting(facts)),
            ("oldest", "none" if facts["oldest_age"] is None else age(facts["oldest_age"])),
            ("drained by", _describe_drainer(facts["drainer"], facts["forwarder"])),
            ("dead letters", str(facts["dead_letters"])),
            *(
                (name, str(published[name]))
                for name in ("evicted", "expired", "damaged", "torn", "foreign")
                if published.get(name)
            ),
        ):
            click.echo(f"  {name:<13} {one_line(text)}")


def _describe_waiting(facts: Mapping[str, Any]) -> str:
    envelopes, files = counted(facts["waiting"], "envelope"), counted(facts["segments"], "file")
    return f"{envelopes}, {size(facts['bytes'])}, {files}"


def _status(inspection: Inspection, progressed: Progressed) -> dict[str, Any]:
    segments = inspection.segments()
    waiting, oldest = 0, None
    for each in inspection.waiting(progressed):
        waiting += 1
        oldest = each.created_ms if oldest is None else min(oldest, each.created_ms)
    drainer, forwarder = inspection.holders()
    published = inspection.status()
    return {
        "identity": inspection.identity,
        "dsn": inspection.credentials()[0],
        "waiting": waiting,
        "bytes": sum(size for _, size in segments),
        "segments": len(segments),
        "oldest_age": None if oldest is None else round(max(0.0, time.time() - oldest / 1000), 3),
        "drainer": drainer,
        "forwarder": forwarder,
        "dead_letters": len(inspection.letters()),
        "published": None
        if published is None
        else {
            "age": round(max(0.0, time.time() - published.wall), 3),
            "pid": published.pid,
            "pending": published.pending,
            "bytes": published.size,
            "evicted": published.evicted,
            "expired": published.expired,
            "damaged": published.damaged,
            "torn": published.torn,
            "foreign": published.foreign,
        },
    }


@command.command(cls=MaskedCommand)
@_directory
@click.option(
    "--limit", type=click.IntRange(1), metavar="N", help=f"At most N.  [default: {SHOWN}; JSON: all]"
)
@_as_json
def ls(directory: Path, limit: int | None, as_json: bool) -> None:
    """What waits, in the order of classes, the oldest of each first."""
    max_rows = limit or (None if as_json else SHOWN)
    rows: list[dict[str, Any]] = []
    total = 0
    with _open_spool(directory) as inspections, _progress(inspections) as progressed:
        for each in inspections:
            for waiting in each.waiting(progressed):
                total += 1
                if max_rows is None or len(rows) < max_rows:
                    rows.append(_row(waiting))
    if as_json:
        _print_json({"total": total, "envelopes": rows})
        return
    table(
        ("id", "class", "holds", "size", "age", "attempts", ""),
        (
            (
                row["id"],
                row["class"],
                quantities(row["quantities"]),
                size(row["bytes"]),
                age(row["age"]),
                str(row["attempts"]),
                "under way" if row["under_way"] else "",
            )
            for row in rows
        ),
    )
    verb = "waits" if total == 1 else "wait"
    note = "" if total == len(rows) else f", {len(rows)} shown; see --limit"
    click.echo(f"{total} {verb}{note}")


def _row(waiting: Waiting) -> dict[str, Any]:
    return {
        "id": waiting.event_id or waiting.reference,
        "identity": waiting.identity,
        "class": _CLASSES[waiting.segment.rank],
        "quantities": dict(waiting.quantities),
        "bytes": waiting.size,
        "age": round(max(0.0, time.time() - waiting.created_ms / 1000), 3),
        "attempts": waiting.attempts,
        "under_way": waiting.under_way,
        "file": str(waiting.segment),
        "offset": waiting.offset,
    }


@command.command(cls=MaskedCommand)
@click.argument("id", metavar="ID")
@_directory
@_as_json
def show(id: str, directory: Path, as_json: bool) -> None:
    """One envelope that waits, or a dead letter, without keys."""
    key = _normalize_id(id)
    if not key:
        raise click.UsageError("ID is empty")
    with _open_spool(directory) as inspections, _progress(inspections) as progressed:
        match = _first_match(inspections, key, progressed)
        if match is None:
            raise click.ClickException(f"{masked(id)} is not there: delivered, given up, or never taken")
        facts, sealed, secrets = match
    readable = not isinstance(sealed, str)
    shown = {"unreadable": masked(sealed)} if isinstance(sealed, str) else contents(sealed, secrets)
    document = {**facts, **shown}
    if as_json:
        _print_json(document)
    else:
        _print_document(facts, document)
    raise SystemExit(0 if readable else 1)


def _print_document(facts: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    for name, value in facts.items():
        click.echo(one_line(f"{name:<10} {quantities(value) if isinstance(value, Mapping) else value}"))
    if "unreadable" in document:
        click.echo(one_line(f"unreadable {document['unreadable']}"))
        return
    click.echo(f"headers    {json.dumps(document['headers'])}")
    for item in document["items"]:
        click.echo(one_line(f"\nitem {item['type']}, {counted(item['bytes'], 'byte')}"))
        click.echo(json.dumps(item["payload"], indent=2) if item["payload"] is not None else "(no JSON)")


#: The facts of an envelope, the envelope or the reason why it can't be read, and the keys to be masked.
_Match: TypeAlias = "tuple[dict[str, Any], SealedEnvelope | str, tuple[str, ...]]"


def _first_match(inspections: Iterable[Inspection], key: str, progressed: Progressed) -> _Match | None:
    """Return the first envelope that can be read, else the first; None if there is none."""
    unreadable: _Match | None = None
    for match in _matches(inspections, key, progressed):
        if not isinstance(match[1], str):
            return match
        unreadable = unreadable or match
    return unreadable


def _matches(inspections: Iterable[Inspection], key: str, progressed: Progressed) -> Iterator[_Match]:
    for each in inspections:
        secrets = each.credentials()[1]
        for letter in each.letters():
            if _normalize_id(letter.name) == key:
                sealed: SealedEnvelope | str
                try:
                    sealed = each.read_letter(letter)
                except (OSError, InvalidEnvelope, SealError) as error:
                    sealed = _reason(error)
                yield {"state": "dead", **_letter_row(letter)}, sealed, secrets
        for waiting in each.waiting(progressed):
            if key in (_normalize_id(waiting.event_id or ""), waiting.reference):
                sealed = each.load(waiting) or "is damaged, or was delivered meanwhile; see verify"
                yield {"state": "waiting", **_row(waiting)}, sealed, secrets


@command.command(cls=MaskedCommand)
@_directory
@_as_json
def verify(directory: Path, as_json: bool) -> None:
    """Reads every record, checksums included, and says what is wrong where.

    Damage costs the envelopes it hit and no other. A record that was never written to its end is no
    damage: it was never accepted.
    """
    segments: list[tuple[str, SegmentFacts]] = []
    with _open_spool(directory) as inspections, _progress(inspections) as progressed:
        segments += [(each.identity, facts) for each in inspections for facts in each.verify(progressed)]
    flaws = [(identity, flaw) for identity, facts in segments for flaw in facts.flaws]
    losses = sum(flaw.loss for _, flaw in flaws)
    records = sum(facts.records for _, facts in segments)
    if as_json:
        _print_json(
            {
                "ok": not losses,
                "segments": len(segments),
                "records": records,
                "settled": sum(facts.settled for _, facts in segments),
                "flaws": [
                    {
                        "identity": identity,
                        "file": flaw.file,
                        "offset": flaw.offset,
                        "end": flaw.end,
                        "loss": flaw.loss,
                        "text": one_line(flaw.text),
                    }
                    for identity, flaw in flaws
                ],
            }
        )
    else:
        for identity, flaw in flaws:
            click.echo(f"{identity}/seg/{flaw.file}")
            kind = "damage" if flaw.loss else "note"
            click.echo(one_line(f"  byte {flaw.offset} to {flaw.end}: {kind}: {flaw.text}"))
        verdict = "no damage" if not losses else f"{losses} damaged"
        click.echo(f"{counted(records, 'whole record')} in {counted(len(segments), 'file')}, {verdict}")
    raise SystemExit(1 if losses else 0)


# -- dead letters --------------------------------------------------------------------------------------


@command.command(name="dead", cls=MaskedCommand)
@_directory
@_as_json
def dead_letters(directory: Path, as_json: bool) -> None:
    """Envelopes that are not sent again unless somebody says so: see replay."""
    with _open_spool(directory) as inspections:
        rows = [_letter_row(letter) for each in inspections for letter in each.letters()]
    if as_json:
        _print_json({"dead": rows})
        return
    table(
        ("id", "reason", "holds", "size", "buried", "attempts"),
        (
            (
                row["id"],
                row["reason"],
                quantities(row["quantities"]),
                size(row["bytes"]),
                age(row["buried_age"]),
                str(row["attempts"]),
            )
            for row in rows
        ),
    )
    click.echo(f"{len(rows)} dead")


def _letter_row(letter: Letter) -> dict[str, Any]:
    return {
        "id": letter.name,
        "identity": letter.identity,
        "reason": masked(letter.reason),
        "quantities": dict(letter.quantities),
        "bytes": letter.size,
        "buried_age": round(max(0.0, time.time() - letter.buried_ms / 1000), 3),
        "attempts": letter.attempts,
    }


@command.command(cls=MaskedCommand)
@_ids
@_directory
@_as_json
def replay(ids: tuple[str, ...], directory: Path, as_json: bool) -> None:
    """Puts dead letters, all or those named, back among what waits."""
    from transport_kit.config.options import TransportOptions, resolve

    (options,) = resolve({}, (TransportOptions,))
    replayed: list[str] = []
    failed: dict[str, str] = {}
    with _open_spool(directory) as inspections:
        selection = _select_letters(inspections, ids, failed)
        for each, letters in selection:
            with each.writing(max_bytes=options.spool_max_bytes) as put:
                for letter in letters:
                    # Put before removed: a kill in between duplicates the letter and does not lose it.
                    try:
                        put(each.read_letter(letter))
                        each.remove_letter(letter)
                    except (OSError, InvalidEnvelope, SealError) as error:
                        failed[letter.name] = _reason(error)
                    else:
                        replayed.append(letter.name)
    _print_changes(as_json, "replayed", replayed, failed)


@command.command(cls=MaskedCommand)
@_directory
@click.option("--older-than", type=_Age(), metavar="AGE", help="Only what is older, such as 12h or 30d.")
@click.option(
    "--waiting", is_flag=True, help="Also what still waits, a whole file at a time; it is counted as lost."
)
@_yes
@_as_json
def purge(directory: Path, older_than: float | None, waiting: bool, yes: bool, as_json: bool) -> None:
    """Removes dead letters for good; with --waiting also what waits and nobody is at.

    A file that an app is writing, or that the drainer reads, stays. Envelopes in a file are as old as the
    last write to it.
    """
    before_ms = int((time.time() - older_than) * 1000) if older_than is not None else 1 << 62
    purged: list[str] = []
    failed: dict[str, str] = {}
    dropped = 0
    with _open_spool(directory) as inspections:
        letters = [
            (each, letter)
            for each in inspections
            for letter in each.letters()
            if letter.buried_ms < before_ms
        ]
        if not yes:
            victims = f"{counted(len(letters), 'dead letter')}{' and what waits' if waiting else ''}"
            if not sys.stdin.isatty():
                raise click.UsageError(f"this would remove {victims} for good: say --yes")
            click.confirm(f"Remove {victims} for good?", abort=True)
        for each, letter in letters:
            try:
                each.remove_letter(letter)
            except OSError as error:
                failed[letter.name] = _reason(error)
            else:
                purged.append(letter.name)
        for each in inspections if waiting else ():
            for name, _ in each.segments():
                try:
                    dropped += each.drop(name, before_ms) or 0
                except OSError as error:
                    failed[str(name)] = _reason(error)
    _print_changes(as_json, "purged", purged, failed, **({"waiting": dropped} if waiting else {}))


def _select_letters(
    inspections: list[Inspection], ids: tuple[str, ...], failed: dict[str, str]
) -> list[tuple[Inspection, list[Letter]]]:
    ids_by_key = {_normalize_id(id): id for id in ids}
    selection = []
    for each in inspections:
        letters = [letter for letter in each.letters() if not ids or _normalize_id(letter.name) in ids_by_key]
        selection.append((each, letters))
    selected = {_normalize_id(letter.name) for _, letters in selection for letter in letters}
    failed.update({masked(id): "is no dead letter" for key, id in ids_by_key.items() if key not in selected})
    return selection


def _print_changes(
    as_json: bool, word: str, names: list[str], failed: Mapping[str, str], **more: int
) -> None:
    if as_json:
        _print_json({"ok": not failed, word: names, **more, "failed": dict(failed)})
    else:
        click.echo(
            f"{word} {counted(len(names), 'dead letter')}"
            + "".join(f", {n} {name}" for name, n in more.items())
        )
        for name, why in failed.items():
            click.echo(one_line(f"  not {name}: {why}"))
    raise SystemExit(1 if failed else 0)


# -- shared helpers ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_spool(directory: Path) -> Iterator[list[Inspection]]:
    """Open all identities of a spool."""
    from transport_kit.queues.spool.directory import identities_in
    from transport_kit.queues.spool.inspection import Inspection
    from transport_kit.queues.spool.system import System

    path = str(directory.absolute())
    with contextlib.ExitStack() as stack, interruptible():
        inspections = []
        try:
            # First, so that a directory that is no spool gets that error and no advice about its owner.
            os.stat(os.path.join(path, "format"))
            for identity in identities_in(System(), path):
                with contextlib.suppress(FileNotFoundError):  # an identity that is being created
                    inspections.append(stack.enter_context(Inspection(path, identity)))
        except OptionsError as error:
            raise OptionsError("DIR", error.problem, "command line") from None
        except OSError as error:
            raise OptionsError("DIR", f"{path} is no spool: {_reason(error)}", "command line") from None
        yield inspections


@contextlib.contextmanager
def _progress(inspections: Iterable[Inspection]) -> Iterator[Progressed]:
    """Show a bar on stderr, if that is a terminal and at least `LONG` bytes will be read."""
    total = sum(size for each in inspections for _, size in each.segments())
    if total < LONG or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=total)
        yield lambda size: bar.advance(task, size)


def _print_json(facts: Mapping[str, Any]) -> None:
    click.echo(json.dumps(facts, indent=2))


def _normalize_id(id: str) -> str:
    """Return an event id in lower case without dashes; any other ID unchanged."""
    return id if ":" in id else id.replace("-", "").lower()


def _reason(error: Exception) -> str:
    return error.strerror or "can't be read" if isinstance(error, OSError) else str(error)


def _describe_drainer(drainer: int | None, forwarder: int | None) -> str:
    if drainer is None:
        return "nobody"
    kind = "forwarder" if forwarder == drainer else "app process"
    return f"{kind} {drainer}" if drainer else "a process"
