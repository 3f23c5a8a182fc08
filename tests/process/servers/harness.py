"""Starts a real server as a child process, and ends whatever it started, by process id."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ended", "running", "Server", "SERVERS"]

ROOT = Path(__file__).parents[3]
_APPS = "tests.process.servers.apps"

#: How each server is started; `{app}` and `{port}` are filled in.
SERVERS: dict[str, tuple[str, ...]] = {
    "uvicorn": ("uvicorn", "{app}", "--port", "{port}", "--log-level", "warning"),
    "uvicorn-2": ("uvicorn", "{app}", "--port", "{port}", "--log-level", "warning", "--workers", "2"),
    "gunicorn": (
        "gunicorn", "{app}", "-b", "127.0.0.1:{port}", "-k", "uvicorn_worker.UvicornWorker",
        "--log-level", "warning", "--no-control-socket",
    ),
    "hypercorn": ("hypercorn", "{app}", "-b", "127.0.0.1:{port}", "--log-level", "warning"),
    "granian": ("granian", "{app}", "--interface", "asgi", "--port", "{port}", "--log-level", "warning"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ended:
    """How a server ended: seconds from the signal, the exit status, the hooks of its workers, its stderr."""

    seconds: float
    status: int
    hooks: tuple[str, ...]
    said: str


class Server:
    """A server that runs. `notes` is where its apps write; see `apps.py`."""

    def __init__(self, process: subprocess.Popen[str], port: int, notes: Path, log: Path) -> None:
        self.process = process
        self.port = port
        self.notes = notes
        self._log = log

    def get(self, path: str, timeout: float = 20.0) -> int:
        """The status of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def wait_until_listening(self, timeout: float = 20.0) -> None:
        """Return when connections are accepted."""

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        self._until(listens, timeout)

    def wait_for_notes(self, fact: str, count: int = 1, timeout: float = 20.0) -> None:
        """Return when `count` processes have noted `fact`."""
        self._until(lambda: len(list(self.notes.glob(f"{fact}-*"))) >= count, timeout)

    def _until(self, true: Callable[[], bool], timeout: float) -> None:
        never = threading.Event()
        deadline = time.monotonic() + timeout
        while not true():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server is not up: {self.said}")
            never.wait(0.01)

    def terminate(self, on_hook: Callable[[], object] = lambda: None, timeout: float = 20.0) -> Ended:
        """Send SIGTERM, as process managers do, and wait for the end.

        Args:
            on_hook: Called once, when the first worker's transport has learnt that the end is near.
        """
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        never = threading.Event()
        called = False
        while (status := self.process.poll()) is None:
            if not called and any(self.notes.glob("ended-*")):
                called = True
                on_hook()
            if time.monotonic() - began > timeout:
                raise AssertionError(f"the server does not end: {self.said}")
            never.wait(0.01)
        seconds = time.monotonic() - began
        hooks = tuple(sorted(file.read_text() for file in self.notes.glob("ended-*")))
        return Ended(seconds, status, hooks, self.said)

    @property
    def said(self) -> str:
        """What the server and its apps wrote to stdout and stderr."""
        return self._log.read_text()


@contextlib.contextmanager
def running(
    name: str, directory: Path, dsn: str, *, app: str = "app", **environment: object
) -> Iterator[Server]:
    """The server `name` of `SERVERS` with one of the apps, on a free port; ended in any case."""
    notes = directory / "notes"
    notes.mkdir()
    log = directory / "log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [word.format(app=f"{_APPS}:{app}", port=port) for word in SERVERS[name]]
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TRANSPORT_KIT_") and not name.lower().endswith("_proxy")
    } | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")]),
        "SERVER_NOTES": str(notes),
        "TRANSPORT_KIT_DSN": dsn,
        **{key: str(value) for key, value in environment.items()},
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=output,
            stderr=output,
            env=environ,
            cwd=directory,
            text=True,
        )
    server = Server(process, port, notes, log)
    try:
        yield server
    finally:
        for pid in {process.pid, *(int(file.name.rpartition("-")[2]) for file in notes.iterdir())}:
            # The workers too: a server that is killed leaves them behind. Only what is still ours.
            if _is_ours(pid, notes):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()


def _is_ours(pid: int, notes: Path) -> bool:
    """Whether a process still is the one that this test started, and not another with its number."""
    try:
        return f"SERVER_NOTES={notes}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
