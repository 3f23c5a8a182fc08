"""Runs one row of the matrix: a real server, load, a signal, and a count of the delivered events.

Owns the processes of a row, and kills the remaining ones by process id.

Threads: `run` has a bounded number of clients on threads of their own, which have ended when it returns.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trustme

from tests.process.servers.rows import IN_FLIGHT, NONE, SHUTDOWN_TIMEOUT, Row
from tests.timing import SOON
from transport_kit.testing import FaultServer

__all__ = ["missing", "Outcome", "ROOT", "run"]

ROOT: Final = Path(__file__).parents[3]
#: Seconds that any wait of a row may take.
PATIENCE: Final = SOON
#: Number of clients, largest number of requests of each, and seconds between two requests.
CLIENTS: Final = 3
MAX_REQUESTS: Final = 1000
PACE: Final = 0.02
#: Seconds that the receiver takes for an answer, about as long as over the internet.
ANSWER: Final = 0.05
#: Least number of events that wait in each process when the signal comes: more than can be in flight.
WAITING: Final = 12
#: Least number of processes that end by themselves under load before the signal comes.
RECYCLED: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a row.

    Attributes:
        hooks: The hooks that ended the processes which had reported.
        accepted: Number of events that their transports accepted.
        delivered: Number of these that the receiver has.
        duplicates: Number of events that it received again.
        seconds: From the signal to the end of the last process.
        status: The server's exit status.
        output: The output of the server and its apps to stdout and stderr.
    """

    hooks: frozenset[str]
    accepted: int
    delivered: int
    duplicates: int
    seconds: float
    status: int
    output: str

    @property
    def lost(self) -> int:
        return self.accepted - self.delivered


class Server:
    """A running server."""

    def __init__(self, row: Row, process: subprocess.Popen[str], port: int, directory: Path) -> None:
        self.process = process
        self.port = port
        self._row = row
        self._notes = directory / "notes"
        self._log = directory / "log"

    # -- requests ----------------------------------------------------------------------------------

    def get(self, path: str) -> int:
        """Return the status of one request on a connection of its own.

        Raises:
            OSError, HTTPException: There is no complete answer.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def load(self, environ: dict[str, str], directory: Path) -> contextlib.AbstractContextManager[None]:
        """Run clients that send requests, before the signal and after it."""
        return self._tasks(environ, directory) if self._row.asks else self._requests()

    @contextlib.contextmanager
    def _tasks(self, environ: dict[str, str], directory: Path) -> Iterator[None]:
        client = subprocess.Popen([sys.executable, "-m", *self._row.asks], cwd=directory, env=environ)
        try:
            yield
        finally:
            client.kill()
            client.wait()

    @contextlib.contextmanager
    def _requests(self) -> Iterator[None]:
        stop = threading.Event()

        def send() -> None:
            for _ in range(MAX_REQUESTS):
                with contextlib.suppress(OSError, http.client.HTTPException):
                    self.get("/carts/2")
                if stop.wait(PACE):
                    return

        clients = [threading.Thread(target=send) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            yield
        finally:
            stop.set()
            for client in clients:
                client.join()

    @contextlib.contextmanager
    def slow_request(self) -> Iterator[None]:
        """Keep a request in flight that takes `IN_FLIGHT` seconds. Tasks always are in flight."""
        if self._row.asks:
            yield
            return

        def send() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.get("/later")

        client = threading.Thread(target=send)
        client.start()
        try:
            self.until(lambda: bool(self._notes_of("busy")))
            yield
        finally:
            client.join()

    # -- notes ---------------------------------------------------------------------------------------

    def _notes_of(self, fact: str) -> dict[int, list[str]]:
        """Return the lines of each process's note of this fact, by process id."""
        files = self._notes.glob(f"{fact}-*")
        return {int(file.name.rpartition("-")[2]): file.read_text().splitlines() for file in files}

    @property
    def accepted(self) -> dict[int, list[str]]:
        """The ids of the accepted events, by process id."""
        return self._notes_of("accepted")

    @property
    def ended(self) -> dict[int, str]:
        """The hook that ended each process which had accepted events, by process id."""
        ended = self._notes_of("ended")
        return {pid: ended[pid][0] for pid in self.accepted if ended.get(pid)}

    @property
    def output(self) -> str:
        return self._log.read_text()

    # -- waiting -------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition` returns True.

        Raises:
            AssertionError: It did not in time, or the server has ended.
        """
        never = threading.Event()
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server is not up: {self.output}")
            never.wait(0.01)

    def wait_until_it_serves(self) -> None:
        """Return when a request is answered."""

        def serves() -> bool:
            try:
                return self.get("/carts/1") == 200
            except (OSError, http.client.HTTPException):
                return False

        if not self._row.asks:
            self.until(serves)

    def end(self, on_hook: Callable[[], object]) -> float:
        """Send SIGTERM, and return the seconds until none of its processes is left.

        Args:
            on_hook: Called once, when the first process that has reported runs a hook.

        Raises:
            AssertionError: It does not end.
        """
        before = set(self.ended)
        began = time.monotonic()
        self.process.terminate()
        never = threading.Event()
        called = False
        while self.process.poll() is None or any(map(self.is_ours, self.accepted)):
            if not called and set(self.ended) - before:
                called = True
                on_hook()
            if time.monotonic() - began > PATIENCE:
                raise AssertionError(f"the server does not end: {self.output}")
            never.wait(0.01)
        return time.monotonic() - began

    def is_ours(self, pid: int) -> bool:
        """Return True if a process lives and belongs to this row; its number may have been reused."""
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return f"SERVER_NOTES={self._notes}\0".encode() in environ

    def kill(self) -> None:
        """Kill the remaining processes, including workers that a killed server leaves behind."""
        known = {int(file.name.rpartition("-")[2]) for file in self._notes.iterdir()}
        for pid in {self.process.pid, *known}:
            if self.is_ours(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def missing(row: Row) -> str | None:
    """Return the requirement of a row that this machine lacks; None if it can run."""
    if row.command[0] == "uwsgi" and not _program("uwsgi").exists():
        return "uWSGI is not installed: make servers-uwsgi"
    if "{redis}" in row.command and shutil.which("redis-server") is None:
        return "there is no redis-server on this machine"
    return None


def run(
    row: Row, directory: Path, *, hangs: bool = False, shutdown_timeout: float = SHUTDOWN_TIMEOUT
) -> Outcome:
    """Start the server, end it under load, and count.

    From a moment before the signal the receiver holds its answers until a hook runs, so that no event is
    delivered without one by chance. If processes end by themselves, answers are slow instead. With `hangs`
    the receiver never answers.

    Raises:
        AssertionError: The server does not come up, or does not end.
    """
    authority = trustme.CA()
    (directory / "ca.pem").write_bytes(authority.cert_pem.bytes())
    context = None
    if row.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
    with FaultServer(ssl_context=context) as receiver, _redis(row, directory) as redis:
        receiver.delay = ANSWER
        if hangs:
            receiver.fault("hang")
        environ = _environ(row, directory, receiver.dsn, redis)
        environ["TRANSPORT_KIT_SHUTDOWN_TIMEOUT"] = str(shutdown_timeout)
        with _serving(row, directory, environ) as server, server.load(environ, directory):
            server.until(lambda: len(server.accepted) >= row.workers)
            if row.recycles:
                server.until(lambda: sum(not server.is_ours(pid) for pid in server.accepted) >= RECYCLED)
            else:
                if not hangs:
                    receiver.hold()
                before = {pid: len(events) for pid, events in server.accepted.items()}
                server.until(lambda: _wait_in_each(server, before, row))
            with server.slow_request():
                seconds = server.end(lambda: None if hangs else receiver.release())
        if not hangs:
            receiver.release()
        accepted = {event for events in server.accepted.values() for event in events}
        hooks = frozenset(server.ended.get(pid, NONE) for pid in server.accepted)
        if row.spool:
            _drain(row, directory, environ, receiver, accepted)
        arrived = receiver.event_ids()
        return Outcome(
            hooks=hooks,
            accepted=len(accepted),
            delivered=len(accepted & set(arrived)),
            duplicates=len(arrived) - len(set(arrived)),
            seconds=seconds,
            status=server.process.returncode,
            output=server.output,
        )


@contextlib.contextmanager
def _serving(row: Row, directory: Path, environ: dict[str, str]) -> Iterator[Server]:
    """Start the row's server on a free port; yield it when it answers requests, and kill it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for folder in ("notes", "watched", "queue", "control"):
        (directory / folder).mkdir(exist_ok=True)
    hooks = directory / "hooks.py"  # a name that gunicorn does not load by itself
    hooks.write_text("from transport_kit.gunicorn import post_fork, worker_exit\n")
    words = {
        "port": port,
        "prefix": sys.prefix,
        "redis": environ["SERVER_REDIS"],
        "hooks": hooks,
        "watched": directory / "watched",
    }
    name, *arguments = (word.format(**words) for word in row.command)
    command = [str(_program(name))] if row.program else [sys.executable, "-m", name]
    with (directory / "log").open("a") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=output,
            stderr=output,
            env=environ,
            cwd=directory,
            text=True,
            start_new_session=True,
        )
    server = Server(row, process, port, directory)
    try:
        server.wait_until_it_serves()
        yield server
    finally:
        server.kill()


def _environ(row: Row, directory: Path, dsn: str, redis: str) -> dict[str, str]:
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TRANSPORT_KIT_") and not name.lower().endswith("_proxy")
    }
    environ |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")]),
        "SERVER_NOTES": str(directory / "notes"),
        "SERVER_IN_FLIGHT": str(IN_FLIGHT),
        "SERVER_REDIS": redis,
        "TRANSPORT_KIT_DSN": dsn,
        "TRANSPORT_KIT_CA_CERTS": str(directory / "ca.pem"),
    }
    if row.spool:
        environ["TRANSPORT_KIT_QUEUE"] = f"file://{directory}/spool"
    return environ


def _wait_in_each(server: Server, before: dict[int, int], row: Row) -> bool:
    """Return True if events wait in as many processes as the row has workers."""
    waiting = [len(events) - before.get(pid, 0) for pid, events in server.accepted.items()]
    return sum(new >= WAITING for new in waiting) >= row.workers


def _drain(
    row: Row, directory: Path, environ: dict[str, str], receiver: FaultServer, accepted: set[str]
) -> None:
    """Deliver the rest of a spool, by another start of the app or by a forwarder."""
    if row.again:
        with _serving(row, directory, environ) as server:
            server.until(lambda: accepted <= set(receiver.event_ids()))
        return
    forward = [str(_program("transport-kit")), "forward", str(directory / "spool"), "--once"]
    subprocess.run(forward, env=environ, cwd=directory, check=True, capture_output=True, timeout=PATIENCE)


def _program(name: str) -> Path:
    return Path(sys.executable).with_name(name)


@contextlib.contextmanager
def _redis(row: Row, directory: Path) -> Iterator[str]:
    """Run a Redis for the row and yield its address; empty if the row needs none."""
    program = shutil.which("redis-server")
    if "{redis}" not in row.command or program is None:
        yield ""
        return
    path = directory / "redis.sock"
    words = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(directory)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    never = threading.Event()
    try:
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            assert time.monotonic() < deadline, "Redis is not up"
            never.wait(0.01)
        yield f"unix://{path}"
    finally:
        server.kill()
        server.wait()
