"""The receiver's store: bounds, restarts, foreign files; and the clock of faults."""

from __future__ import annotations

import sqlite3
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.receiver_support import KEY
from tests.timing import SOON
from transport_kit.envelope.item import Item
from transport_kit.receiver import Faults, Store
from transport_kit.receiver.faults import RateLimit
from transport_kit.runtime.errors import OptionsError


def add(store: Store, size: int = 10, event_id: str | None = None, **record: Any) -> int:
    return store.add(event_id=event_id, key=KEY, record=record, body=bytes(size))


def numbers(store: Store) -> list[int]:
    return [record["n"] for record in store.latest()]


def test_the_oldest_envelopes_make_room_by_count() -> None:
    """A forgotten receiver must not fill the memory."""
    with Store(max_envelopes=3) as store:
        for _ in range(5):
            add(store)
        assert numbers(store) == [5, 4, 3]
        assert store.totals() == (3, 30)
        assert store.by_number(2) is None


def test_the_oldest_envelopes_make_room_by_bytes_and_the_newest_always_stays() -> None:
    """A bound on the number alone does not bound large envelopes."""
    with Store(max_bytes=100) as store:
        for size in (40, 40, 40):
            add(store, size)
        assert numbers(store) == [3, 2]
        add(store, 1000)
        assert numbers(store) == [4]
        assert store.totals() == (1, 1000)


def test_a_file_keeps_envelopes_and_bounds_across_restarts(tmp_path: Path) -> None:
    """With `--store FILE` yesterday's errors are readable, and numbers continue."""
    path = tmp_path / "events.db"
    with Store(path, max_envelopes=2) as store:
        add(store, 5, event_id="a" * 32, title="first")
        add(store, 7, title="second")
    with Store(path, max_envelopes=2) as store:
        stored = store.by_event_id("a" * 32)
        assert stored is not None
        assert (stored.n, stored.record, stored.key, stored.body) == (
            1,
            {"n": 1, "title": "first"},
            KEY,
            bytes(5),
        )
        assert add(store, 1) == 3
        assert numbers(store) == [3, 2]
        assert store.totals() == (2, 8)


def test_two_receivers_may_share_a_file(tmp_path: Path) -> None:
    """If started twice by mistake, both observe the bounds."""
    path = tmp_path / "events.db"
    with Store(path, max_envelopes=3) as one, Store(path, max_envelopes=3) as other:
        for _ in range(3):
            add(one)
            add(other)
        assert numbers(one) == numbers(other) == [6, 5, 4]
        assert one.totals() == (3, 30)


def test_a_new_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    """Reports contain user input; the umask has no influence."""
    path = tmp_path / "events.db"
    with Store(path) as store:
        add(store)
        for file in tmp_path.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_the_newest_of_several_with_one_event_id_is_found() -> None:
    """Duplicates are stored, as developers look for them."""
    with Store() as store:
        for _ in range(2):
            add(store, event_id="b" * 32)
        stored = store.by_event_id("b" * 32)
        assert stored is not None
        assert stored.n == 2
        assert store.totals()[0] == 2
        assert store.by_event_id("c" * 32) is None


def test_a_file_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A wrong --store must not write tables into another database."""
    path = tmp_path / "app.sqlite3"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE users (name TEXT)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(OptionsError, match="not a store of this receiver"):
        Store(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """One line that names the file instead of SQLite's traceback."""
    path = tmp_path / "notes.txt"
    path.write_text("dear diary, " * 100, encoding="utf-8")
    with pytest.raises(OptionsError, match=r"can't use .*notes\.txt"):
        Store(path)


def test_a_file_that_can_not_be_opened_is_refused(tmp_path: Path) -> None:
    """The folder is missing, or the path is a folder."""
    for path in (tmp_path / "none" / "events.db", tmp_path):
        with pytest.raises(OptionsError, match="can't open"):
            Store(path)


def test_totals_that_were_tampered_with_cost_no_new_envelope(tmp_path: Path) -> None:
    """The newest envelope always stays, and the next start corrects the totals."""
    path = tmp_path / "events.db"
    with Store(path) as store:
        add(store)
        other = sqlite3.connect(path)
        with other:
            other.execute("UPDATE total SET envelopes = 50000")
        other.close()
        add(store)
        assert numbers(store) == [2]
    with Store(path) as store:
        assert store.totals() == (1, 10)


@pytest.mark.parametrize("bounds", [{"max_envelopes": 0}, {"max_bytes": 0}])
def test_bounds_of_nothing_are_refused(bounds: dict[str, Any]) -> None:
    """A store without room is a mistake."""
    with pytest.raises(OptionsError, match="at least 1"):
        Store(**bounds)


def test_threads_add_and_read_together() -> None:
    """Ingest and page run on many threads; every envelope is stored once."""
    with Store() as store:

        def work() -> None:
            for _ in range(50):
                add(store)
                assert store.latest(5)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        assert store.wait_for(400, SOON)
        for thread in threads:
            thread.join()
        assert store.totals() == (400, 4000)
        assert not store.wait_for(401, timeout=0.01)


def test_closing_twice_is_harmless() -> None:
    """A context manager and a finally may both close."""
    with Store() as store:
        store.close()
    with pytest.raises(sqlite3.ProgrammingError):
        store.totals()


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_outage_ends_by_itself_together_with_its_limit() -> None:
    """`--fail 503 --fail-for 10` shows the recovery of a client."""
    clock = Clock()
    faults = Faults("429", seconds=10, rate_limit="60:error:key", clock=clock)
    assert faults.kind == "429"
    assert faults.pause == 10
    assert faults.rate_limit is not None
    clock.now += 9.5
    assert faults.pause == 1
    clock.now += 0.5
    assert [faults.kind, faults.rate_limit] == [None, None]


def test_an_outage_without_an_end_lasts_until_it_is_cleared() -> None:
    """A test decides when the server recovers."""
    clock = Clock()
    faults = Faults("hang", clock=clock)
    clock.now += 1e9
    assert (faults.kind, faults.pause) == ("hang", 60)
    faults.clear()
    assert [faults.kind, faults.rate_limit] == [None, None]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"kind": "fire"}, "fail"),
        ({"kind": "503", "seconds": 0}, "fail_for"),
        ({"kind": "503", "seconds": float("nan")}, "fail_for"),
        ({"rate_limit": "soon"}, "rate_limit"),
        ({"rate_limit": "60:novelty"}, "rate_limit"),
        ({"rate_limit": "60:error:k\u00e9y"}, "rate_limit"),
        ({"rate_limit": "60:error\r\nX: y"}, "rate_limit"),
        ({"slow_by": 0}, "slow_by"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_by_name(wrong: dict[str, Any], field: str) -> None:
    """An outage that is silently not played would make a test meaningless."""
    with pytest.raises(OptionsError) as caught:
        Faults(**wrong)
    assert caught.value.field == field


def test_a_limit_keeps_the_order_of_what_passes() -> None:
    """The order of the envelope is kept."""
    items = [Item(b"{}", type=kind) for kind in ("session", "event", "check_in", "attachment")]
    passed, refused = RateLimit("2.5:error").split(items)
    assert [item.type for item in passed] == ["session", "check_in"]
    assert [item.type for item in refused] == ["event", "attachment"]
    assert RateLimit("2.5:error").seconds == 3
