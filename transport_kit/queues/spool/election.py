"""The election of a drainer: at most one process per identity, decided by the kernel.

This module owns `drain.lock` and `forward.lock`. `fcntl.lockf` locks belong to a process: they end with it,
however it ends, and a child forked by C code does not inherit them. They also end when the process closes
*any* descriptor of the file; so within a process one object owns the two files, and no other opens them.

A forwarder holds `forward.lock` for its whole life; meanwhile other processes neither become drainer nor
stay it.

Threads: one thread at a time calls the methods of an `Election`. The registry is a dict whose item operations
are atomic.
"""

from __future__ import annotations

import contextlib

from transport_kit.queues.spool.directory import Directory

__all__ = ["Election", "holders"]

# By directory: the one object of this process that may open and close its lock files.
_owners: dict[tuple[int, int], Election] = {}


class Election:
    """One process's candidacy.

    Args:
        directory: The directory whose drainer is elected.
        forwarder: True for a process that exists to drain; it is preferred to others.

    Attributes:
        draining: True if this process is the drainer.
        holder: Process id of the drainer at the last look; None for none, 0 if the number is unknown.
    """

    def __init__(self, directory: Directory, *, forwarder: bool = False) -> None:
        self._directory = directory
        self._system = directory.system
        self._forwarder = forwarder
        self._pid = self._system.process()
        self._drain_fd = -1
        self._forward_fd = -1
        self._forwarding = False
        self.draining = False
        self.holder: int | None = None

    def attempt(self) -> bool:
        """Try to become the drainer; return True if this process is it now.

        Raises:
            OSError: The lock files can't be opened.
        """
        if self.draining:
            return True
        if not self._acquire_files():
            return False
        system = self._system
        if self._drain_fd < 0:
            self._drain_fd = system.append_to("drain.lock", self._directory.identity)
        if self._forward_fd < 0:
            self._forward_fd = system.append_to("forward.lock", self._directory.identity)
        if self._forwarder and not self._forwarding:
            self._forwarding = system.try_lockf(self._forward_fd)
        if not self.preferred_elsewhere and system.try_lockf(self._drain_fd):
            self.draining = True
            self.holder = self._pid
        else:
            self.holder = system.lockf_holder(self._drain_fd)
        return self.draining

    def observe(self) -> None:
        """Set `holder` without a candidacy: for a process that only writes.

        Raises:
            OSError: The lock file can't be opened.
        """
        # Owns the files while it looks: no other object of this process may take a lock meanwhile, as closing
        # the descriptor would end it.
        if self._acquire_files():
            try:
                self.holder = _lock_holder(self._directory, "drain.lock")
            finally:
                self._release_files()

    def _acquire_files(self) -> bool:
        """Become the owner of the lock files in this process; if another object is, copy its `holder`."""
        owner = _owners.setdefault(self._directory.key, self)
        if owner is self:
            return True
        if owner._pid == self._pid:
            self.holder = owner.holder
            return False
        # An entry of the parent, inherited by a fork.
        _owners[self._directory.key] = self
        return True

    def _release_files(self) -> None:
        if _owners.get(self._directory.key) is self:
            _owners.pop(self._directory.key, None)

    @property
    def preferred_elsewhere(self) -> bool:
        """True if a forwarder lives and it isn't this process."""
        return not self._forwarding and self._system.lockf_holder(self._forward_fd) is not None

    def resign(self) -> None:
        """Stop draining and give up the candidacy; `attempt` starts a new one."""
        self.draining = self._forwarding = False
        descriptors = (self._drain_fd, self._forward_fd)
        self._drain_fd = self._forward_fd = -1
        for fd in descriptors:
            if fd >= 0:
                self._system.close(fd)
        self._release_files()


def holders(directory: Directory) -> tuple[int | None, int | None]:
    """Return the process ids of the drainer and of the forwarder; None for none, 0 if the number is unknown.

    Raises:
        OSError: A lock file can't be opened.
    """
    owner = _owners.get(directory.key)
    if owner is not None and owner._pid == directory.system.process():
        # Closing another descriptor of the files would end its locks.
        forwarder = owner._pid if owner._forwarding else None
        return owner.holder, forwarder
    return _lock_holder(directory, "drain.lock"), _lock_holder(directory, "forward.lock")


def _lock_holder(directory: Directory, name: str) -> int | None:
    """Return the other process that holds a lock file. No object of this process may hold the same lock."""
    system = directory.system
    with contextlib.suppress(FileNotFoundError):
        fd = system.open_file(name, directory.identity)
        try:
            return system.lockf_holder(fd)
        finally:
            system.close(fd)
    return None
