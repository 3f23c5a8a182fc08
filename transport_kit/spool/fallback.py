"""Back from memory to the disk, where a spool's envelopes belong, once its directory can be used again.

Threads: wants the lock of the `Life` it is given.
"""

from __future__ import annotations

from collections.abc import Callable

from transport_kit.spool.life import Life, words
from transport_kit.spool.records import envelope_record
from transport_kit.spool.segments import Kind
from transport_kit.spool.writer import Full

__all__ = ["move_to_disk"]


def move_to_disk(life: Life, clock: Callable[[], float], wall: Callable[[], float]) -> None:
    """Write what had to be taken into memory, as old as it is, until the directory fails again."""
    writer = life.writer
    while writer is not None and life.trouble is None:
        claims = life.memory.claim(1, 0.0)
        if not claims:
            return
        sealed = claims[0].sealed
        age = max(0.0, clock() - claims[0].put_at)
        try:
            created_ms = int((wall() - age) * 1000)
            writer.append(Kind.ENVELOPE, *envelope_record(sealed), created_ms)
        except (OSError, Full) as error:
            life.memory.release(claims)
            life.have_trouble(words(error) if isinstance(error, OSError) else "it is full", clock())
            return
        life.memory.ack(claims)
        life.puts += 1
        life.is_well()
