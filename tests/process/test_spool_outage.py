"""An outage under load: gunicorn workers keep writing, processes are killed, and then everything arrives."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.arrivals import all_arrive
from tests.timing import SOON
from transport_kit.testing import FaultServer

ROOT = Path(__file__).parents[2]
APP = """
import json, os
from transport_kit import make_transport
transport = make_transport(queue="file://" + os.environ["SPOOL"], max_senders=4, backoff_max=1.0)

def app(environ, start_response):
    event_id = environ["PATH_INFO"][1:]
    accepted = transport.capture_event({"event_id": event_id, "extra": {"padding": "x" * 2000}})
    spool = transport.health().spool
    body = json.dumps([os.getpid(), spool["draining"], spool["fell_back"]]).encode()
    start_response("200 OK" if accepted else "503 Not Accepted", [("Content-Length", str(len(body)))])
    return [body]
"""
WORKERS = 4
MAX_SENDERS = 4
RATE = 200.0


class Clients:
    """Four clients, each with its share of the rate; a 200 means that the event was accepted."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self.sent: set[str] = set()
        self.accepted: set[str] = set()
        self.workers: dict[int, bool] = {}  # by process id: True if it drains
        self.fell_back = 0
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(4)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, accepted: int, workers: int) -> None:
        """Return when `accepted` events were accepted, by `workers` different workers.

        Raises:
            AssertionError: None was accepted for a while.
        """
        pause = threading.Event()
        while True:
            before = len(self.accepted)
            deadline = time.monotonic() + SOON
            while len(self.accepted) == before:
                assert time.monotonic() < deadline, "the workers accept nothing"
                pause.wait(0.02)
            if len(self.accepted) >= accepted and len(self.workers) >= workers:
                return

    def _run(self, client: int) -> None:
        due = time.monotonic()
        number = 0
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += len(self._threads) / RATE
            number += 1
            event_id = f"{client:04x}{number:028x}"
            self.sent.add(event_id)
            # A killed worker closes its connections; an event without an answer counts as not accepted.
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._send(event_id)

    def _send(self, event_id: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=SOON)
        with contextlib.closing(connection):
            connection.request("GET", f"/{event_id}", headers={"Connection": "close"})
            answer = connection.getresponse()
            body = answer.read()
        if answer.status == 200:
            pid, draining, fell_back = json.loads(body)
            self.workers[pid] = draining
            self.fell_back += fell_back
            self.accepted.add(event_id)


@pytest.fixture(name="environ")
def _environ(server: FaultServer, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "outage_app.py").write_text(APP)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TRANSPORT_KIT_")}
    return environ | {
        "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT))),
        "TRANSPORT_KIT_DSN": server.dsn,
        "SPOOL": str(tmp_path / "spool"),
    }


@pytest.fixture(name="port")
def _port(environ: dict[str, str]) -> Iterator[int]:
    """Run gunicorn with four workers; requests wait in the listener until it is up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}"]
        served = subprocess.Popen(
            [*server, "--workers", str(WORKERS), "--threads", "2", "--no-control-socket", "outage_app:app"],
            pass_fds=[listener.fileno()],
            env=environ,
            stderr=subprocess.DEVNULL,
        )
        yield listener.getsockname()[1]
        served.terminate()
        served.wait(SOON)


def forwarder(environ: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "transport_kit", "forward", environ["SPOOL"]]
    return subprocess.Popen(
        [*command, "--dsn", environ["TRANSPORT_KIT_DSN"]],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def outage(number: int, server: FaultServer, port: int, environ: dict[str, str], *, forwarded: bool) -> None:
    """Play an outage in which `number` events are accepted, half of them before a worker is killed."""
    forwarding = forwarder(environ) if forwarded else None
    try:
        with Clients(port) as clients:
            assert server.wait_for(20, SOON)
            server.down()
            clients.wait_for(number // 2, WORKERS)
            draining = [pid for pid, drains in clients.workers.items() if drains]
            victim = (draining or list(clients.workers))[0]
            os.kill(victim, signal.SIGKILL)
            if forwarding is not None:
                forwarding.kill()
                forwarding.wait(SOON)
                forwarding = forwarder(environ)
            clients.wait_for(number, WORKERS + 1)  # one worker replaced the killed one
        began = time.monotonic()
        server.up()
        assert all_arrive(server, clients.accepted, SOON)
        took = time.monotonic() - began
    finally:
        if forwarding is not None:
            forwarding.terminate()
            forwarding.wait(SOON)
    arrived = server.event_ids()
    duplicates = len(arrived) - len(set(arrived))
    print(
        f"{len(clients.sent)} sent, {len(clients.accepted)} accepted by"
        f" {len(clients.workers)} workers, {duplicates} duplicates, {took:.1f} s to recover"
    )
    assert clients.fell_back == 0
    assert len(clients.workers) == WORKERS + 1
    assert set(arrived) <= clients.sent
    assert duplicates <= MAX_SENDERS * (2 if forwarded else 1)


@pytest.mark.parametrize("forwarded", [False, True], ids=["app", "forwarder"])
def test_an_outage_with_a_worker_killed_loses_nothing(
    forwarded: bool, server: FaultServer, port: int, environ: dict[str, str]
) -> None:
    """Accepted events arrive although processes are killed, and hardly any arrives twice."""
    outage(800, server, port, environ, forwarded=forwarded)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("forwarded", [False, True], ids=["app", "forwarder"])
def test_an_outage_of_a_minute_with_a_worker_killed_loses_nothing(
    forwarded: bool, server: FaultServer, port: int, environ: dict[str, str]
) -> None:
    """The same for a minute: some twelve thousand events wait on the disk."""
    outage(12_000, server, port, environ, forwarded=forwarded)
