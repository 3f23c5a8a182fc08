"""`flask transport`: commands that test delivery with the app's own settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from flask import Flask
from flask.testing import FlaskCliRunner

from tests.timing import scaled
from transport_kit import Envelope, FlushReport, Health, LossReason
from transport_kit.kit.kit import _delivery_problem
from transport_kit.serverless import flush_after
from transport_kit.testing import CapturedTransport, FaultServer
from transport_kit_flask import TransportKit, get_kit


@pytest.fixture(name="server")
def _server() -> Iterator[FaultServer]:
    """The server that the app delivers to."""
    with FaultServer() as server:
        yield server


def shell(**options: object) -> FlaskCliRunner:
    app = Flask("shop")
    app.config.update({f"TRANSPORT_KIT_{name.upper()}": value for name, value in options.items()})
    TransportKit(app)
    return app.test_cli_runner()


def run(runner: FlaskCliRunner, *arguments: str) -> tuple[int, Any]:
    """Return exit status and output, parsed if it is JSON."""
    done = runner.invoke(args=["transport", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, json.loads(done.output) if "--json" in arguments else done.output


def test_the_commands_are_listed() -> None:
    """`flask transport` alone lists its commands."""
    _, listed = run(shell(dsn=""), "--help")
    for name in ("check", "flush", "health", "send-test"):
        assert name in listed


def test_a_group_of_the_apps_own_keeps_its_name() -> None:
    """An app may have had its own `flask transport` before."""
    app = Flask("railway")
    own = click.Group("transport")
    app.cli.add_command(own)
    app.config["TRANSPORT_KIT_DSN"] = ""
    TransportKit(app)
    assert app.cli.commands["transport"] is own


def test_check_takes_the_steps_with_the_apps_settings(server: FaultServer) -> None:
    """The same words as `transport-kit check`, without typing the DSN."""
    status, found = run(shell(dsn=server.dsn, release="shop@1"), "check", "--json", "--timeout", "10")
    assert (status, found["ok"]) == (0, True)
    assert [step["name"] for step in found["steps"]] == ["parse", "resolve", "connect", "send"]
    (event,) = [json.loads(item.get_bytes()) for item in server.accepted[0].envelope.items]
    assert event["release"] == "shop@1"
    server.answer(403)
    status, text = run(shell(dsn=server.dsn), "check")
    assert status == 1
    assert "403" in text


@pytest.mark.parametrize(
    ("dsn", "problem"),
    [("", "there is no DSN"), (CapturedTransport(), "no DSN"), ("nonsense", "invalid DSN")],
)
def test_check_without_a_dsn_says_so(dsn: object, problem: str) -> None:
    """There is nothing to check."""
    status, found = run(shell(dsn=dsn), "check", "--json")
    assert (status, found["ok"]) == (1, False)
    assert problem in found["problem"]
    assert problem in run(shell(dsn=dsn), "check")[1]


def test_check_without_its_packages_says_what_to_install(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flask installs click, but no other dependency of the command line."""
    monkeypatch.setitem(sys.modules, "transport_kit.cli.check", None)
    status, text = run(shell(dsn=server.dsn), "check")
    assert status == 2
    assert "pip install 'transport-kit[cli]'" in text


def test_send_test_goes_through_the_apps_own_settings(server: FaultServer) -> None:
    """Hooks and options apply: the event is the one that the app would send."""
    status, found = run(shell(dsn=server.dsn, environment="staging"), "send-test", "--json")
    assert (status, found["ok"], found["problem"]) == (0, True, None)
    assert server.event_ids() == [found["event_id"]]
    (event,) = [json.loads(item.get_bytes()) for item in server.accepted[0].envelope.items]
    assert event["environment"] == "staging"
    assert event["exception"]["values"][-1]["type"] == "TestError"
    status, text = run(shell(dsn=server.dsn), "send-test")
    assert status == 0
    assert "was delivered in" in text


def test_send_test_says_why_it_was_not_delivered(server: FaultServer) -> None:
    """Each way in which an event may be lost."""
    for answer, said in (
        (400, "not delivered: discarded: send_error (http 400)\n"),
        (403, "not delivered: the server refuses this DSN's key (403)\n"),
    ):
        server.answer(answer)
        assert run(shell(dsn=server.dsn), "send-test") == (1, said)
    status, found = run(shell(dsn="nonsense"), "send-test", "--json")
    assert (status, found["ok"]) == (1, False)
    assert "invalid DSN" in found["problem"]
    server.down()
    waiting = shell(dsn=server.dsn, backoff_base=0.01)
    status, text = run(waiting, "send-test", "--timeout", str(scaled(0.5)))
    assert status == 1
    assert text.startswith("not delivered: still waiting (connect")
    get_kit(waiting.app).transport.kill()


def test_what_was_refused_without_a_reason_is_said_too() -> None:
    """A custom transport may not count its losses."""
    idle = Health(pid=1, state="running", kind="Own")
    assert _delivery_problem(None, idle, idle) == "the event was not accepted"
    lost = Health(
        pid=1,
        state="running",
        kind="Own",
        discarded_by_category={LossReason.BEFORE_SEND.value: {"error": 1}, LossReason.CLOSED.value: {}},
    )
    assert _delivery_problem(None, idle, lost) == "discarded: before_send"
    assert _delivery_problem("id", lost, lost) == "still waiting"


def test_flush_delivers_what_waits_in_a_spool(server: FaultServer, tmp_path: Path) -> None:
    """The backlog of an app that was down."""
    runner = shell(dsn=server.dsn, queue=f"file://{tmp_path}/spool")
    assert get_kit(runner.app).transport.capture_envelope(Envelope.event({"message": "loading"}))
    status, found = run(runner, "flush", "--json")
    assert (status, found["ok"], found["pending"]) == (0, True, 0)
    assert len(server.accepted) == 1


@pytest.mark.parametrize("command", ["health", "flush"])
def test_a_queue_in_memory_is_not_seen_from_a_command(server: FaultServer, command: str) -> None:
    """The command's own queue is empty and healthy, whatever a server's is."""
    status, text = run(shell(dsn=server.dsn), command)
    assert status == 2
    assert "can't be seen from outside" in text
    server.down()
    status, found = run(shell(dsn=server.dsn, server_url=server.url), command, "--json")
    assert (status, found["status"]) == (1, "unknown")
    assert "no answer from" in run(shell(dsn=server.dsn), command, "--url", server.url)[1]


def test_flush_that_runs_out_of_time_ends_with_1() -> None:
    """A deployment script checks the exit status."""

    class Slow(CapturedTransport):
        def _flush(self, timeout: float, until: str) -> FlushReport:
            assert timeout == pytest.approx(0.2, abs=0.1)
            assert until == "delivered"
            return FlushReport(False, pending=2)

    status, text = run(shell(dsn=Slow()), "flush", "--timeout", "0.2")
    assert (status, text) == (1, "delivered 0, discarded 0, stored 0, pending 2\n")


def test_a_command_of_the_apps_own_reports_what_ends_it_when_decorated() -> None:
    """As documented: a command is no request, and Flask has no signal for its exception."""
    transport = CapturedTransport()
    runner = shell(dsn=transport)

    @runner.app.cli.command("nightly")
    @flush_after(get_kit(runner.app))
    def nightly() -> None:
        raise ValueError("broken")

    assert isinstance(runner.invoke(args=["nightly"]).exception, ValueError)
    (event,) = transport.events
    assert event["exception"]["values"][-1]["value"] == "broken"
    assert event["transaction"].endswith(".nightly")


@pytest.mark.parametrize(("dsn", "status", "exit_code"), [("", "pass", 0), ("nonsense", "fail", 1)])
def test_health_shows_whether_the_settings_can_be_used(dsn: str, status: str, exit_code: int) -> None:
    """The output of the health route with all details, as a shell user is trusted."""
    code, found = run(shell(dsn=dsn), "health", "--json")
    assert (code, found["status"]) == (exit_code, status)
    assert "checks" in found
    assert run(shell(dsn=dsn), "health")[1].startswith(f"status: {status}\n")
