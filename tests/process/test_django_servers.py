"""The Django example under real servers: what waits when SIGTERM comes is delivered."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from transport_kit.testing import FaultServer

ROOT = Path(__file__).parents[2]
SERVERS = {
    "gunicorn-sync-wsgi": ["gunicorn", "--bind", "fd://{fd}", "--workers", "1", "app:application"],
    "gunicorn-gthread-wsgi": ["gunicorn", "--bind", "fd://{fd}", "--threads", "4", "app:application"],
    "uvicorn-asgi-with-lifespan": ["uvicorn", "--fd", "{fd}", "app:asgi_application"],
}
Get = Callable[[str], tuple[int, bytes]]


@pytest.fixture(name="receiver")
def _receiver() -> Iterator[FaultServer]:
    """A receiver that takes its time, so that something waits when the end comes."""
    with FaultServer() as receiver:
        receiver.delay = 0.3
        yield receiver


@pytest.fixture(name="served", params=SERVERS.values(), ids=SERVERS)
def _served(
    request: pytest.FixtureRequest, receiver: FaultServer
) -> Iterator[tuple[subprocess.Popen[str], Get]]:
    """A server as a child process; requests wait in the listener's backlog until it is up."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TRANSPORT_KIT_")}
    folders = [ROOT / "example_apps" / "django_app", ROOT / "integrations", ROOT]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def get(path: str) -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            try:
                connection.request("GET", path, headers={"Connection": "close"})
                response = connection.getresponse()
                try:
                    return response.status, response.read()
                except http.client.IncompleteRead as broken:
                    return response.status, broken.partial
            finally:
                connection.close()

        module, *arguments = (word.format(fd=listener.fileno()) for word in request.param)
        with subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            pass_fds=[listener.fileno()],
            env={
                **environ,
                "PYTHONPATH": os.pathsep.join(map(str, folders)),
                "TRANSPORT_KIT_DSN": receiver.dsn,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as server:
            try:
                yield server, get
            finally:
                server.kill()


def test_what_waits_when_the_server_is_told_to_end_is_delivered(
    served: tuple[subprocess.Popen[str], Get], receiver: FaultServer
) -> None:
    """Each deployment is such an end."""
    server, get = served
    assert get("/carts/1") == (200, b'{"items": ["tea", "cup"], "cents": 1740}')
    assert get("/carts/2")[0] == 500
    assert get("/export")[0] in (200, 500)
    assert json.loads(get("/transport/health")[1])["status"] == "pass"
    told = time.monotonic()
    server.send_signal(signal.SIGTERM)
    said, _ = server.communicate(timeout=30)
    took = time.monotonic() - told
    events = [
        json.loads(item.get_bytes())
        for request in receiver.accepted
        for item in request.envelope.items
        if item.type == "event"
    ]
    assert sorted(event["transaction"] for event in events) == ["carts/<int:number>", "export"], said
    assert len({event["event_id"] for event in events}) == 2
    assert took < 2.0 + 1.0 + 0.3, said
