"""Scopes: what is known about a unit of work, and who sees it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextvars import copy_context
from typing import Any

import pytest

from transport_kit import encoder
from transport_kit.reporting import Scope, new_scope


def applied(scope: Scope, **event: Any) -> dict[str, Any]:
    """What the scope adds to an event, which must be strict JSON."""
    scope.apply(event)
    encoder.dumps(event)
    return event


def test_a_scope_begins_as_a_copy_and_its_changes_stay_in_it() -> None:
    """What one request sets must not show in the next one's events."""
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
    """The mark on an exception is this id: what an inner scope captured, the outer one has seen."""
    with new_scope() as first:
        pass
    with new_scope() as second, new_scope() as inner:
        assert inner.id.startswith(second.id + "/")
    assert first.id != second.id


def test_threads_and_tasks_see_their_own_scope() -> None:
    """A request's scope follows its context, and no other."""
    seen: list[Scope] = []
    with new_scope() as mine:
        thread = threading.Thread(target=lambda: seen.append(Scope.current()))
        thread.start()
        thread.join(timeout=30)
        copy_context().run(lambda: seen.append(Scope.current()))
    assert seen[0] is Scope.current()
    assert seen[1] is mine


def test_a_scope_left_in_another_context_is_left_without_an_error() -> None:
    """An event loop closes abandoned generators in a context of its own."""

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
    """A wrong key or a line break nulls the tag at the server, without a word."""
    scope = Scope()
    scope.set_tag(key, value)
    assert applied(scope).get("tags") == expected


def test_an_empty_value_takes_the_tag_away() -> None:
    """Servers take none; the value from before would be wrong from here on."""
    scope = Scope()
    scope.set_tag("region", "eu")
    scope.set_tag("region", "")
    assert applied(scope) == {}


def test_contexts_are_bounded_in_number_and_those_known_may_change() -> None:
    """A section per row must not fill events, and a full table must not hold old facts."""
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
    """A later change to the value is another story; servers keep 16 KiB of one and 256 KiB of all."""
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
    """The protocol forbids rewriting what the app said on purpose."""
    scope = Scope()
    scope.set_extra("token", "abc")
    assert applied(scope)["extra"] == {"token": "abc"}


def test_what_an_event_does_with_the_scopes_values_stays_with_it() -> None:
    """A hook changes an event in place; the next event must not show it."""
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
    """Call arguments beat the scope; tags given as pairs are left as they are."""
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
        ({}, None),
        (None, None),
        ("bob", None),
    ],
)
def test_a_user_is_told_as_servers_take_it(user: Any, expected: Any) -> None:
    """What they would null is left out or shortened here, so that no event carries an error."""
    scope = Scope()
    scope.set_user({"id": "before"})
    scope.set_user(user)
    assert applied(scope).get("user") == expected
