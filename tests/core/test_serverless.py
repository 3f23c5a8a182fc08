"""`flush_after`: what a call captured is delivered before the call returns."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import pytest

from transport_kit import Kit, Scope
from transport_kit.serverless import flush_after
from transport_kit.testing import CapturedTransport, FaultServer


@pytest.fixture(name="server")
def _server() -> Iterator[FaultServer]:
    """Where the handler's events go; slowly."""
    with FaultServer() as server:
        server.delay = 0.1
        yield server


def kit_for(target: object) -> Kit:
    return Kit({"dsn": target, "shutdown_timeout": 5.0}, environ={})


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
