"""The Flask example under real servers: what waits at SIGTERM arrives, once, and the exit is on time."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from transport_kit.testing import FaultServer

ROOT = Path(__file__).parents[2]
SHUTDOWN_TIMEOUT = 2.0
_GUNICORN = ("gunicorn", "--bind", "fd://{fd}", "--workers", "2", "--no-control-socket", "app:app")
SERVERS = {
    "gunicorn-sync": _GUNICORN,
    "gunicorn-sync-preload": (*_GUNICORN, "--preload"),
    "gunicorn-gthread": (*_GUNICORN, "--threads", "4"),
    "gunicorn-gthread-preload": (*_GUNICORN, "--threads", "4", "--preload"),
    "gunicorn-hooks-preload": (*_GUNICORN, "--preload", "--config", "{hooks}"),
    "waitress": ("waitress", "--port", "{port}", "app:app"),
}
Get = Callable[[str], int]


@pytest.fixture(name="receiver")
def _receiver() -> Iterator[FaultServer]:
    """Takes its time, so that something waits when the end comes."""
    with FaultServer() as receiver:
        receiver.delay = 0.2
        yield receiver


@pytest.fixture(name="served", params=SERVERS.values(), ids=SERVERS)
def _served(
    request: pytest.FixtureRequest, receiver: FaultServer, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[str], Get]]:
    """A server as a child process; where it takes a socket, requests wait in the listener until it is up."""
    hooks = tmp_path / "gunicorn.conf.py"
    hooks.write_text("from transport_kit.gunicorn import post_fork, worker_exit\n")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TRANSPORT_KIT_")}
    environ |= {
        "PYTHONPATH": os.pathsep.join(
            map(str, (ROOT / "example_apps/flask_app", ROOT / "integrations", ROOT))
        ),
        "TRANSPORT_KIT_DSN": receiver.dsn,
    }
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if "waitress" in request.param:
            listener.close()
        words = {"fd": listener.fileno(), "port": port, "hooks": hooks}
        command = [sys.executable, "-m", *(word.format(**words) for word in request.param)]

        def get(path: str) -> int:
            deadline = time.monotonic() + 20
            while True:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                with contextlib.closing(connection):
                    try:
                        connection.request("GET", path, headers={"Connection": "close"})
                        answer = connection.getresponse()
                        with contextlib.suppress(http.client.IncompleteRead):
                            answer.read()
                        return answer.status
                    except ConnectionRefusedError:
                        assert time.monotonic() < deadline, "the server is not up"
                        assert server.poll() is None, server.communicate()[0]
                        threading.Event().wait(0.02)

        with subprocess.Popen(
            command,
            env=environ,
            pass_fds=[] if "waitress" in request.param else [listener.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as server:
            try:
                yield server, get
            finally:
                if server.poll() is None:
                    server.send_signal(signal.SIGTERM)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        server.wait(10)
                    server.kill()


def test_what_waits_at_sigterm_arrives_once_and_the_exit_is_on_time(
    served: tuple[subprocess.Popen[str], Get], receiver: FaultServer
) -> None:
    """A deployment ends the server while its last errors wait: they are the ones one needs to see."""
    server, get = served
    assert get("/carts/1") == 200
    assert [get("/carts/2") for _ in range(6)] == [500] * 6
    assert get("/export") == 200
    assert get("/transport/health") == 200
    told = time.monotonic()
    server.send_signal(signal.SIGTERM)
    said, _ = server.communicate(timeout=30)
    took = time.monotonic() - told
    items = [item for request in receiver.accepted for item in request.envelope.items if item.type == "event"]
    events = [json.loads(item.get_bytes()) for item in items]
    assert sorted(event["transaction"] for event in events) == ["/carts/<int:number>"] * 6 + ["/export"], said
    assert len({event["event_id"] for event in events}) == 7
    assert took < SHUTDOWN_TIMEOUT + 1.0, said
    assert not re.search(r"transport-kit: .* not delivered", said)
