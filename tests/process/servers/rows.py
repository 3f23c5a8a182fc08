"""The server matrix: each row is a server as people start it, its app, and the hook that ends its transports.

Data only. `harness.py` runs a row, `test_servers.py` checks the result, docs/operations.md shows the table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from tests.timing import scaled

__all__ = ["IN_FLIGHT", "NONE", "Row", "ROWS", "SHUTDOWN_TIMEOUT"]

#: Seconds that the slow request takes, which is in flight when the signal comes.
IN_FLIGHT: Final = 0.3
#: The library's default, scaled for this machine.
SHUTDOWN_TIMEOUT: Final = scaled(2.0)
#: The hook of a process whose end no hook sees.
NONE: Final = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One server, one way to start it, and the expected result.

    Attributes:
        name: Unique name, shown in the table.
        command: A module for `python -m` and its arguments, or with `program` a program of the environment.
            `{port}`, `{redis}`, `{hooks}` and `{watched}` are filled in.
        hook: The hook that ends the transport of each process that reports; alternatives are joined by `or`.
        needs: The work for a deployment, for the docs.
        asks: Modules and arguments of a client that sends tasks; without one, requests go to the port.
        workers: Number of processes that have reported before the end begins.
        recycles: Processes end by themselves under load, and the row waits until two have.
        tls: The receiver speaks TLS.
        spool: The queue is a spool. It is drained afterwards by `transport-kit forward --once`, or by another
            start of the same app if `again`.
        quick: Part of `make test`.
    """

    name: str
    command: tuple[str, ...]
    app: str
    hook: str
    needs: str = "nothing"
    asks: tuple[str, ...] = ()
    workers: int = 1
    program: bool = False
    recycles: bool = False
    tls: bool = False
    spool: bool = False
    again: bool = False
    quick: bool = False

    @property
    def hooks(self) -> set[str]:
        """The set of hooks in `hook`."""
        return set(self.hook.split(" or "))

    @property
    def loses(self) -> bool:
        """True if events that wait in memory are lost."""
        return self.hook == NONE and not self.spool


_APPS = "tests.process.servers.apps."
_WITH_LIFESPAN = "`with_lifespan`, or a spool"
_SPOOL = "a spool"

_FLASK = f"{_APPS}flask_app:app"
_STARLETTE = f"{_APPS}starlette_app:app"
_BARE = f"{_APPS}starlette_app:bare"
_FASTAPI = f"{_APPS}fastapi_app:app"
_WSGI = f"{_APPS}django_app:application"
_ASGI = f"{_APPS}django_app:asgi_application"
_PLAIN = f"{_APPS}django_app:plain_asgi"

_UVICORN_WORKER = "uvicorn_worker.UvicornWorker"


_CELERY = (
    "celery", "-A", f"{_APPS}celery_app", "worker", "-P", "prefork", "-l", "warning",
    "--without-gossip", "--without-mingle", "--without-heartbeat",
)  # fmt: skip
_GRANIAN = ("--port", "{port}", "--log-level", "warning")
_HYPERCORN = ("--bind", "127.0.0.1:{port}", "--log-level", "warning")


def _gunicorn(app: str, *words: str) -> tuple[str, ...]:
    bind = ("--bind", "127.0.0.1:{port}", "--log-level", "warning", "--no-control-socket")
    return ("gunicorn", *bind, *words, app)


def _uvicorn(app: str, *words: str) -> tuple[str, ...]:
    return ("uvicorn", app, "--port", "{port}", "--log-level", "warning", *words)


def _uwsgi(app: str, *words: str) -> tuple[str, ...]:
    serve = ("--http-socket", "127.0.0.1:{port}", "--disable-logging")
    return ("uwsgi", *serve, "--venv", "{prefix}", "--module", app, *words)


# By default uWSGI reloads at a SIGTERM.
_GRACEFUL = ("--master", "--hook-master-start", "unix_signal:15 gracefully_kill_them_all")
_AT_ONCE = ("--die-on-term",)


def _with_spool(row: Row, *, again: bool = False) -> Row:
    return replace(row, name=f"{row.name}, spool", needs=_SPOOL, spool=True, again=again)


def _of_gunicorn() -> tuple[Row, ...]:
    """Each class of worker as it is, preloaded, and ending after some requests."""
    rows = []
    for kind, words, app, of, hook, tls in (
        ("sync", ("-w", "2"), _FLASK, "Flask", "atexit", False),
        ("gthread", ("-w", "2", "--threads", "4"), _WSGI, "Django", "atexit", False),
        ("gevent", ("-w", "2", "-k", "gevent"), _FLASK, "Flask, TLS", "atexit", True),
        ("uvicorn", ("-w", "2", "-k", _UVICORN_WORKER), _STARLETTE, "Starlette", "lifespan", False),
    ):
        plain = Row(
            name=f"gunicorn {kind}",
            command=_gunicorn(app, *words),
            app=of,
            hook=hook,
            workers=2,
            tls=tls,
            quick=kind in ("gthread", "uvicorn"),
        )
        recycling = (*words, "--max-requests", "15", "--max-requests-jitter", "5")
        rows += [
            plain,
            replace(
                plain,
                name=f"{plain.name} --preload",
                command=_gunicorn(app, *words, "--preload"),
                quick=kind == "sync",
            ),
            replace(
                plain,
                name=f"{plain.name} --max-requests",
                command=_gunicorn(app, *recycling),
                recycles=True,
                quick=False,
            ),
        ]
    return tuple(rows)


_DJANGO_PLAIN = Row(
    name="uvicorn, Django without with_lifespan",
    command=_uvicorn(_PLAIN),
    app="Django ASGI",
    hook="SIGTERM",
    needs=_WITH_LIFESPAN,
)
_DJANGO_PLAIN_2 = replace(
    _DJANGO_PLAIN,
    name="uvicorn --workers 2, Django without with_lifespan",
    command=_uvicorn(_PLAIN, "--workers", "2"),
    hook=NONE,
    workers=2,
)
_PRELOADED_PLAIN = Row(
    name="gunicorn uvicorn --preload, Django without with_lifespan",
    command=_gunicorn(_PLAIN, "-w", "2", "-k", _UVICORN_WORKER, "--preload"),
    app="Django ASGI",
    hook=NONE,
    needs=_WITH_LIFESPAN,
    workers=2,
)
_RUNSERVER = Row(
    name="Django runserver",
    command=(f"{_APPS}django_app", "runserver", "127.0.0.1:{port}"),
    app="Django",
    hook=NONE,
    needs="`--noreload`, or a spool: the reloader kills the process that serves",
)
_RQ = Row(
    name="RQ, its own worker",
    command=("rq", "worker", "--url", "{redis}"),
    program=True,
    app="a job that reports",
    asks=(f"{_APPS}rq_jobs", "report"),
    recycles=True,
    workers=5,
    hook=NONE,
    needs="`transport_kit.rq.Worker`, or a spool",
)
_UWSGI = Row(
    name="uWSGI, graceful",
    command=_uwsgi(_FLASK, *_GRACEFUL, "--processes", "2", "--enable-threads"),
    program=True,
    app="Flask",
    hook="atexit",
    workers=2,
    needs="`enable-threads`, and the graceful end below",
)
_UWSGI_AT_ONCE = replace(
    _UWSGI,
    name="uWSGI die-on-term",
    command=_uwsgi(_FLASK, *_AT_ONCE, "--master", "--enable-threads"),
    hook=NONE,
    workers=1,
    needs="the graceful end below, or a spool",
)
_UWSGI_ALONE = replace(
    _UWSGI_AT_ONCE,
    name="uWSGI die-on-term, no master",
    command=_uwsgi(_FLASK, *_AT_ONCE, "--enable-threads"),
)

ROWS: Final[tuple[Row, ...]] = (
    *_of_gunicorn(),
    Row(
        name="gunicorn sync --preload, our hooks",
        command=_gunicorn(_FLASK, "-w", "2", "--preload", "--config", "{hooks}"),
        app="Flask",
        hook="worker_exit",
        needs="`transport_kit.gunicorn`, where a hook of yours ends the worker",
        workers=2,
        quick=True,
    ),
    Row(name="uvicorn", command=_uvicorn(_STARLETTE), app="Starlette", hook="lifespan", quick=True),
    Row(
        name="uvicorn --workers 2",
        command=_uvicorn(_FASTAPI, "--workers", "2"),
        app="FastAPI",
        hook="lifespan",
        workers=2,
        quick=True,
    ),
    Row(
        name="uvicorn --reload",
        command=_uvicorn(_STARLETTE, "--reload", "--reload-dir", "{watched}"),
        app="Starlette",
        hook="lifespan",
    ),
    Row(
        name="uvicorn --workers 2, an app without lifespan",
        command=_uvicorn(_BARE, "--workers", "2"),
        app="ASGI",
        hook="lifespan",
        workers=2,
        quick=True,
    ),
    Row(
        name="uvicorn, Django with_lifespan",
        command=_uvicorn(_ASGI),
        app="Django ASGI",
        hook="lifespan",
        needs="`with_lifespan`",
        quick=True,
    ),
    _DJANGO_PLAIN,
    _DJANGO_PLAIN_2,
    _with_spool(_DJANGO_PLAIN_2),
    Row(
        name="gunicorn uvicorn, Django without with_lifespan",
        command=_gunicorn(_PLAIN, "-w", "2", "-k", _UVICORN_WORKER),
        app="Django ASGI",
        hook="SIGTERM",
        needs=_WITH_LIFESPAN,
        workers=2,
    ),
    _PRELOADED_PLAIN,
    _with_spool(_PRELOADED_PLAIN),
    Row(
        name="granian",
        command=("granian", _STARLETTE, "--interface", "asgi", *_GRANIAN),
        app="Starlette",
        hook="lifespan",
        quick=True,
    ),
    Row(
        name="granian, WSGI",
        command=("granian", _FLASK, "--interface", "wsgi", *_GRANIAN),
        app="Flask",
        hook="Finalize",
    ),
    Row(
        name="granian, Django without with_lifespan",
        command=("granian", _PLAIN, "--interface", "asgi", *_GRANIAN),
        app="Django ASGI",
        hook="Finalize",
    ),
    Row(
        name="hypercorn",
        command=("hypercorn", _FASTAPI, *_HYPERCORN),
        app="FastAPI",
        hook="lifespan",
        quick=True,
    ),
    Row(
        name="hypercorn --workers 2",
        command=("hypercorn", _FASTAPI, *_HYPERCORN, "--workers", "2"),
        app="FastAPI",
        hook="lifespan or SIGTERM",
        workers=2,
    ),
    Row(
        name="hypercorn, Django without with_lifespan",
        command=("hypercorn", _PLAIN, *_HYPERCORN),
        app="Django ASGI",
        hook="Finalize",
    ),
    Row(
        name="waitress",
        command=("waitress", "--listen", "127.0.0.1:{port}", _FLASK),
        app="Flask",
        hook="SIGTERM",
        needs="nothing, unless SIGTERM has another handler",
        quick=True,
    ),
    replace(
        _RUNSERVER,
        name="Django runserver --noreload",
        command=(*_RUNSERVER.command, "--noreload"),
        hook="SIGTERM",
        needs="nothing",
    ),
    _RUNSERVER,
    _with_spool(_RUNSERVER, again=True),
    Row(
        name="Celery prefork",
        command=(*_CELERY, "-c", "2"),
        app="a task",
        asks=(f"{_APPS}celery_app",),
        hook="worker_process_shutdown",
        needs="`transport_kit.celery.connect(kit)`",
        workers=2,
    ),
    replace(
        _RQ,
        name="RQ, our worker",
        command=(*_RQ.command, "--worker-class", "transport_kit.rq.Worker"),
        app="a job that fails",
        asks=(f"{_APPS}rq_jobs", "fail"),
        hook="after each job",
        needs="`transport_kit.rq.Worker`",
    ),
    _RQ,
    _with_spool(_RQ),
    _UWSGI,
    replace(
        _UWSGI,
        name="uWSGI, graceful, lazy-apps",
        command=_uwsgi(_WSGI, *_GRACEFUL, "--processes", "2", "--enable-threads", "--lazy-apps"),
        app="Django",
    ),
    replace(
        _UWSGI,
        name="uWSGI, graceful, max-requests",
        command=_uwsgi(
            _FLASK,
            *_GRACEFUL,
            "--processes",
            "2",
            "--enable-threads",
            "--max-requests",
            "15",
            "--min-worker-lifetime",
            "1",
        ),
        recycles=True,
    ),
    replace(
        _UWSGI,
        name="uWSGI, graceful, without threads",
        command=_uwsgi(_FLASK, *_GRACEFUL, "--processes", "2"),
        needs="`enable-threads`: without it little is sent before the end",
    ),
    _UWSGI_AT_ONCE,
    _with_spool(_UWSGI_AT_ONCE),
    _UWSGI_ALONE,
    _with_spool(_UWSGI_ALONE),
)
"""What is run, in the order of the table."""
