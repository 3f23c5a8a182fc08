"""The spool in whole processes: an app that is killed, one with several workers, one that only writes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.process.arrivals import all_arrive, ids, reported_losses
from tests.timing import SOON, quickest, scaled
from transport_kit import make_transport
from transport_kit.queues.spool import FileSpool, identity_of
from transport_kit.runtime.errors import OptionsError
from transport_kit.testing import FaultServer

APP = """
import os, sys
from transport_kit import make_transport
dsn, path, begin, end, then = sys.argv[1:6]
transport = make_transport(dsn, queue="file://" + path, spool_drain=then != "write")
if then == "stay":
    transport.start()
for number in range(int(begin), int(end)):
    assert transport.capture_event({"event_id": f"{number:032x}"})
print("accepted", flush=True)
if then == "die":
    os.kill(os.getpid(), 9)
if then == "stay":
    sys.stdin.read()
transport.close(30.0 if then != "write" else 0.0)
"""


def app(server: FaultServer, path: Path, begin: int, end: int, then: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", APP, server.dsn, str(path), str(begin), str(end), then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "accepted\n"
    return process


def ended(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=SOON)
    return process.returncode


def test_what_a_killed_process_accepted_is_delivered_by_the_next(tmp_path: Path) -> None:
    """kill -9 after ninety accepted events, with the server down: all ninety arrive."""
    with FaultServer() as server:
        server.down()
        assert ended(app(server, tmp_path / "spool", 0, 90, "die")) == -signal.SIGKILL
        server.up()
        transport = make_transport(server.dsn, queue=f"file://{tmp_path}/spool")
        transport.start()
        assert server.wait_for(90, SOON)
        transport.close()
        assert set(server.event_ids()) == ids(90)


def test_processes_share_one_drainer_and_another_takes_over(tmp_path: Path) -> None:
    """One worker of an app delivers for all; its death costs a second and no envelope."""
    with FaultServer() as server:
        first = app(server, tmp_path / "spool", 0, 10, "stay")
        assert server.wait_for(10, SOON)
        second = app(server, tmp_path / "spool", 10, 20, "stay")
        assert server.wait_for(20, SOON)
        first.kill()
        ended(first)
        third = app(server, tmp_path / "spool", 20, 30, "write")
        assert ended(third) == 0
        assert all_arrive(server, ids(30), SOON)
        assert ended(second) == 0


def test_another_process_takes_over_within_a_second(tmp_path: Path) -> None:
    """A process that captures nothing takes over too; claimed envelopes wait for no timeout and no request.

    It tries to become the drainer once a second, and must then open a connection.
    """

    def takeover() -> float:
        with FaultServer() as server:
            server.hold()
            path = tmp_path / str(time.monotonic_ns())  # a new one for each measurement
            first = app(server, path, 0, 1, "stay")
            assert server.wait_for_requests(1, SOON)
            second = app(server, path, 1, 1, "stay")
            first.kill()
            began = time.monotonic()
            assert server.wait_for_requests(2, SOON)
            took = time.monotonic() - began
            server.release()
            assert all_arrive(server, ids(1), SOON)
            assert ended(second) == 0
            ended(first)
            return took

    assert quickest(takeover, scaled(2.0)) <= scaled(2.0)


def test_a_flush_before_the_start_delivers_what_a_killed_process_left(tmp_path: Path) -> None:
    """A script that only empties a spool: no status file shows what waits, and nothing is captured."""
    with FaultServer() as server:
        server.down()
        assert ended(app(server, tmp_path / "spool", 0, 20, "die")) == -signal.SIGKILL
        server.up()
        for status in tmp_path.glob("spool/*/status.json"):
            status.unlink()
        transport = make_transport(server.dsn, queue=f"file://{tmp_path}/spool")
        assert transport.health().state == "new"
        assert transport.flush(SOON, until="delivered").ok
        assert set(server.event_ids()) == ids(20)
        assert transport.health().spool["draining"]  # type: ignore[index]
        transport.close()


def test_a_flush_waits_for_what_is_only_in_memory(tmp_path: Path) -> None:
    """Without its directory an envelope is not stored: the end delivers it, or reports it as left."""
    with FaultServer() as server:
        server.hold()
        transport = make_transport(server.dsn, queue=f"file://{tmp_path}/missing/spool")
        for _ in range(3):
            assert transport.capture_event({"message": "x"})
        report = transport.flush(0.2)
        assert not report.ok
        assert (report.stored, report.pending) == (0, 3)
        server.release()
        assert transport.close(SOON).ok
        assert len(server.event_ids()) == 3


def test_losses_that_were_not_reported_at_the_end_are_left_to_the_next(tmp_path: Path) -> None:
    """The server gets all counts, whichever process drains."""
    with FaultServer() as server:
        path = tmp_path / "spool"
        server.down()
        for ending in (2, 3):
            transport = make_transport(server.dsn, queue=f"file://{path}", client_report_interval=3600)
            transport.start()
            while not transport.health().spool["draining"]:  # type: ignore[index]
                transport.flush(0.05)
            transport.record_lost_event("sample_rate", "error", quantity=ending)
            transport.close()
        server.up()
        assert server.requests == []
        drainer = make_transport(server.dsn, queue=f"file://{path}", client_report_interval=0.05)
        drainer.start()
        while (quantity := reported_losses(requests := server.accepted).total()) < 5:
            assert server.wait_for(len(requests) + 1, SOON)
        drainer.close()
        assert quantity == 5


@pytest.mark.parametrize("what", ["directory", "files"])
def test_a_spool_that_is_deleted_under_a_process_is_begun_anew(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After `rm -r`, or a cleaner of old files, only the deleted envelopes are lost."""
    with FaultServer() as server:
        path = tmp_path / "spool"
        transport = make_transport(server.dsn, queue=f"file://{path}")
        transport.capture_event({"message": "before"})
        assert server.wait_for(1, SOON)
        if what == "directory":
            shutil.rmtree(path)
        else:
            for file in path.glob("*/seg/*"):
                file.unlink()
        deadline = time.monotonic() + SOON
        while "was removed" not in caplog.text:
            assert time.monotonic() < deadline
            transport.flush(0.05, until="delivered")
        transport.capture_event({"event_id": f"{7:032x}"})
        assert all_arrive(server, {f"{7:032x}"}, SOON)
        assert list(path.glob("*/seg/*.log"))
        assert transport.health().spool["problems"] == []  # type: ignore[index]
        transport.close()


def test_health_tells_of_the_spool(tmp_path: Path) -> None:
    """Health shows the contents, the drainer, and a missing directory."""
    with FaultServer() as server:
        transport = make_transport(server.dsn, queue=f"file://{tmp_path}/spool")
        transport.capture_event({"message": "x"})
        assert server.wait_for(1, SOON)
        health = transport.health()
        assert health.spool is not None
        assert health.spool["draining"]
        assert health.spool["drainer"] == os.getpid()
        assert health.spool["problems"] == []
        assert "spool drainer" in health.as_text()
        assert health.as_health_json()["checks"]["spool:state"]
        assert server.dsn.split("//")[1].split("@")[0] not in str(health.as_dict())
        transport.close()
        missing = make_transport(server.dsn, queue=f"file://{tmp_path}/missing/spool")
        missing.capture_event({"message": "y"})
        assert missing.health().status == "warn"
        assert "kept in memory" in " ".join(missing.health().reasons)
        assert server.wait_for(2, SOON)
        missing.close()


def test_a_flush_that_waits_for_delivery_does_and_one_that_does_not_is_quick(tmp_path: Path) -> None:
    """A stored envelope is settled, unless the caller waits for its delivery."""
    with FaultServer() as server:
        server.hold()
        transport = make_transport(server.dsn, queue=f"file://{tmp_path}/spool")
        for _ in range(3):
            transport.capture_event({"message": "x"})
        report = transport.flush(0.0)
        assert report.ok
        assert report.stored == 3
        assert not transport.flush(0.2, until="delivered").ok
        server.release()
        assert transport.flush(SOON, until="delivered").ok
        assert len(server.event_ids()) == 3
        transport.close()


def test_a_directory_to_put_right_is_said_at_once_and_credentials_only_on_demand(tmp_path: Path) -> None:
    """`make_transport` raises a configuration error, so that it is not first noticed in production."""
    dsn = "https://0123456789abcdef0123456789abcdef@sentry.example/1"
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(OptionsError, match="chmod 700"):
        make_transport(dsn, queue=f"file://{tmp_path}/open")
    with pytest.raises(OptionsError, match="absolute path"):
        make_transport(dsn, queue="file:relative")
    for with_credentials in (False, True):
        root = tmp_path / f"spool-{with_credentials}"
        transport = make_transport(dsn, queue=f"file://{root}", spool_credentials=with_credentials)
        assert transport.dsn is not None
        stored = root / identity_of(transport.dsn) / "dsn"
        assert stored.exists() == with_credentials
        if with_credentials:
            assert stored.read_text() == dsn + "\n"
            assert stored.stat().st_mode & 0o077 == 0
        transport.close()


def content(file: Path) -> bytes:
    """Return the bytes of a segment; none if it was renamed after it was listed, as a new one is."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def test_losses_of_a_process_that_only_writes_are_reported_by_the_drainer(tmp_path: Path) -> None:
    """With a drainer elsewhere app processes send nothing, not even a client report."""
    with FaultServer() as server:
        path = tmp_path / "spool"
        writer = make_transport(
            server.dsn, queue=f"file://{path}", spool_drain=False, client_report_interval=0.05
        )
        writer.record_lost_event("sample_rate", "error", quantity=7)
        writer.capture_event({"message": "x"})
        other = FileSpool(str(path), identity_of(writer.dsn), drain=False)  # type: ignore[arg-type]
        other.close()
        seg = path / identity_of(writer.dsn) / "seg"  # type: ignore[arg-type]
        for _ in range(200):
            if any(b"sample_rate" in content(file) for file in seg.glob("*.log")):
                break
            writer.flush(0.05, until="delivered")
        writer.close(0.0)
        assert server.requests == []
        drainer = make_transport(server.dsn, queue=f"file://{path}", client_report_interval=0.05)
        drainer.start()
        # The counts are part of the event's envelope, or have one of their own.
        while b'"sample_rate"' not in b"".join(bodies := [request.body for request in server.accepted]):
            assert server.wait_for(len(bodies) + 1, SOON)
        drainer.close()
