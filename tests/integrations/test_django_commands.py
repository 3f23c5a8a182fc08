"""`manage.py transport`, and the check for django-health-check."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from health_check.views import HealthCheckView

from tests.integrations.django_support import Site, override_settings
from tests.timing import SOON, scaled
from transport_kit import Health, Kit, make_transport
from transport_kit.kit.routes import FlushDue, answer, flush_answer, parse_query
from transport_kit.testing import CapturedTransport, FaultServer
from transport_kit_django.health_check import Transport


@pytest.fixture(name="receiver")
def _receiver() -> Iterator[FaultServer]:
    """A server that records what it receives."""
    with FaultServer() as receiver:
        yield receiver


def transport(*arguments: str, setting: dict[str, Any]) -> tuple[int, str]:
    """Return exit status and output of `manage.py transport …`."""
    out = io.StringIO()
    with override_settings(TRANSPORT_KIT=setting):
        try:
            call_command("transport", *arguments, stdout=out)
        except SystemExit as end:
            return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


class _Server(BaseHTTPRequestHandler):
    """Serves the routes of a kit, as an integration does."""

    kit: Kit

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        leaf = self.kit.match(path)
        assert leaf is not None
        reply = answer(
            leaf,
            method=self.command,
            query=parse_query(query),
            accept=None,
            authorization=self.headers.get("authorization"),
            transport=self.kit.transport,
            options=self.kit.options,
        )
        if isinstance(reply, FlushDue):
            reply = flush_answer(self.kit.transport.flush(reply.timeout))
        self.send_response(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    do_GET = do_POST = _serve  # noqa: N815 - the base class's names

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextlib.contextmanager
def running_kit(setting: dict[str, Any]) -> Iterator[tuple[Kit, str]]:
    """Run the routes of a kit on a port; yield the kit and the server's address."""
    kit = Kit(setting, environ={})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Server", (_Server,), {"kit": kit}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield kit, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        kit.close(0.0)


def test_health_is_shown_for_people_and_for_machines() -> None:
    """The exit status is for scripts."""
    status, text = transport("health", setting={"DSN": ""})
    assert (status, text.splitlines()[0]) == (0, "status: pass")
    status, text = transport("health", "--json", setting={"DSN": "x"})
    assert (status, json.loads(text)["status"]) == (1, "fail")


def test_flush_says_what_became_of_what_waited(receiver: FaultServer, tmp_path: Path) -> None:
    """With a spool that is the backlog of a site that was down."""
    setting = {"DSN": receiver.dsn, "QUEUE": f"file://{tmp_path}/spool"}
    status, text = transport("flush", "--timeout", "10", "--json", setting=setting)
    assert status == 0
    assert json.loads(text) == {"ok": True, "delivered": 0, "discarded": 0, "stored": 0, "pending": 0}
    status, text = transport("flush", setting=setting)
    assert (status, text) == (0, "delivered 0, discarded 0, stored 0, pending 0\n")


@pytest.mark.parametrize("action", ["health", "flush"])
def test_a_queue_in_memory_is_not_seen_from_a_command(receiver: FaultServer, action: str) -> None:
    """The command's own queue is empty and healthy, whatever a server's is."""
    status, text = transport(action, setting={"DSN": receiver.dsn})
    assert status == 2
    assert "can't be seen from outside" in text
    status, text = transport(action, "--json", setting={"DSN": receiver.dsn})
    assert (status, json.loads(text)["status"]) == (2, "unknown")


@pytest.mark.parametrize("configured", [False, True])
def test_health_and_flush_ask_the_running_server(receiver: FaultServer, configured: bool) -> None:
    """A server whose deliveries fail is seen, and what waits there is flushed."""
    receiver.answer(503)
    setting: dict[str, Any] = {"DSN": receiver.dsn, "FLUSH_TOKEN": "hush-hush-hush", "BACKOFF_BASE": 0.01}
    with running_kit(setting) as (kit, url):
        assert kit.transport.capture_event({"message": "x"})
        assert receiver.wait_for_requests(1, SOON)
        asked = [] if configured else ["--url", url]
        setting |= {"SERVER_URL": url} if configured else {}
        deadline = time.monotonic() + SOON
        waited = threading.Event()
        while kit.transport.health().status == "pass" and time.monotonic() < deadline:
            waited.wait(0.02)
        status, text = transport("health", *asked, setting=setting)
        assert status == 0
        assert text.startswith("status: warn\nreason: deliveries fail: http 503\n")
        status, text = transport("flush", "--timeout", "0", *asked, setting=setting)
        assert status == 1
        assert "pending 1" in text
        receiver.answer(200)
        status, text = transport("flush", "--timeout", "10", *asked, setting=setting)
        assert status == 0
        assert len(receiver.accepted) == 1
        wrong = {**setting, "FLUSH_TOKEN": "another-token"}
        assert transport("flush", *asked, setting=wrong)[0] == 1
        assert "flush_token" in transport("health", *asked, setting=wrong)[1]


@pytest.mark.parametrize("what", ["nobody", "other", "redirect", "scheme"])
def test_an_address_that_is_no_server_of_the_site_is_a_failure(receiver: FaultServer, what: str) -> None:
    """Nothing of that is `pass`, and the token goes to no other server."""
    url = {"scheme": "file:///etc/passwd"}.get(what, receiver.url)
    if what == "nobody":
        receiver.down()
    elif what == "redirect":
        receiver.answer(302, headers={"location": f"{receiver.url}/elsewhere"})
    setting = {"DSN": receiver.dsn, "FLUSH_TOKEN": "hush-hush-hush"}
    for action in ("health", "flush"):
        status, text = transport(action, "--url", url, setting=setting)
        assert status == 1
        assert text.startswith(("no answer from", f"{url} answered"))
    assert not [request for request in receiver.requests if request.path == "/elsewhere"]


def test_the_figures_of_a_spool_are_those_of_the_host(receiver: FaultServer, tmp_path: Path) -> None:
    """What another process wrote is counted, and that nobody drains it is named."""
    queue = f"file://{tmp_path}/spool"
    app = make_transport(receiver.dsn, queue=queue, spool_drain=False)
    for _ in range(3):
        assert app.capture_event({"message": "x"})
    app.close(0.0)
    setting = {"DSN": receiver.dsn, "QUEUE": queue, "SPOOL_DRAIN": False}
    status, text = transport("health", "--json", setting=setting)
    facts = json.loads(text)
    assert (status, facts["scope"], facts["status"]) == (0, "host", "warn")
    assert facts["spool"]["pending"] == 3
    assert facts["reasons"] == ["no process drains the spool"]
    assert "spool pending: 3" in transport("health", setting=setting)[1]


def test_flush_that_runs_out_of_time_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment script must not continue as if everything was delivered."""
    from transport_kit import FlushReport

    transport_of_a_test = CapturedTransport()
    monkeypatch.setattr(transport_of_a_test, "_flush", lambda *_: FlushReport(False, pending=3))
    status, text = transport("flush", setting={"DSN": transport_of_a_test})
    assert status == 1
    assert "pending 3" in text


def test_send_test_reports_as_the_site_would_and_says_that_it_arrived(receiver: FaultServer) -> None:
    """The event takes the whole way, including `before_send` and release."""

    def mark(event: dict[str, Any], hint: object) -> dict[str, Any]:
        return {**event, "tags": {"seen": "yes"}}

    setting = {"DSN": receiver.dsn, "BEFORE_SEND": mark, "RELEASE": "shop@1.2.0"}
    status, text = transport("send-test", "--json", setting=setting)
    facts = json.loads(text)
    assert (status, facts["ok"], facts["problem"]) == (0, True, None)
    assert receiver.event_ids() == [facts["event_id"]]
    event = json.loads(next(iter(receiver.accepted[0].envelope.items)).get_bytes())
    assert (event["tags"]["seen"], event["release"]) == ("yes", "shop@1.2.0")
    status, text = transport("send-test", setting=setting)
    assert status == 0
    assert "was delivered in" in text


@pytest.mark.parametrize(
    ("prepare", "setting", "problem"),
    [
        (lambda r: r.answer(403), {}, "403"),
        (lambda r: r.answer(400), {}, "discarded: send_error (http 400)"),
        (lambda r: r.fault("reset"), {}, "still waiting (reset)"),
        (lambda r: None, {"BEFORE_SEND": lambda event, hint: None}, "discarded: before_send"),
        (lambda r: None, {"DSN": ""}, "discarded: disabled"),
        (lambda r: None, {"PROXY": 7}, "proxy (settings.TRANSPORT_KIT)"),
    ],
)
def test_send_test_says_why_it_did_not_arrive(
    prepare: Callable[[FaultServer], None], setting: dict[str, Any], problem: str, receiver: FaultServer
) -> None:
    """The reason is the purpose of the command."""
    prepare(receiver)
    status, text = transport(
        "send-test", "--timeout", str(scaled(0.5)), setting={"DSN": receiver.dsn, **setting}
    )
    assert status == 1
    assert text.startswith("not delivered: ")
    assert problem in text


def test_send_test_says_when_nobody_knows() -> None:
    """A site's own transport need not count losses."""

    class Silent(CapturedTransport):
        def capture_envelope(self, envelope: Any) -> bool:
            return False

        def health(self) -> Health:
            return Health(pid=1, state="running", kind="Silent")

    status, text = transport("send-test", setting={"DSN": Silent()})
    assert (status, text) == (1, "not delivered: the event was not accepted\n")


def test_check_takes_the_steps_of_the_core_with_the_options_of_the_site(receiver: FaultServer) -> None:
    """The proxy or the CA file of the settings may be wrong."""
    status, text = transport("check", "--json", setting={"DSN": receiver.dsn, "RELEASE": "shop@1.2.0"})
    facts = json.loads(text)
    assert (status, facts["ok"]) == (0, True)
    assert [step["state"] for step in facts["steps"]] == ["ok"] * 4
    event = json.loads(next(iter(receiver.accepted[0].envelope.items)).get_bytes())
    assert event["release"] == "shop@1.2.0"
    receiver.answer(403)
    status, text = transport("check", setting={"DSN": receiver.dsn})
    assert status == 1
    assert "do not arrive" in text


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"DSN": ""}, "there is no DSN"),
        ({"DSN": "nonsense"}, "invalid DSN"),
        ({"DSN": print}, "there is no DSN"),
    ],
)
def test_check_without_a_dsn_says_so(setting: dict[str, Any], problem: str) -> None:
    """In JSON too, in the format of a check."""
    status, text = transport("check", setting=setting)
    assert status == 1
    assert problem in text
    status, text = transport("check", "--json", setting=setting)
    assert status == 1
    assert json.loads(text)["ok"] is False


def test_check_without_its_package_names_the_install_line(
    receiver: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is an extra; the other actions work without it."""
    for name in [*sys.modules]:
        if name.startswith("transport_kit.cli"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(CommandError, match=r"pip install 'transport-kit\[cli\]'") as raised:
        transport("check", setting={"DSN": receiver.dsn})
    assert raised.value.returncode == 2


@pytest.mark.parametrize("arguments", [[], ["drain"], ["health", "--timeout", "3"]])
def test_a_wrong_call_is_refused(arguments: list[str]) -> None:
    """With Django's own usage message."""
    with pytest.raises(CommandError):
        transport(*arguments, setting={})


# -- django-health-check -------------------------------------------------------------------------------


def page(site: Site, setting: dict[str, Any], **options: Any) -> tuple[int, str]:
    """Return the response of django-health-check's own view."""
    from types import ModuleType

    from django.urls import path

    urls: Any = ModuleType("urls_of_a_test")
    checks = [("transport_kit_django.health_check.Transport", options)] if options else [Transport]
    urls.urlpatterns = [path("ht/", HealthCheckView.as_view(checks=checks))]
    reply = site.serve(TRANSPORT_KIT=setting, ROOT_URLCONF=urls)("/ht/", query="format=text")
    return reply.status, reply.body.decode()


@pytest.fixture(name="site")
def _site() -> Iterator[Site]:
    """A site under ASGI, for which that view is made."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield Site("asgi", stack)


class Ill(CapturedTransport):
    """A transport whose health is `warn`."""

    def health(self) -> Health:
        return Health(pid=1, state="running", kind="Ill", failing=True)


def test_a_healthy_transport_is_ok_and_shows_no_secret(site: Site) -> None:
    """The page prints each check's repr."""
    setting = {"DSN": "https://0123456789abcdef0123456789abcdef@sentry.example/42"}
    assert page(site, setting) == (200, "Transport(): OK\n")
    assert repr(Transport(warnings=True)) == "Transport()"
    assert Transport(warnings=True).labels == {"check": "Transport"}


def test_a_transport_that_cannot_deliver_is_unavailable(site: Site) -> None:
    """The reason is not shown to strangers."""
    status, text = page(site, {"DSN": "nonsense"})
    assert (status, text) == (500, "Transport(): Unavailable: error delivery says fail\n")
    status, text = page(site, {"DSN": "nonsense", "HEALTH_DETAILS": "always"})
    assert "invalid DSN" in text


def test_a_warning_is_a_failure_only_when_asked(site: Site) -> None:
    """An outage of the error server is no reason to take the site out of rotation."""
    assert page(site, {"DSN": Ill()})[0] == 200
    status, text = page(site, {"DSN": Ill()}, warnings=True)
    assert (status, text) == (500, "Transport(): Warning: error delivery says warn\n")


def test_the_check_can_be_run_by_itself() -> None:
    """The management command of django-health-check does so."""
    with override_settings(TRANSPORT_KIT={"DSN": ""}):
        assert asyncio.run(Transport().get_result()).error is None
