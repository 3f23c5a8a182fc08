"""Which files a spool's segment directory holds: when to look, and clearing what dead processes left there.

Owns no segment: whoever asks is told all names, and knows which are new and which are gone.

Threads: the drainer calls under its lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from transport_kit.spool.directory import Directory

__all__ = ["Listing"]

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
