"""Envelopes as callers build them: event ids, items and their headers, quantities, validation."""

from __future__ import annotations

import json
import os
import pathlib
import types
import uuid
from collections import OrderedDict
from typing import Any

import pytest

from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.item import Item
from transport_kit.runtime.errors import InvalidEnvelope, SealError

EVENT_ID = "9ec79c33ec9942ab8353589fcb2e04dc"
DASHED = "9EC79C33-EC99-42AB-8353-589FCB2E04DC"
LOG = "application/vnd.sentry.items.log+json"


def _payload(envelope: Envelope, index: int = 0) -> Any:
    return json.loads(envelope.items[index].get_bytes())


def test_an_event_without_an_id_gets_one_and_the_callers_dict_stays_as_it_is() -> None:
    """The user gets the id; the caller may send the same dict again, under another id."""
    event = {"message": "boom"}
    first, second = Envelope.event(event), Envelope.event(event)
    assert event == {"message": "boom"}
    ids = [first.headers["event_id"], second.headers["event_id"]]
    assert ids[0] != ids[1]
    assert all(uuid.UUID(given).version == 4 and given == uuid.UUID(given).hex for given in ids)
    assert _payload(first) == {"message": "boom", "event_id": ids[0]}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (EVENT_ID, True),
        (DASHED, True),
        (uuid.UUID(EVENT_ID), True),
        ("nope", False),
        (7, False),
        (None, False),
        ("", False),
    ],
)
def test_an_events_own_id_is_kept_in_the_servers_form_when_it_is_one(given: object, kept: bool) -> None:
    """A server replaces an invalid id by one that nobody here knows."""
    event = {"event_id": given}
    envelope = Envelope().add_event(event)
    assert event == {"event_id": given}
    assert (envelope.headers["event_id"] == EVENT_ID) is kept
    assert _payload(envelope)["event_id"] == envelope.headers["event_id"]
    assert len(envelope.headers["event_id"]) == 32


def test_the_headers_id_wins() -> None:
    """As it does for receivers."""
    envelope = Envelope({"event_id": "a" * 32}).add_event({"event_id": EVENT_ID})
    assert envelope.headers["event_id"] == _payload(envelope)["event_id"] == "a" * 32


def test_an_event_given_as_bytes_stays_untouched_and_names_the_envelope() -> None:
    """Bytes are sent as they are; the header is ours."""
    data = json.dumps({"event_id": DASHED}).encode()
    for payload in (data, data.decode()):
        envelope = Envelope().add_item(Item(payload, type="event"))
        assert envelope.headers["event_id"] == EVENT_ID
        assert envelope.items[0].get_bytes() == data
    for odd in (b"nope", b"[]", b"", pathlib.Path("missing.json")):
        assert len(Envelope(items=[Item(odd, type="event")]).headers["event_id"]) == 32
    assert Envelope({"event_id": "b" * 32}, [Item(data, type="event")]).headers["event_id"] == "b" * 32


def test_mappings_of_any_kind_are_events() -> None:
    """Frozen and ordered dicts are what some frameworks hand over."""
    for event in (OrderedDict(a=1), types.MappingProxyType({"a": 1})):
        envelope = Envelope.event(event)
        assert _payload(envelope) == {"a": 1, "event_id": envelope.headers["event_id"]}


def test_a_dict_that_overrides_everything_is_read_through_its_base() -> None:
    """No method of the caller's class runs while an event is added."""

    class Odd(dict[str, Any]):
        def __iter__(self) -> Any:
            raise AssertionError("called")

        keys = items = get = __getitem__ = __len__ = copy = __iter__  # type: ignore[assignment]

    envelope = Envelope.event(Odd(a=1))
    assert _payload(envelope) == {"a": 1, "event_id": envelope.headers["event_id"]}
    assert Envelope.transaction(Odd(spans=[1])).items[0].quantities == (("transaction", 1), ("span", 2))


def test_a_transaction_is_told_from_an_event_by_its_type() -> None:
    """The payload needs `type`; a caller who wrote it keeps it."""
    assert _payload(Envelope.transaction({"event_id": EVENT_ID}))["type"] == "transaction"
    own = {"event_id": EVENT_ID, "type": "transaction", "spans": []}
    envelope = Envelope.transaction(own)
    assert _payload(envelope) == own
    assert Envelope.deserialize(envelope.serialize()).items[0].type == "transaction"


def test_every_adder_writes_its_type() -> None:
    """The names that callers know."""
    envelope = (
        Envelope({"sdk": {"name": "x", "version": "1"}})
        .add_event({"event_id": EVENT_ID})
        .add_session({"sid": "1"})
        .add_sessions({"aggregates": []})
        .add_check_in({"check_in_id": EVENT_ID})
        .add_log({"body": str(n)} for n in range(3))
        .add_attachment(
            b"abc", filename="a.txt", content_type="text/plain", attachment_type="event.attachment"
        )
        .add_client_report({"discarded_events": []})
        .add_item(Item({"a": 1}, type="new_kind", headers={"type": "x", "length": 7, "meta": {"b": 2}}))
    )
    assert [item.headers for item in envelope] == [
        {"type": "event"},
        {"type": "session"},
        {"type": "sessions"},
        {"type": "check_in"},
        {"type": "log", "item_count": 3, "content_type": LOG},
        {
            "type": "attachment",
            "content_type": "text/plain",
            "filename": "a.txt",
            "attachment_type": "event.attachment",
        },
        {"type": "client_report"},
        {"type": "new_kind", "meta": {"b": 2}},
    ]
    assert envelope.headers == {"sdk": {"name": "x", "version": "1"}, "event_id": EVENT_ID}
    assert _payload(envelope, 4) == {"items": [{"body": "0"}, {"body": "1"}, {"body": "2"}]}
    assert repr(envelope).startswith("<Envelope ['event', ")
    assert repr(envelope.items[0]) == "<Item 'event'>"


def test_the_headers_given_are_copied() -> None:
    """One dict of headers serves many envelopes."""
    headers = {"sdk": {"name": "x"}}
    Envelope(headers).add_event({})
    assert headers == {"sdk": {"name": "x"}}
    item_headers = {"a": 1}
    assert Item(b"", type="x", headers=item_headers).headers is not item_headers


def test_payloads_of_every_kind_become_bytes(tmp_path: pathlib.Path) -> None:
    """Bytes, buffers, text, a path, a value; the order of a dict is kept."""
    file = tmp_path / "a.bin"
    file.write_bytes(b"\x00file")

    class Text(str):
        def encode(self, *args: Any) -> Any:
            raise AssertionError("called")

    buffer = bytearray(b"ab")
    item = Item(buffer, type="x")
    buffer[:] = b"zz"
    assert item.get_bytes() == b"ab"
    for payload, data in [
        (b"\xff", b"\xff"),
        (memoryview(b"ab"), b"ab"),
        ("é", b"\xc3\xa9"),
        ("\ud800", "�".encode()),
        (Text("t"), b"t"),
        (file, b"\x00file"),
        ([1, {2: 3}], b'[1,{"2":3}]'),
        ({"b": 1, "a": 2}, b'{"b":1,"a":2}'),
        (None, b"null"),
    ]:
        assert Item(payload, type="x").get_bytes() == data


def test_a_type_must_be_text() -> None:
    """A receiver refuses the whole envelope for it; the caller hears of it at once."""
    with pytest.raises(TypeError, match="not int"):
        Item(b"", type=7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("item", "category", "quantities"),
    [
        (Item({}, type="event"), "error", (("error", 1),)),
        (Item({}, type="transaction"), "transaction", (("transaction", 1), ("span", 1))),
        (Item({"spans": [1, 2]}, type="transaction"), "transaction", (("transaction", 1), ("span", 3))),
        (Item({"spans": ({}, {})}, type="transaction"), "transaction", (("transaction", 1), ("span", 3))),
        (Item({"spans": "ab"}, type="transaction"), "transaction", (("transaction", 1), ("span", 1))),
        (Item(b'{"spans":[1]}', type="transaction"), "transaction", (("transaction", 1), ("span", 2))),
        (Item(b"nope", type="transaction"), "transaction", (("transaction", 1), ("span", 1))),
        (Item({}, type="feedback"), "feedback", (("feedback", 1),)),
        (Item({}, type="user_report"), "feedback", (("feedback", 1),)),
        (Item(b"abc", type="attachment"), "attachment", (("attachment", 3),)),
        (Item(b"", type="attachment"), "attachment", (("attachment", 1),)),
        (Item({}, type="session"), "session", (("session", 1),)),
        (Item({}, type="sessions"), "session", (("session", 1),)),
        (Item({}, type="check_in"), "monitor", (("monitor", 1),)),
        (Item({}, type="client_report"), "internal", ()),
        (Item(b"0123456789", type="log", item_count=4), "log_item", (("log_item", 4), ("log_byte", 10))),
        (Item({"items": [1, 2]}, type="log"), "log_item", (("log_item", 2), ("log_byte", 15))),
        (
            Item(b"nope", type="log", headers={"item_count": -1}),
            "log_item",
            (("log_item", 1), ("log_byte", 4)),
        ),
        (
            Item(b"nope", type="log", headers={"item_count": True}),
            "log_item",
            (("log_item", 1), ("log_byte", 4)),
        ),
        (
            Item(b"ab", type="trace_metric", item_count=9),
            "trace_metric",
            (("trace_metric", 9), ("trace_metric_byte", 2)),
        ),
        (Item({}, type="span", item_count=5), "span", (("span", 5),)),
        (Item(b"{}", type="span"), "span", (("span", 1),)),
        (Item({}, type="profile"), "profile", (("profile", 1),)),
        (
            Item({}, type="profile_chunk", headers={"platform": "python"}),
            "profile_chunk",
            (("profile_chunk", 1),),
        ),
        (
            Item({}, type="profile_chunk", headers={"platform": "cocoa"}),
            "profile_chunk_ui",
            (("profile_chunk_ui", 1),),
        ),
        (Item({}, type="replay_event"), "replay", (("replay", 1),)),
        (Item(b"", type="replay_recording"), "replay", (("replay", 1),)),
        (Item(b"", type="replay_video"), "replay", (("replay", 1),)),
        (Item(b"", type="statsd"), "metric_bucket", ()),
        (Item(b"", type="metric_buckets"), "metric_bucket", ()),
        (Item(b"abc", type="something_new"), None, ()),
    ],
    ids=lambda value: value.type if isinstance(value, Item) else None,
)
def test_what_an_items_loss_costs(
    item: Item, category: str | None, quantities: tuple[tuple[str, int], ...]
) -> None:
    """Client reports and the ledger count in these units, as does the sealed item."""
    assert item.data_category == category
    assert item.quantities == quantities
    sealed = item.seal()
    assert (sealed.category, sealed.quantities) == (category, quantities)


LEGAL = {"event_id": EVENT_ID}


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"event_id": None, "sent_at": None, "dsn": None, "trace": "x"}, None),
        ({"event_id": DASHED}, None),
        ({"event_id": "9ec79c33ec9942ab8353589fcb2e04d"}, "event_id"),
        ({"event_id": EVENT_ID + "\n"}, "event_id"),
        ({"event_id": 7}, "event_id"),
        ({"sent_at": "2026-01-02T03:04:05Z"}, None),
        ({"sent_at": "2026-01-02t03:04:05.123456789+02:00"}, None),
        ({"sent_at": "2026-01-02T03:04:05"}, "sent_at"),
        ({"sent_at": "2026-13-02T03:04:05Z"}, "sent_at"),
        ({"sent_at": "2026-01-02T03:04:05Z\n"}, "sent_at"),
        ({"sent_at": "٢٠٢٦-01-02T03:04:05Z"}, "sent_at"),
        ({"sent_at": 1767323045}, "sent_at"),
        ({"dsn": "https://e12d836b15bb49d7bbf99e64295d995b@ingest.example/42"}, None),
        ({"dsn": "nope"}, "dsn"),
        ({"dsn": 1}, "dsn"),
    ],
)
def test_header_values_are_checked_as_receivers_do(headers: dict[str, Any], reason: str | None) -> None:
    """One bad header value costs the whole envelope: a receiver answers 400."""
    envelope = Envelope(headers)
    if reason is None:
        envelope.validate()
        assert envelope.headers == headers
        return
    with pytest.raises(InvalidEnvelope) as caught:
        envelope.validate()
    assert (caught.value.reason, caught.value.offset) == (reason, -1)


def test_a_faulty_dsn_is_not_repeated_in_the_error() -> None:
    """It holds a key."""
    with pytest.raises(InvalidEnvelope) as caught:
        Envelope({"dsn": "ftp://secretkey@host/1"}).validate()
    assert "secretkey" not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        (["event", "attachment", "attachment", "client_report", "session"], None),
        (["event"] * 2, "combination"),
        (["event", "transaction"], "combination"),
        (["feedback", "transaction"], "combination"),
        (["check_in"] * 2, "combination"),
        (["profile", "profile_chunk"], "combination"),
        (["session"] * 50 + ["sessions"] * 50, None),
        (["session"] * 51 + ["sessions"] * 50, "combination"),
        (["attachment"] * 30, None),
        (["attachment"] * 31, "combination"),
        (["client_report"] * 101, "combination"),
        (["unknown"] * 500, None),
        (["span"] * 25, None),
        (["integration"], "reserved_type"),
        (["security"], "reserved_type"),
        (["form_data"], "reserved_type"),
        (["log"], "container"),
    ],
)
def test_combinations_are_checked_as_receivers_count(types: list[str], reason: str | None) -> None:
    """Too many of a kind is a 413, and all of it is lost."""
    envelope = Envelope(LEGAL, [Item({}, type=type_) for type_ in types])
    if reason is None:
        envelope.validate()
        assert len(envelope.items) == len(types)
        return
    with pytest.raises(InvalidEnvelope) as caught:
        envelope.validate()
    assert caught.value.reason == reason


def test_containers_need_their_headers() -> None:
    """A receiver drops a container whose count or content type is wrong, and answers 200."""
    logs = Envelope().add_log([{"body": "a"}])
    logs.validate()
    logs.add_log([])
    with pytest.raises(InvalidEnvelope, match="log"):
        logs.validate()
    span = Item(
        {"items": []}, type="span", item_count=0, content_type="application/vnd.sentry.items.span.v2+json"
    )
    Envelope(items=[span]).validate()
    spans = Envelope(items=[span] * 2)
    with pytest.raises(InvalidEnvelope, match="spans"):
        spans.validate()


def test_an_event_that_lost_its_id_is_refused() -> None:
    """A receiver in use answers 400 for it."""
    with pytest.raises(InvalidEnvelope) as caught:
        Envelope.deserialize(b'{}\n{"type":"event"}\n{}\n').validate()
    assert caught.value.reason == "missing_event_id"


def test_a_file_that_cannot_be_read_is_a_seal_error_without_its_path(tmp_path: pathlib.Path) -> None:
    """Missing, a directory, a pipe that nobody writes to, a name with a zero byte: none of them waits."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path / "secret", tmp_path, pipe, pathlib.Path("nul\0")):
        with pytest.raises(SealError) as caught:
            Item(path, type="attachment", filename="a").get_bytes()
        assert caught.value.path == "attachment"
        assert "secret" not in str(caught.value)


def test_an_envelope_counts_its_items_without_reading_them() -> None:
    """Sealing has failed when this is needed: a payload may raise again, or change while it is read."""
    unreadable = Item(type("Path", (os.PathLike,), {"__fspath__": lambda self: 1 / 0})(), type="attachment")
    envelope = Envelope.transaction({"spans": [{}]}).add_item(unreadable).add_client_report({})
    assert envelope.item_counts() == (("transaction", 1), ("attachment", 1))
    assert envelope.quantities() == (("transaction", 1), ("span", 2), ("attachment", 1))
