"""Sealed envelopes: bytes, facts, limits, storage and trimming."""

from __future__ import annotations

import copy
import json
import math
import os
import pathlib
import pickle
import sys
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport_kit.envelope import encoder
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.item import Item
from transport_kit.envelope.item_types import Priority
from transport_kit.envelope.sealed import SealedEnvelope, SealedItem
from transport_kit.envelope.trimming import trim
from transport_kit.runtime.errors import SealError

EVENT_ID = "9ec79c33ec9942ab8353589fcb2e04dc"


def make_event(frames: int = 25) -> dict[str, Any]:
    """Return an error event of the usual form, some 10 kB with 25 frames."""
    return {
        "event_id": EVENT_ID,
        "timestamp": 1767323045.678,
        "platform": "python",
        "level": "error",
        "exception": {
            "values": [
                {
                    "type": "ValueError",
                    "value": "boom é",
                    "stacktrace": {
                        "frames": [
                            {
                                "filename": f"shop/module_{n}.py",
                                "function": "handle",
                                "lineno": n,
                                "pre_context": ["    cart = load(request)", "    total = 0"] * 2,
                                "context_line": "    return total / len(cart)",
                                "vars": {"cart": f"[{n}]", "request": "<Request GET /cart>"},
                            }
                            for n in range(frames)
                        ]
                    },
                }
            ]
        },
        "breadcrumbs": {"values": [{"timestamp": n, "message": f"GET /{n}"} for n in range(30)]},
        "extra": {"order": [1, 2, 3]},
    }


def limited(*categories: str | None) -> Callable[[str | None], bool]:
    """Return a predicate for limited categories; "*" limits everything."""
    return lambda category: "*" in categories or (category is not None and category in categories)


def _types(sealed: SealedEnvelope | None) -> list[str] | None:
    return None if sealed is None else [item.type for item in sealed.items]


def test_what_is_captured_is_what_is_sent_whatever_the_caller_does_later() -> None:
    """The app may change request data while the envelope waits in a queue."""
    event = make_event()
    before = copy.deepcopy(event)
    attachment = bytearray(b"before")
    sealed = Envelope.event(event).add_attachment(attachment, filename="a").seal()
    event["exception"]["values"].clear()
    event["extra"]["order"].append("later")
    event["event_id"] = "b" * 32
    attachment[:] = b"after!"
    parsed = Envelope.deserialize(sealed.serialize())
    assert json.loads(parsed.items[0].get_bytes()) == before
    assert parsed.items[1].get_bytes() == b"before"
    assert parsed.headers == {"event_id": EVENT_ID}


def test_sealing_leaves_the_envelope_and_its_payloads_alone() -> None:
    """The same envelope may go to two transports."""
    event = {**make_event(), "odd": {1: {2}}}
    before = copy.deepcopy(event)
    envelope = Envelope({"sent_at": "2026-01-02T03:04:05Z"}).add_event(event)
    assert envelope.seal().serialize() == envelope.seal().serialize()
    assert event == before
    assert envelope.headers["sent_at"] == "2026-01-02T03:04:05Z"


def test_the_bytes_are_those_of_the_serialiser() -> None:
    """`type` and `length` come first, a header is one line, and the size counts every byte."""
    envelope = (
        Envelope.event(make_event())
        .add_attachment(b"\n{}\n", filename="ä.txt")
        .add_item(Item(b"", type="x\n"))
    )
    sealed = envelope.seal()
    assert sealed.serialize() == envelope.serialize()
    assert sealed.size == len(sealed.serialize())
    assert [item.header for item in sealed.items] == [
        b'{"type":"event","length":%d}' % len(sealed.items[0].payload),
        '{"type":"attachment","length":4,"filename":"ä.txt"}'.encode(),
        b'{"type":"x\\n","length":0}',
    ]
    assert sealed.header == b'{"event_id":"%b"}' % EVENT_ID.encode()
    assert sealed.event_id == EVENT_ID


def test_sent_at_is_written_at_sending_and_never_stored() -> None:
    """Servers correct clocks by it, so it must not include the time in the queue."""
    moment = "2026-01-02T03:04:05.678Z"
    bare = Envelope({"sent_at": "2020-01-01T00:00:00Z"}).add_session({}).seal()
    assert bare.header == b"{}"
    assert bare.serialize(moment).startswith(b'{"sent_at":"%b"}\n' % moment.encode())
    named = Envelope.event(make_event()).seal()
    for sealed in (bare, named, named.packed()):
        assert Envelope.deserialize(sealed.serialize(moment)).headers.pop("sent_at") == moment
        assert "sent_at" not in Envelope.deserialize(sealed.serialize()).headers
    hostile = named.serialize('"}\n')
    assert Envelope.deserialize(hostile).headers == {"event_id": EVENT_ID, "sent_at": '"}\n'}


@pytest.mark.parametrize(
    ("types", "priority", "ordered", "repeatable"),
    [
        (["event"], Priority.ERROR, False, True),
        (["feedback"], Priority.ERROR, False, True),
        (["user_report"], Priority.ERROR, False, True),
        (["event", "attachment", "attachment"], Priority.ERROR, False, True),
        (["attachment"], Priority.REPLAY, False, True),
        (["replay_event", "replay_recording"], Priority.REPLAY, False, True),
        (["replay_video"], Priority.REPLAY, False, True),
        (["transaction", "profile"], Priority.TRANSACTION, False, True),
        (["session"], Priority.SESSION, True, False),
        (["sessions"], Priority.SESSION, True, False),
        (["check_in"], Priority.SESSION, True, False),
        (["event", "session"], Priority.ERROR, True, False),
        (["client_report"], Priority.TRANSACTION, False, False),
        (["event", "client_report"], Priority.ERROR, False, False),
        (["span"], Priority.TRANSACTION, False, False),
        (["log"], Priority.LOG, False, False),
        (["trace_metric"], Priority.LOG, False, False),
        (["profile_chunk"], Priority.LOG, False, False),
        (["statsd"], Priority.LOG, False, False),
        (["something_new", "attachment"], Priority.LOG, False, False),
        ([], Priority.REPLAY, False, True),
    ],
)
def test_the_facts_follow_from_the_items(
    types: list[str], priority: Priority, ordered: bool, repeatable: bool
) -> None:
    """They determine eviction, order, and whether a repetition after a timeout is allowed."""
    items = [Item({}, type=type_) for type_ in types]
    sealed = Envelope({"event_id": EVENT_ID}, items).seal()
    assert (sealed.priority, sealed.ordered, sealed.repeatable) == (priority, ordered, repeatable)
    packed = sealed.packed()
    assert (packed.priority, packed.ordered, packed.repeatable) == (priority, ordered, repeatable)
    nameless = Envelope.deserialize(
        Envelope(items=items).serialize().replace(b'"event_id"', b'"x"', 1)
    ).seal()
    assert nameless.event_id is None
    assert not nameless.repeatable


def test_the_classes_are_numbered_from_the_first_to_be_sacrificed() -> None:
    """A spool's records contain these numbers, so that they must be the same in every version."""
    assert [(one.name, one.value) for one in sorted(Priority)] == [
        ("REPLAY", 0),
        ("LOG", 1),
        ("TRANSACTION", 2),
        ("SESSION", 3),
        ("ERROR", 4),
    ]


def test_quantities_are_summed_per_category() -> None:
    """One record of losses per category, for any number of items."""
    sealed = (
        Envelope.transaction({"spans": [{}]})
        .add_attachment(b"abc", filename="a")
        .add_attachment(b"", filename="b")
        .add_item(Item({}, type="span", item_count=4))
        .add_client_report({})
        .seal()
    )
    assert sealed.quantities == (("transaction", 1), ("span", 6), ("attachment", 4))


@pytest.mark.parametrize(
    ("types", "limits", "left", "lost"),
    [
        (["event", "attachment"], [], ["event", "attachment"], {}),
        (["event", "attachment"], ["error"], None, {"error": 1, "attachment": 2}),
        (["event", "attachment"], ["attachment"], ["event"], {"attachment": 2}),
        (["event", "attachment"], ["transaction", "session"], ["event", "attachment"], {}),
        (["event", "attachment", "session"], ["error"], ["session"], {"error": 1, "attachment": 2}),
        (["attachment"], ["error"], ["attachment"], {}),
        (["attachment", "session"], ["error"], ["attachment", "session"], {}),
        (
            ["transaction", "profile", "attachment"],
            ["transaction"],
            None,
            {"transaction": 1, "span": 1, "profile": 1, "attachment": 2},
        ),
        (["transaction", "profile"], ["profile"], ["transaction"], {"profile": 1}),
        (["transaction"], ["span"], ["transaction"], {}),
        (["event", "replay_event", "replay_recording"], ["error"], None, {"error": 1, "replay": 2}),
        (["replay_event", "replay_recording"], ["replay"], None, {"replay": 2}),
        (["log"], ["log_item"], None, {"log_item": 1, "log_byte": 2}),
        (["log", "trace_metric"], ["log_item"], ["trace_metric"], {"log_item": 1, "log_byte": 2}),
        (["check_in"], ["monitor"], None, {"monitor": 1}),
        (["feedback"], ["error"], ["feedback"], {}),
        (["feedback", "attachment"], ["feedback"], None, {"feedback": 1, "attachment": 2}),
        (["event", "feedback", "attachment"], ["error"], ["feedback", "attachment"], {"error": 1}),
        (["event", "user_report"], ["error"], ["user_report"], {"error": 1}),
        (["span"], ["span"], None, {"span": 1}),
        (["profile_chunk", "span"], ["profile_chunk"], ["span"], {"profile_chunk": 1}),
        (["statsd", "metric_buckets", "span"], ["metric_bucket"], ["span"], {}),
        (["replay_video", "span"], ["replay"], ["span"], {"replay": 1}),
        (["client_report"], ["internal"], None, {}),
        (["user_report"], ["feedback"], None, {"feedback": 1}),
        (["something_new"], ["error", "session"], ["something_new"], {}),
        (["something_new"], ["*"], None, {}),
        (["event", "something_new"], ["*"], None, {"error": 1}),
        (["client_report"], [], ["client_report"], {}),
        (["client_report"], ["*"], None, {}),
        (["client_report"], ["error"], ["client_report"], {}),
        (["event", "client_report"], ["error"], None, {"error": 1}),
        (["event", "client_report"], ["*"], None, {"error": 1}),
        (["event", "client_report", "session"], ["error"], ["client_report", "session"], {"error": 1}),
        ([], [], None, {}),
    ],
)
def test_limits_take_out_what_may_not_be_sent(
    types: list[str], limits: list[str], left: list[str] | None, lost: dict[str, int]
) -> None:
    """An attachment without its event is useless; a client report must not be lost with the rest."""
    sealed = Envelope({"event_id": EVENT_ID}, [Item({}, type=type_) for type_ in types]).seal()
    for form in (sealed, sealed.packed()):
        kept, quantities = form.filtered(limited(*limits))
        assert _types(kept) == left
        assert dict(quantities) == lost
        if kept is not None:
            assert kept is form or (kept.size == len(kept.serialize()) and kept.event_id == EVENT_ID)
            assert sorted([*kept.quantities, *quantities]) == sorted(sealed.quantities) or lost


def test_each_category_is_asked_about_once() -> None:
    """A limit that ends meanwhile must not split an envelope."""
    asked: list[str | None] = []

    def answer(category: str | None) -> bool:
        asked.append(category)
        return len(asked) % 2 == 0

    sealed = Envelope(
        {}, [Item({}, type=type_) for type_ in ("session", "x", "session", "x", "sessions")]
    ).seal()
    kept, _ = sealed.filtered(answer)
    assert asked == ["session", None]
    assert _types(kept) == ["session", "session", "sessions"]


def test_a_client_report_can_join_an_envelope_or_travel_alone() -> None:
    """A report joins an envelope that is sent anyway."""
    report = Item({"discarded_events": []}, type="client_report").seal()
    sealed = Envelope.event(make_event()).seal()
    for form in (sealed, sealed.packed()):
        joined = form.with_items([report])
        assert _types(joined) == ["event", "client_report"]
        assert joined.size == len(joined.serialize())
        assert not joined.repeatable
    assert _types(sealed) == ["event"]
    alone = SealedEnvelope.empty(b"{}").with_items([report])
    assert _types(Envelope.deserialize(alone.serialize("now")).seal()) == ["client_report"]
    assert alone.event_id is None
    assert SealedEnvelope.empty(sealed.header).event_id == EVENT_ID


def test_the_storage_form_holds_less_and_says_the_same() -> None:
    """Ten thousand events of 10 kB must fit into the default memory."""
    sealed = Envelope.event(make_event()).add_attachment(b"\x00" * 5000, filename="a").seal()
    packed = sealed.packed()
    assert packed.packed() is packed
    assert sealed.unpacked() is sealed
    assert packed.stored < sealed.stored / 3
    assert packed.stored < packed.size < sealed.stored
    assert packed._blob is not None
    assert packed.stored == len(packed.header) + len(packed._blob) + 400 + 2 * 150
    for fact in ("header", "size", "event_id", "priority", "ordered", "repeatable", "quantities"):
        assert getattr(packed, fact) == getattr(sealed, fact)
    assert packed.serialize("now") == sealed.serialize("now")
    back = packed.unpacked()
    assert back.serialize() == sealed.serialize()
    assert back.stored == sealed.stored
    assert [(item.category, item.quantities) for item in packed.items] == [
        (item.category, item.quantities) for item in sealed.items
    ]


def test_what_does_not_shrink_is_not_packed() -> None:
    """Compressing an image would only take time."""
    tiny = Envelope().add_session({"sid": "1"}).seal()
    assert tiny.packed().stored <= tiny.stored
    empty = SealedEnvelope.empty(b"{}")
    assert empty.packed() is empty
    headed = SealedEnvelope.empty(b'{"sdk":"%b"}' % (b"x" * 500))
    assert headed.packed() is headed
    random = Envelope().add_attachment(os.urandom(10_000), filename="a").seal()
    assert random.packed() is random
    hardly = Envelope().add_attachment(os.urandom(95_000) + bytes(5_000), filename="a").seal()
    assert hardly.packed() is hardly
    worth_it = Envelope().add_attachment(os.urandom(85_000) + bytes(15_000), filename="a").seal()
    assert worth_it.packed().stored < worth_it.stored


def test_what_is_held_is_what_the_queue_counts() -> None:
    """For small envelopes a bound on bytes must include the objects around them."""
    count = 2000
    for form, size in (("plain", 10), ("plain", 0), ("packed", 10)):
        tracemalloc.start()
        try:
            held = []
            for n in range(count):
                event = make_event(size) | {"event_id": f"{n:032x}"}
                sealed = Envelope.event(event).seal()
                held.append(sealed.packed() if form == "packed" else sealed)
            measured = tracemalloc.get_traced_memory()[0] / count
        finally:
            tracemalloc.stop()
        counted = sum(sealed.stored for sealed in held) / count
        assert 0.85 < measured / counted < 1.15, (form, size, measured, counted)


def test_sealed_forms_survive_pickling_and_show_no_payload() -> None:
    """Some queues send them to other processes, and logs show their repr."""
    sealed = Envelope.event({"message": "hunter2", "event_id": EVENT_ID}).seal()
    for form in (sealed, sealed.packed()):
        assert pickle.loads(pickle.dumps(form)).serialize() == sealed.serialize()
        assert "hunter2" not in repr(form) + repr(form.items)
        assert EVENT_ID in repr(form)
    assert repr(Envelope.event(make_event()).seal().packed()).count("packed") == 1
    assert repr(SealedItem("x", b"", b"abc", None, ())) == "<SealedItem 'x' of 3 bytes>"


# Trimming


def _oversize(part: str, size: int = 60_000) -> dict[str, Any]:
    event = make_event()
    big = "x" * size
    if part == "vars":
        for frame in event["exception"]["values"][0]["stacktrace"]["frames"]:
            frame["vars"]["big"] = big[: size // 25]
    elif part == "breadcrumbs":
        event["breadcrumbs"]["values"] += [{"message": f"{n} {big[: size // 10]}"} for n in range(10)]
    elif part == "extra":
        event["extra"]["big"] = big
    else:
        event["exception"]["values"][0]["value"] = big
    return event


def _trimmed(event: dict[str, Any], limit: int) -> dict[str, Any]:
    before = copy.deepcopy(event)
    sealed = Envelope.event(event).seal(max_event_bytes=limit)
    assert event == before
    assert len(sealed.items[0].payload) <= limit
    result: dict[str, Any] = json.loads(sealed.items[0].payload)
    assert result["event_id"] == EVENT_ID
    assert len(result["exception"]["values"][0]["stacktrace"]["frames"]) == 25
    return result


def _frames(event: dict[str, Any]) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = event["exception"]["values"][0]["stacktrace"]["frames"]
    return frames


def test_an_event_within_the_bound_is_not_touched() -> None:
    """The bound is inclusive."""
    event = make_event()
    size = len(encoder.dumps(event))
    assert _trimmed(event, size) == event
    assert _trimmed(event, size - 1) != event
    assert trim(b"[1]", 3, "event") == b"[1]"


def test_frame_variables_go_first_and_those_of_the_failing_frame_last() -> None:
    """Readers look at the failing frame's variables."""
    event = _oversize("vars")
    result = _trimmed(event, 40_000)
    kept = ["vars" in frame for frame in _frames(result)]
    assert kept[-1] is True
    assert kept[0] is False
    assert kept == sorted(kept)
    assert result["breadcrumbs"] == event["breadcrumbs"]
    assert result["extra"] == event["extra"]


def test_breadcrumbs_go_next_and_the_newest_stay() -> None:
    """The last breadcrumbs before the error matter most."""
    event = _oversize("breadcrumbs")
    result = _trimmed(event, 40_000)
    assert all("vars" not in frame for frame in _frames(result))
    left = result["breadcrumbs"]["values"]
    assert 0 < len(left) < 40
    assert left == event["breadcrumbs"]["values"][-len(left) :]
    assert result["extra"] == event["extra"]


def test_extra_goes_third_and_the_largest_value_first() -> None:
    """Small values beside a large one are kept, and a mark replaces the large one."""
    event = _oversize("extra")
    result = _trimmed(event, 40_000)
    assert result["breadcrumbs"]["values"] == []
    assert result["extra"] == {"order": [1, 2, 3], "big": "<trimmed>"}


def test_long_strings_are_cut_last() -> None:
    """A message of megabytes must not cost the stack trace."""
    result = _trimmed(_oversize("value"), 40_000)
    value = result["exception"]["values"][0]["value"]
    assert value == "x" * 8191 + "…"
    assert len(_trimmed(_oversize("value"), 10_000)["exception"]["values"][0]["value"]) == 1024


def test_every_shape_of_an_event_can_be_trimmed() -> None:
    """Lists without `values`, single objects, threads, nulls and nonsense are legal input."""
    frame = {"vars": {"a": "x" * 5000}}
    trace = {"frames": [frame]}
    shapes: tuple[dict[str, Any], ...] = (
        {"exception": [{"stacktrace": trace}]},
        {"exception": {"stacktrace": trace}},
        {"threads": {"values": [{"stacktrace": trace}]}},
        {"stacktrace": trace},
        {"breadcrumbs": [{"message": "x" * 5000}, None, 3]},
        {"extra": {"a": "x" * 5000}},
        {
            "message": "x" * 5000,
            "exception": None,
            "threads": 3,
            "breadcrumbs": {"values": "no"},
            "extra": [],
        },
        {"exception": {"values": [None, {"stacktrace": {"frames": [None, 1]}}]}, "list": [["x" * 5000]]},
    )
    for event in shapes:
        sealed = Envelope.event(event).seal(max_event_bytes=1500)
        assert len(sealed.items[0].payload) <= 1500
        assert json.loads(sealed.items[0].payload)["event_id"] == sealed.event_id


def test_an_event_of_a_hundred_megabytes_is_cut() -> None:
    """One string in `extra` is longer than any receiver accepts."""
    result = _trimmed(_oversize("extra", 100_000_000), 1_000_000)
    assert result["extra"]["big"] == "<trimmed>"


def test_what_is_too_big_in_every_way_is_refused() -> None:
    """A receiver would answer 413; the loss is counted at the capture."""
    event = {"event_id": EVENT_ID, "list": list(range(100_000))}
    with pytest.raises(SealError) as caught:
        Envelope.event(event).seal(max_event_bytes=10_000)
    assert caught.value.path == "event"
    assert "10000" in str(caught.value)
    for payload in (b"x" * 20_000, b"[" + b"1," * 9000 + b"1]"):
        with pytest.raises(SealError, match="not a JSON object"):
            Envelope(items=[Item(payload, type="event")]).seal(max_event_bytes=10_000)


def test_transactions_and_feedback_have_the_same_bound() -> None:
    """Receivers count them in one group; the quantity is that of the whole transaction."""
    for kind in ("transaction", "feedback"):
        item = Item({"extra": {"a": "x" * 50_000}, "spans": [{}] * 3}, type=kind)
        sealed = Envelope(items=[item]).seal(max_event_bytes=10_000)
        assert sealed.size < 10_200
        assert sealed.quantities == item.quantities
    big = Envelope().add_session({"a": "x" * 50_000}).seal(max_event_bytes=10_000)
    assert big.size > 50_000


# Attachments, sizes and errors


def test_an_attachment_that_cannot_travel_does_not_cost_the_event(tmp_path: pathlib.Path) -> None:
    """With a missing log file or a core dump the error is sent, and the loss is counted."""
    file = tmp_path / "big"
    file.write_bytes(b"x" * 500)
    envelope = (
        Envelope.event(make_event())
        .add_attachment(tmp_path / "missing", filename="a")
        .add_attachment(file, filename="b")
        .add_attachment(b"y" * 300, filename="c")
        .add_attachment({"k": "v" * 400}, filename="d")
        .add_attachment(b"small", filename="e" * 9000)
        .add_attachment(b"kept", filename="f")
    )
    sealed = envelope.seal(max_attachment_bytes=200)
    assert _types(sealed) == ["event", "attachment"]
    assert sealed.items[1].payload == b"kept"
    assert [quantities for _, quantities in sealed.left_out] == [
        (("attachment", 1),),
        (("attachment", 500),),
        (("attachment", 300),),
        (("attachment", 1),),
        (("attachment", 5),),
    ]
    assert [error.path for error, _ in sealed.left_out] == ["attachment"] * 4 + ["attachment.headers"]
    assert sealed.packed().left_out == ()


def test_a_path_of_the_apps_own_that_fails_does_not_cost_the_event() -> None:
    """A path class of a cloud store may use the network to make a local file."""

    class Elsewhere:
        def __fspath__(self) -> str:
            raise RuntimeError("not downloaded")

    sealed = Envelope.event(make_event()).add_attachment(Elsewhere(), filename="a").seal()
    assert _types(sealed) == ["event"]
    assert [quantities for _, quantities in sealed.left_out] == [(("attachment", 1),)]


def test_attachments_alone_that_cannot_travel_are_an_error() -> None:
    """Nothing is left to send."""
    with pytest.raises(SealError, match="more than 10 bytes"):
        Envelope().add_attachment(b"x" * 11, filename="a").seal(max_attachment_bytes=10)
    assert Envelope().add_attachment(b"x" * 10, filename="a").seal(max_attachment_bytes=10).size > 10


def test_a_big_file_is_read_to_the_bound_only(tmp_path: pathlib.Path) -> None:
    """A sparse file of a terabyte must not be read into memory."""
    file = tmp_path / "sparse"
    with file.open("wb") as handle:
        handle.truncate(2**40)
    tracemalloc.start()
    try:
        sealed = (
            Envelope.event(make_event()).add_attachment(file, filename="a").seal(max_attachment_bytes=1000)
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sealed.left_out[0][1] == (("attachment", 2**40),)
    assert peak < 1_000_000


def test_the_whole_envelope_has_a_bound_too() -> None:
    """Above it attachments are left out; any other envelope is refused."""
    envelope = (
        Envelope.event(make_event())
        .add_attachment(b"x" * 5000, filename="a")
        .add_attachment(b"", filename="b")
    )
    sealed = envelope.seal(max_envelope_bytes=12_000)
    assert [item.payload for item in sealed.items[1:]] == [b""]
    assert sealed.left_out[0][1] == (("attachment", 5000),)
    with pytest.raises(SealError, match="takes the envelope over 1000 bytes"):
        envelope.seal(max_envelope_bytes=1000)


def test_headers_are_kept_to_one_short_line() -> None:
    """One receiver in use answers 413 above 8 KiB, and parses line by line."""
    with pytest.raises(SealError) as caught:
        Envelope(items=[Item({}, type="session", headers={"x": "y" * 9000})]).seal()
    assert caught.value.path == "session.headers"
    odd = Envelope({"x": {1: "\n"}}, [Item({}, type="session", headers={"y": {2: "\ud800\n"}})]).seal()
    assert odd.header == b'{"x":{"1":"\\n"}}'
    assert b"\n" not in odd.items[0].header


SENT_AT = "2026-01-02T03:04:05.678901Z"


def header_line(**headers: object) -> tuple[int, dict[str, Any]]:
    """Return the size of the header line as sent, newline included, and its JSON."""
    sealed = Envelope({"event_id": EVENT_ID, **headers}, [Item({"message": "m"}, type="event")]).seal()
    assert [item.type for item in sealed.items] == ["event"]
    line, newline, _ = sealed.serialize(SENT_AT).partition(b"\n")
    header = json.loads(line)
    assert (header.pop("event_id"), header.pop("sent_at")) == (EVENT_ID, SENT_AT)
    return len(line + newline), header


def test_a_trace_header_that_is_too_long_is_cut_and_the_event_is_kept() -> None:
    """Its content is the client's `baggage`: 11 kB of that must not make the app's errors vanish."""
    essential = {"trace_id": "a" * 32, "public_key": "b" * 32}
    rest = {"sample_rate": "0.25", "release": "shop@1", "sampled": "true"}
    size, header = header_line(trace={"transaction": "x" * 11_000, **rest, **essential}, sdk={"name": "n"})
    assert header == {"trace": {**rest, **essential}, "sdk": {"name": "n"}}
    assert size <= 8192

    many = {f"k{n:04}": "v" * 40 for n in range(400)}
    size, header = header_line(trace={**many, **rest, **essential})
    assert {**rest, **essential}.items() <= header["trace"].items() <= {**many, **rest, **essential}.items()
    assert 8000 < size <= 8192


@pytest.mark.parametrize(
    "trace",
    [
        {"trace_id": "a" * 9000, "public_key": "b" * 32},
        {"public_key": "b" * 9000, "trace_id": "a" * 32},
        {"trace_id": {"nested": ["x" * 9000]}, "public_key": "b" * 32},
        {"trace_id": "\ud800\n" * 5000, "public_key": "b" * 32},
        "x" * 9000,
        ["x"] * 5000,
        b"x" * 9000,
    ],
    ids=["id", "key", "nested", "surrogates", "text", "list", "bytes"],
)
def test_a_trace_header_without_its_essential_members_is_dropped(trace: object) -> None:
    """Receivers ignore a trace without an id or a key, and one that is no object."""
    size, header = header_line(trace=trace, sdk={"name": "n"})
    assert (header, size <= 8192) == ({"sdk": {"name": "n"}}, True)


def test_other_long_headers_are_dropped_and_the_short_ones_kept() -> None:
    """Of the headers only the event id is needed; an SDK may list a thousand packages."""
    trace = {"trace_id": "a" * 32, "public_key": "b" * 32}
    packages = [{"name": f"pypi:package-{n}", "version": "1.0"} for n in range(1000)]
    assert header_line(sdk={"name": "n", "packages": packages}, trace=trace)[1] == {"trace": trace}
    size, header = header_line(**{f"h{n:03}": "x" * 100 for n in range(1000)}, trace=trace)
    assert header["trace"] == trace
    assert len(header) > 50
    assert 8000 < size <= 8192


@pytest.mark.parametrize("size", range(8100, 8220, 3))
def test_a_header_line_is_short_enough_with_the_time_of_sending(size: int) -> None:
    """`sent_at` is added by the sender, and counts for the server that answers 413."""
    assert header_line(x="x" * (size - 100))[0] <= 8192


def test_an_envelope_of_another_sdk_passes_with_a_long_trace() -> None:
    """What a tunnel or a proxy of the app hands on was made of whatever a browser sent."""
    theirs = b'{"trace":{"trace_id":"%b","public_key":"k","big":"%b"}}\n{"type":"session"}\n{}' % (
        b"a" * 32, b"x" * 11_000,
    )  # fmt: skip
    sealed = Envelope.deserialize(theirs).seal()
    assert json.loads(sealed.header) == {"trace": {"trace_id": "a" * 32, "public_key": "k"}}
    assert [item.payload for item in sealed.items] == [b"{}"]


def test_an_envelope_with_a_faulty_id_is_refused_here() -> None:
    """A receiver would answer 400 later, far from the code at fault."""
    for event_id in ("nope", 7, "", EVENT_ID + " "):
        with pytest.raises(SealError) as caught:
            Envelope({"event_id": event_id}).add_session({}).seal()
        assert caught.value.path == "envelope.headers.event_id"


def test_an_event_that_is_no_object_is_refused() -> None:
    """Any object would be written as its class's name, and discarded by the server."""
    for payload in ([1], None, object(), 7):
        with pytest.raises(SealError) as caught:
            Envelope(items=[Item(payload, type="event")]).seal()
        assert caught.value.path == "event"


def test_one_event_with_every_awkward_value_is_sealed() -> None:
    """No value in an event may raise into the request."""
    loop: dict[str, Any] = {}
    loop["self"] = loop
    deep: Any = None
    for _ in range(10_000):
        deep = [deep]
    event = make_event() | {
        "extra": {
            1: "int", "1": "str", "big": 2**100, "bad\ud800": "\udfff", "bytes": b"\xff", "nan": math.nan,
            "loop": loop, "deep": deep, "set": {1}, "object": object(), "error": ValueError("hunter2"),
            "long": "x" * 2_000_000,
        }
    }  # fmt: skip
    sealed = Envelope.event(event).seal()
    assert b"hunter2" not in sealed.items[0].payload
    assert len(sealed.items[0].payload) <= 1_000_000
    extra = json.loads(sealed.items[0].payload)["extra"]
    assert extra["1"] == "int"
    assert extra["1#2"] == "str"
    assert extra["nan"] is None
    assert extra["long"] == "<trimmed>"


def test_sealing_raises_nothing_but_its_own_error() -> None:
    """`capture` counts a SealError; any other exception would reach the request."""

    class Breaks(dict[str, Any]):
        def items(self) -> NoReturn:
            raise ZeroDivisionError("hunter2")

    envelope = Envelope.event(make_event())
    envelope.items[0].headers = Breaks(type="event", a=1)
    with pytest.raises(SealError) as caught:
        envelope.seal()
    assert str(caught.value) == "can't seal envelope: can't be sealed (ZeroDivisionError)"


def test_a_dict_changed_by_another_thread_meanwhile_is_sealed_or_refused() -> None:
    """Two requests may share a dict of tags, and sealing takes no lock for it."""
    event = make_event()
    event["tags"] = {"a": {1}}
    stop, started = threading.Event(), threading.Event()

    def churn() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            event["tags"][f"k{turn % 60}"] = turn
            event["tags"].pop(f"k{(turn + 30) % 60}", None)
            event[f"e{turn % 20}"] = turn
            event.pop(f"e{(turn + 10) % 20}", None)
            started.set()

    thread = threading.Thread(target=churn, daemon=True)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    outcomes = {"sealed": 0, "refused": 0}
    try:
        thread.start()
        assert started.wait(30)
        for _ in range(300):
            try:
                sealed = Envelope.event(event).seal()
            except SealError:
                outcomes["refused"] += 1
            else:
                outcomes["sealed"] += 1
                assert Envelope.deserialize(sealed.serialize()).items[0].get_bytes()[:1] == b"{"
    finally:
        stop.set()
        thread.join(30)
        sys.setswitchinterval(interval)
    assert outcomes["sealed"] > 250


@given(
    st.lists(
        st.tuples(st.sampled_from(["attachment", "session", "x", "log", "event"]), st.binary(max_size=300)),
        max_size=5,
    )
)
def test_all_forms_hold_the_same_bytes(parts: list[tuple[str, bytes]]) -> None:
    """Packing, unpacking, joining and serialising lose nothing."""
    envelope = Envelope({"event_id": EVENT_ID})
    for kind, payload in parts:
        envelope.add_item(Item(payload, type=kind))
    sealed = envelope.seal()
    assert sealed.serialize() == envelope.serialize()
    assert sealed.packed().serialize() == sealed.serialize()
    assert sealed.packed().with_items(sealed.items).size == sealed.with_items(sealed.packed().items).size
    assert _types(Envelope.deserialize(sealed.serialize()).seal()) == [kind for kind, _ in parts]
