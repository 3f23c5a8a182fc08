"""The directory of a spool: made, checked, opened once, and listed.

Owns what the directory must be before anything is written into it: ours alone, no symbolic link, on this
host. From then on files are reached through the descriptors opened here, so nobody can swap the directory.
Owns also when the drainer looks for new files, and clears what dead processes left.

Threads: `open_directory` may be called from any; a `Directory` is closed by its owner. The drainer calls a
`Listing` under its lock.
"""

from __future__ import annotations

import errno
import hashlib
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from transport_kit.config.dsn import Dsn
from transport_kit.queues.spool.system import NETWORK_FILESYSTEMS, System
from transport_kit.runtime.errors import InvalidDsn, OptionsError

__all__ = [
    "Directory",
    "identities_in",
    "identity_of",
    "Listing",
    "open_directory",
    "read_credentials",
    "store_credentials",
]

FORMAT: Final = b"transport-kit spool 1\n"
_FORMAT_NAME: Final = "format"
_IDENTITY: Final = re.compile(r"[0-9a-f]{16}")
_CREDENTIALS: Final = "dsn"
_LONGEST_DSN: Final = 8192

#: Seconds between two looks at the directory while there is work, at least; and how much of the time they
#: may take. Without work it is looked at whenever it changed.
SCAN_EVERY: Final = 0.25
SCAN_SHARE: Final = 20.0
#: The stamp of a directory is as coarse as the kernel's tick: for so many seconds after a change that was
#: seen another one may not show. And without any change it is looked at after so many all the same.
TICK: Final = 0.1
AGAIN: Final = 1.0
#: Seconds for which a draft is left to its maker, who may be about to lock it.
DRAFT_FOR: Final = 5.0


def identity_of(dsn: Dsn) -> str:
    """The name of a DSN's part of a spool; does not reveal the key."""
    return hashlib.sha256(f"{dsn.envelope_url} {dsn.public_key}".encode()).hexdigest()[:16]


@dataclass(slots=True)
class Directory:
    """Descriptors of one identity's directories.

    Attributes:
        key: Device and inode of the identity's directory: which one it is, whatever its path.
        identity, segments, dead: Descriptors.
    """

    system: System
    key: tuple[int, int]
    identity: int
    segments: int
    dead: int

    def is_removed(self, fd: int, name: str, within: int) -> bool:
        """Whether what is open as `fd` was deleted. Asked twice, as some filesystems count no links.

        Raises:
            OSError: It can't be asked now.
        """
        ours = self.system.status(fd)
        if ours.st_nlink:
            return False
        try:
            found = self.system.status_of(name, within)
        except FileNotFoundError:
            return True
        return (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino)

    def close(self) -> None:
        """Close the descriptors. Once."""
        descriptors = (self.identity, self.segments, self.dead)
        self.identity = self.segments = self.dead = -1
        for fd in descriptors:
            if fd >= 0:
                self.system.close(fd)


def open_directory(
    system: System, path: str, identity: str, *, force: bool = False, make: bool = True
) -> Directory:
    """Make what is missing below `path`'s parent, check it, open it.

    Args:
        force: Take a network filesystem all the same.
        make: Otherwise what is missing is an error.

    Raises:
        OptionsError: The directory is not one to trust with data; a person has to change something.
        OSError: It can't be used now: missing parent, read-only, full, no permission.
    """
    if not _IDENTITY.fullmatch(identity):
        raise OptionsError("queue", "an identity is 16 hex digits")
    root = _open(system, path, None, make=make)
    try:
        kind = system.filesystem(root)
        if kind in NETWORK_FILESYSTEMS and not force:
            raise OptionsError(
                "queue", f"{path} is on {kind}, whose locks can't be relied on; spool_force takes it anyway"
            )
        _check_format(system, root, path, make=make)
        shown = f"{path}/{identity}"
        inner = _open(system, identity, root, make=make, shown=shown)
    finally:
        system.close(root)
    segments = dead = -1
    try:
        segments = _open(system, "seg", inner, make=make, shown=f"{shown}/seg")
        dead = _open(system, "dead", inner, make=make, shown=f"{shown}/dead")
        status = system.status(inner)
    except BaseException:
        for fd in (inner, segments, dead):
            if fd >= 0:
                system.close(fd)
        raise
    return Directory(system, (status.st_dev, status.st_ino), inner, segments, dead)


def identities_in(system: System, path: str) -> list[str]:
    """The identities that a spool holds; makes and locks nothing.

    Raises:
        OptionsError: It is not one to trust, or no spool of this version.
        OSError: It can't be read now; `FileNotFoundError`: it is not there, or is being made.
    """
    root = _open(system, path, None, make=False)
    try:
        _check_format(system, root, path, make=False)
        return sorted(
            name
            for name in system.names(root)
            if _IDENTITY.fullmatch(name) and system.is_directory(system.status_of(name, root))
        )
    finally:
        system.close(root)


def read_credentials(directory: Directory, identity: str) -> Dsn | None:
    """The DSN that an app left for a forwarder; None when there is none.

    Raises:
        OptionsError: What is there can't be believed: open to others, no DSN, or that of another identity.
        OSError: It can't be read now.
    """
    system = directory.system
    try:
        fd = system.open_file(_CREDENTIALS, directory.identity)
    except FileNotFoundError:
        return None
    try:
        status = system.status(fd)
        ours = system.is_file(status) and status.st_uid == system.user()
        if not ours or stat.S_IMODE(status.st_mode) & 0o077:
            raise OptionsError("dsn", f"the credentials of {identity} are not a file of ours alone")
        data = system.read(fd, _LONGEST_DSN, 0)
    finally:
        system.close(fd)
    try:
        dsn = Dsn.parse(data.decode("utf-8").strip())
    except (InvalidDsn, UnicodeDecodeError):
        raise OptionsError("dsn", f"the credentials of {identity} are not a DSN") from None
    if identity_of(dsn) != identity:
        raise OptionsError("dsn", f"the credentials of {identity} belong to another identity")
    return dsn


def store_credentials(directory: Directory, text: str) -> None:
    """The DSN for a forwarder, whole or not at all; readable to the owner only, like all files here.

    Raises:
        OSError: It can't be stored.
    """
    system = directory.system
    draft = f".dsn-{system.random(8).hex()}"
    fd = system.create(draft, directory.identity)
    try:
        system.close_after(fd, text.encode() + b"\n")
        system.rename(draft, _CREDENTIALS, directory.identity)
    except OSError:
        system.unlink(draft, directory.identity)
        raise


def _open(system: System, path: str, within: int | None, *, make: bool = True, shown: str = "") -> int:
    shown = shown or path
    try:
        try:
            fd = system.open_directory(path, within=within)
        except FileNotFoundError:
            if not make:
                raise
            try:
                system.make_directory(path, within=within)
            except FileExistsError:
                pass  # another process was faster
            fd = system.open_directory(path, within=within)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise OptionsError("queue", f"{shown} is a symbolic link or not a directory") from None
        raise
    problem = None
    try:
        status = system.status(fd)
    except OSError:
        system.close(fd)
        raise
    if status.st_uid != system.user():
        problem = f"belongs to user {status.st_uid}, and this process is user {system.user()}"
    elif status.st_mode & 0o077:
        problem = f"is open to others; chmod 700 {shown}"
    if problem is not None:
        system.close(fd)
        raise OptionsError("queue", f"{shown} {problem}")
    return fd


def _check_format(system: System, root: int, path: str, *, make: bool = True) -> None:
    """Written once under its name, whole: a crash leaves no half of it."""
    try:
        fd = system.open_file(_FORMAT_NAME, root)
    except FileNotFoundError:
        if not make:
            raise
        draft = f".format-{system.random(8).hex()}"
        system.close_after(system.create(draft, root), FORMAT)
        try:
            system.link(draft, _FORMAT_NAME, root)
        except FileExistsError:
            pass  # another process was faster
        finally:
            system.unlink(draft, root)
        fd = system.open_file(_FORMAT_NAME, root)
    try:
        found = system.read(fd, 64, 0)
    finally:
        system.close(fd)
    if found != FORMAT:
        raise OptionsError("queue", f"{path} holds a spool of another version, or something else")


class Listing:
    """One drainer's view of the directory.

    Args:
        directory: Of the spool.
        clock: Monotonic seconds.
    """

    def __init__(self, directory: Directory, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._clock = clock
        self._looked = float("-inf")
        self._took = 0.0
        self._drafts: dict[str, float] = {}  # when first seen
        self._changed_at = -1
        self._changed_seen = float("-inf")

    def look(self, *, working: bool) -> set[str] | None:
        """All names; None while it is not time to look, or nothing changed.

        Raises:
            OSError: The directory can't be read.
        """
        now = self._clock()
        if working and now < self._looked + max(SCAN_EVERY, self._took * SCAN_SHARE):
            return None
        system, within = self._directory.system, self._directory.segments
        changed = system.status(within).st_mtime_ns
        if changed != self._changed_at:
            self._changed_at = changed
            self._changed_seen = now
        elif self._looked > self._changed_seen + TICK and now < self._looked + AGAIN:
            return None
        present = set(system.names(within))
        for text in present:
            if text.startswith("."):
                self._clear_draft(text)
            elif text.endswith(".ack") and text.removesuffix(".ack") + ".log" not in present:
                self._unlink(text)
        self._drafts = {text: seen for text, seen in self._drafts.items() if text in present}
        self._looked = now
        self._took = self._clock() - now
        return present

    def _clear_draft(self, text: str) -> None:
        """Remove it if its maker died."""
        if self._clock() < self._drafts.setdefault(text, self._clock()) + DRAFT_FOR:
            return
        system, within = self._directory.system, self._directory.segments
        try:
            fd = system.open_file(text, within)
            try:
                if system.try_flock(fd):
                    self._unlink(text)
            finally:
                system.close(fd)
        except OSError:
            pass  # its maker was faster, or it stays for the next look

    def _unlink(self, text: str) -> None:
        try:
            self._directory.system.unlink(text, self._directory.segments)
        except OSError:
            pass
