"""`transport-kit forward` in process: its output, its refusals, its addresses."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any

import click
import pytest

import transport_kit.cli.forward as cli_forward
from tests.core.cli_support import run
from tests.timing import SOON
from transport_kit import make_transport
from transport_kit.forwarder.forwarder import Forwarder, Summary
from transport_kit.testing import FaultServer

KEY = "0123456789abcdef0123456789abcdef"


def fill(server: FaultServer, path: Path, end: int = 3) -> None:
    transport = make_transport(server.dsn, queue=f"file://{path}", spool_drain=False)
    for _ in range(end):
        assert transport.capture_event({"message": "x"})
    transport.close(0.0)


@pytest.mark.parametrize("how", ["option", "variable", "file"])
def test_a_dsn_is_given_in_three_ways(tmp_path: Path, how: str) -> None:
    """`ps` does not show the DSN in two of them."""
    path, file = tmp_path / "spool", tmp_path / "dsns"
    with FaultServer() as server:
        fill(server, path)
        file.write_text(f"# shop\n\n  {server.dsn}\n")
        arguments = {"option": ["--dsn", server.dsn], "file": ["--dsn-file", str(file)], "variable": []}[how]
        env = {"TRANSPORT_KIT_DSN": server.dsn} if how == "variable" else {}
        result = run("forward", str(path), "--once", *arguments, env={**env})
        assert result.exit_code == 0, result.output
        assert "ended: delivered error 3" in result.output
        assert "serving" in result.output
        assert "***@" in result.output
        assert server.dsn.split("//")[1].split("@")[0] not in result.output
        assert len(server.event_ids()) == 3


def test_machines_get_an_object_a_line(tmp_path: Path) -> None:
    """Log lines are objects too, so that stdout contains nothing else."""
    with FaultServer() as server:
        fill(server, tmp_path / "spool")
        server.answer(503, times=1)
        result = run(
            "forward",
            str(tmp_path / "spool"),
            "--once",
            "--dsn",
            server.dsn,
            "--json",
            env={"TRANSPORT_KIT_BACKOFF_BASE": "0.01"},
        )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    words = [line["event"] for line in lines]
    assert (words[0], words[-1]) == ("serving", "ended")
    assert any(
        "503" in line["text"] and line["level"] == "WARNING" for line in lines if line["event"] == "log"
    )
    assert lines[-1]["delivered"] == {"error": 3}


def test_what_is_left_and_discarded_is_said(tmp_path: Path) -> None:
    """Exit status 1, with the reasons."""
    with FaultServer() as server:
        fill(server, tmp_path / "spool", 1)
        result = run("forward", str(tmp_path / "spool"), "--once")
        assert result.exit_code == 1
        assert "left: " in result.output
        assert "warning: the spool of" in result.stderr
        server.answer(400)
        result = run("forward", str(tmp_path / "spool"), "--once", "--dsn", server.dsn)
        assert "  discarded: send_error error 1" in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dsn", f"https://{KEY}@"], "--dsn, number 1"),
        (["--dsn", f"https://{KEY}@host/1", "--unknown", f"https://{KEY}@host/1"], "No such option"),
        (["--dsn-file", "missing"], "No such file"),
        (["--dsn-file", "binary"], "is not UTF-8"),
        (["--dsn-file", "large"], "larger than 1 MiB"),
        (["--dsn-file", "wrong"], "wrong, line 2"),
        (["--dsn-file", "pipe"], "not a regular file"),
        (["--max-rate", "0"], "--max-rate"),
        (["--max-rate", "nan"], "max_rate"),
        (["--listen", "nowhere", "--health", "0"], "must be an IP address"),
    ],
)
def test_a_wrong_call_is_one_line_without_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    """Exit status 2."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("binary").write_bytes(b"\xff\xfe")
    Path("large").write_text("#" * (1024 * 1024 + 1))
    Path("wrong").write_text(f"https://{KEY}@host/1\nhttp//{KEY}@host\n")
    result = run("forward", "spool", "--once", *arguments)
    assert result.exit_code == 2
    assert expected in result.output
    assert KEY not in result.output


@pytest.mark.parametrize("more", [[], ["--once"], ["--dsn", f"https://{KEY}@sentry.example/1"]])
def test_a_directory_that_does_not_exist_ends_the_command(tmp_path: Path, more: list[str]) -> None:
    """Exit status 2, as for any other argument that can't be used."""
    result = run("forward", str(tmp_path / "misspelt"), *more)
    assert result.exit_code == 2
    assert "directory missing" in result.output
    assert not (tmp_path / "misspelt").exists()


def test_waiting_and_ending_when_nothing_waits_exclude_each_other(tmp_path: Path) -> None:
    """The two contradict each other for a directory that is missing."""
    result = run("forward", str(tmp_path / "misspelt"), "--wait", "--once")
    assert result.exit_code == 2
    assert "exclude each other" in result.output


@pytest.mark.parametrize("together", [True, False])
def test_health_and_metrics_listen_on_one_port_or_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """The addresses are printed, as port 0 takes a free one."""
    answers: dict[str, str] = {}

    def run_once(self: Forwarder, *, once: bool = False) -> Summary:
        for word, url in urls.items():
            with urllib.request.urlopen(url, timeout=SOON) as answer:
                answers[word] = answer.read().decode()
        return Summary({}, {}, {})

    urls: dict[str, str] = {}
    printed = cli_forward._PlainLines.event

    def record_urls(self: Any, word: str, facts: Any) -> None:
        if "url" in facts:
            urls[word] = facts["url"]
        printed(self, word, facts)

    monkeypatch.setattr(Forwarder, "run", run_once)
    monkeypatch.setattr(cli_forward._PlainLines, "event", record_urls)
    port = "0"
    if together:
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
    before = signal.getsignal(signal.SIGTERM)
    result = run("forward", str(tmp_path), "--health", port, "--metrics", port)
    assert result.exit_code == 0, result.output
    assert '"status"' in answers["health"]
    assert "transport_kit_waiting_envelopes" in answers["metrics"]
    assert f"health {urls['health']}" in result.output
    assert (urls["health"].rsplit("/", 1)[0] == urls["metrics"].rsplit("/", 1)[0]) == together
    assert signal.getsignal(signal.SIGTERM) is before


def test_metrics_without_their_package_name_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is in an extra of its own."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    result = run("forward", str(tmp_path), "--metrics", "0")
    assert result.exit_code == 2
    assert "pip install 'transport-kit[prometheus]'" in result.output


def test_signals_reach_the_forwarder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals work with a timeout from the environment too."""
    calls: list[str] = []
    monkeypatch.setattr(Forwarder, "stop", lambda self: calls.append("stop"))
    monkeypatch.setattr(Forwarder, "reload", lambda self: calls.append("reload"))

    def run_once(self: Forwarder, *, once: bool = False) -> Summary:
        calls.append(str(self._options.shutdown_timeout))
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        return Summary({}, {}, {})

    monkeypatch.setattr(Forwarder, "run", run_once)
    assert run("forward", str(tmp_path)).exit_code == 0
    assert run("forward", str(tmp_path), env={"TRANSPORT_KIT_SHUTDOWN_TIMEOUT": "3"}).exit_code == 0
    assert calls == ["8.0", "reload", "stop", "3.0", "reload", "stop"]


def test_a_reader_that_is_gone_does_not_end_the_forwarder(monkeypatch: pytest.MonkeyPatch) -> None:
    """`| head` must not stop deliveries."""

    tried: list[str] = []

    def broken(line: str, **_: object) -> None:
        tried.append(line)
        raise BrokenPipeError

    monkeypatch.setattr(click, "echo", broken)
    cli_forward._echo("x")
    cli_forward._echo("y")
    assert tried == ["x", "y"]
