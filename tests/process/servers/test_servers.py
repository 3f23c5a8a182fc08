"""Real servers, SIGTERM right after an error: the event arrives, once, and the exit is on time.

Each test starts a server as a child process, as a process manager does. All of them end a transport by the
lifespan, also that of an app which knows none: docs/operations.md.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from tests.process.servers.harness import SERVERS, Ended, Server, running
from transport_kit.testing import FaultServer

SHUTDOWN_TIMEOUT = 2.0
WORKERS = {"uvicorn-2": 2}
every_server = pytest.mark.parametrize("name", SERVERS)


def ready(server: Server, name: str) -> None:
    """Wait until every worker has started its app."""
    server.wait_until_listening()
    server.wait_for_notes("up", WORKERS.get(name, 1))


def raise_errors(server: Server, count: int) -> None:
    """Requests in each of which an exception is raised: each is a captured event."""
    assert [server.get(f"/fail/{number}") for number in range(count)] == [500] * count


def messages(receiver: FaultServer) -> list[str]:
    """The exceptions that arrived, sorted; a repeat shows as one more."""
    items = [item for request in receiver.accepted for item in request.envelope.items]
    events = [json.loads(item.get_bytes()) for item in items if item.type == "event"]
    return sorted(event["exception"]["values"][-1]["value"] for event in events)


def expected(count: int) -> list[str]:
    return sorted(f"request {number}" for number in range(count))


def assert_in_time(ended: Ended, in_flight: float = 0.0, timeout: float = SHUTDOWN_TIMEOUT) -> None:
    assert ended.seconds <= in_flight + timeout + 1.0, ended.said


@every_server
def test_errors_right_before_sigterm_arrive_once(name: str, receiver: FaultServer, tmp_path: Path) -> None:
    """A deployment ends the server while its last errors wait: they are the ones one needs to see."""
    receiver.delay = 0.05  # answers come as slowly as over the internet
    with running(name, tmp_path, receiver.dsn) as server:
        ready(server, name)
        raise_errors(server, 10)
        ended = server.terminate()
    assert messages(receiver) == expected(10), ended.said
    assert set(ended.hooks) == {"lifespan"}
    assert_in_time(ended)


@every_server
def test_what_waits_at_sigterm_is_delivered_by_the_lifespan(
    name: str, receiver: FaultServer, tmp_path: Path
) -> None:
    """Nothing arrives before a hook has seen the end, so that luck can't stand in for the hook."""
    receiver.hold()
    with running(name, tmp_path, receiver.dsn) as server:
        ready(server, name)
        raise_errors(server, 20)
        ended = server.terminate(on_hook=receiver.release)
    assert messages(receiver) == expected(20), ended.said
    assert ended.hooks == ("lifespan",) * WORKERS.get(name, 1)
    assert_in_time(ended)


@every_server
def test_a_request_that_is_in_flight_at_sigterm_is_reported_too(
    name: str, receiver: FaultServer, tmp_path: Path
) -> None:
    """Servers let it finish; its error is captured while the end has begun already."""
    in_flight = 0.4
    statuses: list[int] = []
    with running(name, tmp_path, receiver.dsn, SERVER_IN_FLIGHT=in_flight) as server:
        ready(server, name)
        request = threading.Thread(target=lambda: statuses.append(server.get("/later")))
        request.start()
        server.wait_for_notes("busy")
        raise_errors(server, 2)
        ended = server.terminate()
        request.join(20)
    assert messages(receiver) == ["in flight", *expected(2)], ended.said
    assert statuses == [500]
    assert_in_time(ended, in_flight)


@every_server
def test_a_receiver_that_hangs_costs_the_shutdown_timeout_and_no_more(
    name: str, receiver: FaultServer, tmp_path: Path
) -> None:
    """Process managers kill what is late, and then more than a few events are lost."""
    receiver.fault("hang")
    with running(name, tmp_path, receiver.dsn, TRANSPORT_KIT_SHUTDOWN_TIMEOUT=0.5) as server:
        ready(server, name)
        raise_errors(server, 3)
        ended = server.terminate()
    assert receiver.accepted == []
    assert ended.seconds >= 0.5
    assert_in_time(ended, timeout=0.5)


@every_server
def test_an_app_without_lifespan_loses_nothing(name: str, receiver: FaultServer, tmp_path: Path) -> None:
    """The server is answered in its place: uvicorn's workers end by the signal itself, after the loop's end,
    and nothing else would tell the transport."""
    receiver.hold()
    with running(name, tmp_path, receiver.dsn, app="bare") as server:
        server.wait_until_listening()
        assert server.get("/up") == 200
        raise_errors(server, 20)
        ended = server.terminate(on_hook=receiver.release)
    assert messages(receiver) == expected(20), ended.said
    assert set(ended.hooks) == {"lifespan"}
    assert_in_time(ended)
