"""Runs a blocking call on a thread of its own, and awaits its result in the event loop.

This module owns that thread, for one call. It knows nothing of transports.

Threads: `off_loop` is awaited on the loop's thread; the call runs on another one, if one can be started.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable
from functools import partial
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

    def settle(set_outcome: Callable[[], None]) -> None:
        if not done.done():  # else the awaiting task was cancelled
            set_outcome()

    def run() -> None:
        set_outcome: Callable[[], None]
        try:
            result = call()
        except BaseException as error:
            set_outcome = partial(done.set_exception, error)
        else:
            set_outcome = partial(done.set_result, result)
        try:
            loop.call_soon_threadsafe(settle, set_outcome)
        except RuntimeError:
            pass  # the loop was closed meanwhile: nothing awaits the result any more

    try:
        _thread.start_new_thread(run, ())
    except RuntimeError:
        return call()  # the interpreter is ending and starts no thread: block the loop instead
    return await done
