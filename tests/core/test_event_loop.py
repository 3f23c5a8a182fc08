"""off_loop: what a blocking call returns or raises reaches the task that awaits it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from transport_kit.runtime.event_loop import off_loop


@pytest.mark.parametrize("result", [None, 0, "text"])
def test_a_call_off_the_loop_returns_its_result(result: object) -> None:
    """Also None: the task would wait for ever."""
    assert asyncio.run(asyncio.wait_for(off_loop(lambda: result), 5)) == result


def test_a_call_off_the_loop_runs_on_another_thread() -> None:
    """The loop serves other requests meanwhile."""
    assert asyncio.run(off_loop(threading.get_ident)) != threading.get_ident()


def test_an_exception_of_the_call_is_raised_where_it_is_awaited() -> None:
    """An error of `flush` must not be lost on a thread that nobody looks at."""
    with pytest.raises(ZeroDivisionError):
        asyncio.run(asyncio.wait_for(off_loop(lambda: 1 / 0), 5))


def test_a_cancelled_wait_leaves_the_call_alone() -> None:
    """The call ends later, when nothing awaits it: no error in the loop."""
    release = threading.Event()
    errors: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(off_loop(lambda: release.wait(5)), 0.01)
        release.set()
        await asyncio.sleep(0.05)

    asyncio.run(main())
    assert errors == []
