"""`transport-kit forward` as a process: kills, signals, and app processes that only write meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.arrivals import all_arrive, ids, reported_losses
from tests.timing import SOON, scaled
from transport_kit import Dsn, make_transport
from transport_kit.queues.spool import identity_of
from transport_kit.testing import FaultServer

MAX_SENDERS = 8
WRITER = """
import sys
from transport_kit import make_transport
dsn, path, begin, end = sys.argv[1:5]
transport = make_transport(dsn, queue="file://" + path, spool_credentials=True)
for number in range(int(begin), int(end)):
    assert transport.capture_event({"event_id": f"{number:032x}"})
    if number % 50 == 49:
        print(number, flush=True)
        sys.stdin.readline()
print("accepted", flush=True)
sys.stdin.read()
transport.close(0.0)
"""


class Forwarder:
    """The command as a child process, whose output is read line by line."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        clean = {name: text for name, text in os.environ.items() if not name.startswith("TRANSPORT_KIT_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "transport_kit", "forward", *arguments, "--json"],
            stdout=subprocess.PIPE,
            text=True,
            env={**clean, "TRANSPORT_KIT_SHUTDOWN_TIMEOUT": str(3 * SOON), **environment},
        )

    def until(self, word: str) -> dict[str, Any]:
        """Return its next line about that event."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            facts: dict[str, Any] = json.loads(line)
            if facts["event"] == word:
                return facts
        raise AssertionError(f"it ended without the event {word}")

    def end(self, number: int | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(SOON)


@pytest.fixture(name="forward")
def _forward() -> Iterator[Callable[..., Forwarder]]:
    """Return a function that starts forwarders; they are killed after the test."""
    started: list[Forwarder] = []

    def forward(*arguments: object, **environment: str) -> Forwarder:
        started.append(Forwarder(*map(str, arguments), **environment))
        return started[-1]

    yield forward
    for forwarder in started:
        forwarder.process.kill()
        forwarder.process.communicate()


def fill(server: FaultServer, path: Path, begin: int, end: int) -> None:
    """Put events into a spool without sending any."""
    transport = make_transport(server.dsn, queue=f"file://{path}", spool_drain=False, spool_credentials=True)
    for number in range(begin, end):
        assert transport.capture_event({"event_id": f"{number:032x}"})
    transport.close(0.0)


def lose(server: FaultServer, path: Path, quantity: int) -> None:
    """Leave loss counts in a spool, as an app does that only writes."""
    transport = make_transport(server.dsn, queue=f"file://{path}", spool_drain=False, spool_credentials=True)
    transport.record_lost_event("sample_rate", "error", quantity=quantity)
    transport.close(0.0)


def test_a_sidecar_that_starts_first_waits_for_the_directory_of_its_app(
    tmp_path: Path, forward: Callable[..., Forwarder]
) -> None:
    """With `--wait`, as in the documented manifests."""
    path = tmp_path / "spool"
    with FaultServer() as server:
        forwarder = forward(path, "--wait", "--dsn", server.dsn)
        assert "directory missing" in forwarder.until("log")["text"]
        assert not path.exists()
        fill(server, path, 0, 3)
        assert server.wait_for(3, SOON)
        assert forwarder.end(signal.SIGTERM) == 0


def test_nothing_is_lost_when_forwarders_are_killed_while_four_processes_write(
    tmp_path: Path, forward: Callable[..., Forwarder]
) -> None:
    """Each kill may duplicate the envelopes that its senders had claimed, and no more."""
    path = tmp_path / "spool"
    kills = 2
    with FaultServer() as server:
        fill(server, path, 0, 1)
        forwarder = forward(path)
        assert server.wait_for(1, SOON)
        server.delay = 0.005
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, server.dsn, str(path), str(begin), str(begin + 200)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for begin in (200, 400, 600, 800)
        ]
        for step in range(4):
            for writer in writers:
                assert writer.stdout is not None
                assert writer.stdout.readline().strip().isdigit()
            if step < kills:
                forwarder.end(signal.SIGKILL)
                forwarder = forward(path)
            for writer in writers:
                assert writer.stdin is not None
                writer.stdin.write("\n")
                writer.stdin.flush()
        wanted = {f"{number:032x}" for number in (0, *range(200, 1000))}
        assert all_arrive(server, wanted, SOON)
        for writer in writers:
            writer.communicate(timeout=SOON)
            assert writer.returncode == 0
        forwarder.until("serving")  # the writers may have delivered everything before it handles signals
        assert forwarder.end(signal.SIGTERM) == 0
        counts = Counter(server.event_ids())
        assert set(counts) == wanted
        # Between two forwarders an app process may have drained.
        assert sum(counts.values()) - len(counts) <= kills * MAX_SENDERS


def test_sigterm_finishes_the_request_in_flight(tmp_path: Path, forward: Callable[..., Forwarder]) -> None:
    """A deployment duplicates nothing: requests are answered and recorded before the end."""
    path = tmp_path / "spool"
    with FaultServer() as server:
        server.hold()
        fill(server, path, 0, 1)
        forwarder = forward(path, TRANSPORT_KIT_MAX_SENDERS="1")
        assert server.wait_for_requests(1, SOON)
        fill(server, path, 1, 5)
        forwarder.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            forwarder.process.wait(0.3)
        server.release()
        assert forwarder.until("ended")["delivered"] == {"error": 1}
        assert forwarder.end() == 0
        assert server.event_ids() == [f"{0:032x}"]
        assert forward(path, "--once").end() == 0
        assert sorted(server.event_ids()) == sorted(ids(5))


def test_a_second_sigterm_does_not_wait(tmp_path: Path, forward: Callable[..., Forwarder]) -> None:
    """A person can end a forwarder at once when the server hangs."""
    with FaultServer() as server:
        server.hold()
        fill(server, tmp_path / "spool", 0, 1)
        forwarder = forward(tmp_path / "spool")
        assert server.wait_for_requests(1, SOON)
        forwarder.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            forwarder.process.wait(0.3)
        assert forwarder.end(signal.SIGTERM) == 0


def test_sighup_reads_the_dsns_anew(tmp_path: Path, forward: Callable[..., Forwarder]) -> None:
    """A DSN is added without a restart; a mistake in the file changes nothing."""
    path, file = tmp_path / "spool", tmp_path / "dsns"
    with FaultServer() as server:
        identity = identity_of(Dsn.parse(server.dsn))
        transport = make_transport(server.dsn, queue=f"file://{path}", spool_drain=False)
        transport.capture_event({"event_id": f"{0:032x}"})
        transport.close(0.0)
        file.write_text("# none yet\n")
        forwarder = forward(path, "--dsn-file", file)
        waiting = forwarder.until("waiting")
        assert waiting["identity"] == identity
        assert "no DSN" in waiting["why"]
        file.write_text("https://nonsense\n")
        forwarder.process.send_signal(signal.SIGHUP)
        assert "line 1" in forwarder.until("not reloaded")["why"]
        file.write_text(f"\n{server.dsn}\n")
        forwarder.process.send_signal(signal.SIGHUP)
        assert forwarder.until("serving")["identity"] == identity
        assert server.wait_for(1, SOON)
        assert forwarder.end(signal.SIGINT) == 0


def test_once_says_what_it_could_not_deliver(tmp_path: Path, forward: Callable[..., Forwarder]) -> None:
    """For cron: status 0 if everything was delivered, otherwise status 1 and the reason."""
    path = tmp_path / "spool"
    with FaultServer() as server:
        fill(server, path, 0, 20)
        complete = forward(path, "--once")
        ended = complete.until("ended")
        assert (complete.end(), ended["delivered"], ended["left"]) == (0, {"error": 20}, {})
        assert set(server.event_ids()) == ids(20)
        transport = make_transport(server.dsn.replace("/1", "/2"), queue=f"file://{path}", spool_drain=False)
        transport.capture_event({"message": "x"})
        transport.close(0.0)
        incomplete = forward(path, "--once")
        (why,) = incomplete.until("ended")["left"].values()
        assert incomplete.end() == 1
        assert "no DSN" in why
    missing = forward(tmp_path / "nowhere", "--once")
    assert missing.end() == 2


def test_a_segment_of_absurd_size_holds_up_neither_what_waits_nor_the_end(
    tmp_path: Path, forward: Callable[..., Forwarder]
) -> None:
    """Something extended a file: all envelopes are delivered, and SIGTERM ends the forwarder in time."""
    path = tmp_path / "spool"
    with FaultServer() as server:
        fill(server, path, 0, 1)
        (segment,) = path.glob("*/seg/*.log")
        os.truncate(segment, 200 << 30)
        fill(server, path, 1, 2)
        forwarder = forward(path)
        assert all_arrive(server, ids(2), SOON)
        began = time.monotonic()
        assert forwarder.end(signal.SIGTERM) == 0
        assert time.monotonic() - began < scaled(3.0)


def test_once_tells_the_loss_counts_it_found(tmp_path: Path, forward: Callable[..., Forwarder]) -> None:
    """Such a run is shorter than the interval between reports, and the next one may start a day later."""
    path = tmp_path / "spool"
    with FaultServer() as server:
        fill(server, path, 0, 3)
        lose(server, path, 7)
        lose(server, path, 4)
        assert forward(path, "--once").end() == 0
        assert set(server.event_ids()) == ids(3)
        assert reported_losses(server.accepted) == {("sample_rate", "error"): 11}
        assert forward(path, "--once").end() == 0
        assert reported_losses(server.accepted) == {("sample_rate", "error"): 11}  # reported once


def test_sigterm_tells_the_loss_counts(tmp_path: Path, forward: Callable[..., Forwarder]) -> None:
    """Otherwise a restart every minute would defer them forever."""
    path = tmp_path / "spool"
    with FaultServer() as server:
        lose(server, path, 5)
        fill(server, path, 0, 1)
        forwarder = forward(path)
        assert server.wait_for(1, SOON)
        assert reported_losses(server.accepted) == {}
        assert forwarder.end(signal.SIGTERM) == 0
        assert reported_losses(server.accepted) == {("sample_rate", "error"): 5}


@pytest.mark.parametrize("way", ["refused", "hung"])
def test_loss_counts_that_no_server_took_are_left_to_the_next_run(
    tmp_path: Path, forward: Callable[..., Forwarder], way: str
) -> None:
    """The end has a deadline; counts without an answer by then stay in the spool, on their way or not."""
    path = tmp_path / "spool"
    with FaultServer() as server:
        lose(server, path, 6)
        if way == "refused":
            server.down()
        else:
            server.hold()
        first = forward(path, "--once", TRANSPORT_KIT_SHUTDOWN_TIMEOUT=str(scaled(1.0)))
        assert first.end() == 0
        assert len(server.requests) == (way == "hung")
        if way == "refused":
            server.up()
        else:
            server.release()
        before = len(server.requests)
        assert forward(path, "--once").end() == 0
        assert reported_losses(server.requests[before:]) == {("sample_rate", "error"): 6}


def test_app_processes_only_write_while_a_forwarder_runs(
    tmp_path: Path, forward: Callable[..., Forwarder]
) -> None:
    """A forwarder saves the CPU time of app processes."""
    path = tmp_path / "spool"
    with FaultServer() as server:
        fill(server, path, 0, 1)
        forwarder = forward(path)
        assert server.wait_for(1, SOON)
        transport = make_transport(server.dsn, queue=f"file://{path}")
        for number in range(1, 100):
            assert transport.capture_event({"event_id": f"{number:032x}"})
        assert all_arrive(server, ids(100), SOON)
        assert transport.health().delivered == {}
        spool = transport.health().spool
        assert spool is not None
        assert not spool["draining"]
        assert spool["problems"] == []
        transport.close(0.0)
        forwarder.process.terminate()
        assert forwarder.until("ended")["delivered"] == {"error": 100}
