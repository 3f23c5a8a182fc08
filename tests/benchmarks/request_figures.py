"""Figures of a request: the time that our layer adds to a hello-world app of each framework.

Part of `figures.py`. The app is called in its process, without a server or a socket, so a request takes only
the app's own time while our senders deliver to the receiver. Each sample is a fresh process.
"""

from __future__ import annotations

import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

__all__ = ["FIGURES", "sample"]

ROOT = Path(__file__).parents[2]
#: Seconds of requests without a pause; number of paced requests, and their rate a second.
SECONDS: Final = 2.0
PACED: Final = 600
RATE: Final = 200.0
_OPTIONS: Final[dict[str, dict[str, object]]] = {
    "quiet": {},
    "traced": {"traces_sample_rate": 1.0},
    "paced": {"traces_sample_rate": 1.0},
}

#: Makes one request and reads its answer.
Call = Callable[[], object]


def _starlette(options: dict[str, Any] | None) -> tuple[Call, Any]:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from transport_kit_starlette import TransportMiddleware

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app: Any = Starlette(routes=[Route("/", hello)])
    kit = None
    if options is not None:
        app = TransportMiddleware(app, **options)
        kit = app.kit
    headers = [(b"host", b"localhost:8000"), (b"user-agent", b"bench"), (b"accept", b"*/*")]
    scope: dict[str, object] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
    }
    scope |= {"scheme": "http", "path": "/", "raw_path": b"/", "query_string": b"", "root_path": ""}
    scope |= {"headers": headers, "client": ("127.0.0.1", 40000), "server": ("127.0.0.1", 8000)}

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: object) -> None:
        """Drop the message."""

    def call() -> None:
        # Without an event loop, which would cost more than the request: nothing in it waits.
        try:
            app(scope.copy(), receive, send).send(None)
        except StopIteration:
            return
        raise AssertionError("the app waits for something")

    return call, kit


def _environ() -> dict[str, object]:
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "localhost:8000",
        "HTTP_USER_AGENT": "bench",
        "HTTP_ACCEPT": "*/*",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


def _wsgi(app: Any) -> Call:
    def start(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], None]:
        return lambda data: None

    def call() -> None:
        body = app(_environ(), start)
        for _ in body:
            pass
        body.close()

    return call


def _flask(options: dict[str, Any] | None) -> tuple[Call, Any]:
    import flask

    from transport_kit_flask import TransportKit, get_kit

    app = flask.Flask("hello")
    app.add_url_rule("/", "hello", lambda: "hello")
    if options is None:
        return _wsgi(app), None
    app.config.update({f"TRANSPORT_KIT_{name.upper()}": value for name, value in options.items()})
    TransportKit().init_app(app)
    return _wsgi(app), get_kit(app)


def _django(options: dict[str, Any] | None) -> tuple[Call, Any]:
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    def hello(request: HttpRequest) -> HttpResponse:
        return HttpResponse("hello")

    ours = [] if options is None else ["transport_kit_django.TransportMiddleware"]
    settings.configure(
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=["transport_kit_django"] if ours else [],
        LOGGING_CONFIG=None,
        MIDDLEWARE=[*ours, "django.middleware.common.CommonMiddleware"],
        ROOT_URLCONF=type("urls", (), {"urlpatterns": [path("", hello)]}),
        SECRET_KEY="x",
        TRANSPORT_KIT={name.upper(): value for name, value in (options or {}).items()},
    )
    django.setup()
    app = get_wsgi_application()
    if options is None:
        return _wsgi(app), None
    from transport_kit_django import get_kit

    return _wsgi(app), get_kit()


_APPS: Final = {"starlette": _starlette, "flask": _flask, "django": _django}


def sample(framework: str, variant: str, dsn: str) -> None:
    """Print the result of one variant: µs a request, or for `paced` the share that was delivered."""
    options = None if variant == "plain" else {"dsn": dsn, **_OPTIONS[variant]}
    call, kit = _APPS[framework](options)
    for _ in range(200):
        call()
    if variant == "paced":
        _pace(call)
        assert kit.transport.flush(10.0, until="delivered")
        print(json.dumps(kit.transport.health().delivered.get("transaction", 0) / (PACED + 200)))
        return
    spent = []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        began = time.perf_counter_ns()
        call()
        spent.append(time.perf_counter_ns() - began)
    print(json.dumps(statistics.median(spent) / 1e3), flush=True)


def _pace(call: Call) -> None:
    begin = time.monotonic()
    for number in range(PACED):
        pause = begin + number / RATE - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        call()


def _run_sample(framework: str, variant: str, dsn: str) -> float:
    code = "import sys; from tests.benchmarks.request_figures import sample; sample(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, framework, variant, dsn],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60.0,
    )
    return float(json.loads(done.stdout))


def _figure(framework: str) -> Callable[[str], dict[str, float]]:
    def request(dsn: str) -> dict[str, float]:
        samples: dict[str, list[float]] = {"plain": [], "quiet": [], "traced": []}
        for variant in (*samples, *reversed(samples)):
            samples[variant].append(_run_sample(framework, variant, dsn))
        plain, quiet, traced = (statistics.mean(spent) for spent in samples.values())
        return {
            "plain, p50 µs": plain,
            "added with nothing to report, µs": quiet - plain,
            "added with each request traced, µs": traced - plain,
            "delivered of what was traced at 200/s, %": 100 * _run_sample(framework, "paced", dsn),
        }

    return request


FIGURES: dict[str, Callable[[str], dict[str, float]]] = {
    f"request_{framework}": _figure(framework) for framework in _APPS
}
