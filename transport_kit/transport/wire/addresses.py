"""Addresses of a host: resolution within a deadline, and concurrent connection attempts.

This module owns everything from a name to a connected TCP socket. `connections.py` adds proxies and TLS.

The system's resolver accepts no timeout; its own is about ten seconds per name server that does not answer.
So it runs in a thread that is abandoned at the deadline; a late answer is used by the next attempt. Attempts
are concurrent because a name may have an unreachable IPv6 address before a reachable IPv4 one.

Threads: a `Resolver` may be used by any number of threads. It has no lock that a fork could leave locked: its
state is two references, each replaced in one step. A socket belongs to the caller.

Source: RFC 8305 (Happy Eyeballs), sections 4 and 5.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

__all__ = ["Address", "connect", "interleaved", "Resolver"]

#: Seconds between the starts of two attempts: RFC 8305's "Connection Attempt Delay".
STAGGER: Final = 0.25
#: Maximum number of addresses of one name that are tried.
MAX_ADDRESSES: Final = 16

SocketOptions = Iterable[tuple[int, int, int]]
#: Returns the results of `socket.getaddrinfo` for a TCP port.
Lookup = Callable[[str, int], Sequence[tuple[int, int, int, str, tuple[object, ...]]]]


class Address(NamedTuple):
    """One address of a host: the arguments of `socket` and of `connect`."""

    family: int
    kind: int
    protocol: int
    name: tuple[object, ...]


def _getaddrinfo(host: str, port: int) -> Sequence[tuple[int, int, int, str, tuple[object, ...]]]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class _Query:
    """One call of the system's resolver, and its result once `answered` is set."""

    __slots__ = ("addresses", "answered", "error", "pid")

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.answered = threading.Event()
        self.addresses: list[Address] = []
        self.error: Exception | None = None


class Resolver:
    """Finds the addresses of one host.

    Args:
        host: A name, or an address, which needs no resolution.
        port: The TCP port.
        lookup: Resolves a name; None is `socket.getaddrinfo`.
    """

    def __init__(self, host: str, port: int, *, lookup: Lookup | None = None) -> None:
        self._host = host
        self._port = port
        self._lookup = lookup or _getaddrinfo
        # The addresses of the last answer; the one connected last comes first.
        self._known: tuple[Address, ...] = ()
        # The query under way. Several threads may wait for it; in a forked child its thread does not exist.
        self._query: _Query | None = None

    def addresses(self, timeout: float) -> list[Address]:
        """Return the host's addresses in the order in which to try them; at most `MAX_ADDRESSES`.

        If the answer takes too long, or no thread can be started, returns the addresses of the last answer.

        Args:
            timeout: Seconds.

        Raises:
            OSError: The resolver's error.
            TimeoutError: There is no answer in time, and no earlier one.
        """
        if (address := _numeric(self._host, self._port)) is not None:
            return [address]
        query = self._query
        if query is None or query.pid != os.getpid():
            query = self._query = _Query()
            try:
                threading.Thread(
                    target=self._resolve, args=(query,), name="transport-kit-resolver", daemon=True
                ).start()
            except RuntimeError:
                # The interpreter is ending, or the system refuses a thread. Without an earlier answer, the
                # call runs here, and only the resolver's own timeout applies.
                if self._known:
                    self._query = None
                    return list(self._known)
                self._resolve(query)
        if not query.answered.wait(max(0.0, timeout)):
            if self._known:
                return list(self._known)
            raise TimeoutError(errno.ETIMEDOUT, "the name was not resolved in time")
        if query.error is not None:
            raise query.error
        return query.addresses

    def prefer(self, address: Address) -> None:
        """Move `address`, which was connected, to the front of the addresses of the last answer."""
        self._known = (address, *(other for other in self._known if other != address))

    def _resolve(self, query: _Query) -> None:
        try:
            results = self._lookup(self._host, self._port)
            query.addresses = interleaved(
                Address(family, kind, protocol, name) for family, kind, protocol, _, name in results
            )[:MAX_ADDRESSES]
            if not query.addresses:
                raise socket.gaierror(socket.EAI_NONAME, "the name has no address")
            self._known = tuple(query.addresses)
        except Exception as error:
            # Also UnicodeError: a label is too long for the codec.
            query.error = error if isinstance(error, OSError) else OSError(errno.EINVAL, str(error)[:100])
        finally:
            if self._query is query:
                self._query = None
            query.answered.set()


def interleaved(addresses: Iterable[Address]) -> list[Address]:
    """Return the addresses with alternating families, beginning with the first address's family."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        members = families.setdefault(address.family, [])
        if address not in members:
            members.append(address)
    longest = max(map(len, families.values()), default=0)
    return [members[turn] for turn in range(longest) for members in families.values() if turn < len(members)]


def connect(
    addresses: Sequence[Address],
    deadline: float,
    options: SocketOptions = (),
    *,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[socket.socket, Address]:
    """Connect to the first address that accepts.

    A new attempt begins every `STAGGER` seconds, or immediately after one has failed. Earlier attempts
    continue until one succeeds.

    Args:
        addresses: In the order in which to try them.
        deadline: Time by which an attempt must succeed, in seconds of `clock`.
        options: Arguments of `setsockopt`, applied to each socket before it connects.
        clock: Returns monotonic seconds.

    Returns:
        A socket in blocking mode without a timeout, and its address.

    Raises:
        OSError: All attempts failed; the error is that of the first one.
        TimeoutError: No attempt succeeded in time.
    """
    waiting = list(addresses)
    first_error: OSError | None = None
    attempts: dict[socket.socket, Address] = {}
    next_start = clock()
    selector = selectors.DefaultSelector()
    try:
        while waiting or attempts:
            now = clock()
            if now >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, "no address accepted a connection in time")
            if waiting and (now >= next_start or not attempts):
                address = waiting.pop(0)
                next_start = now + STAGGER
                try:
                    sock = _attempt(address, options)
                except OSError as error:
                    first_error = first_error or error
                    continue
                attempts[sock] = address
                selector.register(sock, selectors.EVENT_WRITE)
            until = min(deadline, next_start) if waiting else deadline
            for key, _ in selector.select(max(0.0, until - clock())):
                sock = key.fileobj  # type: ignore[assignment]
                selector.unregister(sock)
                address = attempts.pop(sock)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code == 0:
                    sock.setblocking(True)
                    return sock, address
                sock.close()
                first_error = first_error or OSError(code, os.strerror(code))
                next_start = clock()
        raise first_error or OSError(errno.EADDRNOTAVAIL, "there is no address")
    finally:
        selector.close()
        for sock in attempts:
            sock.close()


def _attempt(address: Address, options: SocketOptions) -> socket.socket:
    sock = socket.socket(address.family, address.kind, address.protocol)
    try:
        for option in options:
            sock.setsockopt(*option)
        sock.setblocking(False)
        code = sock.connect_ex(address.name)
        if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR):
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


def _numeric(host: str, port: int) -> Address | None:
    """Return the address if `host` is an IP address, or None if it is a name."""
    try:
        results = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    family, kind, protocol, _, name = results[0]
    return Address(family, kind, protocol, name)
