"""CapturedTransport: keeps what it is given, for the tests of an app.

Owns what was captured. Seals as a real transport does, so that a test sees what would be sent, and is
refused what a real capture would be refused.

Threads: as any transport. The lists are only appended to, and cleared.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final

from transport_kit.config.options import TransportOptions
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.losses import LossReason, Quantities
from transport_kit.runtime.errors import SealError
from transport_kit.runtime.log import log
from transport_kit.transport.local import CountingTransport

__all__ = ["CapturedTransport"]


_TEXT_LENGTH: Final = 100


class _Events(list[dict[str, Any]]):
    """Events that say what they are about: `[<error ValueError: boom, in /carts/{id}>]`."""

    def __repr__(self) -> str:
        return f"[{', '.join(_about(event) for event in self)}]"


def _about(event: dict[str, Any]) -> str:
    try:
        values = event["exception"]["values"]
        what = f"{values[-1]['type']}: {values[-1]['value']}"
    except (KeyError, IndexError, TypeError):
        said = event.get("logentry") or event.get("message") or event.get("event_id")
        what = str(said.get("formatted") if isinstance(said, dict) else said)
    what = what if len(what) <= _TEXT_LENGTH else f"{what[:_TEXT_LENGTH]}..."
    where = f", in {event['transaction']}" if event.get("transaction") else ""
    return f"<{event.get('level', 'error')} {what}{where}>"


class CapturedTransport(CountingTransport):
    """Delivers nowhere, and keeps every envelope as it would be sent.

    Give it to whatever takes a transport: `make_transport`, `Kit`, an integration's `dsn`. What was
    captured stays readable after `close`.

    Attributes:
        sealed: The bytes of each envelope, in order.
        envelopes: The same, parsed: what the app does to its own dicts later doesn't show.
        events: The payloads of the error events in them; its repr, and so a failed assertion, says what each
            is about instead of all that it holds.

    Args:
        options: Bounds; or else fields of `TransportOptions` as keyword arguments.
    """

    def __init__(self, options: TransportOptions | None = None, **fields: Any) -> None:
        if options is not None and fields:
            raise TypeError("either options or fields of it")
        self.sealed: list[bytes] = []
        self.envelopes: list[Envelope] = []
        self.events: list[dict[str, Any]] = _Events()
        super().__init__(options or TransportOptions(**fields))

    def payloads(self, type: str) -> list[Any]:
        """The payloads of all items of that type, such as `transaction`, in order, read as JSON."""
        items = [item for envelope in tuple(self.envelopes) for item in envelope.items]
        return [json.loads(item.get_bytes()) for item in items if item.type == type]

    def clear(self) -> None:
        """Forget what was captured; what was counted stays counted."""
        for captured in (self.sealed, self.envelopes, self.events):
            captured.clear()

    def _deliver(self, envelope: Envelope) -> LossReason | Quantities | None:
        try:
            sealed = envelope.seal(
                max_event_bytes=self.options.max_event_bytes,
                max_attachment_bytes=self.options.max_attachment_bytes,
                max_envelope_bytes=self.options.max_envelope_bytes,
            )
        except SealError as error:
            log.error("an envelope was refused: %s", error)
            return LossReason.INTERNAL_SDK_ERROR
        body = sealed.serialize()
        parsed = Envelope.deserialize(body)
        self.sealed.append(body)
        self.envelopes.append(parsed)
        self.events += (json.loads(item.get_bytes()) for item in parsed.items if item.type == "event")
        lost: Counter[str] = Counter()
        for problem, quantities in sealed.left_out:
            log.error("an item was left out: %s", problem)
            lost.update(dict(quantities))
        return tuple(lost.items())
