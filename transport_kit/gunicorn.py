"""Server hooks; in gunicorn.conf.py `from transport_kit.gunicorn import post_fork, worker_exit`.

Owns the translation. Most deployments need neither: a transport in a worker begins with the first capture,
and ends with the process by itself. `post_fork` begins delivering at once, which a durable queue with a
backlog wants; `worker_exit` ends the transports while gunicorn still waits, which a worker that leaves by
`os._exit` in a hook of its own needs.

Knows gunicorn's hooks and not its package, so that importing this costs nothing.

Threads: the worker's main thread, before and after it serves.
"""

from __future__ import annotations

from transport_kit.runtime import process

__all__ = ["post_fork", "worker_exit"]


def post_fork(server: object, worker: object) -> None:
    """gunicorn's hook in a worker that was just forked: start what was preloaded.

    Not in workers of gevent and eventlet: they patch `threading` later, and a thread that began before
    would hold up all others. There the first capture starts it.
    """
    if any(base.__module__.endswith(("geventlet", "ggevent")) for base in type(worker).__mro__):
        return
    process.start_all()


def worker_exit(server: object, worker: object) -> None:
    """gunicorn's hook in a worker that is about to end: deliver what waits, up to `shutdown_timeout`."""
    process.end_all()
