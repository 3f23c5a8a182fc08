"""The Django example works as its header describes. A process for each test: Django is configured once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from transport_kit.testing import FaultServer

HERE = Path(__file__).parent
INTEGRATIONS = HERE.parents[1] / "integrations"
Run = Callable[..., subprocess.CompletedProcess[str]]

VISIT = """
import json, sys
from django.test import Client
import app
browser = Client(headers={"host": "localhost"}, raise_request_exception=False)
response = browser.get(sys.argv[1])
body = b""
try:
    body = b"".join(response) if response.streaming else response.content
except app.CartError:
    pass
print(json.dumps([response.status_code, body.decode()]))
"""


@pytest.fixture(name="receiver")
def _receiver() -> Iterator[FaultServer]:
    """The server that the app sends to."""
    with FaultServer() as receiver:
        yield receiver


@pytest.fixture(name="run")
def _run(receiver: FaultServer) -> Run:
    """Run Python in the app's folder, with a DSN in the environment."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TRANSPORT_KIT_")}
        path = os.pathsep.join([str(HERE), str(INTEGRATIONS), str(HERE.parents[1])])
        return subprocess.run(
            [sys.executable, *arguments],
            env={**environ, "PYTHONPATH": path, "TRANSPORT_KIT_DSN": receiver.dsn},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    return run


def event_of(receiver: FaultServer) -> dict[str, Any]:
    (event,) = [
        json.loads(item.get_bytes())
        for request in receiver.accepted
        for item in request.envelope.items
        if item.type == "event"
    ]
    assert isinstance(event, dict)
    return event


def test_a_cart_that_can_be_summed_is(run: Run, receiver: FaultServer) -> None:
    """The app works, and reports no error."""
    done = run("-c", VISIT, "/carts/1")
    status, body = json.loads(done.stdout)
    assert (status, json.loads(body)) == (200, {"items": ["tea", "cup"], "cents": 1740}), done.stderr
    assert receiver.event_ids() == []


def test_a_cart_without_a_price_is_a_500_and_an_event_with_its_cause(run: Run, receiver: FaultServer) -> None:
    """The header of the example promises both."""
    done = run("-c", VISIT, "/carts/2")
    assert json.loads(done.stdout)[0] == 500, done.stderr
    event = event_of(receiver)
    values = event["exception"]["values"]
    assert [value["type"] for value in values] == ["KeyError", "CartError"]
    assert values[-1]["value"] == "no price for pot"
    assert event["transaction"] == "carts/<int:number>"
    assert event["release"] == "shop@1.2.0"


@pytest.mark.parametrize("leaf", ["live", "ready", "health"])
def test_the_routes_answer(leaf: str, run: Run) -> None:
    """Probes find the routes at the paths in the header."""
    done = run("-c", VISIT, f"/transport/{leaf}")
    assert json.loads(done.stdout) == [200, '{"status":"pass"}' if leaf != "health" else '{"status": "pass"}']


def test_the_command_says_that_errors_arrive(run: Run, receiver: FaultServer) -> None:
    """`send-test` is the first command after an installation."""
    done = run(str(HERE / "app.py"), "transport", "send-test", "--json")
    assert done.returncode == 0, done.stderr
    assert receiver.event_ids() == [json.loads(done.stdout)["event_id"]]
    done = run(str(HERE / "app.py"), "check")
    assert "no issues" in done.stdout, done.stderr
