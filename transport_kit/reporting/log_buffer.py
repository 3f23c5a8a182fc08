"""Log buffer: batches log items, and knows which loggers are our own.

Source: the protocol's log items: batches of at most 100, sent when full or 5 s after the first.

Threads: any; without a lock, so that a fork inherits none.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any, Final

from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.losses import LossReason
from transport_kit.reporting import runtime_facts
from transport_kit.reporting.ticker import Ticker
from transport_kit.transport.base import Transport

__all__ = ["is_own_logger", "Log", "LogBuffer"]

#: Logs of one envelope, and seconds after the first of them.
BATCH: Final = 100
SEND_AFTER: Final = 5.0
#: Logs held while nobody can send, such as inside a capture.
_MOST_HELD: Final = 1000
#: Bytes of an item without its body, about; what is lost is counted in bytes too.
_AROUND_BODY: Final = 800
_LOGGER_NAME: Final = "transport_kit"

#: One log item.
Log = dict[str, Any]


def is_own_logger(name: object) -> bool:
    """Whether a logger is this library's: its records are never reported, or a failure would feed itself."""
    return isinstance(name, str) and (
        name == _LOGGER_NAME or name.startswith((_LOGGER_NAME + ".", _LOGGER_NAME + "_"))
    )


class LogBuffer:
    """Holds log items until there are 100, or for 5 s; the transport's flush sends what is there.

    Args:
        transport: Takes the envelopes.
        seconds: From the first item to the sending of a batch that is not full.
    """

    def __init__(self, transport: Transport, seconds: float = SEND_AFTER) -> None:
        self._transport = transport
        self._pid = os.getpid()
        # Appending and popping are atomic, so that no lock is needed and a fork inherits none.
        self._held: deque[Log] = deque()
        self._ticker = Ticker(self.send, seconds, "transport-kit-logs")
        transport.before_flush(self.send)

    def add(self, log: Log) -> None:
        """Hold one item; sends a batch when that fills it."""
        if self._pid != os.getpid():
            # What the parent holds, the parent sends.
            self._held = deque()
            self._pid = os.getpid()
        held = self._held
        if len(held) >= _MOST_HELD:
            self._transport.record_lost_event(LossReason.BUFFER_OVERFLOW, "log_item")
            size = len(str(log.get("body"))) + _AROUND_BODY
            self._transport.record_lost_event(LossReason.BUFFER_OVERFLOW, "log_byte", quantity=size)
            return
        held.append(log)
        if len(held) >= BATCH:
            self.send()
        else:
            self._ticker.arm()

    def send(self) -> None:
        """Capture what is held, in batches."""
        held = self._held if self._pid == os.getpid() else deque[Log]()
        while held:
            batch: list[Log] = []
            try:
                while len(batch) < BATCH:
                    batch.append(held.popleft())
            except IndexError:
                pass  # emptied, perhaps by another thread
            if batch:
                # Logs of several traces travel together: the envelope names none.
                self._transport.capture_envelope(Envelope({"sdk": runtime_facts.sdk()}).add_log(batch))
