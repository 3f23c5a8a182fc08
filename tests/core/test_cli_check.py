"""`transport-kit check`: the steps, their findings, and the advice when one fails."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import pty
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.core.cli_support import run, run_json
from tests.timing import SOON, scaled
from transport_kit.cli import main
from transport_kit.cli._advice import advice_for_error
from transport_kit.envelope import encoder
from transport_kit.testing import FaultServer
from transport_kit.transport.wire.exchange import ExchangeError, ExchangeErrorKind

STEPS = ["parse", "resolve", "connect", "send"]
KEY = FaultServer.key


@pytest.fixture(name="server")
def _server() -> Iterator[FaultServer]:
    """Run a server that accepts everything by default."""
    with FaultServer() as server:
        yield server


@pytest.fixture(name="authority", scope="module")
def _authority() -> trustme.CA:
    """Return the certificate authority of a company."""
    return trustme.CA(organization_name="Acme")


@pytest.fixture(name="bundle")
def _bundle(authority: trustme.CA, tmp_path: Path) -> str:
    """Return the file for --ca-certs."""
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    return str(file)


@contextlib.contextmanager
def secure_server(authority: trustme.CA, *names: str, ends: datetime.datetime | None = None) -> Iterator[str]:
    """Run a TLS server with a certificate for `names`; yield its DSN."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, not_after=ends).configure_cert(context)
    with FaultServer(ssl_context=context) as server:
        yield server.dsn


def states(result: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["state"] for step in result["steps"]}


def failed(result: dict[str, Any]) -> dict[str, Any]:
    """Return the step that failed; the steps after it must be skipped."""
    assert result["ok"] is False
    assert result["exit_code"] == 1
    assert [step["name"] for step in result["steps"]] == STEPS
    (step,) = [step for step in result["steps"] if step["state"] == "failed"]
    at = STEPS.index(step["name"])
    assert [one["state"] for one in result["steps"]] == ["ok"] * at + ["failed"] + ["skipped"] * (3 - at)
    failed_step: dict[str, Any] = step
    return failed_step


def test_each_step_is_shown_with_its_time_and_the_event_arrives(server: FaultServer) -> None:
    """A newcomer checks with it that the DSN works."""
    result = run("check", server.dsn)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    for line, name in zip(lines, STEPS, strict=False):
        assert re.match(rf"{name} +ok +\d+ ms  \S", line)
    assert lines[-1] == f"Events arrive at http://***@127.0.0.1:{server.port}/1"
    assert KEY not in result.output
    assert len(server.accepted) == 1


def test_what_is_sent_is_one_event_and_nothing_else(server: FaultServer) -> None:
    """As the help promises: one event, marked as a check, grouped as one issue."""
    assert run("check", server.dsn).exit_code == 0
    (request,) = server.requests
    (item,) = request.envelope.items
    event = json.loads(item.get_bytes())
    assert item.type == "event"
    assert event["message"].startswith("transport-kit check: ")
    assert event["level"] == "info"
    assert event["fingerprint"] == ["transport-kit check"]
    assert "modules" not in event
    assert "user" not in event


def test_one_connection_is_opened_and_the_event_goes_over_it(server: FaultServer) -> None:
    """`connect` reports on the connection that `send` uses, and its time is counted once."""
    assert run("check", server.dsn).exit_code == 0
    assert server.connections == 1


def test_the_json_answer_holds_every_step_with_its_facts(server: FaultServer) -> None:
    """Programs read facts without parsing sentences, and no key can leak into a log."""
    result = run_json("check", server.dsn)
    assert result["ok"] is True
    assert result["dsn"] == server.dsn.replace(KEY, "***")
    assert states(result) == dict.fromkeys(STEPS, "ok")
    parse, resolve, connect, send = (step["facts"] for step in result["steps"])
    assert parse == {"endpoint": f"{server.url}/api/1/envelope/", "proxy": None, "encoder": encoder.NAME}
    assert resolve == {"host": "127.0.0.1", "addresses": ["127.0.0.1"]}
    assert connect == {"address": f"127.0.0.1:{server.port}"}
    assert (send["status"], send["event_id"]) == (200, server.requests[0].event_id)
    assert all(0 <= step["seconds"] < 10 for step in result["steps"])
    assert KEY not in json.dumps(result)


def test_an_ipv6_server_is_reached_and_shown_in_brackets() -> None:
    """Without brackets the end of an address looks like a port."""
    try:
        server = FaultServer(host="::1")
        server.start()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(server.stop)
        result = run_json("check", server.dsn)
    assert result["ok"] is True
    assert result["steps"][2]["facts"]["address"] == f"[::1]:{server.port}"


# -- parse ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dsn", "reason"),
    [
        ("https://secretkey@[host/1", "invalid_url"),
        ("https://secretkey@host/", "missing_project_id"),
        ("https://secretkey@host/x", "invalid_project_id"),
        ("https://host/1", "missing_public_key"),
    ],
)
def test_a_bad_dsn_fails_the_first_step_with_the_reason_and_a_hint(dsn: str, reason: str) -> None:
    """A DSN is copied by hand; the output names the mistake without showing the DSN."""
    result = run_json("check", dsn)
    step = failed(result)
    assert step["name"] == "parse"
    assert step["facts"] == {"reason": reason}
    assert step["advice"]
    assert "secretkey" not in json.dumps(result)
    assert run("check", dsn).stdout.splitlines()[-1] == "Events do not arrive at this DSN"


@pytest.mark.parametrize("as_json", [[], ["--json"]])
@pytest.mark.parametrize(
    ("arguments", "variable"), [([], None), ([], ""), ([], " "), ([""], None), ([" \t"], None), ([""], " ")]
)
def test_a_check_without_a_dsn_is_a_wrong_call(
    arguments: list[str], variable: str | None, as_json: list[str]
) -> None:
    """A script tells it from a server that does not answer; an unset variable arrives as an empty text."""
    result = run("check", *arguments, *as_json, env={"TRANSPORT_KIT_DSN": variable})
    assert (result.exit_code, result.stdout) == (2, "")
    assert "give a DSN, or set TRANSPORT_KIT_DSN" in result.stderr


@pytest.mark.parametrize("key", ["e", "E", "r", "error", "SERVER", "0", "%65"])
def test_a_short_key_masks_no_part_of_a_word(key: str) -> None:
    """A server that refuses such a key explains it, and the sentence has to stay readable."""
    sentence = "the Server refuses error 500 in servers, 10 terrors, %6500"
    with FaultServer() as server:
        server.answer(400, body=f"{sentence}; sentry_key={key}, key%3D{key} '{key}'".encode())
        text = run("check", server.dsn.replace(server.key, key)).stdout
    words = {"error": "error", "SERVER": "Server"}.get(key)
    shown = sentence if words is None else sentence.replace(f" {words} ", " *** ")
    assert f"{shown}; sentry_key=***, key%3D*** '***'" in text


def test_a_key_that_servers_refuse_and_plain_http_are_worth_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither is an error, but both explain a later failure."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    notes = run_json("check", "http://short@sentry.example/1")["steps"][0]["notes"]
    assert any("32 hexadecimal digits" in note for note in notes)
    assert any("unencrypted" in note for note in notes)
    assert run_json("check", f"https://{KEY}@sentry.example/1")["steps"][0]["notes"] == []
    assert run_json("check", f"http://{KEY}@sentry.localhost/1")["steps"][0]["notes"] == []


def test_an_option_that_can_not_be_used_fails_the_first_step_and_names_its_source(
    server: FaultServer,
) -> None:
    """A variable in an old unit file is hard to think of."""
    env: dict[str, str | None] = {"HTTP_PROXY": "gopher://me:secret@x"}
    step = failed(run_json("check", server.dsn, env=env))
    assert step["detail"] == "option proxy (environment HTTP_PROXY)"
    assert "secret" not in step["advice"]
    env = {"TRANSPORT_KIT_COMPRESSION": "rar"}
    step = failed(run_json("check", server.dsn, env=env))
    assert step["detail"] == "option compression (environment TRANSPORT_KIT_COMPRESSION)"


def test_a_file_of_certificates_that_holds_none_fails_the_first_step(tmp_path: Path) -> None:
    """Otherwise every connection of the app fails with a message about TLS."""
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    step = failed(run_json("check", f"https://{KEY}@127.0.0.1:1/1", "--ca-certs", str(file)))
    assert step["name"] == "parse"
    assert step["detail"].startswith("TLS settings: ca_certs: ")
    assert "--ca-certs" in step["advice"]


# -- resolve -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "check the spelling of the DSN's"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "no name server answered"),
        (UnicodeError("label too long"), "check the spelling of the DSN's"),
    ],
)
def test_a_name_that_does_not_resolve_is_told_from_a_dns_that_is_down(
    monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    """The first is mended in the DSN, the second on this machine."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    step = failed(run_json("check", f"https://{KEY}@sentry.example/1"))
    assert step["name"] == "resolve"
    assert step["detail"].startswith("sentry.example: ")
    assert expected in step["advice"]


def test_a_dns_that_hangs_costs_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own timeout is half a minute, and the call can't be interrupted."""
    over = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        over.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        step = failed(run_json("check", f"https://{KEY}@sentry.example/1", "--timeout", "0.1"))
    finally:
        over.set()
    assert step["name"] == "resolve"
    assert 0.1 <= step["seconds"] < SOON / 2
    assert "no name server answered" in step["advice"]


# -- connect -------------------------------------------------------------------------------------------


def test_a_refused_connection_is_named_so(server: FaultServer) -> None:
    """The server is not running, or the port is wrong."""
    server.down()
    step = failed(run_json("check", server.dsn))
    assert step["name"] == "connect"
    assert step["facts"] == {"kind": "connect"}
    assert "nothing listens there" in step["advice"]


def test_the_certificate_is_shown_with_its_end(authority: trustme.CA, bundle: str) -> None:
    """The output shows the issuer of the certificate, and the day of its end."""
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=60, hours=1)
    with secure_server(authority, "127.0.0.1", ends=ends) as dsn:
        result = run_json("check", dsn, "--ca-certs", bundle)
    step = result["steps"][2]
    assert result["ok"] is True, result
    certificate = step["facts"]["certificate"]
    assert certificate["issuer"] == "Acme"
    assert certificate["subject"]
    assert (certificate["valid_until"], certificate["days_left"]) == (ends.strftime("%Y-%m-%d"), 60)
    assert step["facts"]["tls"] in ("TLSv1.2", "TLSv1.3")
    assert f"valid until {ends:%Y-%m-%d}" in step["detail"]
    assert step["notes"] == []


def test_a_certificate_that_ends_soon_is_worth_a_note(authority: trustme.CA, bundle: str) -> None:
    """The check passes today, and would fail in five days."""
    ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=5, hours=1)
    with secure_server(authority, "127.0.0.1", ends=ends) as dsn:
        result = run("check", dsn, "--ca-certs", bundle)
    assert result.exit_code == 0
    assert "note: the certificate ends in 5 days" in result.stdout


def test_an_expired_certificate_says_what_to_do(authority: trustme.CA, bundle: str) -> None:
    """Either the server's operator renews it, or this machine's clock is wrong."""
    ends = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    with secure_server(authority, "127.0.0.1", ends=ends) as dsn:
        step = failed(run_json("check", dsn, "--ca-certs", bundle))
    assert step["facts"] == {"kind": "tls"}
    assert "renew the server's certificate" in step["advice"]


def test_an_untrusted_certificate_says_how_to_trust_it(authority: trustme.CA) -> None:
    """A company's own authority is in no public list."""
    with secure_server(authority, "127.0.0.1") as dsn:
        step = failed(run_json("check", dsn))
    assert step["facts"] == {"kind": "tls"}
    assert "--ca-certs" in step["advice"]


def test_a_certificate_for_another_name_says_so(authority: trustme.CA, bundle: str) -> None:
    """The DSN has the load balancer's address instead of its name."""
    with secure_server(authority, "sentry.example") as dsn:
        step = failed(run_json("check", dsn, "--ca-certs", bundle))
    assert "the certificate is for another name" in step["advice"]


def test_a_certificate_without_a_common_name_is_shown_by_its_other_names(
    authority: trustme.CA, bundle: str
) -> None:
    """Modern certificates have no common name."""
    with secure_server(authority, "127.0.0.1", "sentry.example") as dsn:
        result = run_json("check", dsn, "--ca-certs", bundle)
    assert "127.0.0.1" in result["steps"][2]["facts"]["certificate"]["subject"]


def test_a_server_that_asks_for_a_client_certificate_gets_it(
    authority: trustme.CA, bundle: str, tmp_path: Path
) -> None:
    """Options of the check are those of the transport."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    client = authority.issue_cert("client.example")
    certificate = tmp_path / "client.pem"
    certificate.write_bytes(client.private_key_and_cert_chain_pem.bytes())
    with FaultServer(ssl_context=context) as server:
        with_it = run_json("check", server.dsn, "--ca-certs", bundle, "--client-cert", str(certificate))
        without = run_json("check", server.dsn, "--ca-certs", bundle)
    assert with_it["ok"] is True, with_it
    assert without["ok"] is False
    assert "--client-cert" in failed(without)["advice"]


def test_tls_to_a_port_without_tls_says_so() -> None:
    """http and https are easily confused; the port answers with something other than TLS."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        result = run_json("check", f"https://{KEY}@127.0.0.1:{listener.getsockname()[1]}/1")
        thread.join(30)
    assert "begin the DSN with http://" in failed(result)["advice"]


def test_a_tls_handshake_that_hangs_costs_the_timeout() -> None:
    """The port accepts the connection and sends nothing."""
    timeout = scaled(0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dsn = f"https://{KEY}@127.0.0.1:{listener.getsockname()[1]}/1"
        step = failed(run_json("check", dsn, "--timeout", str(timeout)))
    assert step["name"] == "connect"
    assert timeout <= step["seconds"] < SOON / 2
    assert "the port may not speak TLS" in step["advice"]


def test_a_connect_that_takes_several_addresses_ends_nevertheless(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connect timeout applies to each address, the step's own timeout to all of them."""
    over = threading.Event()
    real = socket.getaddrinfo
    calls: list[object] = []

    def hang_the_second_time(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            over.wait(30)
        return real(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", hang_the_second_time)
    try:
        step = failed(run_json("check", server.dsn, "--timeout", str(scaled(0.3))))
    finally:
        over.set()
        for thread in threading.enumerate():
            if thread.name == "transport-kit-step":
                thread.join(30)
    assert step["name"] == "connect"
    assert step["seconds"] < SOON / 2
    assert "firewall" in step["advice"]


def test_a_server_that_hangs_up_at_once_is_shown_in_the_step_that_sends(server: FaultServer) -> None:
    """The connection closes after it was opened, so the advice belongs to the step that sends."""
    server.fault("reset_on_accept")
    step = failed(run_json("check", server.dsn))
    assert step["name"] in ("connect", "send")
    assert "the connection was cut" in step["advice"]


# -- proxies -------------------------------------------------------------------------------------------


def test_a_proxy_is_named_in_every_step_without_its_password(server: FaultServer) -> None:
    """A forgotten proxy variable explains many odd failures."""
    env: dict[str, str | None] = {"HTTP_PROXY": server.url.replace("://", "://me:secret@")}
    result = run_json("check", f"http://{KEY}@sentry.invalid/1", env=env)
    assert result["ok"] is True, result
    parse, resolve, connect, _ = result["steps"]
    assert parse["facts"]["proxy"] == server.url
    assert any("from the environment" in note for note in parse["notes"])
    assert resolve["facts"]["host"] == "127.0.0.1"
    assert connect["facts"]["address"] == f"sentry.invalid by way of {server.url}"
    assert server.requests[0].path == "http://sentry.invalid/api/1/envelope/"
    assert "secret" not in json.dumps(result)


def test_no_proxy_goes_around_the_proxy(server: FaultServer) -> None:
    """The advice for a failing proxy has to work."""
    env: dict[str, str | None] = {"HTTP_PROXY": "http://127.0.0.1:1"}
    assert run("check", server.dsn, "--no-proxy", "*", env=env).exit_code == 0


def test_a_proxy_whose_name_does_not_resolve_is_not_taken_for_the_server() -> None:
    """The DSN is right, and the advice must not suggest to change it."""
    step = failed(run_json("check", f"http://{KEY}@127.0.0.1/1", "--proxy", "http://a..b:3128"))
    assert step["name"] == "resolve"
    assert "the proxy's host" in step["advice"]


def test_a_proxy_that_refuses_connections_is_named(server: FaultServer) -> None:
    """The output must show that the proxy refused, not the server."""
    server.down()
    step = failed(run_json("check", f"http://{KEY}@sentry.invalid/1", "--proxy", server.url))
    assert step["name"] == "connect"
    assert f"check that {server.url} runs" in step["advice"]


def test_a_proxy_that_wants_a_login_says_where_to_put_it(server: FaultServer) -> None:
    """For https the proxy refuses the tunnel, for http the request."""
    server.answer(407)
    for scheme in ("https", "http"):
        step = failed(run_json("check", f"{scheme}://{KEY}@sentry.invalid/1", "--proxy", server.url))
        assert "wants a login" in step["advice"]
        assert "TRANSPORT_KIT_PROXY" in step["advice"]


def test_a_failure_behind_a_proxy_mentions_the_proxy(server: FaultServer) -> None:
    """The proxy may be the cause."""
    server.fault("close")
    step = failed(run_json("check", f"http://{KEY}@sentry.invalid/1", "--proxy", server.url))
    assert f"the proxy {server.url} is in use" in step["advice"]


def test_an_ipv6_proxy_is_shown_in_brackets() -> None:
    """The shown address can be copied."""
    result = run_json("check", f"http://{KEY}@sentry.invalid/1", "--proxy", "http://[::1]:1")
    assert result["steps"][0]["facts"]["proxy"] == "http://[::1]:1"


# -- send ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, "key"), (403, "key"), (404, "path"), (413, "too large"), (429, "quota"), (504, "load balancer")],
)
def test_an_answer_that_refuses_fails_the_last_step_with_advice(
    server: FaultServer, status: int, expected: str
) -> None:
    """All steps to the server succeed; the cause is the key, the project or the quota."""
    server.answer(status, body=b'{"detail":"because"}')
    step = failed(run_json("check", server.dsn))
    assert step["name"] == "send"
    assert step["facts"]["status"] == status
    assert expected in step["advice"]
    assert step["detail"] == f'the server answered {status}: {{"detail":"because"}}'


def test_a_web_page_is_not_a_sentry_server(server: FaultServer) -> None:
    """A 200 from the company's website is no success."""
    server.answer(200, {"Content-Type": "text/html"}, b"<html>")
    step = failed(run_json("check", server.dsn))
    assert "not a Sentry-compatible server" in step["advice"]


@pytest.mark.parametrize(("header", "what"), [("60:error:key", "error"), ("60::org", "of anything")])
def test_a_limit_that_comes_with_the_200_is_worth_a_note(server: FaultServer, header: str, what: str) -> None:
    """Servers announce a used-up quota with a 200, and drop the event."""
    server.answer(200, {"X-Sentry-Rate-Limits": header})
    result = run("check", server.dsn)
    assert result.exit_code == 0
    assert f"note: the server asks for no more {what} for " in result.stdout


def test_a_server_that_never_answers_costs_the_timeout(server: FaultServer) -> None:
    """The step fails by itself; nobody has to press Ctrl-C."""
    server.fault("hang")
    timeout = scaled(0.3)
    step = failed(run_json("check", server.dsn, "--timeout", str(timeout)))
    assert step["name"] == "send"
    assert timeout <= step["seconds"] < SOON / 2
    assert "does not answer" in step["advice"]


# -- output --------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_table_in_which_a_servers_words_are_no_markup(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server must not be able to colour, hide or break the output."""
    server.answer(400, body=b"[bold red]x[/nonsense] \x1b]0;title\x07")
    for name in ("NO_COLOR", "TERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "150")
    terminal = Terminal()
    with contextlib.redirect_stdout(terminal), pytest.raises(SystemExit) as ended:
        main(["check", server.dsn, "--no-proxy", "*"], standalone_mode=False)
    assert ended.value.code == 1
    text = terminal.getvalue()
    assert "[bold red]x[/nonsense]" in text
    assert "\x1b]0;" not in text
    assert "what to do: " in text
    assert KEY not in text
    assert "Events do not arrive at" in text
    for name in STEPS:
        assert name in text


def test_the_command_draws_its_table_on_a_real_terminal(server: FaultServer) -> None:
    """The table is drawn live: it must restore the terminal, with each step shown once at the end."""
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "no_proxy": "*"}
    process = subprocess.Popen(
        [sys.executable, "-m", "transport_kit", "check", server.dsn], stdout=slave, stderr=slave, env=env
    )
    os.close(slave)
    shown = b""
    deadline = time.monotonic() + SOON
    try:
        while select.select([master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                data = os.read(master, 65536)
            except OSError:  # Linux raises it when the other end is closed
                break
            if not data:
                break
            shown += data
        assert process.wait(SOON) == 0
    finally:
        os.close(master)
        process.kill()
        process.wait()
    text = shown.decode()
    assert "Events arrive at" in text
    assert "┏━" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again


def test_help_says_what_is_sent_and_shows_examples() -> None:
    """Users must know what a check sends to a production project without reading the source."""
    text = " ".join(run("check", "--help").stdout.split())
    assert "What is sent is one event of level info" in text
    assert "transport-kit check --timeout 3 --json" in text
    assert "_TRANSPORT_KIT_COMPLETE=bash_source" in text


def test_an_argument_too_many_does_not_show_the_key() -> None:
    """Usage errors quote arguments."""
    result = run("check", "x", "https://secretkey:secret@host/1")
    assert result.exit_code == 2
    assert "secret" not in result.output


def test_ctrl_c_ends_the_check_with_status_130(server: FaultServer) -> None:
    """Ctrl-C works while a step waits."""
    server.fault("hang")
    env = {**os.environ, "no_proxy": "*"}
    process = subprocess.Popen(
        [sys.executable, "-m", "transport_kit", "check", server.dsn, "--timeout", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    try:
        assert server.wait_for_requests(1, SOON)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=SOON)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert stderr == "interrupted\n"
    assert "connect  ok" in stdout


# -- advice for failures that no test machine can produce ------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "detail", "expected"),
    [
        ("connect", "OSError: Network is unreachable", "there is no way to this address"),
        ("timeout", "TimeoutError: timed out", "a firewall drops"),
        ("tls", "SSLError: [SSL: TLSV1_ALERT_PROTOCOL_VERSION] alert", "refuses this client"),
        ("tls", "SSLError: [SSL: UNSUPPORTED] something new", "the server's TLS settings"),
        ("tls", "FileNotFoundError: No such file or directory", "can't be read"),
    ],
)
def test_every_kind_of_failure_has_advice(kind: ExchangeErrorKind, detail: str, expected: str) -> None:
    """A failure without advice would show a class name only."""
    assert expected in advice_for_error(ExchangeError(kind, detail), scheme="https", proxy=None)
