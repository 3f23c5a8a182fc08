"""The strict parser: the protocol's vectors, hostile input, and malformed headers."""

from __future__ import annotations

import base64
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.timing import growth
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.item import Item
from transport_kit.envelope.parsing import MAX_HEADER_BYTES, MAX_HEADERS_BYTES
from transport_kit.runtime.errors import InvalidEnvelope

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "data" / "envelope_vectors.json").read_text()
)["vectors"]
VALID = [vector for vector in VECTORS if vector["expect"]["ok"]]
INVALID = [vector for vector in VECTORS if not vector["expect"]["ok"]]


def _fault(data: bytes, **limits: int) -> InvalidEnvelope:
    with pytest.raises(InvalidEnvelope) as caught:
        Envelope.deserialize(data, **limits)
    return caught.value


@pytest.mark.parametrize("vector", VALID, ids=lambda vector: vector["id"])
def test_a_valid_vector_is_parsed_and_written_canonically(vector: dict[str, Any]) -> None:
    """Headers and payloads are kept byte for byte, and every receiver parses the output in the same way."""
    data = base64.b64decode(vector["input_b64"])
    envelope = Envelope.deserialize(data)
    assert envelope.headers == vector["expect"]["headers"]
    assert [(item.headers, item.get_bytes()) for item in envelope] == [
        (item["headers"], base64.b64decode(item["payload_b64"])) for item in vector["expect"]["items"]
    ]
    assert envelope.serialize() == base64.b64decode(vector["canonical_b64"])
    if vector["byte_exact"]:
        assert envelope.serialize() == data
    if vector.get("validate") is False:
        with pytest.raises(InvalidEnvelope):
            envelope.validate()


@pytest.mark.parametrize("vector", INVALID, ids=lambda vector: vector["id"])
def test_an_invalid_vector_is_refused_for_its_reason(vector: dict[str, Any]) -> None:
    """A receiver would answer 400 to damaged bytes, and lose the whole envelope."""
    data = base64.b64decode(vector["input_b64"])
    fault = _fault(data)
    assert fault.reason in [vector["expect"]["error"], *vector.get("alt_errors", ())]
    assert 0 <= fault.offset <= len(data)


@pytest.mark.parametrize(
    ("data", "reason", "offset"),
    [
        (b"", "empty", 0),
        (b"[]", "envelope_header", 0),
        (b'{}\n{"type":"x","length":4}\nab', "truncated", 27),
        (b'{}\n{"type":"x","length":4}', "truncated", 26),
        (b'{}\n{"type":"x","length":1}\nab', "unterminated", 28),
        (b'{}\n{"type":"x","length":1}\na\n\n', "item_header", 29),
        (b'{}\n{"type":"x","length":1}\na\n{"type":1}\n', "item_header", 29),
    ],
)
def test_an_error_names_the_byte_where_the_fault_begins(data: bytes, reason: str, offset: int) -> None:
    """The offset is needed to debug a corrupt spool or tunnel."""
    fault = _fault(data)
    assert (fault.reason, fault.offset) == (reason, offset)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":' + b"9" * 400 + b"}",
        b'{"a":"\\ud800"}',
        b'{"\\udc00":1}',
        b'{"a":["\\ud83d"]}',
        b"\xef\xbb\xbf{}",
        b'{"a":"\xff"}',
        b'{"a":"\x01"}',
        b"{}{}",
        b"{},{}",
        b"{}\r",
        b"\r{}",
        b"\t{}",
        b"{} ",
        b"{",
        b"{'a':1}",
        b"[{}]",
        b'"{}"',
        b"null",
        b'{"sent_at":1,"sent_at":1}',
        b'{"event_id":null,"event\\u005fid":null}',
        b'{"trace":{},"trace":{}}',
        b'{"sdk":{},"sdk":{}}',
        b'{"dsn":"","dsn":""}',
        b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_only_looks_like_a_header_is_refused(header: bytes) -> None:
    """The typed parsers of receivers refuse each of these, and the whole envelope with it."""
    assert _fault(header + b"\n").reason == "envelope_header"


@pytest.mark.parametrize(
    "item",
    [
        b'{"type":"x","type":"x"}',
        b'{"type":"x","length":1,"length":1}',
        b'{"type":"x","filename":"a","filename":"b"}',
        b'{"type":null}',
        b'{"type":["event"]}',
        b'{"length":0}',
        b'{"type":"x","length":"1"}',
        b'{"type":"x","length":1.0}',
        b'{"type":"x","length":-0}',
        b'{"type":"x","length":4294967296}',
        b'{"type":"x","length":99999999999999999999999}',
        b'{"type":"x","length":false}',
        b'{"type":"x","length":{}}',
    ],
)
def test_a_malformed_item_header_is_refused(item: bytes) -> None:
    """A parser that guessed a length would swallow the following items."""
    fault = _fault(b"{}\n" + item + b"\na\n")
    assert (fault.reason, fault.offset) == ("item_header", 3)


def test_what_receivers_tolerate_in_a_header_is_kept() -> None:
    """Repeated unknown names, surrogate pairs, white space, null and large numbers are legal."""
    envelope = Envelope.deserialize(
        b'{ "x" : 1, "x" : 2, "face":"\\ud83d\\ude00", "n":{"sent_at":1,"sent_at":2},'
        b'\r "big":18446744073709551615 }\n'
        b'{"type":"x","length":null,"float":123456789012345678901234567890}\nab\r\n'
    )
    assert envelope.headers == {"x": 2, "face": "😀", "n": {"sent_at": 2}, "big": 2**64 - 1}
    (item,) = envelope
    assert item.headers == {"type": "x", "length": None, "float": 123456789012345678901234567890.0}
    assert item.get_bytes() == b"ab\r"
    assert Envelope.deserialize(envelope.serialize()).headers == envelope.headers


def test_an_item_header_at_the_end_of_input_is_an_empty_item() -> None:
    """Some clients write no newline after an empty payload."""
    for ending in (
        b'{"type":"x"}',
        b'{"type":"x"}\n',
        b'{"type":"x","length":0}',
        b'{"type":"x","length":0}\n',
    ):
        (item,) = Envelope.deserialize(b"{}\n" + ending)
        assert item.get_bytes() == b""


def _peak(data: bytes) -> tuple[InvalidEnvelope, int]:
    tracemalloc.start()
    try:
        fault = _fault(data)
        return fault, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_length_of_four_gigabytes_allocates_nothing() -> None:
    """A header must not determine the memory that a receiver uses."""
    fault, peak = _peak(b'{}\n{"type":"attachment","length":4294967295}\nx\n')
    assert (fault.reason, fault.offset) == ("truncated", 45)
    assert peak < 100_000


def test_a_header_of_a_hundred_megabytes_is_refused_unread() -> None:
    """Its length suffices to refuse it; it is neither copied nor decoded."""
    fault, peak = _peak(b'{"a":"' + b"x" * 100_000_000 + b'"}\n')
    assert (fault.reason, fault.offset) == ("envelope_header", 0)
    assert peak < 100_000
    fault, peak = _peak(b'{}\n{"type":"x","a":"' + b"x" * 100_000_000)
    assert (fault.reason, fault.offset) == ("item_header", 3)
    assert peak < 100_000


def test_a_header_line_may_have_a_mebibyte_and_not_a_byte_more() -> None:
    """The documented bound."""
    line = b'{"a":"' + b"x" * (MAX_HEADER_BYTES - 8) + b'"}'
    assert len(line) == MAX_HEADER_BYTES
    assert Envelope.deserialize(line).headers["a"]
    assert _fault(line[:-2] + b'x"}').reason == "envelope_header"
    assert _fault(line[:-2] + b'x"}\n').reason == "envelope_header"


def test_headers_are_bounded_in_sum() -> None:
    """Small JSON values take twenty times their bytes as Python objects, and many long lines would add up."""
    line = b'{"type":"x","length":0,"a":[' + b",".join([b"[]"] * 300_000) + b"]}\n\n"
    fault, peak = _peak(b"{}\n" + line * 40)
    assert fault.reason == "item_header"
    assert fault.offset == 3 + len(line) * (fault.offset // len(line))
    assert fault.offset <= MAX_HEADERS_BYTES
    assert peak < 40 * MAX_HEADERS_BYTES


def test_a_million_items_stop_at_the_bound() -> None:
    """Item 1001 is refused before the rest is parsed."""
    data = b"{}\n" + b'{"type":"x","length":0}\n\n' * 1_000_000
    fault, peak = _peak(data)
    assert (fault.reason, fault.offset) == ("too_many_items", 3 + 1000 * 25)
    assert peak < 2_000_000
    assert len(Envelope.deserialize(data[: 3 + 2000 * 25], max_items=2000).items) == 2000


def test_parsing_takes_linear_time() -> None:
    """Ten times the items may take about ten times as long, not a hundred."""

    def parse(items: int) -> Callable[[], object]:
        data = b"{}\n" + b'{"type":"x"}\n' + b"y" * 1000 + b"\n"
        data += b'{"type":"x","length":1000}\n' + b"y" * 1000 + b"\n"
        data = b"{}\n" + data[3:] * items
        return lambda: Envelope.deserialize(data, max_items=100_000)

    assert growth(parse(500), parse(5000)) < 40


def test_a_stream_is_read_to_a_bound() -> None:
    """A socket's file may never end."""
    data = b'{}\n{"type":"x","length":3}\nabc\n'
    assert Envelope.deserialize_from(io.BytesIO(data)).items[0].get_bytes() == b"abc"
    assert Envelope.deserialize_from(io.BytesIO(data), max_bytes=len(data)).items
    with pytest.raises(InvalidEnvelope) as caught:
        Envelope.deserialize_from(io.BytesIO(data), max_bytes=len(data) - 1)
    assert (caught.value.reason, caught.value.offset) == ("too_large", len(data) - 1)


def test_any_buffer_can_be_parsed() -> None:
    """Spools and servers have different buffer types."""
    for data in (bytearray(b"{}\n"), memoryview(b"{}\n")):
        assert Envelope.deserialize(data).headers == {}


json_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | json_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(json_text, inner, max_size=4),
    max_leaves=10,
)
header_dicts = st.dictionaries(json_text, json_values, max_size=5)


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    envelope = Envelope(draw(header_dicts))
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["attachment", "x", "", "event\n", "log"]))
        envelope.add_item(Item(draw(st.binary(max_size=50)), type=kind, headers=draw(header_dicts)))
    return envelope


@given(envelopes())
def test_parsing_gives_back_what_was_serialised(envelope: Envelope) -> None:
    """Payloads may contain newlines, braces, or half an envelope."""
    data = envelope.serialize()
    parsed = Envelope.deserialize(data)
    assert parsed.headers == envelope.headers
    assert [(item.type, item.get_bytes()) for item in parsed] == [
        (item.type, item.get_bytes()) for item in envelope
    ]
    for before, after in zip(envelope, parsed, strict=True):
        assert {**before.headers, "length": len(before.get_bytes())} == after.headers
    assert parsed.serialize() == data
    file = io.BytesIO()
    parsed.serialize_into(file)
    assert file.getvalue() == data


@given(
    st.binary(max_size=80)
    | st.lists(
        st.sampled_from(
            [
                b"{}",
                b"\n",
                b"\r",
                b" ",
                b'{"type":"x"}',
                b'{"type":"x","length":2}',
                b"ab",
                b'"',
                b"{",
                b"\xff",
            ]
        )
    ).map(b"".join)
)
def test_no_input_does_anything_but_parse_or_raise_the_documented_error(data: bytes) -> None:
    """Input from a disk or a socket is hostile."""
    fault = None
    try:
        parsed = Envelope.deserialize(data)
    except InvalidEnvelope as error:
        fault = error
    if fault is None:
        assert Envelope.deserialize(parsed.serialize()).serialize() == parsed.serialize()
    else:
        assert 0 <= fault.offset <= len(data)
        assert str(fault.offset) in str(fault)
