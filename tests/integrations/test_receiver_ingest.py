"""The receiver's acceptance and refusal of envelopes, and its answers."""

from __future__ import annotations

import base64
import gzip
import json
import sqlite3
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard

from tests.integrations.receiver_support import (
    AUTH,
    EVENT,
    EVENT_ID,
    KEY,
    Client,
    manifest,
    replayed,
)
from transport_kit.config.dsn import Dsn
from transport_kit.envelope.envelope import Envelope
from transport_kit.receiver import Faults, Store, create_app

MIB = 1024 * 1024


def raw_deflate(data: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(data) + deflate.flush()


def quick_brotli(data: bytes) -> bytes:
    """Compress at quality 9; the default, 11, takes seconds for a bomb and is no smaller."""
    compressed: bytes = brotli.compress(data, quality=9)
    return compressed


ENCODERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    (" GZIP ", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("br", quick_brotli),
    ("zstd", zstandard.compress),
    ("identity", bytes),
    ("", bytes),
]


@pytest.fixture(name="store")
def _store() -> Iterator[Store]:
    with Store() as store:
        yield store


@pytest.fixture(name="client")
def _client(store: Store) -> Client:
    return Client(create_app(store))


def envelope(*items: tuple[dict[str, Any], bytes], **headers: Any) -> bytes:
    """Return an envelope whose items have lengths."""
    lines = [json.dumps(headers).encode()]
    for header, payload in items:
        lines += [json.dumps({**header, "length": len(payload)}).encode(), payload]
    return b"\n".join(lines) + b"\n"


def newest(store: Store) -> bytes:
    stored = store.by_number(store.latest(1)[0]["n"])
    assert stored is not None
    return stored.body


@pytest.mark.parametrize("entry", manifest(), ids=lambda entry: entry["file"].removesuffix(".envelope"))
def test_every_request_of_the_corpus_is_stored_byte_for_byte(
    client: Client, store: Store, entry: dict[str, Any]
) -> None:
    """A receiver must accept the requests of official clients."""
    sent, body, headers = replayed(entry)
    answer = client.post([body[:100], body[100:]], headers, entry["path"])
    assert answer.status_code == 200
    assert newest(store) == sent
    record = store.latest(1)[0]
    assert record["item_types"] == [item["type"] for item in entry["items"]]
    assert record["content_encoding"] == entry["content_encoding"]
    given = entry["envelope_headers"].get("event_id")
    if given is not None:
        assert answer.json() == {"id": given.replace("-", "")} == {"id": record["event_id"]}


@pytest.mark.parametrize(("name", "encode"), ENCODERS)
def test_each_content_encoding_is_undone(
    client: Client, store: Store, name: str, encode: Callable[[bytes], bytes]
) -> None:
    """Clients choose the encoding; both meanings of deflate are in use."""
    assert client.post(encode(EVENT), {**AUTH, "Content-Encoding": name}).status_code == 200
    assert newest(store) == EVENT


@pytest.mark.parametrize(("name", "encode"), [pair for pair in ENCODERS if pair[1] is not bytes])
def test_a_damaged_body_is_refused_with_its_encoding_named(
    client: Client, store: Store, name: str, encode: Callable[[bytes], bytes]
) -> None:
    """A truncated body, or one with a trailing byte, must not pass for an envelope."""
    whole = encode(EVENT)
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole + b"xx", b"", b"\xff" * 50):
        answer = client.post(damaged, {**AUTH, "Content-Encoding": name})
        assert answer.status_code == 400
        assert name.strip().lower() in answer.json()["causes"][0]
    assert store.totals() == (0, 0)


def test_bytes_after_a_long_compressed_body_are_refused(client: Client) -> None:
    """Input is inflated in pieces; the bytes behind the end may be in a piece of their own."""
    big = envelope(({"type": "attachment", "filename": "a"}, bytes(100_000)), event_id=EVENT_ID)
    for name, encode in ENCODERS:
        if encode is not bytes:
            answer = client.post(encode(big) + bytes(200_000), {**AUTH, "Content-Encoding": name})
            assert answer.status_code == 400, name


@pytest.mark.parametrize(("name", "encode"), [pair for pair in ENCODERS if pair[1] is not bytes])
def test_a_bomb_costs_bounded_memory_and_answers_413(
    store: Store, name: str, encode: Callable[[bytes], bytes]
) -> None:
    """A kilobyte may inflate to gigabytes; the receiver stops at its limit."""
    client = Client(create_app(store, max_envelope_bytes=4 * MIB))
    bomb = encode(bytes(120 * MIB))
    tracemalloc.start()
    try:
        answer = client.post(bomb, {**AUTH, "Content-Encoding": name})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.status_code == 413
    assert peak < 40 * MIB


def test_a_body_over_the_limit_is_read_to_its_end_and_refused(store: Store) -> None:
    """A client that is still writing would see a reset instead of the 413."""
    client = Client(create_app(store, max_envelope_bytes=1000))
    answer = client.post([b"x" * 600, b"x" * 600, b"x" * 600])
    assert answer.status_code == 413
    assert answer.json() == {
        "detail": "envelope exceeded size limits",
        "causes": ["1800 bytes, 1000 allowed"],
    }
    assert answer.headers["x-sentry-error"] == "envelope exceeded size limits"


def test_a_body_over_the_limit_is_not_kept_while_it_is_read(store: Store) -> None:
    """A chunked body has no length, and may be endless."""
    client = Client(create_app(store, max_envelope_bytes=MIB))
    chunk = bytes(MIB)
    tracemalloc.start()
    try:
        assert client.post([chunk] * 64).status_code == 413
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB


def test_an_unknown_encoding_is_read_as_it_came(client: Client) -> None:
    """As in Relay; the cause explains why it is not an envelope."""
    answer = client.post(gzip.compress(EVENT), {**AUTH, "Content-Encoding": "snappy"})
    assert answer.status_code == 400
    assert "Content-Encoding is unknown" in answer.json()["causes"][1]


BASIC = base64.b64encode(f"{KEY}:".encode()).decode()


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"X-Sentry-Auth": f"Sentry sentry_key={KEY}"}, ""),
        ({"X-Sentry-Auth": f"sENTRY  sentry_version = 7 , sentry_key={KEY}.no-cache"}, ""),
        ({"Authorization": f"Sentry sentry_key={KEY}, sentry_version=7.0"}, ""),
        ({"Authorization": f"Basic {BASIC}"}, ""),
        ({"Authorization": "Bearer of-a-proxy"}, f"?sentry_key={KEY}&sentry_version=7"),
        ({}, f"?sentry_key={KEY}"),
    ],
)
@pytest.mark.parametrize("path", ["/api/42/envelope/", "/api/42/envelope"])
def test_the_key_is_found_in_each_place(
    client: Client, store: Store, headers: dict[str, str], query: str, path: str
) -> None:
    """Clients, tunnels and curl send it in different places."""
    answer = client.post(EVENT, {"User-Agent": "curl/8", **headers}, path + query)
    assert answer.json() == {"id": EVENT_ID}
    stored = store.by_event_id(EVENT_ID)
    assert stored is not None
    assert stored.key == KEY
    assert stored.record["client"] == "curl/8"
    assert KEY not in repr(stored)


def test_a_dsn_in_the_envelope_is_enough(client: Client, store: Store) -> None:
    """A tunnel forwards only the body."""
    body = envelope(({"type": "event"}, b"{}"), event_id=EVENT_ID, dsn=f"https://{KEY}@sentry.example/42")
    assert client.post(body, {}).status_code == 200
    assert client.post(body).status_code == 200
    assert store.latest(1)[0]["client"] == "test/1.0"


@pytest.mark.parametrize(
    ("headers", "query", "status", "word"),
    [
        ({}, "", 401, "missing authorization"),
        ({**AUTH, "Authorization": f"Sentry sentry_key={KEY}"}, "", 401, "multiple"),
        (AUTH, f"?sentry_key={KEY}", 401, "multiple"),
        (AUTH, "?note=sentry_", 401, "multiple"),
        ({"X-Sentry-Auth": f"sentry_key={KEY}"}, "", 401, "x-sentry-auth"),
        ({"X-Sentry-Auth": "Sentry sentry_version=7"}, "", 401, "x-sentry-auth"),
        ({"Authorization": "Basic %%%"}, "", 401, "authorization"),
        ({"Authorization": "Basic /w=="}, "", 401, "authorization"),
        ({}, "?sentry_version=7", 401, "x-sentry-auth"),
        ({"X-Sentry-Auth": "Sentry sentry_key=short"}, "", 400, "key"),
        ({"X-Sentry-Auth": f"Sentry sentry_key={KEY}, sentry_version=9"}, "", 400, "version"),
        ({"X-Sentry-Auth": f"Sentry sentry_key={KEY}, sentry_version=seven"}, "", 400, "version"),
    ],
)
def test_a_request_without_one_good_key_is_refused(
    client: Client, store: Store, headers: dict[str, str], query: str, status: int, word: str
) -> None:
    """With Relay's answers, so that a client behaves as in production; none quotes the key."""
    answer = client.post(EVENT, headers, "/api/42/envelope/" + query)
    assert answer.status_code == status
    assert word in answer.json()["detail"]
    assert answer.headers["x-sentry-error"] == answer.json()["detail"]
    assert KEY not in answer.text
    assert store.totals() == (0, 0)


@pytest.mark.parametrize(
    ("dsn", "headers", "status"),
    [
        (f"https://{KEY}@sentry.example/7", AUTH, 400),
        (f"https://{'b' * 32}@sentry.example/42", AUTH, 400),
        ("nonsense", AUTH, 400),
        ("nonsense", {}, 401),
        (7, {}, 401),
        ("https://short@sentry.example/42", {}, 400),
    ],
)
def test_a_dsn_that_disagrees_with_its_request_is_refused(
    client: Client, dsn: object, headers: dict[str, str], status: int
) -> None:
    """An envelope has one sender."""
    answer = client.post(envelope(({"type": "event"}, b"{}"), event_id=EVENT_ID, dsn=dsn), headers)
    assert answer.status_code == status
    assert KEY not in answer.text


@pytest.mark.parametrize("project", ["abc", "-1", "4_2", "٤", "0", "18446744073709551616", "9" * 5000])
def test_a_project_that_is_no_number_is_a_bad_path(client: Client, project: str) -> None:
    """A 400 as from Relay, for a number of any length."""
    answer = client.post(path=f"/api/{project}/envelope/")
    assert answer.status_code == 400
    assert "project" in answer.json()["detail"]


def test_a_leading_zero_stays_in_the_project(client: Client, store: Store) -> None:
    """Ids are text, but the project of DSN and path may differ in leading zeros."""
    body = envelope(dsn=f"https://{KEY}@sentry.example/0042")
    assert client.post(body, path="/api/042/envelope/").status_code == 200
    assert store.latest(1)[0]["project"] == "042"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b"nonsense", "envelope_header"),
        (b'{}\n{"type":"event","length":4294967295}\n{}', "truncated"),
        (b'{}\n{"type":"event","length":2}\n{}x\n', "unterminated"),
        (b"{}\n\n", "item_header"),
        (b"{}\n" + b'{"type":"x"}\n\n' * 1001, "too_many_items"),
        (b'{"event_id":"short"}', "event_id"),
        (b'{"sent_at":"yesterday"}', "sent_at"),
    ],
)
def test_a_malformed_envelope_is_refused_with_the_place_of_the_fault(
    client: Client, store: Store, body: bytes, reason: str
) -> None:
    """The author of a client needs the offset."""
    answer = client.post(body)
    assert answer.status_code == 400
    assert answer.json()["detail"] == "malformed envelope"
    assert reason in answer.json()["causes"][0]
    assert store.totals() == (0, 0)


def test_an_empty_envelope_and_unknown_items_are_accepted(client: Client, store: Store) -> None:
    """Items of newer clients must be stored unchanged."""
    assert client.post(b"{}").json() == {}
    body = b'{"new":1}\n{"type":"novelty","x":[1]}\n\xff\x00\r'
    assert client.post(body).json() == {}
    assert newest(store) == body
    assert [record["title"] for record in store.latest()] == ["novelty", "empty envelope"]


def test_a_missing_event_id_is_taken_from_the_payload_or_made(client: Client) -> None:
    """The header wins; an event without an id gets one in the answer."""
    inner = envelope(({"type": "event"}, json.dumps({"event_id": EVENT_ID.upper()}).encode()))
    assert client.post(inner).json() == {"id": EVENT_ID}
    made = client.post(envelope(({"type": "event"}, b"no JSON"))).json()["id"]
    assert len(made) == 32
    assert made != EVENT_ID


CHECK_IN: tuple[dict[str, Any], bytes] = ({"type": "check_in"}, b"{}")


@pytest.mark.parametrize(
    "items",
    [
        [({"type": "event"}, b"{}"), ({"type": "transaction"}, b"{}")],
        [({"type": "event"}, b" " * (MIB + 1))],
        [CHECK_IN, CHECK_IN],
        [({"type": "client_report"}, b" " * 50_000)] * 3,
        [({"type": "session"}, b"{}")] * 60 + [({"type": "sessions"}, b"{}")] * 41,
        [({"type": "span", "item_count": 1}, b"{}")] * 2,
        [({"type": "span"}, b"{}")] * 26,
        [({"type": "attachment", "filename": "a"}, b"")] * 31,
    ],
)
def test_an_envelope_with_too_much_of_a_kind_is_refused(
    client: Client, store: Store, items: list[tuple[dict[str, Any], bytes]]
) -> None:
    """Relay's slots and sizes apply in development too."""
    answer = client.post(envelope(*items, event_id=EVENT_ID))
    assert answer.status_code == 413
    assert "allowed" in answer.json()["causes"][0]
    assert store.totals() == (0, 0)


def test_as_many_items_as_there_are_slots_are_accepted(client: Client) -> None:
    """The caps refuse the first item beyond them, not the last allowed one."""
    items: list[tuple[dict[str, Any], bytes]] = [({"type": "span"}, b"{}")] * 25
    items += [({"type": "span", "item_count": 1}, b"{}"), CHECK_IN]
    assert client.post(envelope(*items)).status_code == 200


@pytest.mark.parametrize("path", ["/api/42/store/", "/api/42/store"])
def test_the_deprecated_endpoint_wraps_its_event_byte_for_byte(
    client: Client, store: Store, path: str
) -> None:
    """Old clients and shell scripts still post plain events."""
    body = b'{\n "event_id": "%s", "message": "h\\u0069"\n}' % EVENT_ID.encode()
    assert client.post(body, path=path).json() == {"id": EVENT_ID}
    (item,) = Envelope.deserialize(newest(store)).items
    assert (item.type, item.get_bytes()) == ("event", body)
    assert client.post(b'{"type":"transaction"}', path=path).status_code == 200
    assert store.latest(1)[0]["type"] == "transaction"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"eJw="])
def test_the_deprecated_endpoint_refuses_what_is_no_event(client: Client, body: bytes) -> None:
    """No envelope can be made of it."""
    answer = client.post(body, path="/api/42/store/")
    assert answer.status_code == 400
    assert answer.json()["detail"] == "malformed event"


def test_a_rate_limit_refuses_its_items_and_keeps_the_rest(store: Store) -> None:
    """A 429 may be partial: attachments are refused with their event, other items are stored."""
    client = Client(create_app(store, Faults(rate_limit="60:error:key, 5:session")))
    mixed = envelope(
        ({"type": "event"}, b"{}"),
        ({"type": "attachment", "filename": "a"}, b"xyz"),
        ({"type": "client_report"}, b'{"discarded_events":[]}'),
        event_id=EVENT_ID,
    )
    answer = client.post(mixed)
    assert answer.status_code == 429
    assert answer.headers["x-sentry-rate-limits"] == "60:error:key, 5:session"
    assert answer.headers["retry-after"] == "60"
    assert answer.json()["causes"] == ["2 of 3 items refused"]
    assert [item.type for item in Envelope.deserialize(newest(store)).items] == ["client_report"]

    assert client.post(EVENT).status_code == 429
    assert store.totals()[0] == 1

    passing = client.post(envelope(CHECK_IN, ({"type": "attachment", "filename": "a"}, b"")))
    assert passing.status_code == 200
    assert passing.headers["x-sentry-rate-limits"] == "60:error:key, 5:session"


def test_an_attachment_limit_leaves_the_event(store: Store) -> None:
    """An event is stored although its attachments are refused."""
    client = Client(create_app(store, Faults(rate_limit="60:attachment:key")))
    body = envelope(
        ({"type": "event"}, b"{}"), ({"type": "attachment", "filename": "a"}, b"x"), event_id=EVENT_ID
    )
    assert client.post(body).status_code == 429
    assert store.latest(1)[0]["item_types"] == ["event"]


def test_a_limit_on_everything_stops_client_reports_too(store: Store) -> None:
    """A limit without categories has no exceptions."""
    client = Client(create_app(store, Faults(rate_limit="60::organization")))
    assert client.post(envelope(({"type": "client_report"}, b"{}"))).status_code == 429
    assert store.totals() == (0, 0)


def test_browsers_may_post_from_other_origins(client: Client) -> None:
    """As with Relay, a client in a page must read the limits; nothing else can be read."""
    preflight = client.request("OPTIONS", "/api/42/envelope/", headers={"Origin": "http://shop.example"})
    assert preflight.status_code == 204
    assert "X-Sentry-Auth" in preflight.headers["access-control-allow-headers"]
    assert client.post().headers["access-control-allow-origin"] == "*"
    assert client.post(b"").headers["access-control-allow-origin"] == "*"
    for path in ("/", "/api/events", f"/api/events/{EVENT_ID}", "/envelopes/1"):
        assert "access-control-allow-origin" not in client.get(path).headers


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
def test_other_methods_are_not_allowed(client: Client, method: str) -> None:
    """Nothing can be deleted, and the answer to a GET of the endpoint explains the error."""
    assert client.request(method, "/api/42/envelope/").status_code == 405


def test_a_listener_that_raises_changes_nothing(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """The envelope is stored before the listener is called."""

    def broken(_record: dict[str, Any]) -> None:
        raise OSError("terminal gone")

    client = Client(create_app(store, on_received=broken))
    assert client.post().status_code == 200
    assert store.totals()[0] == 1
    assert "the envelope is stored" in caplog.text


def test_a_store_that_fails_answers_503(client: Client, store: Store) -> None:
    """A full disk is temporary: the client keeps the envelope and tries again."""
    store.close()
    answer = client.post()
    assert answer.status_code == 503
    assert "closed" in answer.json()["causes"][0]
    with pytest.raises(sqlite3.ProgrammingError):
        store.latest()


def test_the_record_names_exception_culprit_request_and_client(client: Client, store: Store) -> None:
    """The list and the demo show these values."""
    for each in manifest():
        if each["kind"] == "flask":
            _, body, headers = replayed(each)
            client.post(body, headers, each["path"])
    record = next(each for each in client.get("/api/events").json() if each["exception"])
    assert record["exception"] == {"type": "KeyError", "value": "'missing'"}
    assert record["culprit"]["function"] == "boom"
    assert record["culprit"]["context_line"].strip() == 'return local["missing"]'
    assert record["request"]["method"] == "POST"
    assert record["request"]["url"].endswith("/bad/7")
    assert record["client"] == "sentry.python/2.75.0"
    assert record["project"] == "42"
    assert record["received_at"].endswith("Z")


def test_the_dsn_it_names_can_be_parsed() -> None:
    """The key of the printed DSN has the form that every server accepts."""
    from transport_kit.receiver import Receiver

    with Receiver() as receiver:
        dsn = Dsn.parse(receiver.dsn)
        assert dsn.key_looks_valid
        assert dsn.envelope_url == f"{receiver.url}/api/1/envelope/"
