"""Who drains: at most one process per identity, decided by the kernel.

Owns `drain.lock` and `forward.lock`. `fcntl.lockf` locks belong to a process: they end with it, however it
ends, and a child forked behind our back does not hold them on. They also end when the process closes *any*
descriptor of the file; so within a process one object owns the two files, and no other opens them.

A forwarder holds `forward.lock` as long as it lives; other processes then neither run for the drain nor
keep it.

Threads: the owner calls one method at a time. The registry is a dict whose item operations are atomic.
"""

from __future__ import annotations

import contextlib

from transport_kit.queues.spool.directory import Directory

__all__ = ["Election", "holders"]

# By directory: the one object of this process that may touch its lock files.
_owners: dict[tuple[int, int], Election] = {}


class Election:
    """One process's candidacy.

    Args:
        directory: Whose drainer is elected.
        forwarder: Whether this process exists to drain; it is preferred to others.

    Attributes:
        held: Whether this process drains.
        holder: The process that drains when last looked; None when none was seen.
    """

    def __init__(self, directory: Directory, *, forwarder: bool = False) -> None:
        self._directory = directory
        self._system = directory.system
        self._forwarder = forwarder
        self._pid = self._system.process()
        self._drain_fd = -1
        self._forward_fd = -1
        self._forwarding = False
        self.held = False
        self.holder: int | None = None

    def attempt(self) -> bool:
        """Run for it; whether this process drains now.

        Raises:
            OSError: The lock files can't be opened.
        """
        if self.held:
            return True
        owner = _owners.setdefault(self._directory.key, self)
        if owner is not self:
            if owner._pid == self._pid:
                return False
            # The parent's, inherited by a fork.
            _owners[self._directory.key] = self
        system = self._system
        if self._drain_fd < 0:
            self._drain_fd = system.append_to("drain.lock", self._directory.identity)
        if self._forward_fd < 0:
            self._forward_fd = system.append_to("forward.lock", self._directory.identity)
        if self._forwarder and not self._forwarding:
            self._forwarding = system.try_lockf(self._forward_fd)
        if not self.preferred_elsewhere and system.try_lockf(self._drain_fd):
            self.held = True
            self.holder = self._pid
        else:
            self.holder = system.lockf_holder(self._drain_fd)
        return self.held

    @property
    def preferred_elsewhere(self) -> bool:
        """Whether a forwarder lives, and it isn't this process."""
        return not self._forwarding and self._system.lockf_holder(self._forward_fd) is not None

    def resign(self) -> None:
        """Drain no longer, nor run for it; `attempt` begins anew."""
        self.held = self._forwarding = False
        descriptors = (self._drain_fd, self._forward_fd)
        self._drain_fd = self._forward_fd = -1
        for fd in descriptors:
            if fd >= 0:
                self._system.close(fd)
        if _owners.get(self._directory.key) is self:
            _owners.pop(self._directory.key, None)


def holders(directory: Directory) -> tuple[int | None, int | None]:
    """The process that drains and the forwarder, asked from outside; None for none, 0 when unknown.

    Raises:
        OSError: A lock file can't be opened.
    """
    system = directory.system
    owner = _owners.get(directory.key)
    if owner is not None and owner._pid == system.process():
        # Closing another descriptor of the files would end its locks.
        forwarder = owner._pid if owner._forwarding else None
        return owner.holder, forwarder
    found: list[int | None] = []
    for name in ("drain.lock", "forward.lock"):
        pid = None
        with contextlib.suppress(FileNotFoundError):
            fd = system.open_file(name, directory.identity)
            try:
                pid = system.lockf_holder(fd)
            finally:
                system.close(fd)
        found.append(pid)
    return found[0], found[1]
