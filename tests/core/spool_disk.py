"""A disk in memory, and an operating system on it that can fail or be killed at any system call."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.core.spool_support import NOW_MS
from tests.core.worker_support import Clock
from transport_kit.queues.spool import FileSpool
from transport_kit.queues.spool.system import System

IDENTITY = "0123456789abcdef"
_devices = itertools.count(1000)


class Died(BaseException):
    """Raised when the process is killed inside a system call."""


@dataclass(eq=False)
class Node:
    """A file or directory; it exists as long as a name or a descriptor refers to it."""

    number: int
    device: int
    mode: int
    data: bytearray = field(default_factory=bytearray)
    names: dict[str, Node] = field(default_factory=dict)
    links: int = 1
    mtime_ns: int = 0
    flocked: Description | None = None
    locked: DiskSystem | None = None

    @property
    def st_mode(self) -> int:
        return self.mode

    @property
    def st_ino(self) -> int:
        return self.number

    @property
    def st_dev(self) -> int:
        return self.device

    @property
    def st_nlink(self) -> int:
        return self.links

    @property
    def st_uid(self) -> int:
        return 7

    @property
    def st_size(self) -> int:
        return len(self.data)

    @property
    def st_blocks(self) -> int:
        return -(-len(self.data) // 512)

    @property
    def st_mtime_ns(self) -> int:
        return self.mtime_ns


@dataclass(eq=False)
class Description:
    """An open file."""

    node: Node
    writable: bool


@dataclass
class Frozen:
    """The result of `fstat`."""

    st_mode: int
    st_ino: int
    st_dev: int
    st_nlink: int
    st_uid: int
    st_size: int
    st_blocks: int
    st_mtime_ns: int


class Disk:
    """All files. `capacity` limits their bytes; `failing` maps the calls that fail to their error numbers."""

    def __init__(self) -> None:
        self.device = next(_devices)
        self._numbers = itertools.count(1)
        self._ticks = itertools.count(1)
        self.root = self.node(stat.S_IFDIR | 0o700)
        self.capacity = 1 << 40
        self.failing: dict[str, int] = {}
        self.random = itertools.count(1)

    def node(self, mode: int) -> Node:
        return Node(next(self._numbers), self.device, mode, mtime_ns=next(self._ticks))

    def touch(self, node: Node) -> None:
        node.mtime_ns = next(self._ticks)

    def used(self) -> int:
        return sum(len(node.data) for node in self._all(self.root))

    def _all(self, node: Node) -> list[Node]:
        found = [node]
        for inner in node.names.values():
            found += self._all(inner)
        return found

    def parent_of(self, node: Node) -> Node | None:
        """Return the directory that has a name for `node`."""
        return next((each for each in self._all(self.root) if node in each.names.values()), None)

    def find(self, path: str) -> Node | None:
        node: Node | None = self.root
        for part in path.strip("/").split("/"):
            node = None if node is None else node.names.get(part)
        return node


class DiskSystem(System):
    """One process on a disk. System call number `dies_at` kills it, perhaps in the middle of a write."""

    def __init__(self, disk: Disk, pid: int) -> None:
        self.disk = disk
        self.pid = pid
        self.open_files: dict[int, Description] = {}
        self._fds = itertools.count(3)
        self.calls = 0
        self.dies_at: int | None = None
        self.dead = False

    # -- failing and dying -----------------------------------------------------------------------------

    def _call(self, name: str) -> None:
        if self.dead:
            raise Died
        self.calls += 1
        if self.dies_at is not None and self.calls >= self.dies_at:
            self.die()
            raise Died
        error = self.disk.failing.get(name)
        if error is not None:
            raise OSError(error, os.strerror(error))

    def die(self) -> None:
        """Die as after SIGKILL: the kernel closes all descriptors."""
        for fd in list(self.open_files):
            self.drop(fd)
        self.dead = True

    def drop(self, fd: int) -> None:
        """Close a descriptor as other code of the process does: it counts as no call and can't fail."""
        opened = self.open_files.pop(fd)
        if opened.node.flocked is opened:
            opened.node.flocked = None
        if opened.node.locked is self:
            opened.node.locked = None

    def _file(self, fd: int) -> Description:
        try:
            return self.open_files[fd]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def _within(self, fd: int) -> Node:
        return self._file(fd).node

    def _give(self, node: Node, writable: bool) -> int:
        fd = next(self._fds)
        self.open_files[fd] = Description(node, writable)
        return fd

    # -- the calls -------------------------------------------------------------------------------------

    def open_directory(self, path: str, *, within: int | None = None) -> int:
        self._call("open")
        if within is None:
            node = self.disk.find(path)
        elif path == "..":
            node = self.disk.parent_of(self._within(within))
        else:
            node = self._within(within).names.get(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._give(node, False)

    def make_directory(self, path: str, *, within: int | None = None) -> None:
        self._call("mkdir")
        parent = self.disk.root if within is None else self._within(within)
        name = path.strip("/")
        if name in parent.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        parent.names[name] = self.disk.node(stat.S_IFDIR | 0o700)

    def create(self, name: str, within: int) -> int:
        self._call("create")
        parent = self._within(within)
        if name in parent.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        node = parent.names[name] = self.disk.node(stat.S_IFREG | 0o600)
        self.disk.touch(parent)
        return self._give(node, True)

    def append_to(self, name: str, within: int) -> int:
        self._call("create")
        parent = self._within(within)
        node = parent.names.get(name)
        if node is None:
            node = parent.names[name] = self.disk.node(stat.S_IFREG | 0o600)
            self.disk.touch(parent)
        return self._give(node, True)

    def open_file(self, name: str, within: int) -> int:
        self._call("open")
        node = self._within(within).names.get(name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._give(node, False)

    def close(self, fd: int) -> None:
        self._call("close")
        self._file(fd)
        self.drop(fd)

    def write(self, fd: int, parts: Sequence[bytes]) -> int:
        opened = self._file(fd)
        whole = b"".join(parts)
        try:
            self._call("write")
        except Died:
            # Killed in the middle: half of the data is written, as the kernel copies a page at a time.
            if self.calls % 2:
                opened.node.data += whole[: len(whole) // 2]
            raise
        room = self.disk.capacity - self.disk.used()
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        opened.node.data += whole[:room]
        self.disk.touch(opened.node)
        return min(len(whole), room)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        self._call("read")
        return bytes(self._file(fd).node.data[offset : offset + size])

    def data_from(self, fd: int, offset: int) -> int | None:
        self._call("read")
        return offset if offset < len(self._file(fd).node.data) else None

    def status(self, fd: int) -> Frozen:
        self._call("stat")
        return self._frozen(self._file(fd).node)

    def status_of(self, name: str, within: int) -> Frozen:
        self._call("stat")
        node = self._within(within).names.get(name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._frozen(node)

    def _frozen(self, node: Node) -> Frozen:
        return Frozen(
            node.st_mode,
            node.st_ino,
            node.st_dev,
            node.st_nlink,
            node.st_uid,
            node.st_size,
            node.st_blocks,
            node.st_mtime_ns,
        )

    def names(self, fd: int) -> list[str]:
        self._call("names")
        return list(self._within(fd).names)

    def link(self, old: str, new: str, within: int) -> None:
        self._call("link")
        parent = self._within(within)
        if old not in parent.names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if new in parent.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        parent.names[new] = parent.names[old]
        self.disk.touch(parent)

    def rename(self, old: str, new: str, within: int) -> None:
        self._call("rename")
        parent = self._within(within)
        parent.names[new] = parent.names.pop(old)
        self.disk.touch(parent)

    def unlink(self, name: str, within: int) -> None:
        self._call("unlink")
        parent = self._within(within)
        if parent.names.pop(name, None) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self.disk.touch(parent)

    def try_flock(self, fd: int) -> bool:
        self._call("flock")
        opened = self._file(fd)
        if opened.node.flocked not in (None, opened):
            return False
        opened.node.flocked = opened
        return True

    def try_lockf(self, fd: int) -> bool:
        self._call("lockf")
        node = self._file(fd).node
        if node.locked not in (None, self):
            return False
        node.locked = self
        return True

    def lockf_holder(self, fd: int) -> int | None:
        self._call("lockf")
        holder = self._file(fd).node.locked
        return None if holder in (None, self) else holder.pid

    def sync(self, fd: int) -> None:
        self._call("sync")

    def sync_directory(self, fd: int) -> None:
        self._call("sync")

    def process(self) -> int:
        return self.pid

    def user(self) -> int:
        return 7

    def random(self, size: int) -> bytes:
        return next(self.disk.random).to_bytes(size, "big")

    def boot(self) -> str:
        return "boot"

    def filesystem(self, fd: int) -> str:
        return "ext4"


class Place:
    """A disk and the processes on it."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.clock = Clock()
        self.pids = 10
        self._systems: dict[FileSpool, DiskSystem] = {}

    def spool(self, **options: object) -> FileSpool:
        self.pids += 1
        system = DiskSystem(self.disk, self.pids)
        spool = FileSpool(
            "/spool",
            IDENTITY,
            system=system,
            clock=self.clock,
            wall=lambda: NOW_MS / 1000 + self.clock.now - 1000,
            **options,  # type: ignore[arg-type]
        )
        self._systems[spool] = system
        return spool

    def system(self, spool: FileSpool) -> DiskSystem:
        """Return the system of the process that `spool` belongs to."""
        return self._systems[spool]

    def written(self, spool: FileSpool) -> list[int]:
        """Return the descriptors of the segments that `spool` appends to, oldest first."""
        folder = self.disk.find(f"/spool/{IDENTITY}/seg")
        nodes = {} if folder is None else folder.names
        segments = [id(nodes[name]) for name in self.segments()]
        files = self.system(spool).open_files.items()
        return [fd for fd, opened in files if opened.writable and id(opened.node) in segments]

    def segments(self) -> list[str]:
        folder = self.disk.find(f"/spool/{IDENTITY}/seg")
        return [] if folder is None else [name for name in folder.names if name.endswith(".log")]

    def sizes(self) -> list[int]:
        """Bytes of each segment, oldest first."""
        folder = self.disk.find(f"/spool/{IDENTITY}/seg")
        return [] if folder is None else [len(folder.names[name].data) for name in self.segments()]

    def die(self, spool: FileSpool) -> None:
        self.system(spool).die()
