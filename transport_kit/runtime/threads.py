"""Runs a blocking call on a thread of its own, and awaits its result in the event loop.

Owns that thread, for one call. Knows nothing of transports.

Threads: `off_loop` is awaited on the loop's thread; the call runs on another one, if one can be started.
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
    """Return the result of `call`, run on a thread of its own.

    The loop's executor would not do: it may be full, and it is joined at exit.
    """
    # Not imported at the top: it imports ssl, which gevent may patch later. A caller that awaits has it.
    import asyncio

    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return call()  # another library's loop, such as trio's: it is blocked for as long as the call lasts
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
        return call()  # the interpreter is ending and starts no thread: block the loop instead
    return await done
