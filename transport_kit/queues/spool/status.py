"""`status.json`: the figures of the whole spool, published by the drainer for all other processes.

Advisory and small. Replaced atomically, by a rename; validated when read, as any file may be damaged.
Threads: the functions have no state but the file.
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
        pid: Process id of the drainer; 0 in the file of a spool that no process has drained yet.
        boot: Id of this boot of the kernel, within which monotonic seconds are comparable.
        at: Monotonic seconds of the drainer.
        wall: Epoch seconds.
        pending: Envelopes that are not settled, claimed ones included.
        complete: True if all segments have been counted.
        size: Bytes of all segments.
        segments: Number of segments.
        oldest: Epoch seconds at which the oldest pending envelope was accepted.
        dead: Dead letters.
        evicted: Envelopes given up for size or count since this drainer began.
        expired: Envelopes given up for their age since this drainer began.
        damaged: Damaged records since this drainer began.
        torn: Incomplete records since this drainer began: they were never accepted, so they are no loss.
        foreign: Segments of a later version, which are left alone.
        ages_from: Epoch seconds from which ages count, see `Ages`; 0 from versions that did not publish it.
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
    ages_from: float = 0.0


def publish(directory: Directory, status: SpoolStatus, *, first: bool = False) -> bool:
    """Replace the file; return False if it can't be written.

    Args:
        first: True to write the file only if there is none.
    """
    system = directory.system
    draft = f".status-{system.random(4).hex()}"
    try:
        fd = system.create(draft, directory.identity)
        try:
            system.close_after(fd, dumps(asdict(status)) + b"\n")
            if not first:
                system.rename(draft, _NAME, directory.identity)
                return True
            system.link(draft, _NAME, directory.identity)
        except OSError:
            system.unlink(draft, directory.identity)
            raise
        system.unlink(draft, directory.identity)
    except OSError:
        return False
    return True


def read_status(directory: Directory) -> SpoolStatus | None:
    """Return the status that was published last; None if there is none, or it is not valid."""
    system = directory.system
    try:
        fd = system.open_file(_NAME, directory.identity)
        try:
            data = system.read(fd, _MAX_BYTES, 0)
        finally:
            system.close(fd)
        content: Any = loads(data)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    values = {}
    for field in fields(SpoolStatus):
        value = content.get(field.name, field.default)
        if not _fits(value, field.default):
            return None
        values[field.name] = value
    return SpoolStatus(**values)


def _fits(value: object, default: object) -> bool:
    if default is None or type(default) is float:
        return (value is None and default is None) or (type(value) in (int, float))
    return type(value) is type(default) and (type(value) is not int or value >= 0)
