"""Gunicorn hooks: in gunicorn.conf.py, `from transport_kit.gunicorn import post_fork, worker_exit`.

Most deployments need neither: a worker's transport starts with the first capture and is closed at the end of
the process. `post_fork` starts delivery at once, for a durable queue with a backlog. `worker_exit` closes the
transports while gunicorn still waits, for a worker whose own hook calls `os._exit`.

This module does not import gunicorn.

Threads: the worker's main thread, before and after it serves.
"""

from __future__ import annotations

from transport_kit.runtime import process

__all__ = ["post_fork", "worker_exit"]


def post_fork(server: object, worker: object) -> None:
    """Start the preloaded transports in a worker that was just forked.

    Does nothing in workers of gevent and eventlet: they patch `threading` later, and a thread started before
    that would block all greenlets. There the first capture starts the transport.
    """
    if any(base.__module__.endswith(("geventlet", "ggevent")) for base in type(worker).__mro__):
        return
    process.start_all()


def worker_exit(server: object, worker: object) -> None:
    """Close the transports of a worker that is about to end, within `shutdown_timeout` seconds."""
    process.end_all()
