"""The format of segments: records are read back as written, and damage is never read as an envelope."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.spool_support import NAME, SALT, event, log_entry, read_all, reader, record, segment, session
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.item import Item
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.queues.spool.records import (
    envelope_of,
    envelope_record,
    event_id_in_head,
    losses_of,
    losses_record,
    quantities_of,
)
from transport_kit.queues.spool.segments import (
    FIXED_BYTES,
    HEADER_BYTES,
    WINDOW,
    Gap,
    Reader,
    Record,
    Salt,
    SegmentName,
    explain,
    is_newer_version,
    segment_header,
)

ENVELOPES = [event(1), session(2), log_entry(3), event(4, "x" * 3000), event(5, "ü" * 50), event(6)]
WHOLE = segment(ENVELOPES)
WRITTEN = [sealed.serialize() for sealed in ENVELOPES]
RECORDS = [part for part in read_all(WHOLE) if isinstance(part, Record)]


def bodies(data: bytes) -> list[bytes]:
    return [envelope_of(p.head, p.body).serialize() for p in read_all(data) if isinstance(p, Record)]


def test_what_is_written_is_read_back_with_all_its_facts() -> None:
    """A reader does not parse envelopes, so each fact must be in the head."""
    assert bodies(WHOLE) == WRITTEN
    for written, found in zip(ENVELOPES, RECORDS, strict=True):
        again = envelope_of(found.head, found.body)
        assert again.event_id == written.event_id == event_id_in_head(found.head)
        assert again.quantities == written.quantities == quantities_of(found.head)
        assert (again.priority, again.ordered, again.repeatable, again.size) == (
            written.priority,
            written.ordered,
            written.repeatable,
            written.size,
        )
        assert found.rank == envelope_record(written)[0]


def test_heads_alone_can_be_walked_without_reading_bodies() -> None:
    """Counting the losses of an eviction must not read hundreds of megabytes."""
    found = read_all(WHOLE, bodies=False)
    assert [part.offset for part in found] == [part.offset for part in RECORDS]
    assert all(isinstance(part, Record) and part.body == b"" for part in found)


def test_an_envelope_of_many_items_and_one_without_any_survive() -> None:
    """The parts of one write are limited in number; an envelope may have more items."""
    many = Envelope()
    for number in range(900):
        many.add_item(Item(b"x" * number, type="attachment", filename=str(number)))
    for sealed in (many.seal(), SealedEnvelope.empty(b"{}")):
        (found,) = read_all(segment([sealed]))
        assert isinstance(found, Record)
        assert envelope_of(found.head, found.body).serialize() == sealed.serialize()
        assert len(envelope_record(sealed)[2]) < 600


def test_a_large_event_is_written_from_where_it_lies_with_its_attachments() -> None:
    """Copying the payloads would take a capture longer than the rest of the record."""
    envelope = Envelope.event({"message": "x" * 9000})
    for size in (10, 70_000):
        envelope.add_attachment(b"a" * size, filename="a")
    sealed = envelope.seal()
    _, _, parts, length = envelope_record(sealed)
    assert all(any(part is item.payload for part in parts) for item in sealed.items)
    assert b"".join(parts) == sealed.serialize()
    assert length == sealed.size


def test_a_name_says_class_age_and_salt_and_nothing_else_is_a_name() -> None:
    """Other files in the directory are never read, changed or removed."""
    assert SegmentName.parse(str(NAME)) == NAME
    for text in ("", "4-1-1-00.log", str(NAME) + ".ack", "5" + str(NAME)[1:], "." + str(NAME), "x"):
        assert SegmentName.parse(text) is None


def test_a_later_version_is_recognised_and_a_damaged_header_is_not_taken_for_one() -> None:
    """Two versions can be used side by side; a flipped bit in a header costs nothing."""
    header = segment_header(NAME)
    later = bytearray(header[:-4])
    later[8] = 2
    assert is_newer_version(bytes(later) + zlib.crc32(later).to_bytes(4, "little"))
    assert not is_newer_version(header)
    assert not is_newer_version(bytes(later) + header[-4:])
    assert not is_newer_version(header[:-1])
    assert len(header) == HEADER_BYTES
    damaged = bytes(HEADER_BYTES) + WHOLE[HEADER_BYTES:]
    assert bodies(damaged) == WRITTEN


@given(at=st.integers(0, len(WHOLE) - 1), mask=st.integers(1, 255))
def test_a_flipped_byte_costs_one_record_and_never_yields_a_corrupt_one(at: int, mask: int) -> None:
    """Damage costs no other record, and is counted."""
    data = bytearray(WHOLE)
    data[at] ^= mask
    found = read_all(bytes(data))
    intact = [part for part in found if isinstance(part, Record)]
    gaps = [part for part in found if isinstance(part, Gap)]
    assert all(envelope_of(part.head, part.body).serialize() in WRITTEN for part in intact)
    assert len(intact) + len(gaps) == len(WRITTEN)
    assert len(gaps) == (at >= HEADER_BYTES)


@given(at=st.integers(0, len(WHOLE)))
def test_a_truncation_costs_the_record_that_is_cut(at: int) -> None:
    """A killed writer leaves an incomplete record at the end; all records before it are intact."""
    found = read_all(WHOLE[:at])
    intact = [part for part in found if isinstance(part, Record)]
    assert [part.offset for part in intact] == [part.offset for part in RECORDS if part.end <= at]
    gaps = [part for part in found if isinstance(part, Gap)]
    assert len(gaps) <= 1
    assert all(gap.incomplete and gap.end == at for gap in gaps)


@given(st.data())
def test_what_is_cut_out_or_overwritten_costs_what_it_touches_and_one_more(data: st.DataObject) -> None:
    """Damage yields no corrupt envelope, and costs at most the touched records and one neighbour."""
    begin = data.draw(st.integers(HEADER_BYTES, len(WHOLE)))
    end = data.draw(st.integers(begin, min(begin + 400, len(WHOLE))))
    instead = data.draw(st.binary(max_size=200) | st.just(bytes(end - begin)))
    hit = WHOLE[:begin] + instead + WHOLE[end:]
    found = read_all(hit)
    intact = [envelope_of(p.head, p.body).serialize() for p in found if isinstance(p, Record)]
    touched = [record for record in RECORDS if record.end > begin and record.offset < end]
    assert all(body in WRITTEN for body in intact)
    assert len(intact) >= len(WRITTEN) - len(touched) - 1


@pytest.mark.parametrize("seed", range(20))
def test_noise_and_zeros_are_gaps(seed: int) -> None:
    """After a loss of power a file may end with zeros or old blocks."""
    noise = random.Random(seed).randbytes(5000) if seed else bytes(5000)
    found = read_all(WHOLE + noise)
    assert len([part for part in found if isinstance(part, Record)]) == len(WRITTEN)
    assert isinstance(found[-1], Gap)
    assert found[-1].end == len(WHOLE) + 5000


def test_request_data_can_not_pose_as_a_record() -> None:
    """A body may contain the bytes of a record; with another salt they are not read as one."""
    foreign = record(event(66), salt=b"\xff" * 8)
    bait = Envelope.event({"event_id": f"{7:032x}"})
    bait.add_attachment(foreign * 5, filename="bait")
    data = bytearray(segment([bait.seal(), event(8)]))
    data[HEADER_BYTES + 2] ^= 1
    found = read_all(bytes(data))
    assert [type(part) for part in found] == [Gap, Record]
    assert event_id_in_head(found[1].head) == f"{8:032x}"  # type: ignore[arg-type]


def test_a_growing_file_is_waited_for_and_judged_only_when_something_follows() -> None:
    """The drainer reads live files: an incomplete record is no damage while its writer may be writing it."""
    first, second = record(event(1)), record(event(2))
    data = segment_header(NAME) + first[:-10]
    walking = reader(data)
    assert walking.next(final=False) is None
    assert walking.next(final=False) is None
    whole = data + second
    walking = reader(whole)
    gap = walking.next(final=False)
    assert gap == Gap(HEADER_BYTES, HEADER_BYTES + len(first) - 10, True, gap.head)  # type: ignore[union-attr]
    assert isinstance(walking.next(final=False), Record)
    assert walking.next(final=False) is None


def test_a_reader_follows_a_file_that_grows() -> None:
    """The bytes read ahead must not hide those written since."""
    data = bytearray(segment([event(1)]))
    walking = reader(b"")
    walking._read = lambda size, at: bytes(data[at : at + size])
    walking.size = len(data)
    assert isinstance(walking.next(final=False), Record)
    assert walking.next(final=False) is None
    begin = walking.offset
    data += record(event(2))
    walking.size = len(data) - 3
    assert walking.next(final=False) is None
    walking.size = len(data)
    assert isinstance(walking.next(final=False), Record)
    assert isinstance(walking.at(begin), Record)
    assert walking.at(begin + 1) is None
    data[-5] ^= 1
    walking._window = b""
    assert walking.at(begin) is None


@pytest.mark.parametrize("before", range(-12, 12))
def test_a_record_is_found_across_the_border_of_what_is_read_at_once(before: int) -> None:
    """The search reads chunks; the mark may lie across two of them."""
    data = segment_header(NAME) + b"\x01" * (WINDOW + before) + record(event(9))
    found = read_all(data)
    assert [type(part) for part in found] == [Gap, Record]


@pytest.mark.parametrize(("step", "least"), [(1, 7), (WINDOW, 5), (3 * WINDOW + 5, 4), (10 * WINDOW, 1)])
def test_a_long_search_is_done_in_steps(step: int, least: int) -> None:
    """The caller holds a lock, so a search must pause; the result is the same."""
    data = segment_header(NAME) + b"\x01" * (4 * WINDOW) + Salt.of(SALT).mark * 3 + record(event(9))
    walking = Reader(lambda size, at: data[at : at + size], SALT, size=len(data), step=step)
    found, steps = [], 0
    while (part := walking.next(final=True)) is not None or walking.searching:
        if part is not None:
            found.append(part)
        steps += walking.searching
    assert found == read_all(data)
    assert least <= steps <= 9


def test_a_search_in_steps_sees_a_head_that_was_incomplete_when_it_passed() -> None:
    """A head that reached beyond the end of a live file is looked at again after the file has grown."""
    data = bytearray(segment_header(NAME) + b"\x01" * (2 * WINDOW))
    walking = Reader(lambda size, at: bytes(data[at : at + size]), SALT, step=WINDOW)
    whole = record(event(9))
    data += whole[: FIXED_BYTES + 3]
    walking.size = len(data)
    while walking.next(final=False) is not None or walking.searching:
        pass
    data += whole[FIXED_BYTES + 3 :]
    walking.size = len(data)
    while (gap := walking.next(final=False)) is None:
        assert walking.searching
    assert isinstance(gap, Gap)
    assert isinstance(walking.next(final=False), Record)


def test_a_hole_is_not_read() -> None:
    """A sparse file may be larger than the disk, and its zeros contain no record."""
    last = record(event(9))
    far = 1 << 60

    def read(size: int, at: int) -> bytes:
        assert at < 4096 or at >= far
        return b"\x01" * size if at < far else last[at - far : at - far + size].ljust(size, b"\0")

    def data(at: int) -> int | None:
        return at if at < 4096 or far <= at < far + len(last) else far if at < far else None

    walking = Reader(read, SALT, size=1 << 61, data=data)
    assert walking.next(final=True) == Gap(HEADER_BYTES, far, incomplete=False)
    assert isinstance(walking.next(final=True), Record)
    assert walking.next(final=True) == Gap(far + len(last), 1 << 61, incomplete=False)
    assert walking.next(final=True) is None


def test_lengths_beyond_the_file_are_not_believed() -> None:
    """A length may be forged: nothing is allocated before it is checked."""
    good = record(event(1))
    for field in (12, 16):
        bad = bytearray(good)
        bad[field : field + 4] = b"\xff\xff\xff\xff"
        (gap,) = read_all(segment_header(NAME) + bytes(bad))
        assert isinstance(gap, Gap)
        assert gap.head is None
    for wrong in (8, 10, 11):
        bad = bytearray(good)
        bad[wrong] = 9
        assert isinstance(read_all(segment_header(NAME) + bytes(bad))[0], Gap)


HEADS = [
    b"",
    b"{}",
    b"[]",
    b"[null,2]",
    b"[null,2,{}]",
    b"[1,2,[]]",
    b"[null,-1,[]]",
    b"[null,true,[]]",
    b"[null,2,[[]]]",
    b'[null,2,[["event",1,1,null,0]]]',
    b'[null,2,[["event",1,1,null,[["error"]]]]]',
    b'[null,2,[["event",1,1,7,[]]]]',
    b"[null,2,[[1,1,1,null,[]]]]",
    b'[null,2,[["event",1,99999999999999999,null,[]]]]',
    b"[" * 2000,
]


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_is_not_ours_is_refused(head: bytes) -> None:
    """A forged head may have valid checksums; it must not harm the drainer."""
    with pytest.raises(ValueError, match=r"."):
        envelope_of(head, b"{}\n")
    assert quantities_of(head) == ()
    assert event_id_in_head(head) is None


def test_a_head_that_does_not_fit_its_body_is_refused() -> None:
    """Lengths must add up to the body exactly."""
    sealed = event(1)
    _, head, parts, _ = envelope_record(sealed)
    body = b"".join(parts)
    assert envelope_of(head, body).serialize() == sealed.serialize()
    for wrong in (b"", body[:-1], body + b"x", b"x" * len(body), body[:-1] + b"x"):
        with pytest.raises(ValueError, match=r"fit|more"):
            envelope_of(head, wrong)


def test_losses_come_back_and_what_is_no_loss_does_not() -> None:
    """Loss counts are sent to the server, so they are validated when read."""
    report = (("queue_overflow", "error", 3), ("network_error", "session", 1))
    assert losses_of(losses_record(report)) == report
    for wrong in (b"", b"{}", b"[1]", b"[[1,2]]", b'[["a","b",-1]]', b'[["a",1,1]]', b'[["a","b",true]]'):
        with pytest.raises(ValueError, match=r"."):
            losses_of(wrong)


def test_the_salt_decides_about_every_record() -> None:
    """The same bytes under another file name contain no records."""
    other = segment_header(NAME) + b"".join(record(sealed, salt=b"\0" * 8) for sealed in ENVELOPES)
    assert not [part for part in read_all(other) if isinstance(part, Record)]
    assert FIXED_BYTES == 36
    assert len(SALT) == 8


def changed(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("data", "gap", "said"),
    [
        (b"\x01" * (FIXED_BYTES - 1), Gap(0, FIXED_BYTES - 1, False), "35 bytes, less than any record"),
        (b"\x01" * FIXED_BYTES, Gap(0, FIXED_BYTES, False), "36 bytes that do not begin as a record does"),
        (record(event(1), salt=bytes(8)), Gap(0, 400, False), "a record with the mark of another segment"),
        (record(event(1)), Gap(0, 100, True), "of which 100 are there: never written to its end"),
        (changed(record(event(1)), 8, 2), Gap(0, 400, False), "first bytes make no sense"),
        (changed(record(event(1)), 10, 5), Gap(0, 400, False), "first bytes make no sense"),
        (changed(record(event(1)), 11, 1), Gap(0, 400, False), "first bytes make no sense"),
        (changed(record(event(1)), 14, 17), Gap(0, 400, False), "first bytes make no sense"),
        (changed(record(event(1)), 20, 1), Gap(0, 400, False), "its first 36 bytes or its head are damaged"),
        (record(event(1)), Gap(0, 400, False, b"head"), "its body is damaged"),
    ],
)
def test_a_gap_is_explained_by_its_first_bytes(data: bytes, gap: Gap, said: str) -> None:
    """Whoever looks at a damaged file must know whether a writer, a disk or a person was at it."""
    assert said in explain(lambda size, at: data[at : at + size], SALT, gap)


def test_the_length_of_a_record_that_was_never_written_to_its_end_is_known() -> None:
    """What is missing says how large the envelope was that its app failed to write."""
    for size in range(64):
        data = record(event(1, "x" * size))
        said = explain(lambda size, at, data=data: data[at : at + size], SALT, Gap(0, 50, True))  # type: ignore[misc]
        assert said.startswith(f"a record of {len(data)} bytes of which 50 are there")


def rechecked(data: bytes, at: int, value: int) -> bytes:
    """Return a record with one of its first 28 bytes changed and both checksums made to fit."""
    head_length = int.from_bytes(data[12:16], "little")
    start = changed(data[:28], at, value)
    head, body = data[FIXED_BYTES : FIXED_BYTES + head_length], data[FIXED_BYTES + head_length :]
    head_check = zlib.crc32(head, zlib.crc32(start, Salt.of(SALT).seed))
    body_check = zlib.crc32(body, head_check)
    return start + head_check.to_bytes(4, "little") + body_check.to_bytes(4, "little") + head + body


@pytest.mark.parametrize(("at", "value"), [(8, 2), (10, 5), (11, 1)])
def test_a_record_whose_first_bytes_are_impossible_is_a_gap(at: int, value: int) -> None:
    """Its version, its class or its reserved byte: even with a fitting checksum it was not written by us."""
    data = record(event(1))
    assert rechecked(data, at, data[at]) == data
    found = read_all(segment_header(NAME) + rechecked(data, at, value) + record(event(2)))
    assert isinstance(found[0], Gap)
    assert [part.offset for part in found if isinstance(part, Record)] == [HEADER_BYTES + len(data)]


def test_a_last_record_with_a_damaged_head_is_not_incomplete() -> None:
    """All its bytes are there: a disk damaged it, and its writer was not killed while writing it."""
    data = segment([event(1)])
    found = read_all(changed(data, HEADER_BYTES + FIXED_BYTES, data[HEADER_BYTES + FIXED_BYTES] ^ 1))
    assert found == [Gap(HEADER_BYTES, len(data), incomplete=False)]


@pytest.mark.parametrize("size", range(0, 300, 7))
def test_a_record_that_is_cut_within_its_head_is_incomplete(size: int) -> None:
    """Its length is in its first bytes, whatever they and its offset add up to."""
    first, second = event(1, "x" * size), event(2)
    begin = HEADER_BYTES + len(record(first))
    end = begin + FIXED_BYTES + 1
    gap = read_all(segment([first, second])[:end])[-1]
    assert isinstance(gap, Gap)
    assert (gap.offset, gap.end, gap.incomplete) == (begin, end, True)
