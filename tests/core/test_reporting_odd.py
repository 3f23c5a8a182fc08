"""Odd arguments: a value of any type raises nothing, loses nothing, and is accepted by a Relay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.core.reporting_support import Kept, reporter_for
from transport_kit.reporting import Reporter, RequestInfo, TransportHandler, attachment
from transport_kit.reporting.monitors import monitor_config


class Raises:
    """Raises in every method."""

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        raise RuntimeError("token=hunter2")

    __repr__ = __str__

    def __bool__(self) -> bool:
        raise RuntimeError("bool")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")


class Text(str):
    """Text whose methods fail."""

    def __str__(self) -> str:
        raise RuntimeError("str")

    def _fail(self, *arguments: object) -> Any:
        raise RuntimeError("method")

    lower = upper = strip = replace = isascii = encode = startswith = splitlines = partition = _fail  # type: ignore[assignment]
    __len__ = _fail


class Unreadable(Mapping[str, object]):
    """A mapping that raises when read, as a proxy outside of its request."""

    def __getitem__(self, key: str) -> object:
        raise RuntimeError("getitem")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("iter")

    def __len__(self) -> int:
        raise RuntimeError("len")


ODD: dict[str, Any] = {
    "None": None,
    "a number": 7,
    "NaN": float("nan"),
    "complex": 1j,
    "bytes": b"bytes",
    "nothing": "",
    "NUL": "\x00",
    "a surrogate": "\ud800",
    "two lines": "a\nb",
    "odd lines": "\u2028x\x85y",
    "much": "x" * 5000,
    "a list": ["l"],
    "a dict": {"d": 1},
    "raises": Raises(),
    "text": Text("sub"),
    "unreadable": Unreadable(),
}


def messages(reporter: Reporter, odd: Any) -> None:
    reporter.capture_message(odd)
    reporter.capture_message("m", level=odd)
    reporter.capture_feedback(odd, name=odd, email=odd, url=odd, associated_event_id=odd)


def exceptions(reporter: Reporter, odd: Any) -> None:
    assert reporter.capture_exception(ValueError(), attachments=odd) is not None
    assert reporter.capture_exception(ValueError(), attachments=[odd]) is not None
    reporter.capture_exception(
        ValueError(odd),
        mechanism=odd,
        level=odd,
        transaction="x",
        transaction_source=odd,
        attachments=[attachment(b"x", odd)],
        hint={"odd": odd},
        facts={"extra": {"odd": odd}},
    )


def scopes(reporter: Reporter, odd: Any) -> None:
    with reporter.scope() as scope:
        scope.set_tag(odd, odd)
        scope.set_tag("odd", odd)
        scope.set_extra(odd, odd)
        scope.set_context(odd, odd)
        scope.set_context("trace", {"odd": odd})
        scope.set_user(odd)
        scope.set_user({"id": odd, "email": odd, "username": odd, "ip_address": odd, "geo": odd, "data": odd})
        scope.set_level(odd)
        scope.set_fingerprint(odd)
        scope.set_fingerprint([odd])
        scope.add_event_processor(odd)
        scope.add_breadcrumb(odd, category=odd, level=odd, type=odd, data=odd)
        reporter.add_breadcrumb("m", data={"odd": odd})
        reporter.capture_message("m")


def spans(reporter: Reporter, odd: Any) -> None:
    with reporter.transaction(odd, op=odd, source=odd) as work, reporter.span(odd, odd) as span:
        span.set_data(odd, odd)
        span.set_tag(odd, odd)
        span.set_status(odd)
        span.set_http_status(odd)
        work.status = odd
        reporter.outgoing_headers("http://shop.example/")


def logs(reporter: Reporter, odd: Any) -> None:
    handler = TransportHandler(reporter, log_level=0, event_level=0, breadcrumb_level=0)
    facts = {"msg": odd, "args": (odd,), "odd": odd, "lineno": odd, "pathname": odd, "funcName": odd}
    for record in ({"name": "shop", **facts}, {"name": "a\nb", "msg": "m", "created": odd}):
        handler.handle(logging.makeLogRecord({"levelno": 40, **record}))


def monitors(reporter: Reporter, odd: Any) -> None:
    with reporter.monitor("nightly", schedule=odd, timezone=odd, max_runtime=odd):
        pass
    with reporter.monitor("x" + str(type(odd)), schedule="@daily", timezone=odd, max_runtime=odd):
        pass


def requests(reporter: Reporter, odd: Any) -> None:
    info = RequestInfo(
        method=odd,
        url=odd,
        query_string=odd,
        headers=((odd, odd),),
        cookies=odd,
        data=odd,
        env={"SERVER_NAME": odd},
        remote_addr=odd,
    )
    with reporter.request(lambda: info, named=lambda: (odd, odd), header=lambda name: odd, user=lambda: odd):
        reporter.capture_exception(ValueError(odd))


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("call", [messages, exceptions, scopes, spans, logs, monitors, requests])
def test_no_argument_raises_or_costs_an_item(call: Callable[[Reporter, Any], None], odd: Any) -> None:
    """Reports are made while something else fails: a second failure would hide the first."""
    with Kept() as kept:
        call(reporter_for(kept, traces_sample_rate=1.0, send_default_pii=True, release="shop@1"), odd)
        assert kept.flush()
        assert kept.sealed
        assert kept.lost() == {}
        assert not any(b"hunter2" in sealed for sealed in kept.sealed)


def test_settings_of_a_monitor_that_servers_refuse_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise the check-in would be refused, and the job reported as missed."""
    config = monitor_config("@daily", timezone="not a\nzone", checkin_margin=0, max_runtime=30, other=1.5)
    assert config == {"schedule": {"type": "crontab", "value": "@daily"}, "max_runtime": 30}
    assert len(caplog.records) == 3


def test_a_monitor_without_a_name_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Servers refuse its check-ins: the developer must learn it before the first missed run."""
    with Kept() as kept:
        reporter_for(kept).monitor("")
    assert "needs a slug" in caplog.text


def test_what_servers_would_null_is_left_out_or_made_right() -> None:
    """An empty tag, an address with a zone, a trace without ids, a release with surrogates."""
    with Kept() as kept:
        reporter = reporter_for(kept, release="\ud800", dist="a b")
        with reporter.scope() as scope:
            scope.set_tag("kept", "1")
            scope.set_tag("kept", "")
            scope.set_user({"id": 1, "ip_address": "fe80::1%eth0"})
            scope.set_context("trace", {"mine": 1})
            reporter.capture_message("m")
            reporter.capture_event({"message": "m", "contexts": {"trace": {"trace_id": "x"}}})
        for event in kept.events:
            assert {"tags", "release", "dist"}.isdisjoint(event)
            assert event["user"] == {"id": "1"}
            assert len(event["contexts"]["trace"]["trace_id"]) == 32
        assert kept.events[0]["contexts"]["trace"]["mine"] == 1
