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
