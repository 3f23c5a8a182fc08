"""Addresses: resolution within a deadline, and concurrent connection attempts."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.core.connections_support import silent_listener
from tests.timing import SOON
from transport_kit.transport.wire import addresses
from transport_kit.transport.wire.addresses import MAX_ADDRESSES, Address, Resolver, connect, interleaved

V4, V6, TCP = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM


@pytest.fixture(name="listening")
def _listening() -> Iterator[Address]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Address(V4, TCP, 0, server.getsockname())


@pytest.fixture(name="silent")
def _silent() -> Iterator[Address]:
    with silent_listener() as port:
        yield Address(V4, TCP, 0, ("127.0.0.1", port))


@pytest.fixture(name="refusing")
def _refusing() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return Address(V4, TCP, 0, server.getsockname())


def soon() -> float:
    return time.monotonic() + SOON


# -- racing ------------------------------------------------------------------------------------------------


def test_a_dead_address_before_a_good_one_costs_a_moment(silent: Address, listening: Address) -> None:
    """With one attempt after another, a short-lived process delivered nothing."""
    sock, winner = connect([silent, silent, listening], soon())
    with sock:
        assert winner == listening
        assert sock.getpeername() == listening.name
        assert sock.getblocking()


def test_an_address_that_refuses_is_followed_by_the_next_at_once(
    refusing: Address, listening: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stagger applies only to an address that does not answer."""
    monkeypatch.setattr(addresses, "STAGGER", 2 * SOON)
    sock, winner = connect([refusing, refusing, listening], soon())
    sock.close()
    assert winner == listening


def test_the_first_address_wins_while_it_answers(listening: Address, silent: Address) -> None:
    """The system's order is its preference; no other attempt is made."""
    opened: list[int] = []
    for address in ([listening], [listening, silent]):
        sock, winner = connect(address, soon(), options=[])
        opened.append(sock.fileno())
        sock.close()
        assert winner == listening


def test_all_that_lost_are_closed(silent: Address, listening: Address) -> None:
    """Otherwise each attempt would leak a descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    sock, _ = connect([silent, silent, listening], soon())
    sock.close()
    with pytest.raises(TimeoutError):
        connect([silent, silent], time.monotonic() + 0.05)
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_deadline_holds_for_all_addresses(silent: Address) -> None:
    """Ten unreachable addresses must not take ten timeouts."""
    now = [0.0]

    def clock() -> float:
        now[0] += 0.05
        return now[0]

    with pytest.raises(TimeoutError, match="no address accepted"):
        connect([silent] * 10, 1.0, clock=clock)
    assert now[0] < 1.5


def test_when_all_fail_the_first_error_is_raised(refusing: Address) -> None:
    """The first error is that of the address the system prefers."""
    unroutable = Address(V6, TCP, 0, ("::ffff:0:0", 1, 0, 0))
    with pytest.raises(ConnectionRefusedError):
        connect([refusing, unroutable], soon())
    with pytest.raises(OSError, match="no address") as caught:
        connect([], soon())
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_socket_options_are_set_before_the_connection(listening: Address) -> None:
    """Options such as keep-alive then apply from the first segment on."""
    sock, _ = connect([listening], soon(), [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)])
    with sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    with pytest.raises(OSError):  # noqa: PT011 - the system's own
        connect([listening], soon(), [(socket.IPPROTO_TCP, 9999, 1)])


def test_families_take_turns_and_the_first_stays_first() -> None:
    """All addresses of a broken family must not precede the first one of the other family."""
    six = [Address(V6, TCP, 6, (f"::{n}", 1, 0, 0)) for n in range(3)]
    four = [Address(V4, TCP, 6, (f"10.0.0.{n}", 1)) for n in range(2)]
    assert interleaved([*six, *four, six[0]]) == [six[0], four[0], six[1], four[1], six[2]]
    assert interleaved([]) == []


# -- resolving ---------------------------------------------------------------------------------------------


def answer(*hosts: str) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    return [(V4, TCP, 6, "", (host, 7)) for host in hosts]


def test_an_address_is_not_looked_up() -> None:
    """An address needs neither a thread nor the resolver."""

    def lookup(host: str, port: int) -> Any:
        raise AssertionError(host)

    assert Resolver("127.0.0.1", 80, lookup=lookup).addresses(0)[0].name == ("127.0.0.1", 80)
    assert Resolver("::1", 80, lookup=lookup).addresses(0)[0].name == ("::1", 80, 0, 0)


def test_a_name_is_looked_up_by_the_system() -> None:
    """The system's resolver reads the hosts file."""
    found = Resolver("localhost", 80).addresses(SOON)
    assert ("127.0.0.1", 80) in [address.name[:2] for address in found]


def test_each_attempt_looks_up_anew_and_takes_at_most_so_many() -> None:
    """The addresses of a name may change, and a thousand addresses must not cost a thousand sockets."""
    answers = iter([answer("10.0.0.1"), answer(*(f"10.0.1.{n}" for n in range(100)))])
    resolver = Resolver("example.test", 7, lookup=lambda host, port: next(answers))
    assert [address.name[0] for address in resolver.addresses(SOON)] == ["10.0.0.1"]
    assert len(resolver.addresses(SOON)) == MAX_ADDRESSES


def test_a_resolver_that_is_silent_costs_the_timeout_and_no_more() -> None:
    """A late answer is used by the next attempt."""
    release = threading.Event()
    asked: list[str] = []

    def lookup(host: str, port: int) -> Any:
        asked.append(host)
        release.wait(SOON)
        return answer("10.0.0.1")

    resolver = Resolver("example.test", 7, lookup=lookup)
    for _ in range(3):
        with pytest.raises(TimeoutError, match="not resolved in time"):
            resolver.addresses(0.01)
    assert asked == ["example.test"], "one call is under way, and all wait for it"
    release.set()
    assert resolver.addresses(SOON)[0].name == ("10.0.0.1", 7)


def test_what_was_found_before_stands_in_for_a_silent_resolver() -> None:
    """During an outage of the resolver the server may be available; the connected address comes first."""
    release = threading.Event()

    def lookup(host: str, port: int) -> Any:
        if len(asked) == 1:
            release.wait(SOON)
        asked.append(host)
        return answer("10.0.0.1", "10.0.0.2")

    asked: list[str] = []
    resolver = Resolver("example.test", 7, lookup=lookup)
    first, second = resolver.addresses(SOON)
    resolver.prefer(second)
    assert resolver.addresses(0.01) == [second, first]
    release.set()


def test_an_error_of_the_resolver_is_raised_and_asked_about_again() -> None:
    """A name that does not exist yet may exist at the next attempt."""
    outcomes: list[Any] = [
        socket.gaierror(socket.EAI_NONAME, "no such name"),
        UnicodeError("label"),
        [],
        None,
    ]

    def lookup(host: str, port: int) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return answer("10.0.0.1") if outcome is None else outcome

    resolver = Resolver("example.test", 7, lookup=lookup)
    for kind in (socket.gaierror, OSError, socket.gaierror):
        with pytest.raises(kind):
            resolver.addresses(SOON)
    assert resolver.addresses(SOON)


def test_where_no_thread_can_start_what_was_found_before_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the interpreter's end the caller delivers, and must not wait for a resolver without a limit."""
    asked: list[str] = []

    def lookup(host: str, port: int) -> Any:
        asked.append(host)
        return answer("10.0.0.1")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    resolver = Resolver("example.test", 7, lookup=lookup)
    resolver.addresses(SOON)
    fresh = Resolver("example.test", 7, lookup=lookup)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert resolver.addresses(SOON)[0].name == ("10.0.0.1", 7)
    assert asked == ["example.test"]
    assert fresh.addresses(SOON)[0].name == ("10.0.0.1", 7), "in the caller: there is no other way"
    assert asked == ["example.test"] * 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_its_parents_call() -> None:
    """The thread that would answer does not exist in the child."""
    release = threading.Event()
    parent = os.getpid()

    def lookup(host: str, port: int) -> Any:
        if os.getpid() == parent:
            release.wait(SOON)
        return answer("10.0.0.1")

    resolver = Resolver("example.test", 7, lookup=lookup)
    with pytest.raises(TimeoutError):
        resolver.addresses(0.01)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if resolver.addresses(SOON) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    release.set()
