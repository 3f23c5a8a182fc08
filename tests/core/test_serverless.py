"""`flush_after`: what a call captured is delivered before it returns. `report_uncaught`: the end of all."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial

import pytest

from tests.timing import SOON
from transport_kit import Kit, RequestFacts, Scope
from transport_kit.serverless import flush_after, report_uncaught
from transport_kit.testing import CapturedTransport, FaultServer


@pytest.fixture(name="server")
def _server() -> Iterator[FaultServer]:
    """Where the handler's events go; slowly."""
    with FaultServer() as server:
        server.delay = 0.1
        yield server


def kit_for(target: object) -> Kit:
    return Kit({"dsn": target, "shutdown_timeout": SOON}, environ={})


def names(server: FaultServer) -> list[str]:
    items = [item for request in server.accepted for item in request.envelope.items if item.type == "event"]
    return [json.loads(item.get_bytes())["exception"]["values"][-1]["value"] for item in items]


def test_a_handler_that_raises_has_delivered_when_it_returns(server: FaultServer) -> None:
    """AWS Lambda freezes the process at that moment, for minutes or for good."""
    kit = kit_for(server.dsn)

    @flush_after(kit)
    def handler(event: dict[str, int], context: object) -> int:
        """Divides."""
        return 1 // event["by"]

    assert handler({"by": 1}, None) == 1
    assert server.accepted == []
    for count in (1, 2):  # the second call finds the transport as the first left it
        with pytest.raises(ZeroDivisionError):
            handler({"by": 0}, None)
        assert len(names(server)) == count
    assert (handler.__name__, handler.__doc__) == ("handler", "Divides.")
    assert kit.close().ok


def test_an_async_handler_does_not_hold_up_its_loop_while_it_flushes(server: FaultServer) -> None:
    """Other handlers share the loop."""
    kit = kit_for(server.dsn)

    @flush_after(kit)
    async def handler(name: str) -> None:
        raise LookupError(name)

    async def main() -> list[object]:
        server.hold()
        calls = [asyncio.ensure_future(handler(name)) for name in ("a", "b")]
        while len(server.requests) < 2:
            await asyncio.sleep(0)
        assert not any(call.done() for call in calls)
        server.release()
        return list(await asyncio.gather(*calls, return_exceptions=True))

    results = asyncio.run(main())
    assert [type(result) for result in results] == [LookupError, LookupError]
    assert sorted(names(server)) == ["a", "b"]
    assert kit.close().ok


def test_each_call_has_a_scope_and_a_name_of_its_own() -> None:
    """A process serves one customer after the other."""
    transport = CapturedTransport()
    kit = Kit({"dsn": transport}, environ={})

    @flush_after(kit)
    def handler(number: int) -> None:
        if number:
            Scope.current().set_tag("number", number)
        raise ValueError(number)

    for number in (1, 0):
        with pytest.raises(ValueError, match=str(number)):
            handler(number)
    first, second = transport.events
    assert (first["tags"], second.get("tags")) == ({"number": "1"}, None)
    assert first["transaction"].endswith(".handler")
    assert first["transaction_info"] == {"source": "task"}
    assert first["exception"]["values"][-1]["mechanism"]["handled"] is False


def test_the_wait_is_bounded_and_the_result_is_the_functions(server: FaultServer) -> None:
    """A receiver that hangs costs the platform's time, which is paid for."""
    kit = kit_for(server.dsn)
    server.fault("hang")

    @flush_after(kit, timeout=0.05)
    def handler() -> str:
        kit.capture_exception(ValueError("noted"))
        return "answer"

    assert handler() == "answer"
    assert kit.transport.pending == 1
    kit.transport.kill()


def test_a_closed_kit_is_started_again(server: FaultServer) -> None:
    """A platform that keeps the process may end one and begin another round."""
    kit = kit_for(server.dsn)
    kit.close()

    @flush_after(kit)
    def main() -> None:
        raise ValueError("second life")

    with pytest.raises(ValueError, match="second life"):
        main()
    assert names(server) == ["second life"]
    assert kit.close().ok


def test_a_generator_is_refused() -> None:
    """Its call returns before its first line has run, and nothing would be captured."""
    kit = Kit({"dsn": ""}, environ={})

    def rows() -> Iterator[int]:
        yield 1

    async def arows() -> AsyncIterator[int]:
        yield 1

    for generator in (rows, arows):
        with pytest.raises(TypeError, match="is a generator"):
            flush_after(kit)(generator)


def test_what_can_be_called_need_not_be_a_function() -> None:
    """A platform's handler may be an object that was set up beforehand, async or not."""
    transport = CapturedTransport()
    kit = Kit({"dsn": transport}, environ={})

    class Handler:
        async def __call__(self, by: int) -> float:
            return 1 / by

    with pytest.raises(ZeroDivisionError):
        asyncio.run(flush_after(kit)(Handler())(0))
    with pytest.raises(ZeroDivisionError):
        flush_after(kit)(partial(divmod, 1))(0)
    assert [event["transaction"].rpartition(".")[2] for event in transport.events] == ["Handler", "partial"]


def test_nothing_that_escapes_is_captured_when_capturing_is_off() -> None:
    """`capture_errors` is about all that we capture by ourselves."""
    transport = CapturedTransport()
    kit = Kit({"dsn": transport, "capture_errors": False}, environ={})

    @flush_after(kit)
    def handler() -> None:
        kit.capture_exception(ValueError("by hand"))
        raise ValueError("escapes")

    with pytest.raises(ValueError, match="escapes"):
        handler()
    (event,) = transport.events
    assert event["exception"]["values"][-1]["value"] == "by hand"


# -- the end of a process ------------------------------------------------------------------------------


@pytest.fixture(name="printed")
def _printed(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Record the arguments of the previous hook."""
    told: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: told.append(error))
    return told


def end_with(error: BaseException) -> None:
    """As the interpreter does it."""
    try:
        raise error
    except BaseException:
        sys.excepthook(*sys.exc_info())


def test_what_ends_a_script_is_captured_once_and_printed_as_before(
    printed: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks at the output of a nightly job; and its arguments may hold a password."""
    transport = CapturedTransport()
    kit = Kit({"dsn": transport}, environ={})
    monkeypatch.setattr(sys, "argv", ["/srv/bin/nightly.py", "--password=topsecret"])
    report_uncaught(kit)
    error = ValueError("broken")
    end_with(error)
    end_with(error)
    assert printed == [error, error]
    (event,) = transport.events
    assert (event["transaction"], event["transaction_info"]) == ("nightly.py", {"source": "task"})
    mechanism = event["exception"]["values"][-1]["mechanism"]
    assert (mechanism["type"], mechanism["handled"]) == ("auto.process", False)
    assert "topsecret" not in json.dumps(event)


def test_what_is_no_error_of_the_script_is_only_printed(
    printed: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, what is expected, and each typing error at a prompt, which comes the same way."""
    transport = CapturedTransport()

    class Facts(RequestFacts):
        def is_expected(self, error: BaseException) -> bool:
            return isinstance(error, LookupError)

    report_uncaught(lambda: Kit({"dsn": transport}, environ={}), Facts())
    end_with(KeyboardInterrupt())
    end_with(KeyError("usage"))
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    end_with(NameError("tpyo"))
    assert transport.events == []
    assert len(printed) == 3


def test_a_kit_that_cannot_be_made_costs_a_line_and_not_the_traceback(
    printed: list[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """The traceback is all that is left of the process then."""

    def make() -> Kit:
        return Kit({"dsn": "nonsense", "strict": True}, environ={})

    report_uncaught(make)
    with caplog.at_level(logging.ERROR, "transport_kit"):
        end_with(ValueError("broken"))
    assert [record.getMessage() for record in caplog.records] == [
        "the end of the process was not reported: InvalidDsn"
    ]
    assert len(printed) == 1
