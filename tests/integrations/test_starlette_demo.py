"""`make demo`: shows the arrival of one error, or the reason why it did not arrive."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from example_apps import demo
from tests.needs import program
from tests.timing import SOON

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, str(ROOT / "example_apps" / "demo.py")]


@pytest.fixture(name="environ")
def _environ() -> dict[str, str]:
    """The environment of a fresh shell, with this checkout importable."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TRANSPORT_KIT_")}
    return environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")]),
        "COLUMNS": "120",
    }


def test_the_demo_shows_the_500_the_event_and_the_health_and_ends_with_0(environ: dict[str, str]) -> None:
    """A new user judges the library by the demo."""
    done = subprocess.run(
        [*DEMO, "--once"], check=False, env=environ, timeout=50, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for pattern in (
        r"GET /carts/2 +500 Internal Server Error",
        r"type +CartError",
        r"message +no price for pot",
        r"culprit +app\.py:\d+ in price_of",
        r"sent as +\d+ bytes, gzip",
        r"delivered +error 1",
        r"receiver's page +http://127\.0\.0\.1:\d+/",
    ):
        assert re.search(pattern, done.stdout), pattern
    assert done.stderr == ""


def port_is_closed(url: str) -> bool:
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    with socket.socket() as probe:
        probe.settimeout(SOON)
        return probe.connect_ex((host, int(port))) != 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_demo_stays_until_it_is_told_to_end_and_leaves_nothing_running(
    number: signal.Signals, status: int, environ: dict[str, str]
) -> None:
    """Users look at its page; a server left behind would hold memory for days."""
    with subprocess.Popen(
        DEMO, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        try:
            assert running.stdout is not None
            said = ""
            for line in running.stdout:
                said += line
                if "Ctrl-C" in line:
                    break
            assert running.poll() is None
            running.send_signal(number)
            said += running.stdout.read()
            assert running.wait(SOON) == status, said
        finally:
            running.kill()
    app, receiver = (re.search(rf"{name} +(http://\S+)", said) for name in ("example app", "receiver"))
    assert app is not None
    assert receiver is not None
    assert port_is_closed(app[1])
    assert port_is_closed(receiver[1])


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("TRANSPORT_KIT_CAPTURE_ERRORS", "no", "the event did not arrive within 0.3 s"),
        ("TRANSPORT_KIT_PROXY", "", "the event did not arrive within 0.3 s"),
        ("UVICORN_HTTP", "none-such", "the example app does not answer"),
    ],
)
def test_the_demo_says_why_when_the_event_did_not_arrive(
    variable: str,
    value: str,
    reason: str,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A demo must not report success after a failure."""
    for name, text in (environ | {variable: value}).items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(demo, "PATIENCE", 0.3)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--once"])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        assert demo.main() == 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    said = capsys.readouterr().out
    assert f"The demo failed: {reason}" in said
    assert "What the example app printed" in said
    assert variable != "TRANSPORT_KIT_MAX_SENDERS" or "nothing will be delivered: max_senders" in said


@pytest.fixture(name="machine")
def _machine(tmp_path: Path) -> tuple[list[str], Path]:
    """A copy of the files that make reads, with a `python` chosen by the test."""
    make = program("make")
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    fake = tmp_path / "fake-python"
    return [make, "-C", str(tmp_path), f"PYTHON={fake}", f"VENV={tmp_path / 'venv'}"], fake


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (None, "There is no"),
        ('test "$1" = -V && echo "Python 3.9.2"; exit 1', "Python 3.11 or newer is needed, and"),
        ('case "$2" in *ensurepip*) exit 1;; *) exit 0;; esac', "Install the system package python3-venv"),
    ],
)
@pytest.mark.parametrize("goal", ["demo", "test"])
def test_make_says_in_a_sentence_what_a_machine_lacks(
    script: str | None, sentence: str, goal: str, machine: tuple[list[str], Path]
) -> None:
    """Checked before anything is made: a traceback of pip would mislead."""
    command, fake = machine
    if script is not None:
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
    done = subprocess.run([*command, goal], check=False, timeout=30, capture_output=True, text=True)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert not (fake.parent / "venv").exists()


def test_make_alone_lists_what_there_is() -> None:
    """Users should not have to read the Makefile."""
    done = subprocess.run(["make", "-C", str(ROOT)], check=True, timeout=30, capture_output=True, text=True)
    for goal in ("venv", "test", "demo", "lint", "types", "wheel", "chaos", "clean"):
        assert re.search(rf"make {goal} +\S", done.stdout), goal


def test_constraints_are_pins_and_nothing_else() -> None:
    """Without an index: each machine chooses its own."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins
    for line in pins:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!+]*", line), line
    for text in ((ROOT / "Makefile").read_text(), "\n".join(lines)):
        assert "://" not in text
        assert "index" not in text
