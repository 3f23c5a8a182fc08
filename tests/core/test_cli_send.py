"""`transport-kit send`: its requests, its output, and its exit status."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.core.cli_support import run, run_json
from tests.timing import SOON, scaled
from transport_kit import Envelope
from transport_kit.testing import FaultServer

TRANSACTION = {
    "type": "transaction",
    "transaction": "/carts",
    "start_timestamp": 1.0,
    "timestamp": 2.0,
    "contexts": {"trace": {"trace_id": "a" * 32, "span_id": "b" * 16}},
    "spans": [],
}


@pytest.fixture(name="server")
def _server() -> Iterator[FaultServer]:
    """Run a server that accepts everything by default."""
    with FaultServer() as server:
        yield server


def test_a_message_arrives_as_an_event_with_what_was_said_about_it(server: FaultServer) -> None:
    """Each option must appear in the event, as the command shows events in a project."""
    result = run(
        "send", server.dsn, "--message", "hello", "--level", "warning", "--release", "shop@1.2",
        "--environment", "staging", "--tag", "region=eu", "--tag", "formula=a=b",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (request,) = server.requests
    event = json.loads(request.envelope.items[0].get_bytes())
    assert event["message"] == "hello"
    assert (event["level"], event["release"], event["environment"]) == ("warning", "shop@1.2", "staging")
    assert event["tags"] == {"region": "eu", "formula": "a=b"}
    assert f"event {event['event_id']}: delivered in " in result.stdout
    assert "(status 200, error 1)" in result.stdout


def test_a_message_without_options_is_an_info_event_in_production(server: FaultServer) -> None:
    """A test message must not look like an error to those on call."""
    assert run("send", server.dsn, "--message", "hello").exit_code == 0
    event = json.loads(server.requests[0].envelope.items[0].get_bytes())
    assert (event["level"], event["environment"]) == ("info", "production")
    assert "release" not in event


def test_release_and_environment_come_from_the_environment_when_not_given(server: FaultServer) -> None:
    """Variables configure the app on this machine, and the event should look like the app's."""
    env: dict[str, str | None] = {
        "TRANSPORT_KIT_RELEASE": "shop@9",
        "TRANSPORT_KIT_ENVIRONMENT": "staging",
    }
    assert run("send", server.dsn, "--message", "m", "--environment", "dev", env=env).exit_code == 0
    event = json.loads(server.requests[0].envelope.items[0].get_bytes())
    assert (event["release"], event["environment"]) == ("shop@9", "dev")


def test_the_dsn_may_come_from_the_environment(server: FaultServer) -> None:
    """The process list shows a DSN on the command line."""
    result = run("send", "--message", "hello", env={"TRANSPORT_KIT_DSN": server.dsn})
    assert result.exit_code == 0
    assert len(server.accepted) == 1


def test_an_envelope_from_a_file_arrives_byte_for_byte(server: FaultServer, tmp_path: Path) -> None:
    """To reproduce a server's behaviour, the envelope must arrive unchanged."""
    payload = b'{"event_id":"%s","message":"kept  as  it is"}' % (b"c" * 32)
    file = tmp_path / "one.envelope"
    file.write_bytes(b'{"event_id":"%s"}\n{"type":"event"}\n%s\n' % (b"c" * 32, payload))
    result = run("send", server.dsn, "--envelope", str(file))
    assert result.exit_code == 0, result.output
    (item,) = server.requests[0].envelope.items
    assert item.get_bytes() == payload
    assert f"{file} {'c' * 32}: delivered" in result.stdout


def test_an_envelope_is_read_from_standard_input(server: FaultServer) -> None:
    """Other commands may write envelopes to a pipe."""
    data = Envelope.transaction(TRANSACTION).serialize()
    result = run("send", server.dsn, "--envelope", "-", stdin=data)
    assert result.exit_code == 0, result.output
    assert server.requests[0].envelope.items[0].type == "transaction"
    assert "span 1, transaction 1" in result.stdout


def test_several_envelopes_are_sent_in_order_each_with_its_own_outcome(
    server: FaultServer, tmp_path: Path
) -> None:
    """A refused envelope must not stop the next one, and determines the exit status."""
    files = []
    for number in range(3):
        file = tmp_path / f"{number}.envelope"
        file.write_bytes(Envelope.event({"event_id": str(number) * 32}).serialize())
        files += ["--envelope", str(file)]
    server.answer(200, times=1)
    server.answer(400, body=b'{"detail":"bad"}', times=1)
    result = run_json("send", server.dsn, *files)
    assert result["exit_code"] == 1
    assert [one["delivered"] for one in result["results"]] == [True, False, True]
    assert [one["event_id"] for one in result["results"]] == ["0" * 32, "1" * 32, "2" * 32]
    assert result["ok"] is False
    assert server.event_ids() == ["0" * 32, "2" * 32]


def test_the_json_answer_says_what_became_of_the_event(server: FaultServer) -> None:
    """Scripts read facts instead of sentences; the key is not among them."""
    result = run("send", server.dsn, "--message", "hello", "--json")
    parsed = json.loads(result.stdout)
    assert parsed["ok"] is True
    assert parsed["dsn"] == server.dsn.replace(server.key, "***")
    (one,) = parsed["results"]
    assert one["event_id"] == server.requests[0].event_id
    assert (one["status"], one["counts"], one["discarded"]) == (200, {"error": 1}, {})
    assert one["problem"] is None
    assert server.key not in result.output


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, "could not read the envelope"),
        (401, "does not know this key"),
        (403, "refuses this key or project"),
        (404, "check the DSN's host, path and project id"),
        (407, "the proxy wants a login"),
        (413, "too large"),
        (418, "the server did not want this"),
        (429, "quota or rate limit"),
        (500, "its own log says why"),
        (502, "load balancer"),
        (503, "overloaded or in maintenance"),
    ],
)
def test_a_refusal_is_shown_with_its_status_and_what_to_do(
    server: FaultServer, status: int, expected: str
) -> None:
    """The output names the remedy; a 503 is final here too, at the first attempt."""
    server.answer(status, body=b'{"detail":"because"}')
    result = run("send", server.dsn, "--message", "hello")
    assert result.exit_code == 1
    assert f"not delivered: the server answered {status}: " in result.stdout
    assert "because" in result.stdout
    assert expected in result.stdout
    assert len(server.requests) == 1


def test_what_a_hostile_server_says_can_neither_show_the_key_nor_steer_the_terminal(
    server: FaultServer,
) -> None:
    """An error answer may echo the request, and may contain escape sequences."""
    server.answer(400, body=f"\x1b[31mred\r\n{server.key} \u202e".encode() + b"\xff" * 2000)
    result = run("send", server.dsn, "--message", "hello")
    assert server.key not in result.output
    assert "\x1b" not in result.output
    assert "\u202e" not in result.output
    assert "answered 400: [31mred ***" in result.stdout
    assert len(result.stdout) < 700


def test_a_redirect_is_shown_without_what_else_its_address_holds(server: FaultServer) -> None:
    """A login page's address may contain tokens; its host shows who answers."""
    server.answer(302, {"Location": "https://me:pass@login.example:8443/sso?token=abc"})
    result = run("send", server.dsn, "--message", "hello")
    assert result.exit_code == 1
    assert "the server answered 302, a redirect to https://login.example:8443" in result.stdout
    assert "pass" not in result.stdout
    assert "token" not in result.stdout


@pytest.mark.parametrize("location", ["/elsewhere", "http://[::1", "ftp://x.example/", "http://x:99999/"])
def test_a_redirect_to_nowhere_is_no_trouble(server: FaultServer, location: str) -> None:
    """A Location header is hostile input."""
    server.answer(301, {"Location": location})
    result = run("send", server.dsn, "--message", "hello")
    assert result.exit_code == 1
    assert "use the address it names in the DSN" in result.stdout


def test_a_redirect_to_an_ipv6_address_keeps_its_brackets(server: FaultServer) -> None:
    """A user may copy the shown address into the DSN."""
    server.answer(308, {"Location": "http://[::1]:9000/api/1/envelope/"})
    assert "use http://[::1]:9000 in the DSN" in run("send", server.dsn, "--message", "m").stdout


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, {"Content-Type": "text/html; charset=utf-8"}, b"hello"),
        (200, {"Content-Type": "application/json"}, b"\n <!doctype html>"),
        (404, {"Content-Type": "text/html"}, b"<h1>Not found</h1>"),
    ],
)
def test_a_web_page_is_not_taken_for_a_delivery(
    server: FaultServer, status: int, headers: dict[str, str], body: bytes
) -> None:
    """A DSN that names a website gets a 200, and nothing arrives."""
    server.answer(status, headers, body)
    result = run("send", server.dsn, "--message", "hello")
    assert result.exit_code == 1
    assert f"answered {status} with a web page" in result.stdout
    assert "not a Sentry-compatible server" in result.stdout
    assert "<" not in result.stdout


def test_a_limit_announced_with_a_delivery_is_shown(server: FaultServer) -> None:
    """The server will drop the next event."""
    server.answer(200, {"X-Sentry-Rate-Limits": "60:error:key, 30::org"}, times=1)
    result = run("send", server.dsn, "--message", "hello")
    assert result.exit_code == 0
    assert "the server asks for no more error for 60 s" in result.stdout
    assert "the server asks for no more everything for 30 s" in result.stdout


def test_a_second_envelope_is_held_back_while_a_limit_is_active(server: FaultServer, tmp_path: Path) -> None:
    """A command obeys rate limits as an app does."""
    file = tmp_path / "one.envelope"
    file.write_bytes(Envelope.event({}).serialize())
    server.answer(429, {"X-Sentry-Rate-Limits": "60:error:key"})
    result = run("send", server.dsn, "--envelope", str(file), "--envelope", str(file))
    assert result.exit_code == 1
    assert len(server.requests) == 1
    assert "the server answered 429" in result.stdout
    assert "not sent: the server asked for a pause" in result.stdout
    assert "discarded: ratelimit_backoff error 1" in result.stdout


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("reset", "the connection was cut"),
        ("close", "the connection was cut"),
        ("half", "the connection was cut"),
        ("garbage", "does not speak HTTP/1.1"),
    ],
)
def test_no_usable_answer_is_shown_with_what_to_do(server: FaultServer, fault: str, expected: str) -> None:
    """The remedy depends on the kind of failure; the output notes that the server may have the event."""
    server.fault(fault)
    result = run("send", server.dsn, "--message", "hello")
    assert result.exit_code == 1
    assert expected in result.stdout
    assert "may have taken the envelope all the same" in result.stdout
    assert "discarded: network_error error 1" in result.stdout


def test_a_server_that_hangs_costs_the_timeout(server: FaultServer) -> None:
    """A person waits at the terminal."""
    server.fault("hang")
    timeout = scaled(0.2)
    result = run_json("send", server.dsn, "--message", "hello", "--timeout", str(timeout))
    (one,) = result["results"]
    assert result["exit_code"] == 1
    assert timeout <= one["seconds"] <= SOON / 2
    assert one["problem"].startswith("timeout: ")
    assert "does not answer" in one["advice"]


def test_a_dns_that_hangs_costs_the_timeout_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A DNS lookup can't be bounded, but the wait for it can."""
    over, looked_up = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        over.wait(30)
        looked_up.set()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        result = run("send", f"https://{'a' * 32}@sentry.example/1", "--message", "m", "--timeout", "0.1")
    finally:
        over.set()
        assert looked_up.wait(SOON)
    assert result.exit_code == 1
    assert "timeout: no answer within 0.1 s" in result.stdout


def test_a_port_where_nothing_listens_is_named_so(server: FaultServer) -> None:
    """The most frequent mistake: the server is not running."""
    server.down()
    result = run("send", server.dsn, "--message", "hello")
    assert result.exit_code == 1
    assert "nothing listens there" in result.stdout


def test_a_name_that_does_not_exist_is_named_so() -> None:
    """A typing mistake in the host."""
    result = run("send", f"http://{'a' * 32}@no-such-host.invalid/1", "--message", "hello")
    assert result.exit_code == 1
    assert "check the spelling of the DSN's host" in result.stdout


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("localhost", None),
        ("other.example", "the certificate is for another name"),
    ],
)
def test_tls_works_with_an_authority_of_ones_own(tmp_path: Path, name: str, expected: str | None) -> None:
    """Companies run their own authority; a certificate for another host is refused all the same."""
    authority = trustme.CA()
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    with FaultServer(ssl_context=context) as server:
        dsn = server.dsn.replace("127.0.0.1", "localhost")
        result = run("send", dsn, "--message", "hello", "--ca-certs", str(bundle))
        untrusted = run("send", dsn, "--message", "hello")
    assert result.exit_code == (0 if expected is None else 1), result.output
    assert expected is None or expected in result.stdout
    assert untrusted.exit_code == 1
    assert "--ca-certs" in untrusted.stdout or expected is not None


def test_a_part_that_can_not_be_sent_is_named_and_fails_the_command(
    server: FaultServer, tmp_path: Path
) -> None:
    """`delivered` means everything; the server has the event but not the attachment."""
    envelope = Envelope.event({"message": "m"}).add_attachment(b"x" * 100, filename="a.bin")
    file = tmp_path / "one.envelope"
    file.write_bytes(envelope.serialize())
    env: dict[str, str | None] = {"TRANSPORT_KIT_MAX_ATTACHMENT_BYTES": "10"}
    result = run("send", server.dsn, "--envelope", str(file), env=env)
    assert result.exit_code == 1
    assert "a part was left out" in result.stdout
    assert "discarded: internal_sdk_error attachment 100" in result.stdout
    assert len(server.accepted) == 1


def test_an_envelope_that_is_refused_here_is_not_sent_and_says_why(server: FaultServer) -> None:
    """An envelope without items can be parsed, but has no effect on any server."""
    result = run("send", server.dsn, "--envelope", "-", stdin=b"{}")
    assert result.exit_code == 1
    assert "not sent: " in result.stdout
    assert "no items" in result.stdout
    assert server.requests == []


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"", 0),
        (b"not an envelope", 0),
        (b'{}\n{"type":"event","length":10}\n{}', 32),
        (b'{}\n{"type":"event","length":2}\n{}x', 33),
    ],
)
def test_bytes_that_are_no_envelope_are_refused_with_the_place_of_the_fault(
    server: FaultServer, data: bytes, offset: int
) -> None:
    """The offset helps in a file of megabytes; nothing is sent."""
    result = run("send", server.dsn, "--envelope", "-", stdin=data)
    assert result.exit_code == 2
    assert f"at byte {offset}: " in result.stderr
    assert server.requests == []


def test_nothing_is_sent_when_one_of_several_files_is_broken(server: FaultServer, tmp_path: Path) -> None:
    """Exit status 2 means that nothing was sent: the call can be repeated after a correction."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(Envelope.event({}).serialize())
    bad.write_bytes(b"{}\nx")
    result = run("send", server.dsn, "--envelope", str(good), "--envelope", str(bad))
    assert result.exit_code == 2
    assert server.requests == []


def test_a_file_that_is_too_large_is_not_read_whole(server: FaultServer, tmp_path: Path) -> None:
    """A core dump given by mistake must not fill the memory."""
    file = tmp_path / "core"
    file.write_bytes(b"x" * 4096)
    env: dict[str, str | None] = {"TRANSPORT_KIT_MAX_ENVELOPE_BYTES": "1024"}
    result = run("send", server.dsn, "--envelope", str(file), env=env)
    assert result.exit_code == 2
    assert "holds more than 1024 bytes" in result.stderr


def test_a_file_that_fails_while_it_is_read_is_one_line(server: FaultServer) -> None:
    """A disk may fail while a file is open; reading this file of Linux always fails."""
    if not os.path.exists("/proc/self/mem"):
        pytest.skip("needs /proc")
    result = run("send", server.dsn, "--envelope", "/proc/self/mem")
    assert result.exit_code == 2
    assert "/proc/self/mem can't be read: " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "give either --message or --envelope"),
        (["--message", "m", "--envelope", os.devnull], "give either --message or --envelope"),
        (["--envelope", os.devnull, "--tag", "a=b"], "an envelope is sent as it is"),
        (["--envelope", os.devnull, "--level", "info"], "an envelope is sent as it is"),
        (["--message", "m", "--tag", "region"], "KEY=VALUE"),
        (["--message", "m", "--tag", "=eu"], "KEY=VALUE"),
        (["--message", "m", "--level", "loud"], "loud"),
        (["--message", "m", "--timeout", "0"], "--timeout"),
        (["--message", "m", "--timeout", "nan"], "timeout"),
        (["--message", "m", "--ca-certs", "/nonexistent"], "--ca-certs"),
        (["--envelope", "/nonexistent"], "/nonexistent"),
        (["--message", "m", "--proxy", "gopher://x"], "proxy"),
    ],
)
def test_a_wrong_call_is_exit_status_2_and_sends_nothing(
    server: FaultServer, arguments: list[str], expected: str
) -> None:
    """Scripts distinguish a wrong call from a refusal by the server."""
    result = run("send", server.dsn, *arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert server.requests == []


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("", "give a DSN, or set TRANSPORT_KIT_DSN"),
        ("https://secretkey@host/", "missing_project_id"),
        ("htps://secretkey@host/1", "invalid_scheme"),
    ],
)
def test_a_dsn_that_can_not_be_used_is_a_wrong_call_and_not_shown(dsn: str, expected: str) -> None:
    """The text around the mistake contains the key."""
    result = run("send", dsn, "--message", "m")
    assert result.exit_code == 2
    assert expected in result.stderr
    assert "secretkey" not in result.output


def test_an_argument_too_many_does_not_show_the_key() -> None:
    """With an unquoted message the DSN is an extra argument, which click quotes."""
    result = run("send", "hello", "https://secretkey@host/1", "--message", "m")
    assert result.exit_code == 2
    assert "https://***@host/1" in result.stderr
    assert "secretkey" not in result.output


def test_an_unknown_variable_is_ignored_as_in_the_app(
    server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The variable may belong to another service; the warning shows a typo."""
    result = run("send", server.dsn, "--message", "m", env={"TRANSPORT_KIT_RELEESE": "1"})
    assert result.exit_code == 0
    assert "TRANSPORT_KIT_RELEASE" in caplog.text


def test_help_shows_examples_exit_statuses_and_completion() -> None:
    """Newcomers read the help first."""
    text = run("send", "--help").stdout
    assert "transport-kit send --envelope crash.envelope --json" in text
    assert "Exit status: 0" in text
    assert "_TRANSPORT_KIT_COMPLETE=bash_source" in text


def test_ctrl_c_ends_the_command_at_once_with_status_130(server: FaultServer) -> None:
    """Shells know status 130; a server that hangs must not block the terminal until the timeout."""
    server.fault("hang")
    process = subprocess.Popen(
        [sys.executable, "-m", "transport_kit", "send", server.dsn, "--message", "m", "--timeout", "60"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
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
    assert stdout == ""
