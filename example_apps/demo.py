"""`make demo`: one error, from a request to a receiver's page, on this machine alone.

Starts a local receiver, and one of the example apps (`make demo APP=django|flask|fastapi|starlette`) under
a server as a child process; raises one error in a request; shows the request's answer, the event as the
receiver stored it, and what the app's health says of it. Stays until Ctrl-C, or with `--once` ends by
itself: 0, or 1 with the reason if the event did not arrive.
The child is ended by its pid, whatever happens.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from transport_kit.receiver import Receiver

APPS = Path(__file__).parent
#: How each app is served on a socket that is open already; Flask by the server that `flask run` uses.
SERVERS = {
    "django": ("-m", "uvicorn", "app:asgi_application", "--fd", "{fd}"),
    "fastapi": ("-m", "uvicorn", "app:app", "--fd", "{fd}"),
    "flask": (
        "-c",
        "from werkzeug.serving import make_server; from app import app; "
        "make_server('127.0.0.1', 0, app, threaded=True, fd={fd}).serve_forever()",
    ),
    "starlette": ("-m", "uvicorn", "app:app", "--fd", "{fd}"),
}
#: Seconds that the event has to arrive.
PATIENCE = 10.0
#: Seconds that the app has to start and answer.
START_PATIENCE = 20.0


class DemoError(Exception):
    """The demo can't show what it is for; the text says why."""


@contextmanager
def running_app(name: str, dsn: str, log: IO[str]) -> Iterator[str]:
    """An example app as a child process on a free port; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # The child gets the socket itself: the port can't be taken in between, and requests wait in its
        # backlog until the app is up.
        number = listener.fileno()
        command = [sys.executable, *(word.format(fd=number) for word in SERVERS[name])]
        path = [str(APPS / f"{name}_app"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environ = os.environ | {
            "PYTHONPATH": os.pathsep.join(path),
            "TRANSPORT_KIT_DSN": dsn,
            "TRANSPORT_KIT_HEALTH_DETAILS": "always",
        }
        child = subprocess.Popen(command, env=environ, stdout=log, stderr=log, pass_fds=[number])
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield url
    finally:
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def fetch(url: str) -> tuple[int, str]:
    """Status and text of a GET, whatever the status."""
    try:
        with urllib.request.urlopen(url, timeout=START_PATIENCE) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        raise DemoError(f"the example app does not answer at {url}: {error}") from None


def delivered(app: str, deadline: float) -> str:
    """The app's health, once it has heard the receiver's answer."""
    while True:
        _, health = fetch(f"{app}/transport/health?format=text")
        if "delivered: error 1" in health or time.monotonic() > deadline:
            return health
        time.sleep(0.05)


def show(console: Console, title: str, rows: dict[str, Any]) -> None:
    """A heading, and a line a fact. What came over a wire is shown as text, never as markup."""
    console.print(Text(f"\n{title}", style="bold"))
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(Text(f"  {name}", style="dim"), Text(str(value)))
    console.print(table)


def demo(console: Console, log: IO[str], name: str, *, once: bool) -> None:
    """Run it once through, with the example app of that name.

    Raises:
        DemoError: The event did not arrive, or the app did not answer.
    """
    with Receiver() as receiver, running_app(name, receiver.dsn, log) as app:
        show(
            console,
            "Running on this machine",
            {"receiver": receiver.url, "example app": app, "made with": name},
        )

        status, _ = fetch(f"{app}/carts/2")
        show(console, "A request fails", {"GET /carts/2": f"{status} {HTTPStatus(status).phrase}"})
        if status != 500:
            raise DemoError(f"the request should have failed with 500, and was answered {status}")

        deadline = time.monotonic() + PATIENCE
        if not receiver.wait_for(1, PATIENCE):
            raise DemoError(f"the event did not arrive within {PATIENCE:g} s")
        record = receiver.events()[0]
        exception, culprit = record["exception"] or {}, record["culprit"] or {}
        place = f"{culprit.get('filename')}:{culprit.get('lineno')} in {culprit.get('function')}"
        show(
            console,
            "The event, as the receiver stored it",
            {
                "type": exception.get("type"),
                "message": exception.get("value"),
                "culprit": place,
                "request": " ".join(str(part) for part in (record["request"] or {}).values() if part),
                "event id": record["event_id"],
                "sent as": f"{record['size']} bytes, {record['content_encoding'] or 'not compressed'}",
            },
        )

        health = delivered(app, deadline)
        facts = [line.partition(": ") for line in health.splitlines()]
        show(
            console,
            "What the app says of it",
            {
                name: value
                for name, _, value in facts
                if name in ("status", "queue", "last success", "delivered")
            },
        )
        if "delivered: error 1" not in health:
            raise DemoError("the app's health does not count the event as delivered")

        show(
            console,
            "Look at it",
            {
                "receiver's page": f"{receiver.url}/",
                "app's health": f"{app}/transport/health",
                "more errors": f"{app}/export",
            },
        )
        if not once:
            console.print("\nCtrl-C ends both.")
            signal.pause()


def main() -> int:
    """Run the demo; the process's exit status."""
    parser = argparse.ArgumentParser(description="One error, from a request to a receiver's page.")
    parser.add_argument("app", nargs="?", choices=sorted(SERVERS), default="starlette", help="which example")
    parser.add_argument("--once", action="store_true", help="end by itself")
    given = parser.parse_args()

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)  # unwinds, so that the child is ended

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    # A shell starts what runs in the background with Ctrl-C ignored; whoever sends it means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console = Console(highlight=False)
    with tempfile.TemporaryFile("w+") as log:
        try:
            demo(console, log, given.app, once=given.once)
        except KeyboardInterrupt:
            console.print()
        except Exception as error:
            log.seek(0)
            console.print(Text(f"\nThe demo failed: {error}", style="bold red"))
            console.print(Text(f"What the example app printed:\n{log.read()}", style="dim"))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
