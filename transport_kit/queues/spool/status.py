"""`status.json`: what the drainer says of the whole spool, for all the others.

Advisory and small. Written whole under another name and renamed; read as the hostile input that any file
is. Threads: pure functions but for the file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from transport_kit.envelope.encoder import dumps, loads
from transport_kit.queues.spool.directory import Directory

__all__ = ["SpoolStatus", "publish", "read_status"]

_NAME: Final = "status.json"
_MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolStatus:
    """One identity's figures at one moment.

    Attributes:
        pid: The drainer.
        boot: Names the kernel's start; monotonic seconds compare only within one.
        at: Monotonic seconds of the drainer.
        wall: Epoch seconds.
        pending: Envelopes not settled, those in the drainer's hands included.
        complete: Whether all segments have been counted yet.
        size: Bytes of all segments.
        segments: Files.
        oldest: Epoch seconds at which the oldest pending envelope was accepted.
        dead: Dead letters.
        evicted, expired, damaged, torn: Records given up since this drainer began: for size or count, for
            age, as damaged; and those that never were written to their end, which is no loss.
        foreign: Segments of a later version, left alone.
    """

    pid: int = 0
    boot: str = ""
    at: float = 0.0
    wall: float = 0.0
    pending: int = 0
    complete: bool = True
    size: int = 0
    segments: int = 0
    oldest: float | None = None
    dead: int = 0
    evicted: int = 0
    expired: int = 0
    damaged: int = 0
    torn: int = 0
    foreign: int = 0


def publish(directory: Directory, status: SpoolStatus) -> bool:
    """Replace the file; False when the directory does not take it."""
    system = directory.system
    draft = f".status-{system.random(4).hex()}"
    try:
        fd = system.create(draft, directory.identity)
        try:
            system.close_after(fd, dumps(asdict(status)) + b"\n")
            system.rename(draft, _NAME, directory.identity)
        except OSError:
            system.unlink(draft, directory.identity)
            raise
    except OSError:
        return False
    return True


def read_status(directory: Directory) -> SpoolStatus | None:
    """What was published last; None when there is nothing that can be believed."""
    system = directory.system
    try:
        fd = system.open_file(_NAME, directory.identity)
        try:
            data = system.read(fd, _MAX_BYTES, 0)
        finally:
            system.close(fd)
        found: Any = loads(data)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    values = {}
    for field in fields(SpoolStatus):
        value = found.get(field.name, field.default)
        if not _fits(value, field.default):
            return None
        values[field.name] = value
    return SpoolStatus(**values)


def _fits(value: object, default: object) -> bool:
    if default is None or type(default) is float:
        return (value is None and default is None) or (type(value) in (int, float))
    return type(value) is type(default) and (type(value) is not int or value >= 0)
