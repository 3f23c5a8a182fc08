"""Child processes: scripts that import the package as an app does."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.timing import SOON
from transport_kit.testing import FaultServer

ROOT = Path(__file__).parents[2]
#: The warning about a fork while other threads run, attributed to the line of the script that forks.
FORK_WARNING = re.compile(
    r"^\S+/child\d+\.py:\d+: DeprecationWarning: This process \(pid=\d+\) is multi-threaded, "
    r"use of fork\(\) may lead to deadlocks in the child\.\n  +pid = os\.fork\(\)\n",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Ended:
    """The result of a child; `ended` is monotonic seconds, comparable with those that a child prints."""

    status: int
    out: str
    err: str
    ended: float

    @property
    def complaints(self) -> str:
        """Stderr without the one warning of Python 3.12 and newer about a fork while other threads run.

        An app that forks so gets it once, and from Python itself: see "Forks" in docs/operations.md.
        """
        return self.err if sys.version_info < (3, 12) else FORK_WARNING.sub("", self.err, count=1)


class Child:
    """A running script; killed after the test. `shutdown_timeout` is long, unless the environment sets it."""

    def __init__(self, script: Path, dsn: str, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "TRANSPORT_KIT_DSN": dsn,
                "TRANSPORT_KIT_SHUTDOWN_TIMEOUT": str(SOON),
                **environment,
            },
            start_new_session=True,
        )

    def line(self) -> str:
        """Return the next line that it prints; empty when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, timeout: float = 2 * SOON) -> Ended:
        """Wait for its end. A child that hangs fails the test, which shows its output."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            out, err = self.process.communicate()
            pytest.fail(f"hung for {timeout:g} s; its output is {out!r} and {err!r}")
        return Ended(self.process.returncode, out, err, time.monotonic())

    def kill(self) -> None:
        """Kill it and all processes that it forked."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


@pytest.fixture(name="server")
def _server() -> Iterator[FaultServer]:
    """The server that the children deliver to."""
    with FaultServer() as server:
        yield server


@pytest.fixture(name="start")
def _start(server: FaultServer, tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Return a function that starts a script, given as text, with the server's DSN in its environment."""
    children: list[Child] = []
    numbers = itertools.count()

    def start(script: str, *arguments: str, **environment: str) -> Child:
        path = tmp_path / f"child{next(numbers)}.py"  # may be called from any thread: `next` is atomic
        path.write_text(script)
        child = Child(path, server.dsn, *arguments, **environment)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.process.wait()
        for pipe in (child.process.stdin, child.process.stdout, child.process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture(name="run")
def _run(start: Callable[..., Child]) -> Callable[..., Ended]:
    """Return a function that runs a script to its end."""

    def run(script: str, *arguments: str, timeout: float = 2 * SOON, **environment: Any) -> Ended:
        return start(script, *arguments, **environment).end(timeout)

    return run
