"""The operating system as the spool uses it, in one object that tests can replace.

This module owns no decision and no state: each method is one or two system calls. Descriptors are not
inherited by executed programs. Every method may raise OSError.

Threads: any.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import struct
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

__all__ = ["NETWORK_FILESYSTEMS", "Stat", "System"]

#: Filesystems whose locks, appends or caches are those of another host.
NETWORK_FILESYSTEMS = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.ceph",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb3",
        "smbfs",
    }
)
_MOUNTS = "/proc/self/mountinfo"
# struct flock of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("@hhqqi4x")


class Stat(Protocol):
    """The part of `os.stat_result` that the spool reads."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_dev(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_blocks(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...


class System:
    """The real operating system. `within` is the descriptor of the directory that a name belongs to."""

    if TYPE_CHECKING:

        def write(self, fd: int, parts: Sequence[bytes]) -> int:
            """Append the parts in one call; return the number of bytes written."""

        def process(self) -> int:
            """Return the id of this process."""
    else:
        # Every put calls these: the kernel's own functions, without a Python frame around them.
        write = staticmethod(os.writev)
        process = staticmethod(os.getpid)

    def open_directory(self, path: str, *, within: int | None = None) -> int:
        """Open a directory; a symbolic link in its place is ELOOP or ENOTDIR."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=within)

    def make_directory(self, path: str, *, within: int | None = None) -> None:
        os.mkdir(path, 0o700, dir_fd=within)

    def create(self, name: str, within: int) -> int:
        """Create a file for appending, readable and writable by this user only."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        return os.open(name, flags, 0o600, dir_fd=within)

    def append_to(self, name: str, within: int) -> int:
        """Open a file for appending; create it if it is missing."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        return os.open(name, flags, 0o600, dir_fd=within)

    def open_file(self, name: str, within: int) -> int:
        """Open an existing file for reading; a device or FIFO in its place can't block."""
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=within)

    def close(self, fd: int) -> None:
        os.close(fd)

    def close_after(self, fd: int, data: bytes, *, sync: bool = False) -> None:
        """Write a small file's whole content and close it; OSError if not all of it fits.

        Args:
            sync: Return only when the content is on the disk.
        """
        try:
            if self.write(fd, (data,)) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                self.sync(fd)
        finally:
            self.close(fd)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def data_from(self, fd: int, offset: int) -> int | None:
        """Return the offset of the first byte at or after `offset` that is not in a hole, or None."""
        try:
            return os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            return None if error.errno == errno.ENXIO else offset

    def taken(self, status: Stat) -> int:
        """Return the bytes of the disk that a file takes: holes take none."""
        return min(status.st_size, status.st_blocks * 512)

    def status(self, fd: int) -> Stat:
        return os.fstat(fd)

    def status_of(self, name: str, within: int) -> Stat:
        return os.stat(name, dir_fd=within, follow_symlinks=False)

    def names(self, fd: int) -> list[str]:
        return os.listdir(fd)

    def link(self, old: str, new: str, within: int) -> None:
        os.link(old, new, src_dir_fd=within, dst_dir_fd=within, follow_symlinks=False)

    def rename(self, old: str, new: str, within: int) -> None:
        os.rename(old, new, src_dir_fd=within, dst_dir_fd=within)

    def unlink(self, name: str, within: int) -> None:
        os.unlink(name, dir_fd=within)

    def try_flock(self, fd: int) -> bool:
        """Lock the open file description exclusively, without waiting; return True if that succeeded."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def try_lockf(self, fd: int) -> bool:
        """Lock the file for this process, without waiting; return True if that succeeded.

        A forked child does not inherit the lock.
        """
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def lockf_holder(self, fd: int) -> int | None:
        """Return the other process that holds the lock of `try_lockf`; 0 if its number is unknown."""
        if sys.platform != "linux" or sys.maxsize < 2**32:
            return None
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        lock_type, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, request))
        return None if lock_type == fcntl.F_UNLCK else pid

    def sync(self, fd: int) -> None:
        """Write a file's data and size to the disk."""
        os.fdatasync(fd)

    def sync_directory(self, fd: int) -> None:
        """Write a directory's names to the disk."""
        os.fsync(fd)

    def user(self) -> int:
        return os.geteuid()

    def random(self, size: int) -> bytes:
        return secrets.token_bytes(size)

    def boot(self) -> str:
        """Return the id of this boot, within which monotonic seconds are comparable; empty if unknown."""
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                return file.read(64).strip()
        except (OSError, ValueError):
            return ""

    def filesystem(self, fd: int) -> str:
        """Return the type of the filesystem that holds the open directory; empty if unknown."""
        device = os.fstat(fd).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        try:
            with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
                types = [line.split(" - ", 1)[1].split()[0] for line in mounts if line.split()[2] == number]
        except (OSError, IndexError):
            return ""
        return types[-1] if types else ""

    def is_directory(self, status: Stat) -> bool:
        return stat.S_ISDIR(status.st_mode)

    def is_file(self, status: Stat) -> bool:
        return stat.S_ISREG(status.st_mode)
