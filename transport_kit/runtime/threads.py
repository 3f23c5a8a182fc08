"""Awaiting what blocks: a call on a thread of its own, and its result in the event loop.

Owns that thread, for one call. Knows nothing of transports.

Threads: `off_loop` is awaited in a loop; the call runs on another thread, or in place where there is none.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import asyncio

__all__ = ["off_loop"]

T = TypeVar("T")


async def off_loop(call: Callable[[], T]) -> T:
    """Run `call` on a thread of its own: the loop's executor may be full, and is joined at exit."""
    # Imported by whoever awaits already. Not at the top: it imports ssl, which gevent may still patch.
    import asyncio

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return call()  # another library's loop, such as trio's: it is held up, for a bounded time
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return  # whoever waited was cancelled
        if error is not None:
            done.set_exception(error)
        elif result is not None:
            done.set_result(result)

    def run() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = call()
        except BaseException as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:
            pass  # the loop was closed meanwhile: nobody waits any more

    try:
        _thread.start_new_thread(run, ())
    except RuntimeError:
        return call()  # no thread can start any more: the interpreter is ending, and waiting is right
    return await done
