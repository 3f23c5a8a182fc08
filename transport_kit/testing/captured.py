"""CapturedTransport: stores captured envelopes, for the tests of an app.

This module owns the captured envelopes. Seals them as a real transport does, so that a test sees what would
be sent, and a capture is refused where a real one would be.

Threads: as any transport. Lists are appended to, and cleared, never replaced.
"""

from __future__ import annotations

import json
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
    """A list of events with a short repr: `[<error ValueError: boom, in /carts/{id}>]`."""

    def __repr__(self) -> str:
        return f"[{', '.join(_summarize_event(event) for event in self)}]"


def _summarize_event(event: dict[str, Any]) -> str:
    try:
        values = event["exception"]["values"]
        what = f"{values[-1]['type']}: {values[-1]['value']}"
    except (KeyError, IndexError, TypeError):
        message = event.get("logentry") or event.get("message") or event.get("event_id")
        what = str(message.get("formatted") if isinstance(message, dict) else message)
    what = what if len(what) <= _TEXT_LENGTH else f"{what[:_TEXT_LENGTH]}..."
    where = f", in {event['transaction']}" if event.get("transaction") else ""
    return f"<{event.get('level', 'error')} {what}{where}>"


class CapturedTransport(CountingTransport):
    """A transport that sends nothing and stores every envelope as it would be sent.

    Pass it wherever a transport is accepted: `make_transport`, `Kit`, an integration's `dsn`. Captured
    envelopes stay readable after `close`.

    Attributes:
        sealed: The bytes of each envelope, in order.
        envelopes: The same, parsed; later changes to the app's own dicts don't change them.
        events: The payloads of the error events in them; its repr, and so a failed assertion, shows a summary
            of each.

    Args:
        options: Bounds of envelopes and items; None for the defaults, or for `fields`.
        fields: Fields of `TransportOptions`, in place of `options`.

    Raises:
        TypeError: Both `options` and `fields` are given.
    """

    def __init__(self, options: TransportOptions | None = None, **fields: Any) -> None:
        if options is not None and fields:
            raise TypeError("either options or fields of it")
        self.sealed: list[bytes] = []
        self.envelopes: list[Envelope] = []
        self.events: list[dict[str, Any]] = _Events()
        super().__init__(options or TransportOptions(**fields))

    def payloads(self, type: str) -> list[Any]:
        """Return the payloads of all items of a type, such as `transaction`, in order, parsed as JSON."""
        items = [item for envelope in tuple(self.envelopes) for item in envelope.items]
        return [json.loads(item.get_bytes()) for item in items if item.type == type]

    def clear(self) -> None:
        """Remove the captured envelopes; the counts of health stay."""
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
        for problem, _ in sealed.left_out:
            log.error("an item was left out: %s", problem)
        return Quantities.sum([quantities for _, quantities in sealed.left_out])
