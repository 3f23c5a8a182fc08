"""Rate limits: every vector, and properties that hold for any header a server can send."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import time
from collections.abc import Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.timing import growth
from transport_kit.transport.worker.limits import ALL, KNOWN_CATEGORIES, RateLimits, retry_after_seconds

DATA = json.loads(
    (Path(__file__).parents[1] / "data" / "rate_limit_vectors.json").read_text(encoding="utf-8")
)
VECTORS: list[dict[str, Any]] = DATA["vectors"]
START = 1000.0  # the monotonic time of second 0 in a vector
WALL = 1_700_000_000.0
HEADER = "X-Sentry-Rate-Limits"


def limited(text: str, *, status: int = 200, now: float = 0.0) -> dict[str, float]:
    return RateLimits().updated(status, {HEADER: text}, now, wall=WALL).active(now)


def paused(retry_after: str, *, status: int = 429) -> float:
    return RateLimits().updated(status, {"Retry-After": retry_after}, 0.0, wall=WALL).limited_until(None)


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["id"] for vector in VECTORS])
def test_every_vector_limits_what_it_says(vector: dict[str, Any]) -> None:
    """The vectors are the server's own tests and this library's documented choices."""
    limits = RateLimits()
    history = [(-math.inf, limits)]
    for step in vector["steps"]:
        at = step["at"]
        headers = {
            name: text.replace("{now+90:http-date}", formatdate(WALL + at + 90, usegmt=True))
            for name, text in step["headers"].items()
        }
        limits = limits.updated(step["status"], headers, START + at, wall=WALL + at)
        history.append((at, limits))
    last = vector["steps"][-1]["at"]
    expected = {category: until for category, until in vector["until"].items() if until > last}
    active = limits.active(START + last)
    assert active.keys() == expected.keys()
    for category, until in expected.items():
        assert active[category] == pytest.approx(START + until, abs=1)
    for check in vector["checks"]:
        then = [table for at, table in history if at <= check["at"]][-1]
        categories = KNOWN_CATEGORIES | {None} if check["category"] == ALL else {check["category"]}
        for category in categories:
            assert then.is_limited(category, START + check["at"]) is check["limited"]


def test_the_known_categories_are_those_of_the_vector_file() -> None:
    """A limit on a category that is missing in the list would be ignored."""
    assert sorted(DATA["known_categories"]) == sorted(KNOWN_CATEGORIES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 60 : error ; session : key , 30 :span", {"error": 60.0, "session": 60.0, "span": 30.0}),
        ("60:;;:key", {ALL: 60.0}),
        ("60: ; :key", {ALL: 60.0}),
        ("1e2:error", {"error": 100.0}),
        ("+5:error", {"error": 5.0}),
        (".5:error, 3.:span", {"error": 1.0, "span": 3.0}),
        ("1_0:error", {}),
        ("٦٠:error", {}),
        ("0x10:error", {}),
        ("-inf:error, Infinity:error, NaN:span", {}),
        ("1e400:error, 60:session", {"session": 60.0}),
        (f"{'9' * 400}:error, 60:session", {"session": 60.0}),
        ("99999999999999999999:error, 60:session", {"session": 60.0}),
        ("9223372036854775808:error, 60:session", {"session": 60.0}),
        ("60:*", {}),
        ("60:metric_bucket:key:reason:custom", {"metric_bucket": 60.0}),
        ("60:metric_bucket:key:reason: spans ; custom :x", {"metric_bucket": 60.0}),
        ("60:metric_bucket;error:key:reason:spans", {"error": 60.0}),
        ("60:metric_bucket:key:reason:;", {"metric_bucket": 60.0}),
        ("60:error:key:reason:spans", {"error": 60.0}),
        ("", {}),
        (":error", {}),
    ],
)
def test_a_header_is_read_as_relay_writes_and_reads_it(text: str, expected: dict[str, float]) -> None:
    """A misread group would cause either too many requests or none."""
    assert limited(text) == expected


@pytest.mark.parametrize("text", ["", "invalid", ",,, ,", "abc:error"])
def test_a_429_with_an_unreadable_header_falls_back_to_retry_after(text: str) -> None:
    """The server requested a pause; an unreadable header does not cancel it."""
    limits = RateLimits().updated(429, {HEADER: text, "Retry-After": "7"}, 0.0)
    assert limits.active(0.0) == {ALL: 7.0}
    assert limited(text, status=429) == {ALL: 60.0}


@pytest.mark.parametrize("text", ["42:foo", "0:error", "60:metric_bucket:key:reason:spans"])
def test_a_429_whose_groups_were_read_needs_no_fallback(text: str) -> None:
    """A limit on categories that are never sent does not limit the others."""
    limits = RateLimits().updated(429, {HEADER: text, "Retry-After": "7"}, 0.0)
    assert limits.active(0.0) == {}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "30"}, {ALL: 30.0}),
        ({"Retry-After": "soon"}, {ALL: 60.0}),
        ({"Retry-After": "0"}, {}),
        ({}, {}),
        ({HEADER: "60:error", "Retry-After": "30"}, {"error": 60.0}),
    ],
)
def test_a_503_pauses_everything_only_if_it_says_so(
    headers: dict[str, str], expected: dict[str, float]
) -> None:
    """A server in maintenance sends Retry-After; the breaker handles a 503 without it."""
    assert RateLimits().updated(503, headers, 0.0).active(0.0) == expected


@pytest.mark.parametrize("status", [200, 301, 400, 408, 413, 500, 502, 504])
def test_retry_after_is_ignored_on_other_statuses(status: int) -> None:
    """The protocol requires it for 429 only, and proxies may add it to any answer."""
    assert RateLimits().updated(status, {"Retry-After": "30"}, 0.0) == RateLimits()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("Tuesday, 14-Nov-23 22:14:20 GMT", 60.0),
        ("Tue Nov 14 22:14:20 2023", 60.0),
        ("Fri Dec  1 22:13:20 2023", 17 * 86400.0),
        (" tue, 14 nov 2023 22:14:20 gmt ", 60.0),
        ("Tue, 14 Nov 2023 22:13:60 GMT", 39.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
        ("Friday, 06-Nov-70 08:49:37 GMT", 0.0),
        ("Wednesday, 06-Nov-69 08:49:37 GMT", 3150953377.0 - WALL),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 253402300799.0 - WALL),
    ],
)
def test_all_three_date_forms_are_read(text: str, expected: float) -> None:
    """RFC 9110 section 5.6.7: a recipient must accept the two obsolete forms as well."""
    assert retry_after_seconds({"retry-after": text}, wall=WALL) == expected
    assert paused(text) == min(expected, 86_400.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "60 s",
        "60, 30",
        "Tue, 31 Feb 2023 22:14:20 GMT",
        "Tue, 00 Nov 2023 22:14:20 GMT",
        "Tue, 14 Foo 2023 22:14:20 GMT",
        "Tue, 14 Nov 2023 25:14:20 GMT",
        "Tue, 14 Nov 2023 22:14:61 GMT",
        "Tue, 14 Nov 0000 22:14:20 GMT",
        "Tue, 14 Nov 2023 22:14:20 +0100",
        "2023-11-14T22:14:20Z",
    ],
)
def test_an_unreadable_retry_after_is_none_and_pauses_a_minute(text: str) -> None:
    """The server requested a pause of unknown length."""
    assert retry_after_seconds({"Retry-After": text}, wall=WALL) is None
    assert paused(text) == 60.0


def test_retry_after_is_none_when_absent() -> None:
    """An absent header is not a pause of zero seconds."""
    assert retry_after_seconds({}, wall=WALL) is None
    assert retry_after_seconds({"RETRY-AFTER": "-3"}, wall=WALL) == 0.0
    assert retry_after_seconds({"retry-after": "2.5"}, wall=WALL) == 3.0


def test_what_is_left_until_a_date_is_rounded_up() -> None:
    """A request half a second early would be refused."""
    headers = {"Retry-After": "Tue, 14 Nov 2023 22:14:20 GMT"}
    assert retry_after_seconds(headers, wall=WALL + 0.25) == 60.0
    assert retry_after_seconds(headers, wall=WALL - 0.25) == 61.0


def test_a_date_is_read_against_the_system_clock_by_default() -> None:
    """Callers provide only a monotonic clock."""
    headers = {"Retry-After": formatdate(time.time() + 90, usegmt=True)}
    assert RateLimits().updated(429, headers, 5.0).limited_until(None) == pytest.approx(95.0, abs=2)


def test_header_names_are_found_in_any_case_and_repeats_are_joined() -> None:
    """HTTP/2 uses lower case, and a proxy may split a list over two lines."""
    headers = {"X-SENTRY-RATE-LIMITS": "60:error", "x-sentry-rate-limits": "30:session"}
    assert RateLimits().updated(200, headers, 0.0).active(0.0) == {"error": 60.0, "session": 30.0}


def test_headers_that_are_not_text_are_passed_over() -> None:
    """A third-party client's mapping may contain bytes; the readable headers still apply."""
    headers: Any = {b"retry-after": b"5", 7: "x", "Retry-After": None, HEADER: "60:error"}
    assert RateLimits().updated(429, headers, 0.0).active(0.0) == {"error": 60.0}


def test_an_active_all_is_not_hidden_by_a_shorter_category() -> None:
    """The effective limit is the later of both, unlike in clients that check only the category."""
    limits = RateLimits().updated(200, {HEADER: "600::key, 5:error:key"}, 0.0)
    assert limits.limited_until("error") == 600.0
    assert limits.limited_until(None) == 600.0
    assert limits.limited_until("no such category") == 600.0
    assert limits.is_limited("error", 599.9)
    assert not limits.is_limited("error", 600.0)


def test_items_without_a_category_are_held_back_by_all_only() -> None:
    """A limit on errors does not limit items without a category."""
    limits = RateLimits().updated(200, {HEADER: "60:error;default"}, 0.0)
    assert limits.limited_until("error") == 60.0
    assert limits.limited_until(None) == 0.0
    assert not limits.is_limited(None, 1.0)


def test_expired_limits_leave_the_table() -> None:
    """Health does not show expired limits, and the table stays small."""
    first = RateLimits().updated(200, {HEADER: "10:error, 100:session"}, 0.0)
    assert first.active(10.0) == {"session": 100.0}
    later = first.updated(200, {}, 10.0)
    assert later.limited_until("error") == 0.0
    assert later == RateLimits().updated(200, {HEADER: "100:session"}, 0.0)


def test_a_response_without_news_keeps_the_very_table() -> None:
    """The common case keeps no new object."""
    limits = RateLimits().updated(200, {HEADER: "100:session"}, 0.0)
    assert limits.updated(200, {"Content-Type": "application/json"}, 50.0) is limits
    assert limits.updated(200, {HEADER: "0:error, -1:span"}, 50.0) is limits


def test_tables_are_values() -> None:
    """Threads share tables without a lock, which requires that they are immutable."""
    limits = RateLimits().updated(200, {HEADER: "60:error"}, 0.0)
    limits.active(0.0)["session"] = 1e9
    assert limits.limited_until("session") == 0.0
    assert repr(limits) == "RateLimits({'error': 60.0})"
    same = RateLimits().updated(200, {HEADER: "60:error:other"}, 0.0)
    assert limits == same
    assert hash(limits) == hash(same)
    assert limits != RateLimits()
    assert pickle.loads(pickle.dumps(limits)) == limits == copy.deepcopy(limits)
    with pytest.raises(dataclasses.FrozenInstanceError):
        limits._until = {}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("head", "unit", "tail"),
    [
        ("", "9", ""),
        ("", "9", "x"),
        ("", ".", ""),
        ("60:", ";", ""),
        ("", "1:error,", ""),
        ("", ",", ""),
    ],
)
def test_a_header_of_64_kib_is_read_in_linear_time(head: str, unit: str, tail: str) -> None:
    """A hostile server must not block a sender for seconds with one header."""

    def read(size: int) -> RateLimits:
        text = head + unit * (size // len(unit)) + tail
        return RateLimits().updated(429, {HEADER: text, "Retry-After": text}, 0.0)

    # Sixteen times the length; quadratic time would be 256 times as long.
    assert growth(lambda: read(4096), lambda: read(65536)) < 64
    assert len(read(65536).active(0.0)) <= len(KNOWN_CATEGORIES) + 1


pieces = st.sampled_from(
    [
        "60",
        "2.5",
        "-1",
        "nan",
        "inf",
        "1e400",
        "soon",
        ":",
        "::",
        ";",
        ",",
        " ",
        "key",
        ALL,
        "\0",
        "é",
        "9" * 30,
        *sorted(KNOWN_CATEGORIES),
        "Tue, 14 Nov 2023 22:14:20 GMT",
        "Tue, 99 Nov 2023 22:14:20 GMT",
    ]
)
texts = st.one_of(st.text(max_size=40), st.lists(pieces, max_size=12).map("".join))
names = st.one_of(
    st.sampled_from([HEADER, HEADER.lower(), "Retry-After", "retry-after"]), st.text(max_size=8)
)
mappings = st.dictionaries(names, texts, max_size=4)
statuses = st.one_of(st.sampled_from([200, 429, 503]), st.integers())
times = st.floats(min_value=0, max_value=1e9, allow_nan=False)
responses = st.tuples(statuses, mappings, times)


@given(st.lists(responses, min_size=1, max_size=5))
def test_no_response_shortens_an_active_limit(history: list[tuple[int, Mapping[str, str], float]]) -> None:
    """The longest requested pause remains in force, whatever later responses contain."""
    limits = RateLimits()
    now = 0.0
    for status, headers, step in history:
        now += step
        before, limits = limits, limits.updated(status, headers, now, wall=WALL)
        for category in [*KNOWN_CATEGORIES, None]:
            if before.is_limited(category, now):
                assert limits.limited_until(category) >= before.limited_until(category)
        assert set(limits.active(now)) <= KNOWN_CATEGORIES | {ALL}
        assert all(math.isfinite(until) for until in limits.active(now).values())


@given(
    statuses, st.dictionaries(st.one_of(names, st.binary(max_size=4), st.none()), texts | st.none()), times
)
def test_nothing_in_a_response_raises(status: int, headers: Any, now: float) -> None:
    """An exception would lose the outcome of the delivery."""
    limits = RateLimits().updated(status, headers, now, wall=WALL)
    pause = retry_after_seconds(headers, wall=WALL)
    assert limits.limited_until(None) >= 0.0
    assert pause is None or pause >= 0.0


@given(st.sampled_from(sorted(KNOWN_CATEGORIES)), st.floats(min_value=0.001, max_value=1e12), times)
def test_a_limit_lasts_the_seconds_rounded_up(category: str, seconds: float, now: float) -> None:
    """With rounding down, the first envelope would be sent before the end of the limit."""
    active = limited(f"{seconds!r}:{category}:key", now=now)
    assert active == {category: now + min(math.ceil(seconds), 86_400)}


@pytest.mark.parametrize("text", ["99999999999", "1e18", "Fri, 01 Jan 2100 00:00:00 GMT", "86401"])
def test_a_limit_lasts_a_day_at_most(text: str) -> None:
    """One absurd header must not silence an app for years; after a day an envelope tries again."""
    assert paused(text) == 86_400.0
    assert limited(f"{text if text[0].isdigit() else 10**9}:error") == {"error": 86_400.0}


@pytest.mark.parametrize("skew", [-7200.0, 7200.0, 3 * 86_400.0])
def test_a_date_is_relative_to_the_date_of_its_response(skew: float) -> None:
    """A server whose clock is two hours ahead would otherwise limit for two hours more."""
    server = WALL + skew
    headers = {"Retry-After": formatdate(server + 90, usegmt=True), "date": formatdate(server, usegmt=True)}
    assert RateLimits().updated(429, headers, 0.0, wall=WALL).limited_until(None) == 90.0
    assert retry_after_seconds(headers, wall=WALL) == 90.0


@pytest.mark.parametrize("date", ["", "yesterday", "0"])
def test_without_a_readable_date_the_system_clock_counts(date: str) -> None:
    """A proxy may remove the header or break it."""
    headers = {"Retry-After": formatdate(WALL + 90, usegmt=True), "Date": date}
    assert RateLimits().updated(429, headers, 0.0, wall=WALL).limited_until(None) == 90.0
