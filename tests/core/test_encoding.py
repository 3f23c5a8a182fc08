"""Strict JSON and its repair: awkward values, hostile objects, and the bounds of the walk."""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import math
import pathlib
import subprocess
import sys
import threading
import time
import types
import uuid
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from datetime import time as clock_time
from decimal import Decimal
from typing import Any, ClassVar, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.timing import SOON, steps
from transport_kit.envelope import encoder, encoding
from transport_kit.envelope.encoding import clean_text, encode, repair
from transport_kit.runtime.errors import SealError


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise AssertionError("called")

    __repr__ = encode = __str__  # type: ignore[assignment]


class Number(int):
    def __int__(self) -> NoReturn:
        raise AssertionError("called")

    __repr__ = __str__ = __index__ = __int__


class Real(float):
    def __float__(self) -> NoReturn:
        raise AssertionError("called")

    __repr__ = __str__ = __float__


class Listed(list[Any]):
    def __iter__(self) -> NoReturn:
        raise AssertionError("called")

    __len__ = __getitem__ = __iter__  # type: ignore[assignment]


class Mapped(dict[Any, Any]):
    def __iter__(self) -> NoReturn:
        raise AssertionError("called")

    __len__ = __getitem__ = keys = items = values = get = __iter__  # type: ignore[assignment]


Point = namedtuple("Point", "x y")


class Plan(enum.Enum):
    PRO = "pro"
    ODD = (1, {2})


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Account:
    name: str
    password: str


class Wrong(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta:
        raise RuntimeError("no offset")

    def dst(self, moment: datetime | None) -> timedelta:
        raise RuntimeError("no offset")

    def tzname(self, moment: datetime | None) -> str:
        raise RuntimeError("no name")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({1: "a"}, {"1": "a"}),
        ({None: 1, True: 2, 1.5: 3, False: 4}, {"null": 1, "true": 2, "1.5": 3, "false": 4}),
        ({(1, 2): 1}, {"<builtins.tuple>": 1}),
        ({b"k\xff": 1}, {"k�": 1}),
        ({Plan.PRO: 1, Colour.RED: 2, Level.HIGH: 3}, {"pro": 1, "red": 2, "3": 3}),
        ({Text("k"): 1, Number(7): 2}, {"k": 1, "7": 2}),
        ({date(2026, 1, 2): 1}, {"2026-01-02": 1}),
        ({2**70: 1}, {str(2**70): 1}),
        ({1: "int", "1": "str", 1.0 + 0.5: 0, "1.5": 1}, {"1": "int", "1#2": "str", "1.5": 0, "1.5#2": 1}),
        ({"1#2": "first", 1: "a", "1": "b"}, {"1#2": "first", "1": "a", "1#3": "b"}),
        (2**64, str(2**64)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        ([2**64 - 1, -(2**63)], [2**64 - 1, -(2**63)]),
        (10**10_000, "<int of 33220 bits>"),
        ("a\ud800b", "a�b"),
        ("\ud83d\ude00", "😀"),
        ({"\udc80": 1}, {"�": 1}),
        (b"caf\xc3\xa9 \xff", "café �"),
        (bytearray(b"ab"), "ab"),
        (memoryview(b"ab"), "ab"),
        ([math.nan, math.inf, -math.inf, 0.1], [None, None, None, 0.1]),
        ({1: math.nan}, {"1": None}),
        (datetime(2026, 1, 2, 3, 4, 5, 6, UTC), "2026-01-02T03:04:05.000006+00:00"),
        (datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=-5))), "2026-01-02T00:00:00-05:00"),
        (datetime(2026, 1, 2, tzinfo=Wrong()), "2026-01-02T00:00:00"),
        (clock_time(1, 2, tzinfo=Wrong()), "<datetime.time>"),
        (date(2026, 1, 2), "2026-01-02"),
        (clock_time(1, 2, 3), "01:02:03"),
        (timedelta(days=1, seconds=2), "1 day, 0:00:02"),
        (Decimal("1.10"), "1.10"),
        (Decimal("NaN"), "NaN"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ([uuid.UUID(int=1), Decimal(1)], ["00000000-0000-0000-0000-000000000001", "1"]),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        ({3}, [3]),
        (frozenset({"a"}), ["a"]),
        (deque([1, 2]), [1, 2]),
        ((1, (2, 3)), [1, [2, 3]]),
        (Point(1, {2}), [1, [2]]),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (collections.Counter("aa"), {"a": 2}),
        (types.MappingProxyType({"a": {1}}), {"a": [1]}),
        (types.MappingProxyType(Mapped(a=1)), {"a": 1}),  # type: ignore[arg-type]
        (types.MappingProxyType(UserDict(a=1)), "<builtins.mappingproxy>"),
        (Text("plain"), "plain"),
        (Text("\ud800"), "�"),
        (Number(5), 5),
        (Number(2**70), str(2**70)),
        (Real(1.5), 1.5),
        (Listed([1, Listed([2])]), [1, [2]]),
        (Mapped(a=Mapped(b=1)), {"a": {"b": 1}}),
        ([Plan.PRO, Plan.ODD, Colour.RED, Level.HIGH], ["pro", [1, [2]], "red", 3]),
        ([{1}, Plan.PRO, Colour.RED, Level.HIGH], [[1], "pro", "red", 3]),
        (ValueError("secret"), "<builtins.ValueError>"),
        (Account("anna", "hunter2"), "<test_encoding.Account>"),
        (object(), "<builtins.object>"),
        (print, "<builtins.builtin_function_or_method>"),
        (Account, "<builtins.type>"),
        (1j, "<builtins.complex>"),
        ((number for number in [1]), "<builtins.generator>"),
        ({"a": 1}.keys(), "<builtins.dict_keys>"),
        (UserDict(a=1), "<collections.UserDict>"),
        (None, None),
        (True, True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_awkward_value_is_written_as_the_nearest_json(value: object, written: object) -> None:
    """One odd value in extra must not cost the event, and its JSON must not suggest more than it means."""
    assert json.loads(encode(value, "event")) == written
    # Beside a value that forces the repair, and inside of containers, it is written the same way.
    assert json.loads(encode({1: [value]}, "event")) == {"1": [written]}


@pytest.fixture(autouse=True)
def _named_like_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The import mode decides what this module is called."""
    monkeypatch.setattr(Account, "__module__", "test_encoding")


def test_no_field_of_a_dataclass_reaches_the_bytes() -> None:
    """Encoders write dataclasses by themselves, with the password field."""
    account = Account("anna", "hunter2")
    for value in (account, [account], {"user": account}, {"user": {1: {account.name: account}}}):
        data = encode(value, "event")
        assert b"hunter2" not in data
        assert b"<test_encoding.Account>" in data


class Meta(type):
    """A metaclass whose every answer fails."""

    calls: ClassVar[list[str]] = []

    def __hash__(cls) -> int:
        Meta.calls.append("hash of the class")
        raise RuntimeError

    def __subclasscheck__(cls, other: type) -> bool:
        Meta.calls.append("subclasscheck")
        raise RuntimeError

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        Meta.calls.append("name")
        raise RuntimeError


class Hostile(metaclass=Meta):
    """An object whose methods all raise, and record the call."""

    def __getattribute__(self, name: str) -> NoReturn:
        Meta.calls.append(name)
        raise RuntimeError(name)

    def __hash__(self) -> int:
        return 1

    def __repr__(self) -> str:
        Meta.calls.append("repr")
        time.sleep(60)
        return "x" * 10**9

    def __iter__(self) -> NoReturn:
        Meta.calls.append("iter")
        raise RuntimeError

    __str__ = __repr__
    __len__ = __bool__ = __eq__ = __int__ = __float__ = __index__ = __fspath__ = __bytes__ = __iter__  # type: ignore[assignment]
    keys = items = __getitem__ = __call__ = __format__ = __reduce__ = __iter__  # type: ignore[assignment]


Hostile.__module__ = "app"


def test_no_method_of_an_unknown_object_is_called() -> None:
    """A `__repr__` that raises, sleeps, queries a database or returns a gigabyte costs a request nothing."""
    Meta.calls.clear()
    thing = Hostile()
    assert json.loads(encode({"a": thing, "b": [thing], thing: 1, 2: (thing,)}, "event")) == {
        "a": "<app.Hostile>",
        "b": ["<app.Hostile>"],
        "<app.Hostile>": 1,
        "2": ["<app.Hostile>"],
    }
    assert encode(thing, "event") == b'"<app.Hostile>"'
    assert Meta.calls == []


def test_a_class_may_have_an_odd_name() -> None:
    """Names are read past the metaclass, cut, and cleaned."""
    odd = type("Odd", (), {"__module__": 7, "__qualname__": "\ud800" + "n" * 1000})
    text = json.loads(encode(odd(), "event"))
    assert text.startswith("<?.�nnn")
    assert len(text) < 250


def test_an_enum_whose_value_was_replaced_by_another_member_is_named() -> None:
    """Following members from one to the next could go in a circle."""

    class Strange(enum.Enum):
        _value_: Any
        A = 1
        B = 2

    Strange.A._value_ = Strange.B
    Strange.B._value_ = Strange.A
    assert "Strange" in str(repair({1: Strange.A}, "event"))


def test_misbehaving_buffers_and_values_are_named() -> None:
    """A released buffer, a view of several dimensions, a subclass that fails."""
    released = memoryview(b"abc")
    released.release()
    assert encode(released, "event") == b'"<builtins.memoryview>"'
    square = memoryview(b"abcd").cast("B", (2, 2))
    assert encode([square], "event") == b'["abcd"]'

    class Identity(uuid.UUID):
        @property  # type: ignore[misc]
        def int(self) -> NoReturn:  # type: ignore[override]
            raise RuntimeError

    assert b"Identity" in encode(Identity.__new__(Identity), "event")


def test_cycles_are_cut_and_repeats_are_not() -> None:
    """A cycle is an object inside itself; the same object twice is two copies."""
    shared = {"k": {1}}
    loop: dict[str, Any] = {"name": "loop", "twice": [shared, shared]}
    loop["self"] = loop
    around: list[Any] = [1]
    around.append((around, {"loop": loop}))
    assert json.loads(encode(around, "event")) == [
        1,
        ["<cycle>", {"loop": {"name": "loop", "twice": [{"k": [1]}, {"k": [1]}], "self": "<cycle>"}}],
    ]


def test_nesting_of_ten_thousand_levels_is_cut() -> None:
    """Iterative: no recursion of ours to run out, and what stands above survives."""
    deep: Any = "bottom"
    for _ in range(10_000):
        deep = {"d": [deep]}
    data = encode({"first": 1, "deep": deep, "last": 2}, "event")
    assert json.loads(data)["first"] == 1
    assert json.loads(data)["last"] == 2
    assert b"<too deep>" in data
    assert data.count(b"[") <= encoding.MAX_DEPTH


def test_breadth_of_200_000_is_cut_and_the_rest_survives() -> None:
    """The wide part must not use up what the others need."""
    wide: list[Any] = [{i} for i in range(200_000)]
    event = {"wide": wide, "also": dict.fromkeys(range(200_000)), "event_id": {1: "kept"}}
    encoded: list[bytes] = []
    # The values beyond the bound cost nothing.
    assert steps(lambda: encoded.append(encode(event, "event"))) < 200 * 2 * encoding.MAX_BREADTH
    (data,) = encoded
    copy = json.loads(data)
    assert copy["event_id"] == {"1": "kept"}
    assert copy["wide"][-1] == "<truncated>"
    assert copy["also"]["<truncated>"] is True
    assert len(copy["wide"]) == len(copy["also"]) == encoding.MAX_BREADTH + 1
    assert len(data) < 1_000_000


@pytest.mark.parametrize("leaf", [{1}, 1, "\ud800"], ids=["a set", "a number", "a lone surrogate"])
@pytest.mark.parametrize("doublings", [16, 24, 60])
def test_the_number_of_nodes_is_bounded(
    leaf: object, doublings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doubling at each level, 2 ** 60 in all: the walk stops, and so do the looks at what might need none."""
    tree: Any = leaf
    for _ in range(doublings):
        tree = [tree, tree]
    looks: list[int] = []

    def counted(value: object, most: int) -> tuple[bytes | None, int]:
        part, nodes = encoder.dumps_within(value, most)
        looks.append(nodes)
        return part, nodes

    monkeypatch.setattr(encoding, "dumps_within", counted)
    data = encode({1: tree}, "event")
    assert b"<truncated>" in data or doublings == 16
    assert len(data) < 30 * encoding.MAX_NODES
    # The last look may begin with one node left, and ends within the level in which it finds too many.
    assert sum(looks) < 3 * encoding.MAX_LOOKS


def test_text_is_bounded() -> None:
    """A hundred megabytes in a value that needs repair are cut before they are copied around."""
    big = "x" * 100_000_000
    for value in ({1: big}, {1: [big, big]}, {1: big.encode()}, {1: {big: 1}}, {1: ["\ud800", big]}):
        data = encode(value, "event")
        assert len(data) < encoding.MAX_TEXT + 1000
        assert "…".encode() in data


def test_what_needs_no_repair_beside_what_does_is_kept_whole() -> None:
    """One odd key must not cost a millisecond: the clean parts are encoded as they are."""
    clean = [{"n": n, "text": "é"} for n in range(1000)]
    assert encode({1: clean}, "event") == b'{"1":' + encoder.dumps(clean) + b"}"


def test_a_container_that_never_holds_still_is_a_seal_error_with_its_path() -> None:
    """The captured value must be one state of the container; the log line names the place, not the value."""

    class Restless:
        """Changes the dict whenever a member is compared, so every reading of it is interrupted."""

    held: dict[str, Any] = {"k": 1}

    def never_still(source: dict[str, Any]) -> Any:
        for pair in dict.items(source):
            yield pair
            source[str(len(source))] = Restless()

    walk = encoding._Repair("event")
    assert walk._copy({"extra": {"order": [1, {2}]}}, None, None) == {}
    task = encoding._OpenContainer(held, never_still, {}, None, None)
    with pytest.raises(SealError) as caught:
        walk._members(
            encoding._OpenContainer(
                held, never_still, {}, encoding._OpenContainer({}, iter, {}, task, "a"), 3
            )
        )
    assert caught.value.path == "event.a[3]"
    assert "another thread" in caught.value.detail


def test_values_changed_by_another_thread_are_sealed_or_refused_and_nothing_else() -> None:
    """Request threads share breadcrumb lists and context dicts; a capture never raises for it."""
    shared: dict[Any, Any] = {"n": {}, "list": [], 1: {2}}
    stop = threading.Event()
    started = threading.Event()

    def churn() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            shared[turn % 50] = {turn}
            shared.pop((turn + 25) % 50, None)
            shared["n"][str(turn % 90)] = turn
            shared["n"].pop(str((turn + 40) % 90), None)
            shared["list"].append({turn})
            if len(shared["list"]) > 100:
                shared["list"].clear()
            started.set()

    threads = [threading.Thread(target=churn, daemon=True) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        assert started.wait(SOON)
        sealed = 0
        for _ in range(500):
            try:
                sealed += isinstance(json.loads(encode(shared, "event")), dict)
            except SealError as error:
                assert error.path.startswith("event")  # noqa: PT017
        assert sealed > 400
    finally:
        stop.set()
        for thread in threads:
            thread.join(SOON)
        sys.setswitchinterval(interval)


def test_an_enum_near_the_recursion_limit_does_not_kill_the_process() -> None:
    """The encoder crashes when reading an Enum's value raises; captures of a RecursionError are that deep."""
    code = """
import enum
from transport_kit.envelope.encoding import encode

class Plan(enum.Enum):
    PRO = 1

plain = {"plan": [Plan.PRO]}
odd = {1: 2, "plan": {3: {4: [Plan.PRO]}}}
sealed = refused = 0

def down(levels):
    global sealed
    if levels:
        down(levels - 1)
    else:
        encode(plain, "event")
        encode(odd, "event")
        sealed += 1

for levels in range(880, 1000):
    try:
        down(levels)
    except Exception:
        refused += 1
assert sealed > 20 and refused > 4, (sealed, refused)
print("alive")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


def test_an_unexpected_failure_names_its_class_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception's text could hold the very value that must stay in."""

    def fail(value: object, path: str) -> NoReturn:
        raise MemoryError("hunter2")

    monkeypatch.setattr(encoding, "repair", fail)
    with pytest.raises(SealError) as caught:
        encode({1: 2}, "event")
    assert str(caught.value) == "can't seal event: can't be written as JSON (MemoryError)"
    assert caught.value.__suppress_context__


@given(st.text(st.characters()))
def test_cleaning_leaves_text_alone_and_makes_the_rest_encodable(text: str) -> None:
    """Only surrogates change."""
    cleaned = clean_text(text)
    cleaned.encode()
    if not any("\ud800" <= char <= "\udfff" for char in text):
        assert cleaned == text


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.integers() | st.text(st.characters()) | st.none() | st.binary(), inner)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@given(json_like)
def test_everything_that_looks_like_json_can_be_encoded(value: object) -> None:
    """No value reaches the caller as an exception, and a valid one is what the encoder alone would write."""
    data = encode(value, "event")
    encoder.loads(data)
    assert b"\n" not in data
    assert encoder.dumps(repair(value, "event")) == data
