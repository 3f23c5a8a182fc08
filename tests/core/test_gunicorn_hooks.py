"""gunicorn's hooks, called as gunicorn calls them; `tests/process` uses the real server."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from transport_kit import make_transport
from transport_kit.gunicorn import post_fork, worker_exit
from transport_kit.testing import CapturedTransport, FaultServer


class SyncWorker:
    """A worker class in gunicorn's module."""


class GeventWorker:
    """gunicorn's gevent worker, which patches `threading` after the fork."""

    __module__ = "gunicorn.workers.ggevent"


class OwnGeventWorker(GeventWorker):
    """A subclass of a site."""


class Watched(CapturedTransport):
    """A transport that records its start."""

    started = False

    def start(self) -> None:
        self.started = True


class Broken(CapturedTransport):
    """A transport that can't start."""

    def start(self) -> None:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("worker", "started"), [(SyncWorker, True), (GeventWorker, False), (OwnGeventWorker, False)]
)
def test_post_fork_starts_what_was_preloaded_unless_the_worker_patches_later(
    worker: type, started: bool
) -> None:
    """A thread from before the patch would run beside the greenlets and block them."""
    transport = Watched()
    post_fork(object(), worker())
    assert transport.started is started


def test_a_transport_that_does_not_start_costs_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    """gunicorn ends a worker whose hook raises, and would fork the next one, without end."""
    first, second = Broken(), Watched()
    with caplog.at_level(logging.ERROR, "transport_kit"):
        post_fork(object(), SyncWorker())
    assert second.started
    assert "RuntimeError" in caplog.text
    assert not first.closed


def test_worker_exit_delivers_what_waits() -> None:
    """gunicorn calls the hook while it still waits for the worker."""
    with FaultServer() as server:
        server.delay = 0.1
        transport = make_transport(server.dsn)
        assert transport.capture_event({"message": "last"})
        worker_exit(object(), SyncWorker())
        assert len(server.accepted) == 1
        transport.close()


def test_importing_it_needs_no_gunicorn() -> None:
    """The core imports no optional package."""
    code = "import sys, transport_kit.gunicorn; sys.exit('gunicorn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
