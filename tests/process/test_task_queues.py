"""Real workers of Celery and RQ, children of multiprocessing, scripts: their errors arrive, once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.needs import program
from tests.timing import SOON
from transport_kit.testing import FaultServer

ROOT = Path(__file__).parents[2]

CELERY_APP = """
from celery import Celery
from transport_kit import Kit, Scope
from transport_kit.celery import connect

app = Celery("shop", broker="filesystem://", broker_transport_options={
    "data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"})
app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)
connect(Kit({}, source="environment"))

@app.task
def fine():
    return 1

@app.task(throws=(KeyError,))
def expected():
    raise KeyError("known")

@app.task
def fail(number):
    Scope.current().set_tag("number", number)
    raise ValueError(f"task {number}")

@app.task(bind=True, max_retries=1, default_retry_delay=0)
def again(self):
    try:
        raise LookupError("at last")
    except LookupError as error:
        raise self.retry(exc=error)
"""

RQ_JOBS = """
import os
from transport_kit import Scope

def fine():
    return 1

def fail(number):
    Scope.current().set_tag("number", number)
    raise ValueError(f"job {number}")
"""

CHILDREN = """
import multiprocessing, sys
from transport_kit import Kit
from transport_kit.serverless import flush_after

kit = Kit({}, source="environment")

def captures(number):
    kit.capture_exception(ValueError(f"captured {number}"))

@flush_after(kit)
def raises(number):
    raise ValueError(f"raised {number}")

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    captures("in the parent")
    children = [context.Process(target=work, args=(n,)) for n in range(2) for work in (captures, raises)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    print([child.exitcode for child in children])
"""


@pytest.fixture(name="receiver")
def _receiver() -> Iterator[FaultServer]:
    """Run a receiver with slow answers, so that events wait when a process ends."""
    with FaultServer() as receiver:
        receiver.delay = 0.1
        yield receiver


@pytest.fixture(name="start")
def _start(receiver: FaultServer, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a program in the test's directory; killed after the test."""
    running: list[subprocess.Popen[str]] = []
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TRANSPORT_KIT_")}
    environ |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "TRANSPORT_KIT_DSN": receiver.dsn}

    def start(*command: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=tmp_path,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def events(receiver: FaultServer) -> list[dict[str, Any]]:
    """Return the error events that arrived, sorted by their messages."""
    items = [item for request in receiver.accepted for item in request.envelope.items if item.type == "event"]
    payloads: list[dict[str, Any]] = [json.loads(item.get_bytes()) for item in items]
    return sorted(payloads, key=message)


def message(event: dict[str, Any]) -> str:
    return str(event["exception"]["values"][-1]["value"])


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a file or a port that the process makes."""
    deadline = time.monotonic() + SOON
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)


def test_celerys_prefork_workers_report_and_deliver(
    receiver: FaultServer, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Each of its processes ends by `os._exit`, after a signal that only Celery has."""
    for folder in ("queue", "control"):
        (tmp_path / folder).mkdir()
    (tmp_path / "shop.py").write_text(CELERY_APP)
    worker = start(
        sys.executable, "-m", "celery", "-A", "shop", "worker", "-P", "prefork", "-c", "2", "-l", "info",
        "--without-gossip", "--without-mingle", "--without-heartbeat",
    )  # fmt: skip
    producer = start(
        sys.executable,
        "-c",
        "import shop\n"
        "for task in (shop.fine.s(), shop.expected.s(), shop.again.s(), shop.fail.s(1), shop.fail.s(2)):\n"
        "    task.delay()\n",
    )
    assert producer.wait(SOON) == 0, producer.communicate()[0]
    assert receiver.wait_for(3, SOON), worker.poll()
    until(lambda: not any((tmp_path / "queue").iterdir()), worker)
    worker.send_signal(signal.SIGTERM)
    printed, _ = worker.communicate(timeout=SOON)
    arrived = events(receiver)
    assert [message(event) for event in arrived] == ["at last", "task 1", "task 2"], printed
    assert [event["transaction"] for event in arrived] == ["shop.again", "shop.fail", "shop.fail"]
    assert [event.get("tags") for event in arrived] == [None, {"number": "1"}, {"number": "2"}]
    assert {event["exception"]["values"][-1]["mechanism"]["type"] for event in arrived} == {
        "auto.queue.celery"
    }
    assert "not delivered" not in printed


def test_what_waits_when_a_celery_worker_ends_is_delivered(
    receiver: FaultServer, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """A deployment must not lose the events that wait when a process ends.

    Celery itself stays for a second. With one sender, and answers that take longer than that in all, all
    events arrive only if the end waits for them.
    """
    for folder in ("queue", "control"):
        (tmp_path / folder).mkdir()
    # Connected before our handler, so the file appears before our handler runs.
    ending = "from celery import signals\nfrom pathlib import Path\n" + (
        "signals.worker_process_shutdown.connect(lambda **_: Path('ending').touch(), weak=False)\n"
    )
    (tmp_path / "shop.py").write_text(ending + CELERY_APP)
    worker = start(
        "env", "TRANSPORT_KIT_MAX_SENDERS=1",
        sys.executable, "-m", "celery", "-A", "shop", "worker", "-P", "prefork", "-c", "1", "-l", "info",
        "--without-gossip", "--without-mingle", "--without-heartbeat",
    )  # fmt: skip
    receiver.delay = 0.2
    receiver.hold()
    producer = start(sys.executable, "-c", "import shop\nfor n in range(8):\n    shop.fail.delay(n)")
    assert producer.wait(SOON) == 0
    assert worker.stdout is not None
    failed = 0
    for line in worker.stdout:
        failed += "raised unexpected" in line
        if failed == 8:
            break
    worker.send_signal(signal.SIGTERM)
    until((tmp_path / "ending").exists, worker)
    receiver.release()
    printed, _ = worker.communicate(timeout=SOON)
    assert [message(event) for event in events(receiver)] == [f"task {n}" for n in range(8)], printed


@pytest.fixture(name="redis")
def _redis(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> str:
    """Run a Redis for the test; return its address."""
    path = tmp_path / "redis.sock"
    server = start(
        program("redis-server"), "--port", 0, "--unixsocket", path, "--save", "", "--dir", tmp_path
    )

    def listens() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(path)) == 0

    until(listens, server)
    return f"unix://{path}"


@pytest.mark.parametrize("kind", ["Worker", "SimpleWorker"])
def test_rqs_workers_report_and_deliver(
    kind: str, redis: str, receiver: FaultServer, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """A job's process ends by `os._exit` right after the job."""
    (tmp_path / "jobs.py").write_text(RQ_JOBS)
    producer = start(
        sys.executable,
        "-c",
        "import redis, rq, sys, jobs\n"
        "queue = rq.Queue(connection=redis.Redis.from_url(sys.argv[1]))\n"
        "for arguments in ((jobs.fine,), (jobs.fail, 1), ('jobs.no_such_job',), (jobs.fail, 2)):\n"
        "    queue.enqueue(*arguments)\n",
        redis,
    )
    assert producer.wait(SOON) == 0, producer.communicate()[0]
    rq = Path(sys.executable).with_name("rq")
    worker = start(rq, "worker", "--url", redis, "--burst", "--worker-class", f"transport_kit.rq.{kind}")
    printed, _ = worker.communicate(timeout=50)
    arrived = events(receiver)
    assert [message(event) for event in arrived if message(event).startswith("job ")] == ["job 1", "job 2"], (
        printed
    )
    assert len(arrived) == 3
    assert {event["transaction"] for event in arrived} == {"jobs.fail", "jobs.no_such_job"}
    assert [event.get("tags") for event in arrived if message(event).startswith("job ")] == [
        {"number": "1"},
        {"number": "2"},
    ]
    assert {event["exception"]["values"][-1]["mechanism"]["type"] for event in arrived} == {"auto.queue.rq"}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_deliver_what_is_captured_in_them(
    method: str, receiver: FaultServer, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """`atexit` does not run in them; exceptions are captured with `flush_after` only."""
    script = tmp_path / "children.py"
    script.write_text(CHILDREN)
    parent = start(sys.executable, script, method)
    printed, _ = parent.communicate(timeout=50)
    assert printed.rstrip().endswith("[0, 1, 0, 1]"), printed
    assert [message(event) for event in events(receiver)] == [
        "captured 0",
        "captured 1",
        "captured in the parent",
        "raised 0",
        "raised 1",
    ]


def test_a_script_that_ends_by_an_exception_has_reported_it(
    receiver: FaultServer, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Nobody watches the output of a cron job."""
    script = tmp_path / "nightly.py"
    script.write_text(
        "from transport_kit import Kit\n"
        "from transport_kit.serverless import flush_after\n"
        "@flush_after(Kit({}, source='environment'))\n"
        "def main():\n"
        "    raise ValueError('no stock')\n"
        "main()\n"
    )
    done = start(sys.executable, script)
    printed, _ = done.communicate(timeout=SOON)
    assert done.returncode == 1
    assert "ValueError: no stock" in printed
    (event,) = events(receiver)
    assert event["transaction"] == "__main__.main"
