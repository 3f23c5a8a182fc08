"""The spool: a queue on disk, whose accepted envelopes survive the death of every process.

Each process appends to segments of its own; one elected process reads and delivers them. See
docs/concepts.md, and docs/reference/spool-format.md for the format of the files.
"""

from __future__ import annotations

from transport_kit.queues.spool.directory import identity_of
from transport_kit.queues.spool.spool import FileSpool
from transport_kit.queues.spool.state import SpoolFacts

__all__ = ["FileSpool", "identity_of", "SpoolFacts"]
