"""Log buffer: batches log items, and recognises this library's own loggers.

Source: the protocol's log items: batches of at most 100, sent when full or 5 s after the first.

Threads: any. Uses no lock, so that a forked child can't inherit a locked one.
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

#: Log items of one envelope; seconds from the first of them until a partial batch is sent.
BATCH: Final = 100
SEND_AFTER: Final = 5.0
#: Log items held while none can be sent, such as inside a capture.
_MAX_HELD: Final = 1000
#: Approximate bytes of an item without its body; lost logs are counted in bytes too.
_AROUND_BODY: Final = 800
_LOGGER_NAME: Final = "transport_kit"

#: One log item.
Log = dict[str, Any]


def is_own_logger(name: object) -> bool:
    """Return True for this library's loggers. Reporting their records would make a failure cause itself."""
    return isinstance(name, str) and (
        name == _LOGGER_NAME or name.startswith((_LOGGER_NAME + ".", _LOGGER_NAME + "_"))
    )


class LogBuffer:
    """Holds log items until there are 100, or for 5 s; the transport's flush sends them at once.

    Args:
        transport: Takes the envelopes.
        seconds: From the first item until a partial batch is sent.
    """

    def __init__(self, transport: Transport, seconds: float = SEND_AFTER) -> None:
        self._transport = transport
        self._pid = os.getpid()
        # `append` and `popleft` are atomic, so that no lock is needed.
        self._logs: deque[Log] = deque()
        self._ticker = Ticker(self.send, seconds, "transport-kit-logs")
        transport.before_flush(self.send)

    def add(self, log: Log) -> None:
        """Add one item and send the batch if it is complete. A full buffer drops and counts the item."""
        if self._pid != os.getpid():
            # A forked child: the parent sends the items it holds.
            self._logs = deque()
            self._pid = os.getpid()
        logs = self._logs
        if len(logs) >= _MAX_HELD:
            self._transport.record_lost_event(LossReason.BUFFER_OVERFLOW, "log_item")
            size = len(str(log.get("body"))) + _AROUND_BODY
            self._transport.record_lost_event(LossReason.BUFFER_OVERFLOW, "log_byte", quantity=size)
            return
        logs.append(log)
        if len(logs) >= BATCH:
            self.send()
        else:
            self._ticker.arm()

    def send(self) -> None:
        """Capture all held items, in batches."""
        logs = self._logs if self._pid == os.getpid() else deque[Log]()
        while logs:
            batch: list[Log] = []
            try:
                while len(batch) < BATCH:
                    batch.append(logs.popleft())
            except IndexError:
                pass  # emptied, perhaps by another thread
            if batch:
                # The logs of a batch may be of several traces, so the envelope header has none.
                self._transport.capture_envelope(Envelope({"sdk": runtime_facts.sdk()}).add_log(batch))
