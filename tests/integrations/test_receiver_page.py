"""The receiver's page and JSON: their contents, and their safety against hostile values."""

from __future__ import annotations

import html.parser
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integrations.receiver_support import (
    AUTH,
    CORPUS,
    EVENT,
    EVENT_ID,
    KEY,
    Client,
    manifest,
    replayed,
)
from transport_kit.receiver import Store, create_app

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'><b>{{ 7 * 7 }}"


@pytest.fixture(name="store")
def _store() -> Iterator[Store]:
    with Store() as store:
        yield store


@pytest.fixture(name="client")
def _client(store: Store) -> Client:
    return Client(create_app(store, dsn=f"http://{KEY}@127.0.0.1:8123/1"))


def post_event(client: Client, event: Any, *more: bytes, **headers: Any) -> None:
    payload = json.dumps(event).encode()
    lines = [json.dumps({"event_id": EVENT_ID, **headers}).encode(), b'{"type":"event"}', payload, *more]
    assert client.post(b"\n".join(lines)).status_code == 200


class Tags(html.parser.HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    @property
    def names(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def test_an_empty_page_says_what_to_do(client: Client) -> None:
    """A newcomer sees it first; the key is shown in the terminal only."""
    answer = client.get("/")
    assert answer.status_code == 200
    assert "Nothing has arrived yet" in answer.text
    assert f"http://{KEY[:4]}{'*' * 28}@127.0.0.1:8123/1" in answer.text
    assert KEY not in answer.text
    assert "any 32 letters and digits will do as a key" in answer.text
    with Store() as store:
        assert "Nothing has arrived yet" in Client(create_app(store)).get("/").text


def test_the_list_shows_the_newest_first_and_reloads_itself(client: Client, store: Store) -> None:
    """Developers leave the page open beside the editor."""
    for entry in manifest():
        _, body, headers = replayed(entry)
        client.post(body, headers, entry["path"])
    page = client.get("/").text
    tags = Tags(page)
    links = [
        attrs["href"] for tag, attrs in tags.elements if tag == "a" and str(attrs["href"]).startswith("/ev")
    ]
    assert links == [f"/events/{record['n']}" for record in store.latest()]
    assert {"http-equiv": "refresh", "content": "3"} in [
        attrs for tag, attrs in tags.elements if tag == "meta"
    ]
    assert "http-equiv" not in client.get("/?pause").text
    assert "<b>KeyError</b>" in page
    assert "script" not in tags.names
    # Each of them can be opened.
    for link in links:
        assert client.get(str(link)).status_code == 200


def test_a_long_list_says_where_the_rest_is(client: Client) -> None:
    """The page shows a hundred envelopes; the JSON has all."""
    for _ in range(101):
        client.post()
    page = client.get("/").text
    assert "The newest 100 of 101" in page
    assert page.count('href="/events/') == 100
    assert len(client.get("/api/events").json()) == 100
    assert len(client.get("/api/events?limit=10000").json()) == 101
    assert [record["n"] for record in client.get("/api/events?limit=2").json()] == [101, 100]


@pytest.mark.parametrize("limit", ["0", "-1", "x", "", "1e3", "٣", "9" * 40])
def test_a_limit_that_is_no_number_is_refused(client: Client, limit: str) -> None:
    """An invalid limit must not lead to an unbounded answer."""
    answer = client.get(f"/api/events?limit={limit}")
    assert answer.status_code == 400
    assert answer.json()["detail"] == "bad limit"


def test_an_event_shows_exception_frames_with_context_and_request(client: Client) -> None:
    """In reading order: the exception, its place, the request."""
    event = {
        "level": "error",
        "exception": {
            "values": [
                {"type": "KeyError", "value": "'id'"},
                {
                    "type": "CheckoutError",
                    "value": "no such cart",
                    "mechanism": {"type": "starlette", "handled": False},
                    "stacktrace": {
                        "frames": [
                            {"function": "outer", "filename": "lib/web.py", "lineno": 7},
                            {
                                "function": "checkout",
                                "filename": "shop/views.py",
                                "abs_path": "/srv/shop/views.py",
                                "lineno": 42,
                                "in_app": True,
                                "pre_context": ["def checkout(cart):", "    cart.lock()"],
                                "context_line": "    cart.pay()",
                                "post_context": ["    return cart"],
                                "vars": {"cart": {"id": 7}, "nothing": None},
                            },
                            {"function": "pay", "filename": "lib/pay.py", "lineno": 3},
                        ]
                    },
                },
            ]
        },
        "request": {
            "method": "POST",
            "url": "https://shop.example/pay",
            "query_string": "a=1",
            "headers": [["Accept", "text/html"]],
            "cookies": {"theme": "dark"},
            "data": {"total": 3},
            "env": {"REMOTE_ADDR": "10.0.0.9"},
            "api_target": "graphql",
        },
        "tags": {"branch": "main"},
    }
    post_event(client, event, b'{"type":"attachment","filename":"a.bin","length":3}', b"\xff\x00z")
    page = client.get("/events/1").text
    places = [
        page.index(part)
        for part in (
            "CheckoutError",
            "no such cart",
            "lib/pay.py:3",
            "shop/views.py:42",
            "def checkout(cart):",
            '<div class="current"><span>42</span><code>    cart.pay()</code>',
            "lib/web.py:7",
            "KeyError",
            "https://shop.example/pay?a=1",
            "Accept",
            "graphql",
            "branch",
            "a.bin",
            "Raw envelope",
        )
    ]
    assert places == sorted(places)
    assert page.count(" open>") == 1  # the app's own innermost frame
    assert "REMOTE_ADDR" in page
    assert "theme" in page
    record = client.get("/api/events").json()[0]
    assert record["culprit"]["function"] == "checkout"
    assert record["request"] == {"method": "POST", "url": "https://shop.example/pay"}
    detail = client.get(f"/api/events/{EVENT_ID}").json()
    assert detail["payload"] == event
    assert [item["type"] for item in detail["items"]] == ["event", "attachment"]


def test_markup_in_any_field_is_shown_as_text(client: Client) -> None:
    """Every string of a payload may be an attack on the developer's browser."""

    def evil(value: Any) -> Any:
        if isinstance(value, dict):
            return {f"{name}{EVIL}" if depth_free(name) else name: evil(each) for name, each in value.items()}
        if isinstance(value, list):
            return [evil(each) for each in value]
        return EVIL if isinstance(value, str) else value

    def depth_free(name: str) -> bool:
        return name in ("x", "y")

    frame = {
        "function": "f",
        "filename": "f",
        "lineno": 3,
        "in_app": True,
        "context_line": "c",
        "vars": {"x": "v"},
    }
    post_event(
        client,
        evil(
            {
                "level": "l",
                "transaction": "t",
                "exception": [{"type": "T", "value": "v", "stacktrace": {"frames": [frame]}}],
                "request": {"method": "G", "url": "u", "headers": {"x": "y"}, "data": "d", "x": "z"},
                "tags": {"y": "t"},
            }
        ),
        json.dumps({"type": EVIL, "filename": EVIL}).encode(),
        EVIL.encode(),
        sdk={"name": EVIL},
    )
    headers = {"X-Sentry-Auth": AUTH["X-Sentry-Auth"].replace("test/1.0", "<script>alert(2)</script>")}
    client.post(EVENT.replace(b"hello", b"<script>"), headers)
    assert client.post(json.dumps({}).encode() + b'\n{"type":"<script>"}\n<script>').status_code == 200
    for path in ("/", "/events/1", "/events/2", "/events/3"):
        answer = client.get(path)
        assert answer.status_code == 200
        tags = Tags(answer.text)
        assert tags.names.isdisjoint({"script", "img"}), path
        assert not [attrs for _, attrs in tags.elements if any(name.startswith("on") for name in attrs)], path
        assert "&lt;script&gt;" in answer.text
        assert "{{ 7 * 7 }}" in answer.text or path != "/events/1"  # and no template runs


LONE_SURROGATES = {
    "high": r"caf\ud83d",
    "low": r"\udc00 caf",
    "swapped": r"\ude00\ud83d",
    "two high": r"\ud83d\uD83D\uDE00",
    "apart": r"\ud83dx\ude00",
    "capitals": r"\uDBFF",
    "escaped": r"\\\ud800\"",
    "before an escape": r"\ud800\u0041\n",
}


@pytest.mark.parametrize("text", LONE_SURROGATES.values(), ids=LONE_SURROGATES)
@pytest.mark.parametrize("legacy", [False, True])
def test_an_event_with_half_a_character_is_shown(
    client: Client, store: Store, text: str, legacy: bool
) -> None:
    """A JavaScript client that cuts a text in the middle of an emoji writes one half of a pair."""
    parts = f'"event_id":"{EVENT_ID}","message":"{text}","extra":{{"{text}":["{text}"]}}'
    event = f'{{{parts},"ok":"\\ud83d\\ude00"}}'
    if legacy:
        answer = client.post(event.encode(), path="/api/42/store/")
    else:
        answer = client.post(b'{"event_id":"%b"}\n{"type":"event"}\n' % EVENT_ID.encode() + event.encode())
    assert answer.json() == {"id": EVENT_ID}
    shown = json.loads(f'"{text}"').encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert "\ufffd" in shown
    (record,) = client.get("/api/events").json()
    assert record["title"] == shown
    payload = client.get(f"/api/events/{EVENT_ID}").json()["payload"]
    assert (payload["message"], payload["extra"], payload["ok"]) == (shown, {shown: [shown]}, "\U0001f600")
    page = client.get("/events/1").text
    assert "not a JSON object" not in page
    assert "lone surrogates" in page
    assert text.encode() in client.get("/envelopes/1").content


@pytest.mark.parametrize(
    "payload",
    [
        b'{"a":"\\ud800"',
        b'{"a":"\\ud800", "b": NaN}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\\ud8"}',
        b'{"a":\\ud800}',
        b'{"a":"\\ud800"}' + b"[" * 2000,
    ],
)
def test_half_a_character_excuses_nothing_else(client: Client, payload: bytes) -> None:
    """What no server can read must not look well here."""
    client.post(b'{"event_id":"%b"}\n{"type":"event"}\n' % EVENT_ID.encode() + payload)
    assert "not a JSON object" in client.get("/events/1").text


DEPTHS = [90, 99, 100, 101, 254, 255, 260, 500, 900, 990, 1023, 1024, 1025, 5000, 100_000]


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", ["list", "object"])
def test_a_payload_of_any_depth_that_is_stored_can_be_opened(client: Client, depth: int, kind: str) -> None:
    """The page must show the bug of a client, and a stored envelope must not answer 500 for ever."""
    deep = b"[" * depth + b"]" * depth if kind == "list" else b'{"a":' * depth + b"1" + b"}" * depth
    event_id = EVENT_ID.encode()
    for place in (b"extra", b"message", b"level", b"exception", b"request", b"contexts", b"breadcrumbs"):
        event = b'{"event_id":"%b","%b":%b}' % (event_id, place, deep)
        assert client.post(b'{"event_id":"%b"}\n{"type":"event"}\n%b' % (event_id, event)).status_code == 200
    exception = b'{"values":[{"type":%b,"stacktrace":{"frames":[{"vars":{"x":%b}}]}}]}' % (deep, deep)
    frame = b'{"event_id":"%b","exception":%b}' % (event_id, exception)
    attached = b'{"type":"event"}\n{}\n{"type":"attachment","filename":"x"}\n%b' % deep
    log, unknown = (b'{"type":"%b"}\n%b' % (name, deep) for name in (b"log", b"x"))
    for items in (b'{"type":"event"}\n' + frame, attached, log, unknown):
        client.post(b'{"event_id":"%b"}\n%b' % (event_id, items))
    client.post(b'{"event_id":"%b","extra":%b}' % (event_id, deep), path="/api/42/store/")
    # In a header, where the parser has its own bound.
    client.post(b'{"event_id":"%b","x":%b}\n{"type":"event"}\n{}' % (event_id, deep))
    client.post(b'{"event_id":"%b"}\n{"type":"event","x":%b}\n{}' % (event_id, deep))
    records = client.get("/api/events").json()
    assert len(records) >= 10
    assert client.get("/").status_code == 200
    for record in records:
        assert client.get(f"/events/{record['n']}").status_code == 200
        assert client.get(f"/envelopes/{record['n']}").status_code == 200
    assert client.get(f"/api/events/{EVENT_ID}").json()["event_id"] == EVENT_ID


ESCAPES = ["u001b", "u0000", "u001f", "u0007", "n", "t", "b", "f", "r"]


@pytest.mark.parametrize("start", [*ESCAPES, "u", "1", "a"])
def test_a_key_that_looks_like_an_escape_breaks_nothing(store: Store, start: str) -> None:
    """In JSON a control character and what follows it may read like a key: masked as such, it was a 500."""
    key = start + "1" * (32 - len(start))
    escapes = [start, json.loads(f'"\\{start}"')] if start in ESCAPES else [start]
    client = Client(create_app(store))
    auth = {"X-Sentry-Auth": f"Sentry sentry_key={key}, sentry_version=7, sentry_client=test/1.0"}
    for number, escape in enumerate(escapes, 1):
        text = f"key {escape}{key[len(start) :]}"
        event = {"message": text, "extra": {text: text}, "number": int("1" * 30)}
        body = b'{"event_id":"%b"}\n{"type":"event"}\n' % EVENT_ID.encode() + json.dumps(event).encode()
        assert client.post(body, auth).status_code == 200
        shown = text.replace(key, key[:4] + "*" * 28)
        assert client.get("/api/events").json()[0]["title"] == shown
        payload = client.get(f"/api/events/{EVENT_ID}").json()["payload"]
        assert (payload["message"], payload["extra"]) == (shown, {shown: shown})
        for path in ("/", f"/events/{number}", f"/envelopes/{number}", "/api/events"):
            answer = client.get(path)
            assert answer.status_code == 200
            # A control character is written as its escape, and with what follows it reads like the key.
            assert key not in answer.text.replace(f"\\{start}", "")


# Every character that turns text around, and those without a glyph: Unicode's Bidi_Control, the zero-width
# and the default ignorable ones, controls, and what is no character.
INVISIBLE = [
    *(0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),  # bidi controls
    *(0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0x00AD, 0x034F, 0x180E),  # zero width
    *(*range(0x2061, 0x2066), *range(0x206A, 0x2070), 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, 0x2800),
    *(*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xFFF9, 0xFFFC), 0x1D173, 0x1D17A, 0x13430),
    *(0xE0001, 0xE0020, 0xE0041, 0xE007F, 0xE0100, 0xE01EF),  # tags and selectors: hidden text
    *(0x2028, 0x2029, 0x85, 0x7F, 0x00, 0x08, 0x0D, 0x1B, 0x9B, 0xE000, 0xFFFE, 0x10FFFF),
]


@pytest.mark.parametrize("point", INVISIBLE, ids=hex)
def test_an_invisible_character_is_shown_as_its_escape(client: Client, point: int) -> None:
    """U+202E turns a headline around: `evil` and the name of a file read like others."""
    character = chr(point)
    evil = f"pay{character}txt.exe"
    frame = {"function": evil, "filename": evil, "lineno": 1, "context_line": evil, "vars": {evil: evil}}
    post_event(
        client,
        {
            "level": evil,
            "exception": [{"type": evil, "value": evil, "stacktrace": {"frames": [frame]}}],
            "request": {"method": evil, "url": evil, "headers": {evil: evil}, "data": evil},
            "tags": {evil: evil},
        },
        sdk={"name": evil},
    )
    post_event(client, {"message": evil})
    client.post(json.dumps({}).encode() + b'\n{"type":"x"}\n' + evil.encode())
    escape = character.encode("unicode_escape").decode()
    for path in ("/", "/events/1", "/events/2", "/events/3"):
        page = client.get(path).text
        assert character not in page
        assert f"pay{escape}txt.exe" in page
    if point != 0x0D:
        assert evil.encode() in client.get("/envelopes/3").content


def test_letters_of_any_script_and_lines_stay_as_they_are(client: Client) -> None:
    """A Hebrew or Arabic message is shown in its own direction; a text keeps its lines."""
    text = "שלום مرحبا हिन्दी 日本語 é e\u0301 😀 Bon\u00a0!\u3000\tx\ny"
    post_event(client, {"exception": [{"type": "T", "value": text}]})
    assert text in client.get("/events/1").text


HOSTILE: list[Any] = [
    None,
    7,
    [],
    {"exception": None, "request": None},
    {"exception": {"values": None}, "request": []},
    {"exception": {"values": [None, 3, {"stacktrace": {"frames": [None, {}, {"lineno": "x"}]}}]}},
    {"exception": {"values": [{"type": {}, "value": [1], "mechanism": 3, "stacktrace": None}]}},
    {"exception": {"values": [{"stacktrace": {"frames": {"0": {}}}}]}, "level": {"a": 1}},
    {"request": {"method": 1, "url": {}, "headers": [[1], [1, 2], "x"], "cookies": 3, "data": [["a"]]}},
    {"request": {"method": True, "url": 1.5, "headers": {"a": None}}, "message": {"formatted": "m"}},
    {"logentry": {"message": "log"}, "message": 5},
    {"exception": [{"type": "T", "stacktrace": {"frames": [
        {"lineno": 1, "context_line": "x", "pre_context": 3, "post_context": [None, 7, "y" * 5000]}
    ]}}]},
    {"exception": [{"value": "only a value"}]},
    {"deep": [[[[[[[[["bottom"]]]]]]]]], "long": "x" * 20_000, "wide": {str(n): n for n in range(500)}},
    {str(n): n for n in range(1, 500)},
]  # fmt: skip


@pytest.mark.parametrize("event", HOSTILE, ids=str)
def test_a_payload_of_any_shape_can_be_listed_and_opened(client: Client, event: Any) -> None:
    """The page must show the bug of a client."""
    post_event(client, event)
    assert client.get("/").status_code == 200
    page = client.get("/events/1")
    assert page.status_code == 200
    assert len(page.text) < 200_000
    assert len(client.get("/api/events").text) < 5_000
    assert client.get(f"/api/events/{EVENT_ID}").status_code == 200


def test_a_payload_that_is_no_json_is_shown_as_it_came(client: Client) -> None:
    """Framing does not parse payloads, so such an event may arrive."""
    body = b'{"event_id":"%s"}\n{"type":"event"}\n{"a": NaN, \xff}' % EVENT_ID.encode()
    assert client.post(body).status_code == 200
    page = client.get("/events/1").text
    assert "not a JSON object" in page
    assert "NaN" in page
    assert client.get(f"/api/events/{EVENT_ID}").json()["payload"] is None
    assert client.get("/envelopes/1").content == body


@pytest.mark.parametrize(
    ("kind", "payload", "title"),
    [
        ("check_in", {"monitor_slug": "nightly", "status": "ok"}, "nightly: ok"),
        ("check_in", {"monitor_slug": "nightly"}, "nightly: no status"),
        ("check_in", {}, "check_in"),
        ("session", {"status": "crashed"}, "crashed"),
        ("feedback", {"contexts": {"feedback": {"message": "slow!"}}}, "slow!"),
        ("log", {"items": [{"body": "started"}]}, "started"),
        ("log", {"items": [3]}, "log"),
        ("log", {"items": 3}, "log"),
        ("client_report", {}, "client_report"),
        ("novelty", {}, "novelty"),
    ],
)
def test_other_kinds_have_a_line_of_their_own(
    client: Client, store: Store, kind: str, payload: Any, title: str
) -> None:
    """With types alone all check-ins would look the same."""
    client.post(
        b'{"event_id":"%s"}\n{"type":"%s"}\n' % (EVENT_ID.encode(), kind.encode())
        + json.dumps(payload).encode()
    )
    assert store.latest()[0]["title"] == title
    assert client.get("/events/1").status_code == 200


def test_large_envelopes_are_cut_on_the_page_and_whole_in_the_raw_view(client: Client) -> None:
    """The page stays small; the raw view is complete."""
    big = b"z" * 400_000
    lines = [b'{"event_id":"%s"}' % EVENT_ID.encode()]
    for _ in range(29):
        lines += [b'{"type":"attachment","filename":"a"}', b"x"]
    lines += [b'{"type":"attachment","filename":"big","length":400000}', big]
    lines += [b'{"type":"novelty"}', b"1"] * 30
    body = b"\n".join(lines)
    assert client.post(body).status_code == 200
    page = client.get("/events/1").text
    assert len(page) < 600_000
    assert "Cut here" in page
    assert "and 10 more" in page
    assert client.get("/envelopes/1").content == body
    records = client.get("/api/events").json()
    assert records[0]["type"] == "novelty"


def test_headers_of_any_size_do_not_swell_the_list(client: Client) -> None:
    """A header line may have a megabyte, and numbers of any length."""
    wide = {str(n): {str(m): "x" * 50 for m in range(100)} for n in range(100)}
    post_event(client, {}, **wide)
    post_event(client, {}, huge=10**30, long="x" * 2000, deep=[[[[[[[[1]]]]]]]])
    first, second = client.get("/api/events").json()
    assert second["envelope_headers"] == {"…": "too long to list"}
    assert first["envelope_headers"]["huge"] == 1e30
    assert first["envelope_headers"]["long"] == "x" * 1000 + "…"
    assert first["envelope_headers"]["deep"] == [[[[["…"]]]]]
    assert client.get("/events/2").status_code == 200


def test_the_key_is_never_shown_in_full(client: Client, store: Store) -> None:
    """Screenshots must not reveal it; lengths and offsets stay valid."""
    body = (CORPUS / "sentry-sdk-2.75.0-fastapi-1.envelope").read_bytes()
    assert KEY.encode() in body
    assert client.post(body).status_code == 200
    event_id = store.latest()[0]["event_id"]
    paths = ["/", "/events/1", "/envelopes/1", "/api/events", f"/api/events/{event_id}"]
    for path in paths:
        answer = client.get(path)
        assert answer.status_code == 200
        assert KEY not in answer.text, path
    raw = client.get("/envelopes/1").content
    assert len(raw) == len(body)
    assert raw == body.replace(KEY.encode(), b"aaaa" + b"*" * 28)
    assert store.by_number(1).body == body  # type: ignore[union-attr]


def test_the_raw_envelope_can_not_be_taken_for_a_page(client: Client) -> None:
    """A browser must show hostile bytes as text."""
    client.post(b'{}\n{"type":"x"}\n<html><script>alert(1)</script>')
    answer = client.get("/envelopes/1")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/events/1", "/envelopes/1", "/style.css", "/api/events", "/nowhere"])
def test_every_answer_carries_the_protective_headers(client: Client, path: str) -> None:
    """No script, no frame, no cache, no sniffing of the type; on errors too."""
    client.post()
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"


def test_the_page_needs_nothing_from_elsewhere(client: Client) -> None:
    """It works offline, and no other server learns of an error."""
    client.post()
    for path in ("/", "/events/1"):
        for tag, attrs in Tags(client.get(path).text).elements:
            for name in ("src", "href"):
                assert str(attrs.get(name) or "/").startswith("/"), (tag, attrs)
    style = client.get("/style.css")
    assert style.headers["content-type"].startswith("text/css")
    assert "url(" not in style.text


@pytest.mark.parametrize(
    "path",
    [
        "/events/2",
        f"/events/{2**70}",
        "/envelopes/2",
        f"/envelopes/{2**70}",
        f"/api/events/{'0' * 32}",
        "/api/events/x",
    ],
)
def test_what_is_not_there_is_404(client: Client, path: str) -> None:
    """Dropped or never received; a number may have any length."""
    client.post()
    assert client.get(path).status_code == 404


BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/events/2", "unknown envelope"),
        (f"/events/{2**70}", "unknown envelope"),
        ("/envelopes/2", "unknown envelope"),
        ("/events/x", "Not Found"),
        ("/events/-1", "Not Found"),
        ("/events/", "Not Found"),
        ("/<script>", "Not Found"),
        ("/favicon.ico", "Not Found"),
    ],
)
def test_what_is_not_there_is_a_page_in_a_browser(client: Client, path: str, detail: str) -> None:
    """The list links to events that newer ones may have replaced since; the way back is on the page."""
    answer = client.get(path, BROWSER)
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'")
    assert f"404: {detail}" in answer.text
    assert ("a", {"href": "/"}) in Tags(answer.text).elements
    assert "script" not in Tags(answer.text).names
    other = client.get(path)
    assert (other.status_code, "<" in other.text) == (404, False)


def test_a_tools_path_answers_json_to_a_browser_too(client: Client) -> None:
    """A script that runs in a page sends the browser's headers."""
    answer = client.get(f"/api/events/{EVENT_ID}", BROWSER)
    assert (answer.status_code, answer.json()["detail"]) == (404, "unknown event")


def test_a_foreign_host_is_explained_in_a_browser(client: Client) -> None:
    """The person who typed the name learns which option allows it."""
    answer = client.get("/", {**BROWSER, "Host": "box.example"})
    assert answer.status_code == 400
    assert "unknown host" in answer.text
    assert "--allow-host" in answer.text
    assert answer.headers["content-type"].startswith("text/html")


def test_an_event_is_found_by_its_id_in_any_spelling(client: Client) -> None:
    """Clients log ids with dashes or in capitals."""
    client.post()
    dashed = f"{EVENT_ID[:8]}-{EVENT_ID[8:12]}-{EVENT_ID[12:16]}-{EVENT_ID[16:20]}-{EVENT_ID[20:]}"
    for spelling in (EVENT_ID, EVENT_ID.upper(), dashed):
        assert client.get(f"/api/events/{spelling}").json()["payload"] == {"message": "hello"}


@pytest.mark.parametrize("path", ["/", "/events/1", "/api/events", f"/api/events/{EVENT_ID}", "/envelopes/1"])
def test_nothing_can_be_deleted(client: Client, store: Store, path: str) -> None:
    """A forged request of a web page can change nothing."""
    client.post()
    for method in ("DELETE", "POST", "PUT"):
        assert client.request(method, path).status_code == 405
    assert store.totals()[0] == 1


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8123", 200),
        ("LOCALHOST", 200),
        ("localhost.", 200),
        ("shop.localhost:8123", 200),
        ("127.0.0.1:8123", 200),
        ("[::1]:8123", 200),
        ("192.168.1.7", 200),
        ("receiver:8123", 200),
        ("evil.example", 400),
        ("evil.example:8123", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost.evil.example", 400),
        ("[evil]", 400),
        ("", 400),
        ("[::1]", 200),
        ("[::1]:", 200),
        ("[fe80::1%25eth0]:8123", 200),
        ("[::ffff:127.0.0.1]", 200),
        ("[::1].evil.com", 400),
        ("[::1].evil.com:8123", 400),
        ("[::1]evil.com", 400),
        ("[::1]:8123.evil.com", 400),
        ("[::1", 400),
        ("[]", 400),
        ("[::1]]", 400),
        ("[[::1]]", 400),
        ("[127.0.0.1]", 400),
        ("[localhost]", 400),
        ("[::1%25eth0].evil.com", 400),
        ("::1", 400),
        ("localhost:80.evil.com", 400),
        ("localhost:80@evil.com", 400),
        ("localhost@evil.com", 400),
        ("localhost/.evil.com", 400),
        ("localhost evil.com", 400),
        ("localhost,evil.com", 400),
        ("localhost:8123, evil.com", 400),
        ("localhost:evil", 400),
        ("localhost..", 400),
        (".localhost", 400),
        ("a..localhost", 400),
        ("evil.com/.localhost", 400),
        ("evil.com\\\\.localhost", 400),
        ("evil.com:80.localhost", 400),
        ("evil.com#.localhost", 400),
        ("notlocalhost", 400),
        ("127.0.0.1.", 200),
        ("127.0.0.1..", 400),
        ("127.0.0.1:80:80", 400),
        ("127.1", 400),
        ("2130706433", 400),
        ("0x7f000001", 400),
        ("receiver.evil.com", 400),
        ("receiver.", 200),
        (":8123", 400),
    ],
)
def test_a_foreign_host_name_is_refused(store: Store, host: str, status: int) -> None:
    """DNS rebinding: a page whose own name resolves to 127.0.0.1 must not read events."""
    client = Client(create_app(store, allowed_hosts=["Receiver"]))
    client.post()
    for path in ("/", "/api/events", "/envelopes/1"):
        answer = client.get(path, {"Host": host})
        assert answer.status_code == status
        assert ("hello" in answer.text) == (status == 200)
        assert answer.headers["x-content-type-options"] == "nosniff"
