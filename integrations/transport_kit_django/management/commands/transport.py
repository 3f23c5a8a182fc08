"""`manage.py transport check|send-test|flush|health`: commands that test delivery with the site's settings.

This module owns the output and the exit status: 0 for success, 1 for a failure, 2 for a usage error. The
steps of `check` are those of the core's own command, with the site's settings.

In any management command, the transport delivers its queue at the end of the process. A hook of `apps.py`
captures an exception that ends a command.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any, cast

from django.core.management.base import BaseCommand, CommandError, CommandParser

from transport_kit import Kit
from transport_kit_django.conf import SETTING, get_kit

__all__ = ["Command"]


class TestError(Exception):
    """The exception that `send-test` reports."""


class Command(BaseCommand):
    """The `transport` command."""

    help = "Checks, tries and shows the delivery of errors, with the settings of this site."
    # A command for troubleshooting must run even if system checks fail.
    requires_system_checks: list[str] = []  # noqa: RUF012 - Django's declaration

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="check|send-test|flush|health")
        for name, text, seconds in (
            (
                "check",
                "Check, step by step, that an event reaches the server; sends one.",
                10.0,
            ),
            ("send-test", "Report an exception as the site would, and say what became of it.", 10.0),
            ("flush", "Deliver what waits in the running server, or in a spool.", None),
            ("health", "Show the state of the running server, or of a spool.", None),
        ):
            action = actions.add_parser(name, help=text, description=text)
            action.add_argument("--json", action="store_true", help="Print one JSON object, for machines.")
            if name in ("flush", "health"):
                action.add_argument("--url", help="The running server. Default: the option SERVER_URL.")
            if name != "health":
                action.add_argument(
                    "--timeout",
                    type=float,
                    default=seconds,
                    metavar="SECONDS",
                    help=f"How long to wait. Default: {seconds or 'shutdown_timeout'}.",
                )

    def handle(self, *, action: str, **options: Any) -> None:
        """Run one of the four actions."""
        kit = get_kit()
        as_json = options["json"]
        timeout: Any = options.get("timeout")
        if action == "health":
            self._show(as_json, kit.health_from_outside(options["url"]))
        elif action == "flush":
            self._show(as_json, kit.flush_from_outside(options["url"], timeout))
        elif action == "send-test":
            self._send_test(kit, as_json, timeout)
        else:
            self._check(kit, as_json, timeout)

    # -- actions ---------------------------------------------------------------------------------------

    def _show(self, as_json: bool, view: Any) -> None:
        self._print(as_json, view.facts, view.text)
        if view.exit_status:
            raise SystemExit(view.exit_status)

    def _send_test(self, kit: Kit, as_json: bool, timeout: float) -> None:
        try:
            raise TestError("manage.py transport send-test: this event shows that errors arrive")
        except TestError as error:
            facts = kit.send_test(error, timeout)
        problem = facts["problem"]
        delivered = f"event {facts['event_id']} was delivered in {facts['seconds'] * 1000:.0f} ms"
        self._print(as_json, facts, delivered if problem is None else f"not delivered: {problem}")
        if problem is not None:
            raise SystemExit(1)

    def _check(self, kit: Kit, as_json: bool, timeout: float) -> None:
        try:
            from transport_kit.cli.check import check_app
        except ModuleNotFoundError as missing:
            raise CommandError(
                f"check needs the package {missing.name}: pip install 'transport-kit[cli]'", returncode=2
            ) from missing
        no_dsn = f'there is no DSN: set {SETTING}["DSN"] or TRANSPORT_KIT_DSN'
        with contextlib.redirect_stdout(cast(Any, self.stdout)):
            status = check_app(kit, timeout=timeout, as_json=as_json, no_dsn=no_dsn)
        if status:
            raise SystemExit(status)

    def _print(self, as_json: bool, facts: dict[str, Any], text: str) -> None:
        self.stdout.write(json.dumps(facts, indent=2) if as_json else text)
