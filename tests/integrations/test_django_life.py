"""Creating, starting, replacing and closing the transport of a Django site."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.test import Client

from tests.integrations.django_support import call_wsgi, override_settings
from transport_kit import FlushReport, FunctionTransport, OptionsError, TransportOptions
from transport_kit.testing import CapturedTransport, FaultServer
from transport_kit_django import get_kit
from transport_kit_django.asgi import was_used, with_lifespan

ROOT = Path(__file__).parents[2]


class Lived(FunctionTransport):
    """A custom transport that records its life cycle; the kit makes a new one for each start."""

    lives: list[Lived]

    def __init__(self, options: TransportOptions | None = None) -> None:
        super().__init__(self.keep, options)
        self.happened: list[str] = []
        type(self).lives.append(self)

    def keep(self, envelope: Any) -> None:
        self.happened.append("captured")

    def start(self) -> None:
        self.happened.append("started")

    def _close(self, timeout: float) -> FlushReport:
        self.happened.append("closed")
        return super()._close(timeout)


@pytest.fixture(name="lived")
def _lived() -> type[Lived]:
    """A fresh class, so that each test counts its own instances."""
    return type("Lived", (Lived,), {"lives": []})


@pytest.fixture(name="python")
def _python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a small Django site in its own interpreter."""

    def run(code: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "manage.py"
        script.write_text(SITE + textwrap.dedent(code))
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TRANSPORT_KIT_", "DJANGO_"))
        }
        return subprocess.run(
            [sys.executable, "-W", "error", str(script), *arguments],
            env=clean | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")])} | environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    return run


SITE = """
import sys, threading
from django.conf import settings
settings.configure(
    DEBUG=True, SECRET_KEY="x", ROOT_URLCONF=__name__,
    INSTALLED_APPS=["transport_kit_django", "django.contrib.staticfiles"],
    STATIC_URL="static/",
    MIDDLEWARE=["transport_kit_django.TransportMiddleware"],
)
import django
from django.urls import include, path
urlpatterns = [path("transport/", include("transport_kit_django.urls"))]
"""


def test_ready_starts_no_thread_and_makes_no_transport(python: Any) -> None:
    """`ready` runs for every `manage.py migrate`, and in a parent that only forks."""
    done = python(
        """
        django.setup()
        from transport_kit_django import conf
        from django.core.wsgi import get_wsgi_application
        assert not conf._kits
        get_wsgi_application()
        assert conf._kits
        print(threading.active_count(), "urllib3" in sys.modules)
        """,
        TRANSPORT_KIT_DSN="http://0123456789abcdef0123456789abcdef@127.0.0.1:9/1",
    )
    assert done.stderr == ""
    assert done.stdout == "1 False\n"


def test_the_first_request_of_each_process_starts_it(
    lived: type[Lived], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A durable queue may hold a backlog; each forked worker starts its own transport."""
    with override_settings(TRANSPORT_KIT={"DSN": lived}):
        app = WSGIHandler()
        assert lived.lives[0].happened == []
        call_wsgi(app)
        call_wsgi(app)
        assert lived.lives[0].happened == ["started"]
        monkeypatch.setattr("os.getpid", lambda: -1)
        call_wsgi(app)
        assert lived.lives[0].happened.count("started") == 2
        monkeypatch.undo()
    assert "closed" in lived.lives[0].happened


def test_a_setting_that_a_test_overrides_makes_another_kit(sink: Any) -> None:
    """`override_settings` must work as for other settings, also with an existing handler."""
    app = WSGIHandler()
    with override_settings(TRANSPORT_KIT={"DSN": sink}):
        kit = get_kit()
        assert kit is get_kit()
        call_wsgi(app, "/carts/1")
        with override_settings(TRANSPORT_KIT={"DSN": ""}, DEBUG=True):
            assert get_kit() is not kit
            assert kit.transport.closed
            call_wsgi(app, "/carts/2")
    assert sink.exception["value"] == "cart 1"


def test_a_test_of_the_sites_own_sees_what_is_captured() -> None:
    """The snippet of the documentation, with Django's test client, whose handler outlives the setting."""
    browser = Client(raise_request_exception=False, headers={"host": "shop.example"})
    for _ in range(2):
        transport = CapturedTransport()
        with override_settings(TRANSPORT_KIT={"DSN": transport}):
            assert browser.get("/carts/2").status_code == 500
        assert [event["transaction"] for event in transport.events] == ["carts/<int:number>"]


def test_a_wrong_setting_never_takes_the_site_down(caplog: pytest.LogCaptureFixture) -> None:
    """One ERROR line in the log, and a failing health status."""
    with caplog.at_level(logging.ERROR, "transport_kit"), override_settings(TRANSPORT_KIT={"MAX_SENDER": 1}):
        app = WSGIHandler()
        assert call_wsgi(app).body == b"hello"
        assert json.loads(call_wsgi(app, "/transport/health").body)["status"] == "warn"
    assert [record.getMessage() for record in caplog.records] == [
        "an option can't be used: MAX_SENDER (settings.TRANSPORT_KIT): "
        "unknown option; did you mean max_senders?; it is ignored"
    ]


@pytest.mark.parametrize("setting", [["DSN"], "https://key@sentry.example/1", None])
def test_a_setting_that_is_no_dict_is_a_wrong_setting(setting: object) -> None:
    """A settings file may contain any value."""
    with override_settings(TRANSPORT_KIT=setting):
        assert call_wsgi(WSGIHandler()).body == b"hello"
        problem = get_kit().problem
        assert problem is not None
        assert "must be a mapping" in problem
        assert "sentry.example" not in problem


def test_strict_raises_when_the_middleware_is_loaded() -> None:
    """For sites that prefer not to start."""
    with override_settings(TRANSPORT_KIT={"MAX_SENDERS": 0, "STRICT": True}), pytest.raises(OptionsError):
        WSGIHandler()


def test_without_the_app_the_middleware_captures_nevertheless(python: Any) -> None:
    """A site may follow only half of the set-up page; that half must work."""
    with FaultServer() as receiver:
        done = python(
            """
            settings.INSTALLED_APPS = []
            django.setup()
            from django.core.wsgi import get_wsgi_application
            from django.http import HttpRequest
            def boom(request): raise ValueError("boom")
            urlpatterns.append(path("boom", boom))
            environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/boom", "SERVER_NAME": "localhost",
                       "SERVER_PORT": "80", "wsgi.input": sys.stdin.buffer, "wsgi.url_scheme": "http"}
            settings.LOGGING_CONFIG = None
            get_wsgi_application()(environ, lambda status, fields: print(status))
            """,
            TRANSPORT_KIT_DSN=receiver.dsn,
        )
        assert done.stdout == "500 Internal Server Error\n", done.stderr
        assert len(receiver.event_ids()) == 1


# -- lifespan ------------------------------------------------------------------------------------------


async def whole_life(app: Any, happened: list[str]) -> None:
    """Act as a server: start the app, end it, and record the times of its messages."""
    incoming = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        happened.append(message["type"])

    await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)


def test_the_transport_is_closed_before_shutdown_is_said_to_be_complete(lived: type[Lived]) -> None:
    """uvicorn ends the loop, and the process, right after that message."""
    happened: list[str] = []
    with override_settings(TRANSPORT_KIT={"DSN": lived}):
        app = with_lifespan(ASGIHandler())
        lived.lives[0].happened = happened
        asyncio.run(whole_life(app, happened))
        assert happened == ["started", "lifespan.startup.complete", "closed", "lifespan.shutdown.complete"]
        asyncio.run(whole_life(app, []))
        assert len(lived.lives) == 2
        assert lived.lives[1].happened == ["started", "closed"]
    assert was_used()


def test_a_transport_that_fails_to_start_or_to_close_takes_nothing_down(
    lived: type[Lived], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The site must run as it does without the transport."""

    def fail(*_: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr(lived, "start", fail)
    monkeypatch.setattr(lived, "close", fail)
    happened: list[str] = []
    with caplog.at_level(logging.ERROR, "transport_kit"), override_settings(TRANSPORT_KIT={"DSN": lived}):
        asyncio.run(whole_life(with_lifespan(ASGIHandler()), happened))
        monkeypatch.undo()
    assert happened == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert [record.getMessage() for record in caplog.records] == [
        "the transport could not be started",
        "the transport could not be closed",
    ]


def test_a_start_that_fails_with_the_first_request_fails_no_request(
    lived: type[Lived], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same without lifespan."""

    def fail(*_: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr(lived, "start", fail)
    with caplog.at_level(logging.ERROR, "transport_kit"), override_settings(TRANSPORT_KIT={"DSN": lived}):
        app = WSGIHandler()
        assert [call_wsgi(app).status for _ in range(2)] == [200, 200]
        monkeypatch.undo()
    assert [record.getMessage() for record in caplog.records] == ["the transport could not be started"]


# -- processes without requests ------------------------------------------------------------------------


def test_a_management_command_delivers_what_it_captured_at_its_end(python: Any, tmp_path: Path) -> None:
    """A nightly job runs for a second and calls no flush."""
    commands = tmp_path / "nightly" / "management" / "commands"
    commands.mkdir(parents=True)
    (commands / "nightly.py").write_text(
        "from django.core.management.base import BaseCommand, CommandError\n"
        "from transport_kit_django import get_kit\n"
        "class Command(BaseCommand):\n"
        "    def handle(self, **options):\n"
        "        get_kit().capture_exception(ValueError('at night'))\n"
        "        raise CommandError('no')\n"
    )
    with FaultServer() as receiver:
        receiver.delay = 0.2
        done = python(
            """
            settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "nightly"]
            from django.core.management import execute_from_command_line
            execute_from_command_line(sys.argv)
            """,
            "nightly",
            TRANSPORT_KIT_DSN=receiver.dsn,
        )
        assert done.stderr == "CommandError: no\n"
        assert len(receiver.event_ids()) == 1


FAILING = """
settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "nightly"]
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
"""


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        ((), ["broken"]),
        (("--by-hand",), ["broken"]),
        (("--refuse",), []),
        (("--refuse", "--traceback"), []),
        (("--at-the-prompt",), []),
    ],
)
def test_what_ends_a_management_command_is_captured_once_and_delivered(
    arguments: tuple[str, ...], reported: list[str], python: Any, tmp_path: Path
) -> None:
    """Nobody reads the output of a nightly job. A `CommandError` is a message to the user."""
    commands = tmp_path / "nightly" / "management" / "commands"
    commands.mkdir(parents=True)
    (commands / "nightly.py").write_text(
        "import code\n"
        "from django.core.management.base import BaseCommand, CommandError\n"
        "from transport_kit_django import get_kit\n"
        "class Command(BaseCommand):\n"
        "    def add_arguments(self, parser):\n"
        "        for name in ('--by-hand', '--refuse', '--at-the-prompt'):\n"
        "            parser.add_argument(name, action='store_true')\n"
        "    def handle(self, **options):\n"
        "        if options['refuse']:\n"
        "            raise CommandError('no')\n"
        "        if options['at_the_prompt']:\n"
        "            code.interact(banner='', exitmsg='', readfunc=iter(['1/0', 'exit()']).__next__)\n"
        "        try:\n"
        "            raise ValueError('broken')\n"
        "        except ValueError:\n"
        "            if options['by_hand']:\n"
        "                get_kit().capture_exception()\n"
        "            raise\n"
    )
    with FaultServer() as receiver:
        receiver.delay = 0.1
        done = python(FAILING, "nightly", *arguments, TRANSPORT_KIT_DSN=receiver.dsn)
        items = [item for request in receiver.accepted for item in request.envelope.items]
        events = [json.loads(item.get_bytes()) for item in items if item.type == "event"]
    assert [event["exception"]["values"][-1]["value"] for event in events] == reported, done.stderr
    if reported:
        assert done.returncode == 1
        assert done.stderr.endswith("ValueError: broken\n")
    if reported and not arguments:
        assert (events[0]["transaction"], events[0]["transaction_info"]) == ("nightly", {"source": "task"})


RELOADED = """
from django.core.management import execute_from_command_line
from transport_kit_django import get_kit
from django.core.management.commands import runserver
from django.utils import autoreload
import os, signal
django.setup()
get_kit().capture_exception(ValueError(os.environ.get("RUN_MAIN", "parent")))
runserver.Command.inner_run = lambda self, *args, **options: os.kill(os.getpid(), signal.SIGTERM)
execute_from_command_line(sys.argv)
"""


def test_the_parent_of_runservers_reloader_sends_nothing(python: Any) -> None:
    """It loads the site too, so each error at import would be reported twice."""
    with FaultServer() as receiver:
        done = python(RELOADED, "runserver", "0", TRANSPORT_KIT_DSN=receiver.dsn)
        seen = [next(iter(request.envelope.items)).get_bytes() for request in receiver.accepted]
        assert [json.loads(event)["exception"]["values"][0]["value"] for event in seen] == ["true"], (
            done.stderr
        )


def test_runserver_without_a_reloader_is_a_server(python: Any) -> None:
    """There is only one process, which reports."""
    with FaultServer() as receiver:
        done = python(RELOADED, "runserver", "--noreload", "0", TRANSPORT_KIT_DSN=receiver.dsn)
        assert len(receiver.event_ids()) == 1, done.stderr
