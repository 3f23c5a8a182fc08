"""The four routes as pure functions: access and answers, for any request."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport_kit.config.options import IntegrationOptions, TransportOptions
from transport_kit.envelope.envelope import Envelope
from transport_kit.kit.routes import (
    LEAVES,
    MAX_FLUSH,
    Answer,
    FlushDue,
    Leaf,
    answer,
    flush_answer,
    parse_query,
)
from transport_kit.transport.base import Transport
from transport_kit.transport.health import Health, LastError
from transport_kit.transport.local import FunctionTransport, NullTransport
from transport_kit.transport.worker.outcome import FlushReport

TOKEN = "a-long-enough-token"
BEARER = f"Bearer {TOKEN}"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


class WithFacts(FunctionTransport):
    """A transport of the user's with given facts, which counts the calls of `health`."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(lambda envelope: None)
        self.health_calls = 0
        self.facts = facts

    def health(self) -> Health:
        self.health_calls += 1
        return dataclasses.replace(super().health(), **self.facts)


def ask(
    leaf: Leaf,
    transport: Transport | None = None,
    *,
    method: str = "GET",
    query: str = "",
    accept: str | None = None,
    authorization: bytes | str | None = None,
    **options: Any,
) -> Answer | FlushDue:
    return answer(
        leaf,
        method=method,
        query=parse_query(query),
        accept=accept,
        authorization=authorization,
        transport=transport or FunctionTransport(lambda envelope: None),
        options=IntegrationOptions(**options),
    )


def answered(leaf: Leaf, transport: Transport | None = None, **request: Any) -> Answer:
    reply = ask(leaf, transport, **request)
    assert isinstance(reply, Answer)
    return reply


def headers(reply: Answer) -> dict[str, str]:
    assert len({name for name, _ in reply.headers}) == len(reply.headers)
    return dict(reply.headers)


def test_live_is_200_whatever_the_transport_says_and_does_not_ask_it() -> None:
    """An orchestrator restarts an app that is not live, which a dead Sentry must not cause."""
    transport = WithFacts(problem="broken")
    reply = answered("live", transport, ready_requires_delivery=True)
    assert reply.status == 200
    assert transport.health_calls == 0
    assert json.loads(reply.body) == {"status": "pass"}


def test_ready_is_200_and_does_not_ask_the_transport_by_default() -> None:
    """An app can serve without reporting."""
    transport = WithFacts(problem="broken")
    assert answered("ready", transport).status == 200
    assert transport.health_calls == 0


@pytest.mark.parametrize(
    ("facts", "status"), [({}, 200), ({"failing": True}, 200), ({"problem": "broken"}, 503)]
)
def test_ready_is_503_on_failure_only_when_delivery_is_required(facts: dict[str, Any], status: int) -> None:
    """With the option a failure is a 503; a warning still is a 200."""
    reply = answered("ready", WithFacts(**facts), ready_requires_delivery=True)
    assert reply.status == status
    assert json.loads(reply.body) == {"status": "pass" if status == 200 else "fail"}


@pytest.mark.parametrize(
    ("facts", "word", "status"),
    [({}, "pass", 200), ({"failing": True}, "warn", 200), ({"problem": "no DSN"}, "fail", 503)],
)
def test_health_is_200_for_pass_and_warn_and_503_for_fail(
    facts: dict[str, Any], word: str, status: int
) -> None:
    """The status line alone must suffice for a monitor."""
    reply = answered("health", WithFacts(**facts))
    assert (reply.status, json.loads(reply.body)["status"]) == (status, word)
    assert headers(reply)["content-type"] == "application/health+json"


@pytest.mark.parametrize("query", ["", "format=text", "format=html"])
def test_strangers_see_the_status_only(query: str) -> None:
    """Queue sizes, process ids and server errors are confidential."""
    transport = WithFacts(
        problem="unauthorized",
        failing=True,
        last_error=LastError("HttpError", 401, 1.0),
        captured={"error": 7},
    )
    reply = answered("health", transport, query=query, flush_token=TOKEN)
    text = reply.body.decode()
    assert "fail" in text
    for detail in (str(os.getpid()), "unauthorized", "401", "HttpError", "captured", "error"):
        assert detail not in re.sub(r"<style>.*</style>", "", text)


@pytest.mark.parametrize("query", ["", "format=text", "format=html"])
@pytest.mark.parametrize(
    "request_", [{"health_details": "always"}, {"flush_token": TOKEN, "authorization": BEARER}]
)
def test_details_are_shown_to_the_token_and_to_all_when_so_set(query: str, request_: dict[str, Any]) -> None:
    """The owner of the app needs the counts."""
    transport = WithFacts(captured={"error": 7}, delivered={"error": 6})
    text = answered("health", transport, query=query, **request_).body.decode()
    assert "error" in text
    assert str(os.getpid()) in text


def test_health_json_names_the_checks_by_component_and_measurement() -> None:
    """Consumers of the format look figures up by these names."""
    sink: list[Envelope] = []
    transport = FunctionTransport(sink.append)
    transport.capture_event({"message": "one"})
    body = json.loads(answered("health", transport, health_details="always").body)
    assert body["pid"] == os.getpid()
    assert body["scope"] == "process"
    assert all(
        re.fullmatch(r"\w+:\w+", name) and isinstance(value, list) for name, value in body["checks"].items()
    )
    assert body["checks"]["items:delivered"][0]["observedValue"] == {"error": 1}


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        (BROWSER, True),
        ("text/html", True),
        ("TEXT/HTML", True),
        ("text/*", True),
        ("text/html, */*", True),
        ("text/html;q=0.5, application/json", False),
        ("application/health+json, text/html", False),
        ("text/html;q=0.9, application/*;q=0.8", True),
        ("text/html;q=0", False),
        ("text/html;q=nan", False),
        ("text/html;q=9", False),
        ("text/html;q=", False),
        ("text/html;charset=utf-8;q=0.3", True),
        ("image/png", False),
        (";;;,,=;q", False),
        ("x," * 100_000 + "text/html", False),
    ],
)
def test_health_is_a_page_for_those_who_prefer_html(accept: str | None, html: bool) -> None:
    """A browser gets a page; curl, a script or an invalid header gets JSON."""
    sent = headers(answered("health", accept=accept))
    assert sent["content-type"].startswith("text/html" if html else "application/health+json")
    assert sent["vary"] == "Accept"


@pytest.mark.parametrize(
    ("wanted", "content_type"),
    [
        ("text", "text/plain; charset=utf-8"),
        ("json", "application/health+json"),
        ("html", "text/html; charset=utf-8"),
        ("xml", "text/html; charset=utf-8"),
    ],
)
def test_format_wins_over_accept_and_an_unknown_one_is_ignored(wanted: str, content_type: str) -> None:
    """A link can't set headers; a monitor must not fail because of a typo."""
    reply = answered("health", query=f"format={wanted}", accept=BROWSER)
    assert headers(reply)["content-type"] == content_type


def test_the_page_shows_hostile_text_as_text_under_a_policy_that_runs_nothing() -> None:
    """Names of categories come from a server, which is not trusted."""
    hostile = '</td><script>alert("1")</script>&amp;'
    reply = answered("health", WithFacts(limits={hostile: 5.0}), query="format=html", health_details="always")
    texts: list[str] = []
    tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.append(tag)

        def handle_data(self, data: str) -> None:
            texts.append(data)

    Reader().feed(reply.body.decode())
    assert "script" not in tags
    assert any(hostile in data for data in texts)
    policy = headers(reply)["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_the_policy_allows_the_style_that_the_page_has() -> None:
    """With a wrong hash every browser would show a bare page."""
    import base64
    import hashlib

    reply = answered("health", query="format=html")
    (style,) = re.findall(r"<style>(.*)</style>", reply.body.decode())
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in headers(reply)["content-security-policy"]


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
def test_no_answer_is_stored_or_sniffed_and_each_has_its_length(leaf: Leaf, method: str) -> None:
    """A cached answer would be out of date; a wrong length breaks a connection."""
    reply = answered(leaf, method=method)
    sent = headers(reply)
    assert sent["cache-control"] == "no-store"
    assert sent["x-content-type-options"] == "nosniff"
    if method == "HEAD":
        assert reply.body == b""
        assert int(sent["content-length"]) > 0
    else:
        assert int(sent["content-length"]) == len(reply.body)


@pytest.mark.parametrize("leaf", ["live", "ready", "health"])
def test_head_says_what_get_says_without_the_body(leaf: Leaf) -> None:
    """Uptime checkers often send HEAD."""
    transport = FunctionTransport(lambda envelope: None)
    get, head = answered(leaf, transport), answered(leaf, transport, method="HEAD")
    assert (head.status, head.headers, head.body) == (get.status, get.headers, b"")


@pytest.mark.parametrize("leaf", ["live", "ready", "health"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", ""])
def test_another_method_is_405_with_allow(leaf: Leaf, method: str) -> None:
    """RFC 9110 section 15.5.6: the answer lists the allowed methods."""
    reply = answered(leaf, method=method)
    assert (reply.status, headers(reply)["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN]
)
def test_flush_does_not_exist_for_those_without_the_token(
    method: str, token: str | None, authorization: str | None
) -> None:
    """Each flush costs a thread; without the token nobody can request one, or detect that it is on."""
    assert answered("flush", method=method, authorization=authorization, flush_token=token).status == 404


@pytest.mark.parametrize(
    ("token", "authorization", "known"),
    [
        (TOKEN, BEARER.encode(), True),
        (TOKEN, f"bearer   {TOKEN} ", True),
        (TOKEN, f"BEARER {TOKEN}", True),
        (TOKEN, f"Bearer {TOKEN}x", False),
        (TOKEN, f"Bearer {TOKEN}, Bearer {TOKEN}", False),
        ("schlüssel", "Bearer schlüssel".encode(), True),
        ("schlüssel", "Bearer schlüssel".encode("latin-1"), True),
        ("schlüssel", "Bearer schlüssel", True),
        ("schlüssel", "Bearer schl?ssel", False),
        ("鍵", "Bearer 鍵".encode(), True),
        ("鍵", "Bearer 鍵", True),
        ("鍵", b"Bearer ?", False),
        ("鍵", "Bearer \udcff", False),
        (TOKEN, b"\xff\xfe\x00", False),
    ],
)
def test_a_token_is_compared_as_bytes_in_either_encoding(
    token: str, authorization: bytes | str, known: bool
) -> None:
    """`hmac.compare_digest` refuses text outside ASCII, and clients use different encodings."""
    reply = ask("flush", method="POST", authorization=authorization, flush_token=token)
    assert isinstance(reply, FlushDue) is known


def test_flush_with_the_token_is_post_only() -> None:
    """A crawler or a prefetching browser must not flush."""
    reply = answered("flush", method="GET", authorization=BEARER, flush_token=TOKEN)
    assert (reply.status, headers(reply)["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("query", "timeout"),
    [
        ("timeout=0", 0.0),
        ("timeout=2.5", 2.5),
        ("timeout=10", 10.0),
        ("timeout=1e0", 1.0),
        ("timeout=1&timeout=3", 3.0),
    ],
)
def test_flush_waits_as_long_as_asked(query: str, timeout: float) -> None:
    """The client knows the time limit of its deployment."""
    assert ask("flush", method="POST", query=query, authorization=BEARER, flush_token=TOKEN) == FlushDue(
        timeout
    )


@pytest.mark.parametrize(("shutdown", "expected"), [(2.0, 2.0), (60.0, MAX_FLUSH)])
def test_flush_waits_for_the_shutdown_timeout_by_default_but_never_longer_than_the_limit(
    shutdown: float, expected: float
) -> None:
    """A proxy would time out a request that takes a minute."""
    transport = FunctionTransport(lambda envelope: None, TransportOptions(shutdown_timeout=shutdown))
    reply = ask("flush", transport, method="POST", authorization=BEARER, flush_token=TOKEN)
    assert reply == FlushDue(expected)


@pytest.mark.parametrize("timeout", ["", "nan", "inf", "-inf", "-1", "10.01", "1e999", "soon", "1,5", "0x1"])
def test_flush_refuses_a_time_that_is_none_with_a_sentence(timeout: str) -> None:
    """Every comparison with `nan` is false, so it would wait forever."""
    reply = answered(
        "flush", method="POST", query=f"timeout={timeout}", authorization=BEARER, flush_token=TOKEN
    )
    assert reply.status == 400
    assert reply.body == b"timeout must be a number of seconds from 0 to 10, such as 2.5\n"


@pytest.mark.parametrize(("ok", "status"), [(True, 200), (False, 504)])
def test_the_flush_report_is_answered_as_json_and_its_status_tells_a_script(ok: bool, status: int) -> None:
    """`curl -f` in a deployment script fails if anything is left."""
    reply = flush_answer(FlushReport(ok=ok, delivered=3, discarded=1, stored=2, pending=4))
    assert reply.status == status
    assert headers(reply)["content-type"] == "application/json"
    assert json.loads(reply.body) == {"ok": ok, "delivered": 3, "discarded": 1, "stored": 2, "pending": 4}


def test_a_null_transport_with_a_problem_says_why() -> None:
    """Health shows a wrong DSN."""
    body = json.loads(answered("health", NullTransport(problem="dsn: no key"), health_details="always").body)
    assert body["status"] == "fail"
    assert body["output"] == "dsn: no key"


@given(
    leaf=st.sampled_from(LEAVES),
    method=st.sampled_from(["GET", "HEAD", "POST"]) | st.text(max_size=5),
    query=st.text() | st.binary(),
    accept=st.none() | st.text(),
    authorization=st.none() | st.binary() | st.text() | st.just(BEARER),
    token=st.none() | st.just(TOKEN),
)
def test_nothing_a_client_sends_raises(
    leaf: Leaf,
    method: str,
    query: bytes | str,
    accept: str | None,
    authorization: bytes | str | None,
    token: str | None,
) -> None:
    """These routes are open to every client."""
    decided = answer(
        leaf,
        method=method,
        query=parse_query(query),
        accept=accept,
        authorization=authorization,
        transport=FunctionTransport(lambda envelope: None),
        options=IntegrationOptions(flush_token=token),
    )
    assert isinstance(decided, FlushDue) or decided.status in (200, 400, 404, 405)


@pytest.mark.parametrize(
    ("raw", "parsed"),
    [
        (b"a=1&b=%20&c", {"a": "1", "b": " ", "c": ""}),
        ("a=%ff", {"a": "�"}),
        (b"\xff\xfe=1", {"ÿþ": "1"}),
        ("&".join(f"a{n}=1" for n in range(33)), {}),
    ],
)
def test_a_query_string_is_read_within_limits(raw: bytes | str, parsed: dict[str, str]) -> None:
    """A query of a million fields is not parsed."""
    assert parse_query(raw) == parsed
