"""`make demo`: shows one error on its way from a request to a receiver's page, on this machine alone.

Starts a local receiver, and one of the example apps (`make demo APP=django|flask|fastapi|starlette`) under
a server as a child process. Raises one error in a request, and shows the answer, the event as the receiver
stored it, and the app's health. Runs until Ctrl-C, or with `--once` ends with status 0, or 1 and the reason
if the event did not arrive. Always ends the child, by its pid.
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
#: The command that serves each app on an open socket; for Flask the server that `flask run` uses.
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
#: Seconds within which the event must arrive.
PATIENCE = 10.0
#: Seconds within which the app must start and answer.
START_PATIENCE = 20.0


class DemoError(Exception):
    """The demo failed; the text is the reason."""


@contextmanager
def running_app(name: str, dsn: str, log: IO[str]) -> Iterator[str]:
    """Run an example app as a child process on a free port; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # The child inherits the socket: no other process can take the port, and requests wait in its
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
    """Return status and text of a GET, for any status."""
    try:
        with urllib.request.urlopen(url, timeout=START_PATIENCE) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        raise DemoError(f"the example app does not answer at {url}: {error}") from None


def wait_for_delivery(app: str, deadline: float) -> str:
    """Return the app's health once it counts the event as delivered, or at `deadline`."""
    while True:
        _, health = fetch(f"{app}/transport/health?format=text")
        if "delivered: error 1" in health or time.monotonic() > deadline:
            return health
        time.sleep(0.05)


def show(console: Console, title: str, rows: dict[str, Any]) -> None:
    """Print a heading and one line for each fact. Received values are printed as text, never as markup."""
    console.print(Text(f"\n{title}", style="bold"))
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(Text(f"  {name}", style="dim"), Text(str(value)))
    console.print(table)


def demo(console: Console, log: IO[str], name: str, *, once: bool) -> None:
    """Run the demo with the example app `name`.

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

        health = wait_for_delivery(app, deadline)
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
    arguments = parser.parse_args()

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)  # unwinds the stack, which ends the child

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    # A shell ignores SIGINT for a process in the background; a SIGINT sent on purpose must end it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console = Console(highlight=False)
    with tempfile.TemporaryFile("w+") as log:
        try:
            demo(console, log, arguments.app, once=arguments.once)
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
