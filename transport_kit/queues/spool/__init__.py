"""A queue on disk: what was accepted survives the death of every process.

Writers append to segments of their own; one elected process reads and delivers. See
docs/concepts.md, and the bytes in docs/reference/spool-format.md.
"""

from __future__ import annotations

from transport_kit.queues.spool.directory import identity_of
from transport_kit.queues.spool.spool import FileSpool
from transport_kit.queues.spool.state import SpoolFacts

__all__ = ["FileSpool", "identity_of", "SpoolFacts"]
