"""Ids: each random byte of the stock is used once, by threads, forks and copies."""

from __future__ import annotations

import ctypes
import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from transport_kit.envelope import ids

#: A fork that hooks see, and one made in C, which no hook sees.
FORKS: dict[str, Callable[[], int]] = {"os.fork": os.fork, "in C": lambda: ctypes.PyDLL(None).fork()}


def test_an_id_is_a_random_uuid_in_the_form_that_servers_store() -> None:
    """A server replaces an invalid id, and the logged one would not be found."""
    for _ in range(100):
        text = ids.new_uuid()
        found = uuid.UUID(text)
        assert (found.hex, found.version, found.variant) == (text, 4, uuid.RFC_4122)


def test_no_two_threads_get_the_same_bytes() -> None:
    """A server drops the second event with the same id."""

    def take(_: int) -> list[bytes]:
        return [ids.random_bytes(16) for _ in range(5_000)]

    with ThreadPoolExecutor(8) as pool:
        taken = [one for many in pool.map(take, range(8)) for one in many]
    assert len(set(taken)) == 40_000
    assert {len(one) for one in taken} == {16}


@pytest.mark.parametrize("fork", FORKS.values(), ids=FORKS)
def test_a_forked_child_gets_none_of_its_parents_bytes(fork: Callable[[], int]) -> None:
    """gunicorn's workers are copies of one process, and would begin with the same ids."""
    ids.random_bytes(1)
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        os.write(writer, b"".join(ids.random_bytes(16) for _ in range(100)))
        os._exit(0)
    os.close(writer)
    ours = {ids.random_bytes(16) for _ in range(100)}
    with open(reader, "rb") as file:
        said = file.read()
    os.waitpid(child, 0)
    theirs = {said[at : at + 16] for at in range(0, len(said), 16)}
    assert len(ours) == len(theirs) == 100
    assert not ours & theirs


def test_two_copies_of_one_snapshot_get_different_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A serverless platform may copy an environment with its memory, and resume it several times later."""
    ids.random_bytes(1)
    snapshot, later = ids._stock, ids._stock.drawn_at + 60.0
    monkeypatch.setattr("transport_kit.envelope.ids.time.time", lambda: later)
    copies = []
    for _ in range(2):
        stock = object.__new__(ids._Stock)
        stock.pid, stock.drawn_at, stock.chunks = snapshot.pid, snapshot.drawn_at, snapshot.chunks.copy()
        monkeypatch.setattr(ids, "_stock", stock)
        copies.append({ids.random_bytes(16) for _ in range(100)})
    assert not copies[0] & copies[1]


def test_a_clock_that_leaps_at_every_look_costs_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may freeze and move clocks."""
    moments = iter(range(0, 10_000, 10))
    monkeypatch.setattr("transport_kit.envelope.ids.time.time", lambda: float(next(moments)))
    assert len({ids.random_bytes(32) for _ in range(100)}) == 100
