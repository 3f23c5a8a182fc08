"""Storage of envelopes in SQLite, in memory or in a file, bounded in number and bytes.

This module owns the table, its bounds and the file's permissions: reports of apps are private, so a new file
has mode 0600. Knows nothing of HTTP; a record is a JSON object that `summary.py` made.

Threads: one lock guards the one connection; every method may be called from any thread.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from transport_kit.envelope.encoder import dumps, loads
from transport_kit.runtime.errors import OptionsError

__all__ = ["Store", "StoredEnvelope"]

# "tkrv". The store writes to no file with another id.
_APPLICATION_ID = 0x746B7276
_VERSION = 1
_SCHEMA = """
CREATE TABLE envelope (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT,
    size INTEGER NOT NULL,
    key TEXT NOT NULL,
    record TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX envelope_event_id ON envelope (event_id);
CREATE TABLE total (envelopes INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0, 0);
"""


@dataclass(frozen=True, slots=True)
class StoredEnvelope:
    """One envelope as it was received, with its record.

    Attributes:
        n: Number in order of arrival, from 1; never used twice in a store.
        record: The object that `/api/events` lists; contains no key.
        key: The sender's key. `repr` omits it; all output masks it.
        body: The envelope without its content encoding, byte for byte.
    """

    n: int
    record: dict[str, Any]
    key: str = field(repr=False)
    body: bytes = field(repr=False)


class Store:
    """A bounded store of envelopes.

    Args:
        path: A file that outlives a restart; None for memory.
        max_envelopes: Envelopes kept; at least 1. Older ones are dropped.
        max_bytes: Bytes of envelopes kept; at least 1. The newest envelope is kept even if it is larger.

    Raises:
        OptionsError: The file can't be opened, or is not a receiver's store.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        max_envelopes: int = 10_000,
        max_bytes: int = 512 * 1024 * 1024,
    ) -> None:
        if max_envelopes < 1:
            raise OptionsError("max_envelopes", f"must be at least 1, not {max_envelopes}")
        if max_bytes < 1:
            raise OptionsError("max_bytes", f"must be at least 1, not {max_bytes}")
        self._max_envelopes = max_envelopes
        self._max_bytes = max_bytes
        # Guards the connection and `_added`; `add` notifies it for `wait_for`.
        self._changed = threading.Condition()
        self._added = 0
        self._connection = _memory() if path is None else _file(Path(path))

    def add(self, *, event_id: str | None, key: str, record: dict[str, Any], body: bytes) -> int:
        """Store one envelope and drop the oldest ones that no longer fit.

        Returns:
            Its number.

        Raises:
            sqlite3.Error: The disk is full or missing. Nothing was stored.
        """
        with self._changed:
            with self._connection as db:
                cursor = db.execute(
                    "INSERT INTO envelope (event_id, size, key, record, body) VALUES (?, ?, ?, ?, ?)",
                    (event_id, len(body), key, dumps(record).decode(), body),
                )
                db.execute("UPDATE total SET envelopes = envelopes + 1, bytes = bytes + ?", (len(body),))
                number = cursor.lastrowid or 0
                self._evict(db, number)
            self._added += 1
            self._changed.notify_all()
        return number

    def latest(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return records, newest first, each with its number as `n`."""
        with self._changed:
            rows = self._connection.execute(
                "SELECT n, record FROM envelope ORDER BY n DESC LIMIT ?", (limit,)
            ).fetchall()
        return [{"n": number, **loads(record)} for number, record in rows]

    def by_number(self, number: int) -> StoredEnvelope | None:
        """Return the envelope of that number; None if it is unknown or was dropped."""
        return self._fetch_one("SELECT n, record, key, body FROM envelope WHERE n = ?", number)

    def by_event_id(self, event_id: str) -> StoredEnvelope | None:
        """Return the newest envelope with that event id (32 lower-case hex digits), or None."""
        return self._fetch_one(
            "SELECT n, record, key, body FROM envelope WHERE event_id = ? ORDER BY n DESC LIMIT 1", event_id
        )

    def totals(self) -> tuple[int, int]:
        """Return the number of stored envelopes, and of their bytes."""
        with self._changed:
            envelopes, size = self._connection.execute("SELECT envelopes, bytes FROM total").fetchone()
        return int(envelopes), int(size)

    def wait_for(self, count: int, timeout: float = 5.0) -> bool:
        """Wait until `count` envelopes were added to this object; return False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._added >= count, timeout)

    def close(self) -> None:
        """Close the file. Idempotent; any other call fails afterwards."""
        with self._changed:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _fetch_one(self, query: str, value: int | str) -> StoredEnvelope | None:
        with self._changed:
            row = self._connection.execute(query, (value,)).fetchone()
        if row is None:
            return None
        number, record, key, body = row
        return StoredEnvelope(number, {"n": number, **loads(record)}, key, body)

    def _evict(self, db: sqlite3.Connection, newest: int) -> None:
        envelopes, size = db.execute("SELECT envelopes, bytes FROM total").fetchone()
        while (envelopes > self._max_envelopes or size > self._max_bytes) and envelopes > 1:
            oldest = db.execute(
                "SELECT n, size FROM envelope WHERE n < ? ORDER BY n LIMIT 1", (newest,)
            ).fetchone()
            if oldest is None:  # another program changed the file; the newest envelope is always kept
                break
            db.execute("DELETE FROM envelope WHERE n = ?", oldest[:1])
            envelopes -= 1
            size -= oldest[1]
            db.execute("UPDATE total SET envelopes = ?, bytes = ?", (envelopes, size))


def _memory() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.executescript(_SCHEMA)
    return connection


def _file(path: Path) -> sqlite3.Connection:
    try:
        # SQLite would create the file with the mode of the umask.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600))
        connection = sqlite3.connect(path, timeout=5.0, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise OptionsError("store", f"can't open {path}: {error}") from None
    try:
        _prepare(connection, path)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise OptionsError("store", f"can't use {path}: {error}") from None
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Create the tables in a new file; refuse a file that is not a store."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if (application, version) != (_APPLICATION_ID, _VERSION):
        if tables:
            raise OptionsError("store", f"{path} is not a store of this receiver; name another file")
        # Two receivers may start on one new file. The transaction lets only one of them create the tables.
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {_APPLICATION_ID};"
                f" PRAGMA user_version = {_VERSION}; COMMIT;"
            )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    with connection:  # repairs totals that another program's changes made wrong
        connection.execute(
            "UPDATE total SET envelopes = (SELECT count(*) FROM envelope),"
            " bytes = (SELECT coalesce(sum(size), 0) FROM envelope)"
        )
