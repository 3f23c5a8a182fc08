"""Ingest: decodes, parses, checks, limits and stores the envelope of one request.

This module owns the order of the checks and the errors. It knows no socket and no event loop.

Threads: `accept` does blocking CPU and database work; several worker threads may call it at once.
"""

from __future__ import annotations

import logging
import sqlite3
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.item import Item, event_id_of
from transport_kit.envelope.validation import check, is_event_id
from transport_kit.receiver.auth import Auth, authorize, mask_values, parse_project, request_auth
from transport_kit.receiver.caps import check_caps
from transport_kit.receiver.decoding import KNOWN_ENCODINGS, decode
from transport_kit.receiver.faults import Faults
from transport_kit.receiver.refusal import Refusal
from transport_kit.receiver.store import Store
from transport_kit.receiver.summary import dig, load, primary_item, summarize
from transport_kit.runtime.errors import InvalidEnvelope

__all__ = ["MAX_ENVELOPE_BYTES", "Ingest", "Post"]

MAX_ENVELOPE_BYTES: Final = 200 * 1024 * 1024
"""Relay's cap, both as received and decoded: docs/protocol.md, section 11."""

_NEEDS_EVENT_ID = frozenset({"event", "transaction", "feedback", "attachment", "user_report"})
_logger = logging.getLogger("transport_kit.receiver")


@dataclass(frozen=True, slots=True)
class Post:
    """One request. `headers` are looked up by lower-case name; `body` is as received."""

    project: str
    headers: Mapping[str, str]
    query: str
    body: bytes
    legacy: bool = False

    @property
    def encoding(self) -> str:
        """The content encoding's name; empty for none."""
        return self.headers.get("content-encoding", "").strip().lower()


class Ingest:
    """Turns posts into stored envelopes.

    Args:
        store: Stores the envelopes.
        faults: Supplies the rate limit in force.
        max_envelope_bytes: Largest body in bytes, both as received and decoded.
        on_received: Called with each record after it was stored, on the thread that stored it. Its
            exceptions are logged and change nothing.
    """

    def __init__(
        self,
        store: Store,
        faults: Faults,
        *,
        max_envelope_bytes: int = MAX_ENVELOPE_BYTES,
        on_received: Callable[[dict[str, Any]], object] | None = None,
    ) -> None:
        self.max_envelope_bytes = max_envelope_bytes
        self._store = store
        self._faults = faults
        self._on_received = on_received

    def accept(self, post: Post) -> tuple[str | None, dict[str, str]]:
        """Store the envelope of a post.

        Returns:
            The event id, if the envelope has one, and the rate-limit headers to send.

        Raises:
            Refusal: It was not stored, or not all of it; contains the reason.
        """
        project = parse_project(post.project)
        auth = request_auth(post.headers, post.query)
        body = decode(post.body, post.encoding, self.max_envelope_bytes)
        try:
            envelope = _from_store_endpoint(body) if post.legacy else Envelope.deserialize(body)
            auth = self._authorize(auth, envelope, project, post)
            check(envelope.headers, ())
        except InvalidEnvelope as error:
            raise _malformed(error, post.encoding) from None
        check_caps(envelope.items)
        if post.legacy:
            body = envelope.serialize()
        event_id = _event_id(envelope)

        limit = self._faults.rate_limit
        announced = {} if limit is None else {"X-Sentry-Rate-Limits": limit.text}
        if limit is not None:
            passed, refused = limit.split(envelope.items)
            if refused:
                if passed:
                    accepted = Envelope(envelope.headers, passed)
                    self._store_envelope(accepted, accepted.serialize(), event_id, auth, project, post)
                raise Refusal(
                    429,
                    "rate limit reached",
                    [f"{len(refused)} of {len(envelope.items)} items refused"],
                    {**announced, "Retry-After": str(limit.seconds)},
                )
        self._store_envelope(envelope, body, event_id, auth, project, post)
        return event_id, announced

    def _authorize(self, auth: Auth | None, envelope: Envelope, project: str, post: Post) -> Auth:
        return authorize(auth, envelope.headers.get("dsn"), project, post.headers.get("user-agent", ""))

    def _store_envelope(
        self, envelope: Envelope, body: bytes, event_id: str | None, auth: Auth, project: str, post: Post
    ) -> None:
        record = summarize(
            envelope,
            event_id=event_id,
            received_at=datetime.now(UTC),
            project=project,
            client=auth.client,
            content_encoding=post.encoding,
            size=len(body),
        )
        # Masked here, where the only record is made, so that no page or route can forget to.
        masked: dict[str, Any] = mask_values(record, auth.key)
        try:
            number = self._store.add(event_id=event_id, key=auth.key, record=masked, body=body)
        except sqlite3.Error as error:
            raise Refusal(503, "the envelope can't be stored", [str(error)]) from error
        if self._on_received is not None:
            try:
                self._on_received({"n": number, **masked})
            except Exception:
                _logger.exception("on_received raised; the envelope is stored")


def _malformed(error: InvalidEnvelope, encoding: str) -> Refusal:
    causes = [str(error)]
    if encoding not in KNOWN_ENCODINGS:
        causes.append("the Content-Encoding is unknown, so the body was read as it came")
    return Refusal(400, "malformed envelope", causes)


def _from_store_endpoint(body: bytes) -> Envelope:
    """Return an envelope around the body of the deprecated endpoint, which is one event's JSON."""
    event = load(body)
    if event is None:
        raise Refusal(400, "malformed event", ["a JSON object is expected"])
    kind = "transaction" if event.get("type") == "transaction" else "event"
    event_id = event_id_of(event.get("event_id"))
    return Envelope({"event_id": event_id} if event_id else None, [Item(body, type=kind)])


def _event_id(envelope: Envelope) -> str | None:
    """Return the header's id, else the payload's, else a new one if an item needs one, as Relay does."""
    event_id = envelope.headers.get("event_id")
    item = primary_item(envelope.items)
    if event_id is None and item is not None and item.type in _NEEDS_EVENT_ID:
        event_id = dig(load(item.get_bytes()), "event_id")
        if not is_event_id(event_id):
            return uuid.uuid4().hex
    return None if event_id is None else str(event_id).replace("-", "").lower()
