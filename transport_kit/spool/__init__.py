"""A queue on disk: what was accepted survives the death of every process.

Writers append to segments of their own; one elected process reads and delivers. See DESIGN's words on
the spool in docs/concepts.md and the bytes in docs/reference/spool-format.md.
"""

from __future__ import annotations

from transport_kit.spool.directory import identity_of
from transport_kit.spool.saying import SpoolFacts
from transport_kit.spool.spool import FileSpool

__all__ = ["FileSpool", "identity_of", "SpoolFacts"]
