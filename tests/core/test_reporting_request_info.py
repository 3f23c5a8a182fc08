"""The request of an event: sent parts, parts without their values, and omitted parts."""

from __future__ import annotations

from typing import Any

import pytest

from transport_kit.envelope import encoder
from transport_kit.reporting import RequestInfo, request_info
from transport_kit.reporting.request_info import request_interface

LOGIN = RequestInfo(
    method="post",
    url="https://bob:hunter2@shop.example/login",
    query_string="next=%2Fcart&token=hunter2",
    headers=(
        ("Host", "shop.example"),
        ("Authorization", "Bearer hunter2"),
        ("Cookie", "theme=dark; sessionid=hunter2"),
        ("X-Forwarded-For", "192.0.2.7"),
        ("Referer", "https://shop.example/reset?token=hunter2&page=2"),
        ("Content-Type", "application/json"),
    ),
    cookies={"theme": "dark", "sessionid": "hunter2"},
    data={"user": "bob", "password": "hunter2"},
    env={"SERVER_NAME": "web-1", "SERVER_PORT": "443", "PATH": "/secret/bin"},
    remote_addr="192.0.2.7",
)


def test_by_default_no_cookie_no_address_and_no_body_is_sent() -> None:
    """`send_default_pii` is off; names stay, so that one sees which headers the request had."""
    assert request_interface(LOGIN, send_pii=False) == {
        "method": "POST",
        "url": "https://[Filtered]@shop.example/login",
        "query_string": "next=%2Fcart&token=[Filtered]",
        "headers": {
            "Host": "shop.example",
            "Authorization": "[Filtered]",
            "Cookie": "[Filtered]",
            "X-Forwarded-For": "[Filtered]",
            "Referer": "https://shop.example/reset?token=[Filtered]&page=2",
            "Content-Type": "application/json",
        },
        "env": {"SERVER_NAME": "web-1", "SERVER_PORT": "443"},
    }


def test_with_pii_secrets_are_filtered_all_the_same() -> None:
    """PII includes who the user is, but never credentials."""
    found = request_interface(LOGIN, send_pii=True)
    assert b"hunter2" not in encoder.dumps(found)
    assert found["headers"]["Cookie"] == "theme=dark; sessionid=[Filtered]"
    assert found["headers"]["X-Forwarded-For"] == "192.0.2.7"
    assert found["cookies"] == {"theme": "dark", "sessionid": "[Filtered]"}
    assert found["data"] == {"user": "bob", "password": "[Filtered]"}
    assert found["env"]["REMOTE_ADDR"] == "192.0.2.7"


def test_the_repr_of_a_request_holds_nothing_of_it() -> None:
    """Reprs get into frame variables and log lines."""
    assert repr(LOGIN) == "RequestInfo(method='post')"


def test_an_empty_request_says_nothing() -> None:
    """Unknown fields are left out, not sent empty."""
    assert request_interface(RequestInfo(), send_pii=True) == {}


@pytest.mark.parametrize("method", ["GE T", "G\u00c9T", "", "X" * 33, "G3T"])
def test_a_method_that_servers_would_null_is_left_out(method: str) -> None:
    """Servers accept letters only."""
    assert "method" not in request_interface(RequestInfo(method=method), send_pii=False)


def test_a_query_in_the_url_is_moved_and_the_fragment_dropped() -> None:
    """The query of a complete URL must pass the filter too."""
    request = RequestInfo(url="https://shop.example/a?token=x&b=1#frag")
    assert request_interface(request, send_pii=False) == {
        "url": "https://shop.example/a",
        "query_string": "token=[Filtered]&b=1",
    }


def test_every_part_is_bounded() -> None:
    """A client chooses the sizes."""
    request = RequestInfo(
        url="https://shop.example/" + "p" * 5000,
        query_string="q=" + "v" * 50_000,
        headers=tuple((f"X-{n}", "v" * 5000) for n in range(500)),
        cookies={f"c{n}": "v" * 5000 for n in range(500)},
        data={"text": ["v" * 5000] * 500},
        env={"SERVER_NAME": "n" * 5000},
    )
    found = request_interface(request, send_pii=True)
    assert len(found["url"]) == 256
    assert len(found["query_string"]) == 4096
    assert (len(found["headers"]), len(found["headers"]["X-0"])) == (100, 1024)
    assert (len(found["cookies"]), len(found["cookies"]["c0"])) == (50, 1024)
    assert len(encoder.dumps(found["data"])) <= 8192
    assert len(found["env"]["SERVER_NAME"]) == 256


def test_a_header_received_twice_is_told_once_with_both_values() -> None:
    """A plain dict of headers would lose one of them."""
    request = RequestInfo(headers=(("Accept", "text/html"), ("Accept", "*/*")))
    assert request_interface(request, send_pii=False)["headers"] == {"Accept": "text/html, */*"}


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("application/json; charset=utf-8", '{"password": "x", "a": 1}', {"password": "[Filtered]", "a": 1}),
        ("application/json", b'{"token": "x"}', {"token": "[Filtered]"}),
        ("application/json", '{"token": "cut of', '{"token": "[Filtered]"'),
        ("application/json", '{"token": "' + "x" * 9000, '{"token": "[Filtered]"'),
        ("application/x-www-form-urlencoded", "user=bob&password=x", "user=bob&password=[Filtered]"),
        ("text/plain", "hello", "hello"),
        ("", b"\xff", "\ufffd"),
        ("text/plain", 7, 7),
        ("text/plain", object(), "<builtins.object>"),
    ],
)
def test_a_body_is_read_in_the_form_that_shows_its_names(kind: str, data: Any, expected: Any) -> None:
    """Secrets are recognised by name. Text without names is sent unchanged, as the app enabled bodies."""
    headers = (("Accept", "*/*"), ("content-type", kind)) if kind else ()
    found = request_interface(RequestInfo(headers=headers, data=data), send_pii=True)
    assert found["data"] == expected


def test_text_that_is_no_unicode_is_sent_nevertheless() -> None:
    """WSGI and ASGI servers pass on any bytes; a lone surrogate would break the JSON."""
    bad = "\udcff"
    request = RequestInfo(
        url="https://h/" + bad,
        query_string=bad,
        headers=((bad, bad),),
        cookies={bad: bad},
        env={"SERVER_NAME": bad},
    )
    found = request_interface(request, send_pii=True)
    assert b"udcff" in encoder.dumps(found)


@pytest.mark.parametrize(
    ("limit", "length", "declared", "sent"),
    [
        ("never", 1, None, False),
        ("small", 1000, None, True),
        ("small", 1001, None, False),
        ("small", 10, "1001", False),
        ("small", 10, "nonsense", True),
        ("medium", 10_000, None, True),
        ("medium", 8193, "10001", False),
        ("always", 8193, "99999999", True),
    ],
)
def test_bodies_over_the_limit_are_left_out(
    limit: str, length: int, declared: str | None, sent: bool
) -> None:
    """The declared length counts, even if only a part was read."""
    headers = () if declared is None else (("Content-Length", declared),)
    info = RequestInfo(method="POST", data="x" * length, headers=headers)
    assert ("data" in request_interface(info, send_pii=True, bodies=limit)) is sent
    assert "data" not in request_interface(info, send_pii=False, bodies=limit)


ENVIRON: dict[str, object] = {
    "REQUEST_METHOD": "POST",
    "QUERY_STRING": "page=2",
    "REMOTE_ADDR": "192.0.2.7",
    "SERVER_NAME": "shop.example",
    "SERVER_PORT": "8000",
    "CONTENT_TYPE": "text/plain",
    "CONTENT_LENGTH": "",
    "HTTP_CONTENT_TYPE": "text/forged",
    "HTTP_HOST": "shop.example",
    "HTTP_X_EMPTY": "",
    "HTTP_USER_AGENT": "curl/8",
    "wsgi.url_scheme": "http",
    "wsgi.input": object(),
}


def test_an_environ_becomes_a_request_with_the_headers_that_it_holds() -> None:
    """Two integrations read environs; the rules for header keys are in one place."""
    for _ in range(2):  # the second time from what is remembered of its names
        info = RequestInfo.from_environ(ENVIRON, url="http://shop.example/cart", data=b"x")
        assert info == RequestInfo(
            method="POST",
            url="http://shop.example/cart",
            query_string="page=2",
            headers=(
                ("Content-Type", "text/plain"),
                ("Host", "shop.example"),
                ("X-Empty", ""),
                ("User-Agent", "curl/8"),
            ),
            data=b"x",
            env={"SERVER_NAME": "shop.example", "SERVER_PORT": "8000"},
            remote_addr="192.0.2.7",
        )


def test_an_environ_with_next_to_nothing_in_it_becomes_a_request() -> None:
    """Tests and unusual servers omit many keys; the event must be sent all the same."""
    assert RequestInfo.from_environ({}, url="") == RequestInfo()


def test_what_clients_send_fills_no_memory() -> None:
    """Clients choose names and values of headers, so the caches are bounded."""
    for n in range(3 * request_info._MAX_HARMLESS):
        info = RequestInfo.from_environ({f"HTTP_X_{n}": f"value {n}", "HTTP_Y" * 50: "y" * 5000}, url="")
        found = request_interface(info, send_pii=False)["headers"]
        assert found[f"X-{n}"] == f"value {n}"
    assert len(request_info._harmless) <= request_info._MAX_HARMLESS
    assert len(request_info._header_names) <= request_info._MAX_HARMLESS
    assert max(map(len, request_info._harmless)) <= request_info._HARMLESS_LENGTH
    assert max(map(len, request_info._header_names)) <= request_info._CACHED_LENGTH


def test_a_secret_in_a_header_is_filtered_each_time_and_not_remembered() -> None:
    """A cached secret would stay in memory as long as the process."""
    secret = "Bearer 8f14e45fceea167a5a36dedd4bea2543"
    info = RequestInfo(headers=(("X-Note", f"sent {secret}"), ("Authorization", secret), ("Cookie", "a=b")))
    for _ in range(2):
        shown = request_interface(info, send_pii=False)["headers"]
        assert "8f14e45f" not in str(shown)
        assert "8f14e45f" not in str(request_info._harmless)


def test_a_request_does_not_change() -> None:
    """Hooks and other threads get it."""
    info = RequestInfo(method="GET")
    with pytest.raises(AttributeError):
        info.method = "POST"  # type: ignore[misc]
    assert "secret" not in repr(RequestInfo(url="http://secret/"))
