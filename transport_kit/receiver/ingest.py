"""One request's body to one stored envelope: decoded, parsed, checked, limited, kept.

Owns the order of the checks and the answers to them. Knows no socket and no event loop.

Threads: `accept` is blocking CPU and database work, called from worker threads, several at once.
"""

from __future__ import annotations

import logging
import sqlite3
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from transport_kit.envelope.encoder import dumps, loads
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.item import Item
from transport_kit.envelope.validation import check, is_event_id
from transport_kit.receiver.auth import Auth, authorize, mask, parse_project, request_auth
from transport_kit.receiver.caps import check_caps
from transport_kit.receiver.decoding import KNOWN_ENCODINGS, decode
from transport_kit.receiver.faults import Faults
from transport_kit.receiver.refusal import Refusal
from transport_kit.receiver.store import Store
from transport_kit.receiver.summary import dig, load, primary_item, summarize
from transport_kit.runtime.errors import InvalidEnvelope

__all__ = ["MAX_ENVELOPE_BYTES", "Ingest", "Post"]

MAX_ENVELOPE_BYTES: Final = 200 * 1024 * 1024
"""PROTOCOL section 11: Relay's cap, as received and again when inflated."""

_NEEDS_EVENT_ID = frozenset({"event", "transaction", "feedback", "attachment", "user_report"})
_logger = logging.getLogger("transport_kit.receiver")


@dataclass(frozen=True, slots=True)
class Post:
    """What one request said. `headers` are looked up by lower-case name; `body` is as received."""

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
        store: Where they go.
        faults: Asked for the rate limit in force.
        max_envelope_bytes: Most bytes of a body, as received and inflated.
        on_received: Called with each record after it was stored, on the thread that stored it. What it
            raises is logged and changes nothing.
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
        """Keeps what the post holds.

        Returns:
            The event id, if the envelope has one, and the rate-limit headers to send.

        Raises:
            Refusal: It was not kept, or not all of it; says why.
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
                    rest = Envelope(envelope.headers, passed)
                    self._keep(rest, rest.serialize(), event_id, auth, project, post)
                raise Refusal(
                    429,
                    "rate limit reached",
                    [f"{len(refused)} of {len(envelope.items)} items refused"],
                    {**announced, "Retry-After": str(limit.seconds)},
                )
        self._keep(envelope, body, event_id, auth, project, post)
        return event_id, announced

    def _authorize(self, auth: Auth | None, envelope: Envelope, project: str, post: Post) -> Auth:
        return authorize(auth, envelope.headers.get("dsn"), project, post.headers.get("user-agent", ""))

    def _keep(
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
        # The record is what is shown; masked once here, it can't be forgotten there.
        shown: dict[str, Any] = loads(mask(dumps(record).decode(), auth.key))
        try:
            number = self._store.add(event_id=event_id, key=auth.key, record=shown, body=body)
        except sqlite3.Error as error:
            raise Refusal(503, "the envelope can't be stored", [str(error)]) from error
        if self._on_received is not None:
            try:
                self._on_received({"n": number, **shown})
            except Exception:
                _logger.exception("on_received raised; the envelope is stored")


def _malformed(error: InvalidEnvelope, encoding: str) -> Refusal:
    causes = [str(error)]
    if encoding not in KNOWN_ENCODINGS:
        causes.append("the Content-Encoding is unknown, so the body was read as it came")
    return Refusal(400, "malformed envelope", causes)


def _from_store_endpoint(body: bytes) -> Envelope:
    """The deprecated endpoint's body, one event's JSON, as an envelope around the same bytes."""
    event = load(body)
    if event is None:
        raise Refusal(400, "malformed event", ["a JSON object is expected"])
    kind = "transaction" if event.get("type") == "transaction" else "event"
    return Envelope(items=[Item(body, type=kind)])


def _event_id(envelope: Envelope) -> str | None:
    """The header's id, else the payload's, else a new one where an item needs one, as Relay does."""
    given = envelope.headers.get("event_id")
    item = primary_item(envelope.items)
    if given is None and item is not None and item.type in _NEEDS_EVENT_ID:
        given = dig(load(item.get_bytes()), "event_id")
        if not is_event_id(given):
            return uuid.uuid4().hex
    return None if given is None else str(given).replace("-", "").lower()
