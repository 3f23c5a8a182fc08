"""The receiver on real sockets: start and stop, played outages, refused addresses."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integrations.receiver_support import AUTH, CORPUS, EVENT, EVENT_ID, URL, manifest, replayed
from tests.timing import SOON
from transport_kit.receiver import Receiver, Store, create_app
from transport_kit.receiver.serve import _resolve
from transport_kit.runtime.errors import OptionsError


@pytest.fixture(name="receiver")
def _receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def post(receiver: Receiver, content: Any = EVENT, timeout: float = SOON) -> httpx.Response:
    return httpx.post(
        receiver.url + URL,
        content=content,
        headers=AUTH,
        timeout=httpx.Timeout(SOON, read=timeout),
        trust_env=False,
    )


def connect(receiver: Receiver) -> socket.socket:
    return socket.create_connection(("127.0.0.1", receiver.port), timeout=SOON)


def request_bytes(body: bytes = EVENT) -> bytes:
    lines = [
        f"POST {URL} HTTP/1.1",
        "Host: 127.0.0.1",
        *(f"{name}: {value}" for name, value in AUTH.items()),
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name == "transport-kit-receiver"}


def test_it_receives_the_corpus_over_the_wire(receiver: Receiver) -> None:
    """Chunked without a Content-Type as Node sends it, compressed as Python does."""
    entries = manifest()[::5]
    with httpx.Client(base_url=receiver.url, trust_env=False) as client:
        for entry in entries:
            _, body, headers = replayed(entry)
            chunked = dict(entry["headers"]).get("Transfer-Encoding") == "chunked"
            content: Any = iter([body[:50], body[50:]]) if chunked else body
            assert client.post(entry["path"], content=content, headers=headers).status_code == 200
    assert receiver.wait_for(len(entries), SOON)
    stored = [receiver.store.by_number(record["n"]) for record in receiver.events()]
    assert [each.body for each in stored[::-1] if each] == [
        (CORPUS / e["file"]).read_bytes() for e in entries
    ]


def test_answers_do_not_wait_for_acknowledgements(receiver: Receiver) -> None:
    """An answer in two packets costs 40 ms each time when Nagle's algorithm is left on."""
    took: dict[bool, list[float]] = {False: [], True: []}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=SOON)) as client:
        client.connect()
        for number in range(100):
            # Half of the requests acknowledge at once, which a server without TCP_NODELAY waits for.
            at_once = number % 2 == 1
            began = time.monotonic()
            client.request("POST", URL, EVENT, AUTH)
            client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, at_once)
            with client.getresponse() as answer:
                assert answer.read()
            took[at_once].append(time.monotonic() - began)
    assert statistics.median(took[False]) - statistics.median(took[True]) < 0.02


def test_it_stops_at_once_and_its_events_stay_readable() -> None:
    """A fixture must be quick, and assertions may follow the server's end."""
    receiver = Receiver().start()
    assert post(receiver).status_code == 200
    idle = connect(receiver)
    began = time.monotonic()
    receiver.stop()
    receiver.stop()
    assert time.monotonic() - began < SOON / 2
    assert idle.recv(1) == b""
    idle.close()
    assert [record["event_id"] for record in receiver.events()] == [EVENT_ID]
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the system has it
        connect(receiver)
    receiver.close()
    assert threads() == set()
    with pytest.raises(RuntimeError, match="started before"):
        receiver.start()


def test_a_store_that_was_given_stays_open() -> None:
    """The caller closes it: two receivers may use one store after each other."""
    with Store() as store:
        for _ in range(2):
            with Receiver(store=store) as receiver:
                post(receiver)
        assert store.totals()[0] == 2


def test_a_restart_on_a_file_shows_what_was_there(tmp_path: Path) -> None:
    """`--store FILE` keeps envelopes across restarts."""
    path = tmp_path / "events.db"
    with Receiver(store=path) as receiver:
        post(receiver)
    with Receiver(store=path) as receiver:
        listed = httpx.get(f"{receiver.url}/api/events", trust_env=False).json()
    assert [record["event_id"] for record in listed] == [EVENT_ID]


@pytest.mark.parametrize("kind", ["503", "429"])
def test_a_played_status_is_answered_and_nothing_is_stored(receiver: Receiver, kind: str) -> None:
    """The page still works, and `clear` ends the outage."""
    receiver.faults.play(kind)
    answer = post(receiver)
    assert answer.status_code == int(kind)
    assert (answer.headers.get("retry-after") == "60") == (kind == "429")
    assert (answer.headers.get("x-sentry-rate-limits") == "60::organization") == (kind == "429")
    assert httpx.get(receiver.url, trust_env=False).status_code == 200
    receiver.faults.clear()
    assert post(receiver).status_code == 200
    assert receiver.store.totals()[0] == 1


def test_a_played_reset_is_a_real_one(receiver: Receiver) -> None:
    """ECONNRESET and not an orderly end, which clients treat differently."""
    receiver.faults.play("reset")
    for _ in range(3):
        with connect(receiver) as peer:
            peer.sendall(request_bytes())
            with pytest.raises(ConnectionResetError) as caught:
                peer.recv(1)
            assert caught.value.errno == errno.ECONNRESET
    assert receiver.store.totals()[0] == 0
    receiver.faults.clear()
    assert post(receiver).status_code == 200


def test_a_played_hang_answers_nothing_and_does_not_hold_up_the_stop() -> None:
    """Only the client's timeout or the receiver's end ends the request."""
    with Receiver(fail="hang") as receiver:
        with pytest.raises(httpx.ReadTimeout):
            post(receiver, timeout=0.2)
        peer = connect(receiver)
        peer.sendall(request_bytes())
        # Answered on another connection, so the hanging request has reached the app.
        assert httpx.get(receiver.url, trust_env=False).status_code == 200
        began = time.monotonic()
        receiver.stop()
        assert time.monotonic() - began < SOON / 2
        with peer, pytest.raises(ConnectionResetError):
            peer.recv(1)
        assert receiver.store.totals()[0] == 0


def test_a_slow_answer_comes_after_its_envelope_was_stored() -> None:
    """A client with a short timeout sends a duplicate, which the receiver shows."""
    with Receiver(fail="slow") as receiver:
        receiver.faults.slow_by = 0.3
        began = time.monotonic()
        assert post(receiver).status_code == 200
        assert time.monotonic() - began >= 0.3
        receiver.faults.slow_by = 60.0
        with pytest.raises(httpx.ReadTimeout):
            post(receiver, timeout=0.2)
        assert receiver.wait_for(2, SOON)
        assert [record["event_id"] for record in receiver.events()] == [EVENT_ID, EVENT_ID]


def test_a_client_that_leaves_in_the_middle_leaves_nothing(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a body is no envelope, and causes no traceback."""
    with connect(receiver) as peer:
        peer.sendall(request_bytes()[:-10])
    assert post(receiver).status_code == 200
    receiver.stop()
    assert receiver.store.totals()[0] == 1
    assert "Traceback" not in caplog.text


def test_an_app_without_the_receivers_server_says_that_it_can_not_reset() -> None:
    """Another server can't play the fault, and must not answer 200."""
    from tests.integrations.receiver_support import Client
    from transport_kit.receiver import Faults

    with Store() as store:
        client = Client(create_app(store, Faults("reset")))
        with pytest.raises(RuntimeError, match="own server"):
            client.post()


def test_an_app_under_another_server_answers_its_lifespan() -> None:
    """uvicorn sends lifespan events by default, and the guard must pass them on."""
    sent: list[str] = []
    messages = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, Any]:
        return {"type": next(messages)}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    with Store() as store:
        asyncio.run(create_app(store)({"type": "lifespan"}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_taken_port_is_named(receiver: Receiver) -> None:
    """The most common mistake: it is running already."""
    with (
        pytest.raises(OptionsError, match=f"port {receiver.port}: .* 0 takes a free port"),
        Receiver(port=receiver.port),
    ):
        pytest.fail("two servers on one port")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.7"])
def test_an_address_that_others_can_reach_is_refused(host: str) -> None:
    """Reports of apps are private, so opening the server to a network needs an option."""
    with pytest.raises(OptionsError, match="--listen-anywhere"):
        Receiver(host=host)


@pytest.mark.parametrize(
    ("host", "port", "field"), [("no-such-host.invalid", 0, "host"), ("127.0.0.1", 70_000, "port")]
)
def test_an_impossible_address_is_refused_by_name(host: str, port: int, field: str) -> None:
    """The error comes before anything is opened."""
    with pytest.raises(OptionsError) as caught:
        Receiver(host=host, port=port)
    assert caught.value.field == field


def test_an_address_of_another_machine_can_not_be_listened_on() -> None:
    """The option allows it, but the system refuses; the error has the system's reason."""
    with pytest.raises(OptionsError, match=r"can't listen on 192\.0\.2\.7"):
        Receiver(host="192.0.2.7", listen_anywhere=True).start()


def test_listening_anywhere_names_an_address_that_works() -> None:
    """A client can't connect to 0.0.0.0."""
    with Receiver(host="0.0.0.0", listen_anywhere=True) as receiver:
        assert receiver.url == f"http://127.0.0.1:{receiver.port}"
        assert post(receiver).status_code == 200
        named = httpx.get(receiver.url, headers={"Host": socket.gethostname()}, trust_env=False)
        assert named.status_code == 200


def test_ipv6_loopback_works() -> None:
    """The URL and the DSN have brackets."""
    try:
        with Receiver(host="::1") as receiver:
            assert receiver.dsn.endswith(f"@[::1]:{receiver.port}/1")
            assert post(receiver).status_code == 200
    except OptionsError as error:  # a machine without IPv6
        pytest.skip(str(error))
    assert _resolve("::", 0, True)[0] == "::"


def test_listeners_see_each_record(tmp_path: Path) -> None:
    """The console prints lines from it."""
    records: list[dict[str, Any]] = []
    with Receiver(on_received=records.append) as receiver:
        post(receiver)
        assert records == receiver.events()
        assert json.dumps(records)
