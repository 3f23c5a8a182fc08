"""The directory of a spool: creating, checking, opening and listing it.

This module owns the conditions that the directory must meet before anything is written into it: it belongs to
this user alone, is no symbolic link, and is on this host. Later accesses use the descriptors opened here, so
nobody can swap the directory. It owns also when the drainer lists it, and the removal of files that dead
processes left.

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

#: Least seconds between two listings while there is work, and the divisor of the time they may take: a
#: twentieth. Without work the directory is listed whenever it changed.
SCAN_EVERY: Final = 0.25
SCAN_SHARE: Final = 20.0
#: A directory's modification time is as coarse as the kernel's tick: for this many seconds after a change
#: another one may not show.
TICK: Final = 0.1
#: Seconds after which the directory is listed even if its modification time did not change.
AGAIN: Final = 1.0
#: Seconds for which a draft is left alone: the process that created it may be about to lock it.
DRAFT_FOR: Final = 5.0


def identity_of(dsn: Dsn) -> str:
    """Return the name of a DSN's directory in a spool; it does not reveal the key."""
    return hashlib.sha256(f"{dsn.envelope_url} {dsn.public_key}".encode()).hexdigest()[:16]


@dataclass(slots=True)
class Directory:
    """Descriptors of one identity's directories.

    Attributes:
        key: Device and inode of the identity's directory: they identify it whatever its path.
        identity: Descriptor of the identity's directory, `<path>/<identity>`.
        segments: Descriptor of `seg` in it.
        dead: Descriptor of `dead` in it.
    """

    system: System
    key: tuple[int, int]
    identity: int
    segments: int
    dead: int

    def is_removed(self, fd: int, name: str, within: int) -> bool:
        """Return True if the file or directory open as `fd` was deleted.

        Checks the link count and the name, as some filesystems count no links.

        Raises:
            OSError: It can't be checked now.
        """
        opened = self.system.status(fd)
        if opened.st_nlink:
            return False
        try:
            named = self.system.status_of(name, within)
        except FileNotFoundError:
            return True
        return (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino)

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        descriptors = (self.identity, self.segments, self.dead)
        self.identity = self.segments = self.dead = -1
        for fd in descriptors:
            if fd >= 0:
                self.system.close(fd)


def open_directory(
    system: System, path: str, identity: str, *, force: bool = False, make: bool = True, sync: bool = False
) -> Directory:
    """Create what is missing below the parent of `path`, check the directories, and open them.

    Args:
        force: Accept a network filesystem.
        make: False makes a missing directory an error.
        sync: Before returning, write the names of the directories to the disk, so that they survive a loss of
            power. Those that exist already are included: another process may have created them just now.

    Raises:
        OptionsError: The directory can't be trusted with data; a person has to change something.
        OSError: It can't be used now: missing parent, read-only, full, no permission.
    """
    if not _IDENTITY.fullmatch(identity):
        raise OptionsError("queue", "an identity is 16 hex digits")
    root = _open(system, path, None, make=make)
    inner = segments = dead = -1
    try:
        filesystem = system.filesystem(root)
        if filesystem in NETWORK_FILESYSTEMS and not force:
            raise OptionsError(
                "queue",
                f"{path} is on {filesystem}, whose locks can't be relied on; spool_force takes it anyway",
            )
        _check_format(system, root, path, make=make)
        shown = f"{path}/{identity}"
        inner = _open(system, identity, root, make=make, shown=shown)
        segments = _open(system, "seg", inner, make=make, shown=f"{shown}/seg")
        dead = _open(system, "dead", inner, make=make, shown=f"{shown}/dead")
        status = system.status(inner)
        if sync:
            _sync_names(system, root, inner)
    except BaseException:
        for fd in (inner, segments, dead):
            if fd >= 0:
                system.close(fd)
        raise
    finally:
        system.close(root)
    return Directory(system, (status.st_dev, status.st_ino), inner, segments, dead)


def _sync_names(system: System, root: int, inner: int) -> None:
    """Write to the disk the names in the identity's directory, in the spool's, and in the parent of that."""
    system.sync_directory(inner)
    system.sync_directory(root)
    try:
        # By this name and not by the path: its last component may be a symbolic link, which is allowed here.
        parent = system.open_directory("..", within=root)
    except PermissionError:
        return  # a parent that this user can't read belongs to another one, who prepared the directory
    try:
        system.sync_directory(parent)
    finally:
        system.close(parent)


def identities_in(system: System, path: str) -> list[str]:
    """Return the identities of a spool, sorted; creates and locks nothing.

    Raises:
        OptionsError: The directory can't be trusted, or holds no spool of this version.
        OSError: It can't be read now. `FileNotFoundError`: it is missing, or is being created.
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
    """Return the DSN that an app stored for a forwarder; None if there is none.

    Raises:
        OptionsError: The file can't be trusted: it is open to others, holds no DSN, or that of another
            identity.
        OSError: It can't be read now.
    """
    system = directory.system
    try:
        fd = system.open_file(_CREDENTIALS, directory.identity)
    except FileNotFoundError:
        return None
    try:
        status = system.status(fd)
        owned = system.is_file(status) and status.st_uid == system.user()
        if not owned or stat.S_IMODE(status.st_mode) & 0o077:
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
    """Store the DSN for a forwarder, atomically; readable by the owner only, like all files here.

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
                pass  # another process created it at the same time
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
    """Check the file that names the format; create it in a new spool, atomically."""
    try:
        fd = system.open_file(_FORMAT_NAME, root)
    except FileNotFoundError:
        if not make:
            raise
        draft = f".format-{system.random(8).hex()}"
        fd = system.create(draft, root)
        try:
            # Synced whatever the durability: after a loss of power an empty file under this name would make
            # the spool unusable.
            system.close_after(fd, FORMAT, sync=True)
            system.link(draft, _FORMAT_NAME, root)
        except FileExistsError:
            pass  # another process created it at the same time
        finally:
            system.unlink(draft, root)
        fd = system.open_file(_FORMAT_NAME, root)
    try:
        content = system.read(fd, 64, 0)
    finally:
        system.close(fd)
    if content != FORMAT:
        raise OptionsError("queue", f"{path} holds a spool of another version, or something else")


class Listing:
    """One drainer's view of the segments' directory.

    Args:
        directory: The directories of the spool.
        clock: Monotonic seconds.
    """

    def __init__(self, directory: Directory, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._clock = clock
        self._listed_at = float("-inf")
        self._duration = 0.0
        self._drafts: dict[str, float] = {}  # time at which each was first seen
        self._mtime_ns = -1
        self._change_seen_at = float("-inf")

    def look(self, *, working: bool) -> set[str] | None:
        """Return all names; None if no listing is due, or nothing changed.

        Args:
            working: True while envelopes are being claimed: then listings are less frequent.

        Raises:
            OSError: The directory can't be read.
        """
        now = self._clock()
        if working and now < self._listed_at + max(SCAN_EVERY, self._duration * SCAN_SHARE):
            return None
        system, within = self._directory.system, self._directory.segments
        mtime_ns = system.status(within).st_mtime_ns
        if mtime_ns != self._mtime_ns:
            self._mtime_ns = mtime_ns
            self._change_seen_at = now
        elif self._listed_at > self._change_seen_at + TICK and now < self._listed_at + AGAIN:
            return None
        present = set(system.names(within))
        for text in present:
            if text.startswith("."):
                self._clear_draft(text)
            elif text.endswith(".ack") and text.removesuffix(".ack") + ".log" not in present:
                self._unlink(text)
        self._drafts = {text: seen_at for text, seen_at in self._drafts.items() if text in present}
        self._listed_at = now
        self._duration = self._clock() - now
        return present

    def _clear_draft(self, text: str) -> None:
        """Remove a draft whose process died before it linked the file under its final name."""
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
            pass  # its process removed it, or it stays until the next listing

    def _unlink(self, text: str) -> None:
        try:
            self._directory.system.unlink(text, self._directory.segments)
        except OSError:
            pass
