"""`transport-kit receiver` as a process: its output, its end, its refusals."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.timing import SOON
from transport_kit.cli import main
from transport_kit.cli.receiver import _echo
from transport_kit.config.dsn import Dsn
from transport_kit.receiver import Receiver
from transport_kit.receiver.faults import FAULTS

EVENT_ID = "9ec79c33ec9942ab8353589fcb2e04dc"
TITLE = "\x1b[2Jboom\n\u202e\u3164"
EVENT = b'{"event_id":"%s"}\n{"type":"event"}\n%s\n' % (
    EVENT_ID.encode(),
    json.dumps(
        {
            "exception": {
                "values": [
                    {
                        "type": "ValueError",
                        "value": TITLE,
                        "stacktrace": {"frames": [{"function": "pay", "filename": "shop.py", "lineno": 7}]},
                    }
                ]
            }
        }
    ).encode(),
)
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(name="start")
def _start() -> Iterator[Start]:
    """Return a function that starts the command; killed after the test."""
    running: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-m", "transport_kit", "receiver", "--port", "0", *options]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def end(process: subprocess.Popen[str], number: int) -> str:
    """Send the signal; return the rest of the output. Stderr must be empty."""
    process.send_signal(number)
    out, err = process.communicate(timeout=SOON)
    assert (process.returncode, err) == (0, "")
    return out


def post(dsn: str) -> int:
    parsed = Dsn.parse(dsn)
    headers = {"X-Sentry-Auth": parsed.auth_header("test/1.0")}
    request = urllib.request.Request(parsed.envelope_url, data=EVENT, headers=headers, method="POST")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=SOON) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_the_dsn_and_the_page_then_a_line_for_each_envelope(start: Start, number: int) -> None:
    """A newcomer can copy them; hostile text can't move the terminal's cursor."""
    process = start()
    dsn, page = line(process).split()[1], line(process).split()[1]
    assert page.startswith("http://127.0.0.1:")
    assert post(dsn) == 200
    printed = line(process)
    assert printed.split("  ", 1)[1] == r"event  ValueError: \x1b[2Jboom\n\u202e\u3164  in pay (shop.py:7)"
    assert end(process, number) == ""


def test_json_lines_are_for_programs(start: Start, tmp_path: Path) -> None:
    """The first line has the addresses, each further one is a record. The file keeps the envelopes."""
    store = str(tmp_path / "events.db")
    process = start("--json", "--store", store, "--keep", "5")
    ready = json.loads(line(process))
    assert ready["url"] == f"http://127.0.0.1:{ready['port']}"
    assert post(ready["dsn"]) == 200
    record = json.loads(line(process))
    assert (record["n"], record["event_id"], record["exception"]["value"]) == (1, EVENT_ID, TITLE)
    end(process, signal.SIGTERM)
    with Receiver(store=store) as receiver:
        assert [each["event_id"] for each in receiver.events()] == [EVENT_ID]


def test_a_played_outage_is_announced_and_played(start: Start) -> None:
    """The announcement keeps users from looking for a bug elsewhere."""
    process = start("--fail", "503", "--rate-limit", "60:error:key", "--fail-for", "300")
    dsn, _ = line(process).split()[1], line(process)
    assert line(process) == "playing 503 and rate limit 60:error:key for 300 s"
    assert post(dsn) == 503
    end(process, signal.SIGTERM)


def test_a_reset_of_the_real_process_is_a_reset(start: Start) -> None:
    """A user tests connection errors with it."""
    process = start("--fail", "reset", "--json")
    ready = json.loads(line(process))
    with socket.create_connection(("127.0.0.1", ready["port"]), timeout=SOON) as peer:
        peer.sendall(b"POST /api/1/envelope/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
    end(process, signal.SIGTERM)


def test_a_hanging_request_does_not_hold_up_ctrl_c(start: Start) -> None:
    """The end of the receiver ends the outage."""
    process = start("--fail", "hang")
    dsn = line(process).split()[1]
    line(process)
    assert line(process) == "playing hang until the end"
    port = Dsn.parse(dsn).port
    with socket.create_connection(("127.0.0.1", port), timeout=SOON) as peer:
        peer.sendall(b"POST /api/1/envelope/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        end(process, signal.SIGINT)


def test_a_reader_that_leaves_does_not_end_the_receiver(start: Start) -> None:
    """`transport-kit receiver | head -2` keeps receiving."""
    process = start()
    dsn = line(process).split()[1]
    line(process)
    assert process.stdout is not None
    process.stdout.close()
    assert post(dsn) == 200
    assert post(dsn) == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=SOON) in (0, 120)  # 120: Python could not flush the pipe at exit
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--listen-anywhere"),
        (["--fail", "fire"], "fire"),
        (["--fail", "503", "--fail-for", "-1"], "fail_for"),
        (["--rate-limit", "soon"], "60:error:key"),
        (["--port", "70000"], "65535"),
        (["--store", "/dev/null/none.db"], "can't open"),
        (["--keep", "0"], "--keep"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options: list[str], words: str) -> None:
    """Exit status 2, before it listens."""
    result = CliRunner().invoke(main, ["receiver", "--port", "0", *options])
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


def test_a_taken_port_says_what_to_do() -> None:
    """Usually the receiver runs in another terminal."""
    with Receiver() as receiver:
        result = CliRunner().invoke(main, ["receiver", "--port", str(receiver.port)])
    assert result.exit_code == 2
    assert "0 takes a free port" in result.output


def test_it_offers_every_fault_there_is() -> None:
    """The command must offer the same faults as the library."""
    result = CliRunner().invoke(main, ["receiver", "--help"])
    assert f"[{'|'.join(FAULTS)}]" in result.output


def in_this_process(*options: str) -> tuple[int, str]:
    """Run the command in this process, for coverage; SIGTERM comes once an envelope was printed."""
    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(main, ["receiver", "--port", "0", *options])
    assert signal.getsignal(signal.SIGTERM) is before
    return result.exit_code, result.output


def test_a_pipe_without_a_reader_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver continues when a line can't be written."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            refused.append(text)
            raise BrokenPipeError

    refused: list[str] = []
    monkeypatch.setattr(sys, "stdout", Gone())
    _echo("a line")
    assert refused


@pytest.mark.parametrize("as_json", [True, False])
def test_signal_handlers_come_back(monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:
    """A program that calls the command must get its signal handlers back."""
    began = Receiver.start

    def start(self: Receiver) -> Receiver:
        began(self)

        def send_then_end() -> None:
            assert post(self.dsn) == 200
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=send_then_end).start()
        return self

    monkeypatch.setattr(Receiver, "start", start)
    options = ["--host", "0.0.0.0", "--listen-anywhere", "--rate-limit", "60:session"]
    status, output = in_this_process(*options, *(["--json"] if as_json else []))
    assert status == 0
    assert ("playing rate limit 60:session until the end" in output) != as_json
    assert ("Other machines can reach" in output) != as_json
    assert "ValueError" in output
    assert "\x1b" not in output
