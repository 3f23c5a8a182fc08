"""Scopes: the data of a unit of work, and its visibility."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextvars import copy_context
from typing import Any

import pytest

from transport_kit.envelope import encoder
from transport_kit.reporting import Scope, new_scope
from transport_kit.reporting.captured_once import mark_captured, take_mark_back
from transport_kit.reporting.scope import enter_scope, leave_scope
from transport_kit.reporting.unit_of_work import Unit


def applied(scope: Scope, **event: Any) -> dict[str, Any]:
    """Return the fields that the scope adds to an event, checked to be strict JSON."""
    scope.apply(event)
    encoder.dumps(event)
    return event


def test_a_scope_begins_as_a_copy_and_its_changes_stay_in_it() -> None:
    """Data of one request must not appear in events of the next."""
    with new_scope() as outer:
        outer.set_tag("region", "eu")
        outer.set_context("shop", {"open": True})
        with new_scope() as inner:
            inner.set_context("cart", {"n": 1})
            inner.set_tag("region", "us")
            inner.set_extra("n", 1)
            inner.set_user({"id": "1"})
            assert Scope.current() is inner
        assert Scope.current() is outer
        assert applied(outer) == {"tags": {"region": "eu"}, "contexts": {"shop": {"open": True}}}
        assert applied(inner) == {
            "tags": {"region": "us"},
            "extra": {"n": 1},
            "user": {"id": "1"},
            "contexts": {"shop": {"open": True}, "cart": {"n": 1}},
        }


def test_each_scope_has_an_id_below_its_parents() -> None:
    """The captured mark of an exception is this id, so that outer scopes recognise marks of inner ones."""
    with new_scope() as first:
        pass
    with new_scope() as second, new_scope() as inner:
        assert inner.id.startswith(second.id + "/")
    assert first.id != second.id


def test_threads_and_tasks_see_their_own_scope() -> None:
    """A request's scope follows its context only."""
    seen: list[Scope] = []
    with new_scope() as mine:
        thread = threading.Thread(target=lambda: seen.append(Scope.current()))
        thread.start()
        thread.join(timeout=30)
        copy_context().run(lambda: seen.append(Scope.current()))
    assert seen[0] is Scope.current()
    assert seen[1] is mine


def test_a_scope_left_in_another_context_is_left_without_an_error() -> None:
    """An event loop closes abandoned generators in another context."""

    async def generator() -> AsyncGenerator[Scope, None]:
        with new_scope() as scope:
            yield scope

    async def main() -> None:
        abandoned = generator()
        await asyncio.create_task(anext(abandoned))
        await abandoned.aclose()

    asyncio.run(main())
    block = new_scope()
    block.__enter__()
    block.__exit__(None, None, None)
    block.__exit__(None, None, None)
    assert "/" not in Scope.current().id


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("region", "eu", {"region": "eu"}),
        ("a b/c", "x", {"a-b_c": "x"}),
        ("k" * 300, "v" * 300, {"k" * 197 + "...": "v" * 197 + "..."}),
        ("n", 7, {"n": "7"}),
        ("n", None, {"n": "None"}),
        ("n", "two\nlines\r\nthree", {"n": "two lines three"}),
        ("n", object(), {"n": "<builtins.object>"}),
        (7, 7, {"7": "7"}),
        ("", "x", None),
    ],
)
def test_tags_are_made_such_as_servers_take(key: Any, value: Any, expected: Any) -> None:
    """Servers silently discard a tag with an invalid key or a line break."""
    scope = Scope()
    scope.set_tag(key, value)
    assert applied(scope).get("tags") == expected


def test_an_empty_value_takes_the_tag_away() -> None:
    """Servers accept no empty value, and the previous value is no longer true."""
    scope = Scope()
    scope.set_tag("region", "eu")
    scope.set_tag("region", "")
    assert applied(scope) == {}


def test_contexts_are_bounded_in_number_and_those_known_may_change() -> None:
    """A section per row must not fill events; with all places taken, present sections can still change."""
    scope = Scope()
    for number in range(200):
        scope.set_context(f"c{number}", {"n": 1})
    scope.set_context("c0", {"n": 2})
    contexts = applied(scope)["contexts"]
    assert (len(contexts), contexts["c0"]) == (50, {"n": 2})
    scope.set_context("c0", None)
    assert "c0" not in applied(scope)["contexts"]


def test_tags_and_extra_are_bounded_in_number() -> None:
    """A loop that tags with its counter must not fill memory and events."""
    scope = Scope()
    for number in range(1000):
        scope.set_tag(f"t{number}", 1)
        scope.set_extra(f"e{number}", 1)
    scope.set_tag("t0", 2)
    scope.set_extra("e0", 2)
    event = applied(scope)
    assert (len(event["tags"]), event["tags"]["t0"]) == (100, "2")
    assert (len(event["extra"]), event["extra"]["e0"]) == (100, 2)


def test_extra_is_taken_as_it_is_now_and_bounded_in_bytes() -> None:
    """Later changes of the value have no effect; servers keep 16 KiB per value and 256 KiB in total."""
    scope = Scope()
    items = [1]
    scope.set_extra("items", items)
    items.append(2)
    assert applied(scope)["extra"] == {"items": [1]}
    for number in range(50):
        scope.set_extra(f"big{number}", ["x" * 1000] * 100)
    event = applied(scope)
    assert max(len(encoder.dumps(value)) for value in event["extra"].values()) <= 16 * 1024
    assert 200 * 1024 < len(encoder.dumps(event["extra"])) <= 264 * 1024


def test_extra_set_by_hand_is_not_scrubbed() -> None:
    """The protocol forbids rewriting data that the app set explicitly."""
    scope = Scope()
    scope.set_extra("token", "abc")
    assert applied(scope)["extra"] == {"token": "abc"}


def test_what_an_event_does_with_the_scopes_values_stays_with_it() -> None:
    """A hook that changes an event in place must not change the next event."""
    scope = Scope()
    scope.set_extra("cart", {"items": [1]})
    scope.set_tag("a", "b")
    scope.set_user({"id": "1"})
    event = applied(scope)
    event["extra"]["cart"]["items"].clear()
    event["tags"].clear()
    event["user"].clear()
    assert applied(scope) == {"extra": {"cart": {"items": [1]}}, "tags": {"a": "b"}, "user": {"id": "1"}}


def test_the_events_own_values_win() -> None:
    """Call arguments beat the scope; tags given as pairs are not touched."""
    scope = Scope()
    scope.set_tag("a", "scope")
    scope.set_tag("b", "scope")
    scope.set_user({"id": "scope"})
    assert applied(scope, tags={"a": "own"}, user={"id": "own"}) == {
        "tags": {"a": "own", "b": "scope"},
        "user": {"id": "own"},
    }
    assert applied(scope, tags=[["a", "own"]])["tags"] == [["a", "own"]]


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({"id": 42, "email": "e" * 100}, {"id": "42", "email": "e" * 72 + "..."}),
        ({"ip_address": "192.0.2.7"}, {"ip_address": "192.0.2.7"}),
        ({"ip_address": "2001:db8::1"}, {"ip_address": "2001:db8::1"}),
        ({"ip_address": "{{auto}}"}, {"ip_address": "{{auto}}"}),
        ({"id": "1", "ip_address": "localhost"}, {"id": "1"}),
        ({"id": "1", "ip_address": 7}, {"id": "1"}),
        ({"id": None, "plan": "gold"}, {"id": None, "plan": "gold"}),
        ({"id": "i" * 128, "username": "u" * 129}, {"id": "i" * 128, "username": "u" * 125 + "..."}),
        ({"id": "1", "ip_address": "fe80::1%eth0"}, {"id": "1"}),
        ({"geo": {"city": "Bonn"}, "data": {"plan": 1}}, {"geo": {"city": "Bonn"}, "data": {"plan": 1}}),
        ({"id": "1", "geo": "Bonn", "data": "gold"}, {"id": "1", "data": {"data": "gold"}}),
        ({}, None),
        (None, None),
        ("bob", None),
    ],
)
def test_a_user_is_told_as_servers_take_it(user: Any, expected: Any) -> None:
    """Values that servers would discard are left out or shortened."""
    scope = Scope()
    scope.set_user({"id": "before"})
    scope.set_user(user)
    assert applied(scope).get("user") == expected


def test_a_scope_begins_with_all_that_surrounds_it_and_gives_nothing_back() -> None:
    """Events of a task in a request have the data of both; the request's events have none of the task's."""
    with new_scope() as outer:
        outer.set_tag("region", "eu")
        outer.set_extra("n", 1)
        outer.set_user({"id": "1"})
        outer.set_context("shop", {"till": 3})
        outer.set_level("fatal")
        outer.set_fingerprint(["a"])
        outer.add_event_processor(keep)
        outer.add_attachment(b"x", filename="x.txt")
        before = applied(outer)
        with new_scope() as inner:
            assert applied(inner) == before
            assert (inner.processors, inner.attachments) == (outer.processors, outer.attachments)
            assert inner.unit is outer.unit
            inner.set_tag("till", "3")
            inner.set_extra("m", 2)
            inner.set_user(None)
            inner.set_context("shelf", {"row": 1})
            inner.set_level("info")
            inner.set_fingerprint(["b"])
            inner.add_event_processor(keep)
            inner.add_attachment(b"y", filename="y.txt")
        assert applied(outer) == before
        assert (len(outer.processors), len(outer.attachments)) == (1, 1)
        assert before == {
            "tags": {"region": "eu"},
            "extra": {"n": 1},
            "user": {"id": "1"},
            "contexts": {"shop": {"till": 3}},
            "level": "fatal",
            "fingerprint": ["a"],
        }


def keep(event: dict[str, Any], hint: dict[str, Any]) -> dict[str, Any]:
    """Return the event unchanged."""
    return event


def test_a_chain_of_scopes_does_not_grow_for_ever() -> None:
    """A task that starts its successor would otherwise keep all earlier scopes alive."""
    with contextlib.ExitStack() as stack:
        scopes = [stack.enter_context(new_scope()) for _ in range(100)]
        depths = [scope.id.count("/") for scope in scopes]
    assert max(depths) == 31
    assert depths.count(0) == 3  # the process's own scope is the first of the chain, and every 32nd after it
    assert len({scope.id.rpartition("/")[2] for scope in scopes}) == 100
    assert len(scopes[-1].id.rpartition("/")[2]) == 16


def test_an_empty_value_clears_a_tag() -> None:
    """Servers accept no empty tag."""
    scope = Scope()
    scope.set_tag("a", "")
    scope.set_tag("b", "x")
    scope.set_tag("b", "")
    scope.set_tag("c", "x")
    assert applied(scope) == {"tags": {"c": "x"}}


def test_contexts_are_sections_as_they_were_when_they_were_set() -> None:
    """A section set to None is removed; a value that is no mapping makes no section."""
    scope = Scope()
    till = {"drawer": [1]}
    scope.set_context("till", till)
    scope.set_context("shelf", {"row": 1})
    scope.set_context("pairs", [("a", 1)])  # type: ignore[arg-type]
    till["drawer"].append(2)
    event = applied(scope)
    assert event == {"contexts": {"till": {"drawer": [1]}, "shelf": {"row": 1}}}
    event["contexts"]["till"]["drawer"].clear()
    assert applied(scope, contexts={"shelf": {"row": 2}}) == {
        "contexts": {"till": {"drawer": [1]}, "shelf": {"row": 2}}
    }
    scope.set_context("shelf", None)
    scope.set_context("never set", None)
    assert applied(scope) == {"contexts": {"till": {"drawer": [1]}}}


def test_contexts_are_bounded_in_number_and_in_bytes() -> None:
    """50 sections of 8 KiB; a present one can still be replaced."""
    scope = Scope()
    for number in range(60):
        scope.set_context(f"c{number}", {"n": number})
    scope.set_context("c0", {"a": "x" * 9000, "b": "x" * 9000})
    contexts = applied(scope)["contexts"]
    assert list(contexts) == [f"c{number}" for number in range(50)]
    assert 8150 < len(encoder.dumps(contexts["c0"])) <= 8 * 1024


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("fatal", "fatal"),
        ("CRITICAL", "fatal"),
        ("error", "error"),
        ("warn", "warning"),
        ("Warning", "warning"),
        ("log", "info"),
        ("info", "info"),
        ("debug", "debug"),
        ("verbose", "error"),
        (10, "error"),
    ],
)
def test_a_level_is_one_that_servers_know(level: Any, expected: str) -> None:
    """Servers discard unknown levels. A scope's level is set on purpose, so it beats the event's."""
    scope = Scope()
    scope.set_level(level)
    assert applied(scope, level="info") == {"level": expected}
    scope.set_level(None)
    assert applied(scope, level="info") == {"level": "info"}


@pytest.mark.parametrize(
    ("fingerprint", "expected"),
    [
        (["{{ default }}", "a"], ["{{ default }}", "a"]),
        (["x" * 300, 7], ["x" * 197 + "...", "7"]),
        ([str(n) for n in range(30)], [str(n) for n in range(20)]),
        ("not a list", None),
        (7, None),
        (None, None),
    ],
)
def test_a_fingerprint_is_a_short_list_of_texts(fingerprint: Any, expected: Any) -> None:
    """A value that is no list of texts is ignored; an event with its own fingerprint keeps it."""
    scope = Scope()
    scope.set_fingerprint(["before"])
    scope.set_fingerprint(fingerprint)
    assert applied(scope).get("fingerprint") == expected
    assert applied(scope, fingerprint=["own"]) == {"fingerprint": ["own"]}


def test_processors_keep_their_order_and_must_be_callable() -> None:
    """A processor that can't be called would drop every later event."""
    scope = Scope()
    scope.add_event_processor(keep)
    scope.add_event_processor("keep")  # type: ignore[arg-type]
    scope.add_event_processor(print)
    assert scope.processors == (keep, print)


def test_attachments_are_bounded_in_number_and_always_have_a_name() -> None:
    """Servers accept 30 files with an event."""
    scope = Scope()
    scope.add_attachment(b"x", filename="", content_type="text/plain", attachment_type="event.minidump")
    for number in range(40):
        scope.add_attachment(b"x", filename=f"{number}" + "n" * 300)
    first, second = scope.attachments[:2]
    assert len(scope.attachments) == 30
    assert first.type == "attachment"
    assert first.headers | {"length": 1} == {
        "type": "attachment",
        "length": 1,
        "filename": "attachment",
        "content_type": "text/plain",
        "attachment_type": "event.minidump",
    }
    assert second.headers["filename"] == "0" + "n" * 196 + "..."


def test_a_breadcrumb_says_what_was_given_and_no_secret() -> None:
    """Empty fields are left out; secrets are filtered by name in `data`, and by form in the message."""
    with new_scope(), enter_unit() as unit:
        scope = Scope.current()
        scope.add_breadcrumb()
        scope.add_breadcrumb("GET https://bob:pw@shop/", category="http", level="WARN", type="query")
        scope.add_breadcrumb("paid", data={"token": "abc", "sum": 3})
        scope.add_breadcrumb("odd", data=7)  # type: ignore[arg-type]
        crumbs = unit.breadcrumbs()
    for crumb in crumbs:
        assert crumb.pop("timestamp") > 0
    assert crumbs == [
        {"type": "default", "level": "info"},
        {
            "type": "query",
            "level": "warning",
            "category": "http",
            "message": "GET https://[Filtered]@shop/",
        },
        {
            "type": "default",
            "level": "info",
            "message": "paid",
            "data": {"token": "[Filtered]", "sum": 3},
        },
        {"type": "default", "level": "info", "message": "odd"},
    ]


def test_a_breadcrumb_is_bounded() -> None:
    """A hundred of them are sent with each event."""
    with new_scope(), enter_unit() as unit:
        Scope.current().add_breadcrumb(
            "m" * 3000,
            category="c" * 200,
            type="t" * 200,
            data={"rows": ["x" * 100] * 40, "more": "y" * 3000},
        )
        (crumb,) = unit.breadcrumbs()
    assert (len(crumb["category"]), len(crumb["type"])) == (128, 128)
    assert len(crumb["message"]) == 2048
    assert 3 * 1024 < len(encoder.dumps(crumb["data"])) <= 4 * 1024


@contextlib.contextmanager
def enter_unit() -> Iterator[Unit]:
    """Enter a new unit of work with a scope."""
    unit = Unit()
    _, token = enter_scope(unit)
    yield unit
    leave_scope(token)


def test_a_unit_begins_outside_of_what_a_finished_one_left_behind() -> None:
    """A request that ended in another context must not pass its user to the next one."""
    with new_scope() as process:
        process.set_tag("host", "a")
        with enter_unit() as first:
            Scope.current().set_user({"id": "1"})
            with new_scope():
                first.finished = True
                with enter_unit() as second:
                    scope = Scope.current()
                    assert scope.unit is second
                    assert applied(scope) == {"tags": {"host": "a"}}
                with new_scope() as inner:
                    assert applied(inner) == {"tags": {"host": "a"}, "user": {"id": "1"}}


def test_a_unit_within_one_that_runs_begins_with_what_that_one_holds() -> None:
    """A job that a request runs itself has the same user."""
    with enter_unit():
        Scope.current().set_user({"id": "1"})
        with enter_unit():
            assert applied(Scope.current()) == {"user": {"id": "1"}}


def test_an_exception_is_marked_once_in_a_scope_and_those_around_it() -> None:
    """An exception captured in a task is not captured again by its request, but by the next request."""
    error = ValueError()
    with new_scope():
        with new_scope():
            assert mark_captured(error)
            assert not mark_captured(error)
        assert not mark_captured(error)
        take_mark_back(error)
        assert mark_captured(error)
        with new_scope():
            assert mark_captured(error)
    with new_scope():
        assert mark_captured(error)
        take_mark_back(error)
        take_mark_back(error)
        assert error.__dict__ == {}


def test_extra_in_all_ends_where_there_is_hardly_any_room_left() -> None:
    """Servers cut an event's extra at 256 KiB; here one value is shortened and the rest is left out."""
    scope = Scope()
    for number in range(40):
        scope.set_extra(f"{number:02}", "x" * 8000)
    extra = applied(scope)["extra"]
    assert list(extra) == [f"{number:02}" for number in range(33)]
    assert [len(value) for value in extra.values()][:-1] == [8000] * 32
    assert 256 * 1024 - 300 < len(encoder.dumps(extra)) < 256 * 1024 + 300


class Broken(Mapping[str, object]):
    """A mapping that raises when read."""

    def __getitem__(self, key: str) -> object:
        raise OSError("gone")

    def __iter__(self) -> Iterator[str]:
        raise OSError("gone")

    def __len__(self) -> int:
        return 1


def test_a_mapping_that_fails_is_none() -> None:
    """A lazy user object may query a database that is down; the request continues."""
    scope = Scope()
    scope.set_user(Broken())
    scope.set_context("shop", Broken())
    scope.add_breadcrumb("m", data=Broken())
    assert applied(scope) == {}
    assert "data" not in scope.unit.breadcrumbs()[0]


def test_a_value_is_bounded_in_depth_breadth_and_text() -> None:
    """Servers must accept the event, whatever the app puts into it."""
    nested: Any = 1
    for _ in range(9):
        nested = [nested]
    values = {"depth": nested, "breadth": [0] * 200, "text": "x" * 9000}
    scope = Scope()
    for name, value in values.items():
        scope.set_extra(name, value)
    extra = applied(scope)["extra"]
    assert extra["depth"] == [[[[[["<builtins.list>"]]]]]]
    assert (len(extra["breadth"]), len(extra["text"])) == (101, 8192)
    scope.add_breadcrumb(data=values)
    (crumb,) = scope.unit.breadcrumbs()
    assert crumb["data"]["depth"] == [[[["<builtins.list>"]]]]
    assert (len(crumb["data"]["breadth"]), len(crumb["data"]["text"])) == (51, 2048)


def test_a_user_and_a_value_are_bounded_in_bytes() -> None:
    """A profile of megabytes must not be sent with each event."""
    scope = Scope()
    scope.set_extra("words", {"a": "x" * 9000, "b": "x" * 9000})
    assert 16 * 1024 - 50 < len(encoder.dumps(applied(scope)["extra"]["words"])) <= 16 * 1024
    scope.set_user({"id": "1", "motto": "x" * 9000, "story": "x" * 9000})
    assert 4050 < len(encoder.dumps(applied(scope)["user"])) <= 4 * 1024


def test_an_event_that_has_values_already_is_left_as_it_is() -> None:
    """A scope without data adds nothing, not even an empty section."""
    assert applied(Scope(), message="x") == {"message": "x"}
