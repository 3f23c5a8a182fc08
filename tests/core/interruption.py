"""Signal handlers that raise, at every instruction in turn.

A storm of signals finds an instruction by luck; here each is struck in order, so that a failure comes back
with its number. The signal is sent before the instruction runs; its handler runs where the interpreter looks
for signals next, which is where a real one would run.
"""

from __future__ import annotations

import _thread
import functools
import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

import transport_kit

#: The tracer of coverage and this one exclude each other.
untraced = pytest.mark.skipif(sys.gettrace() is not None, reason="there is one tracer at a time")

_OURS = str(Path(transport_kit.__file__).parent)


class Interrupted(Exception):
    """What a soft time limit raises out of its signal handler."""


class _Strike(int):
    """A signal number that is sent when `now` is read.

    Reading an attribute is no call: the interpreter does not look for signals after it, and so first looks
    in the code that is traced.
    """

    now = property(_thread.interrupt_main)


_STRIKE = _Strike(signal.SIGUSR1)


def strike(call: Callable[[], object], instruction: int) -> tuple[bool, BaseException | None]:
    """Run `call`, with a signal before its `instruction`-th of ours; whether it came, and what was raised."""
    struck: list[bool] = []

    def handle(number: int, frame: FrameType | None) -> None:
        struck.append(True)
        raise Interrupted

    before = signal.signal(_STRIKE, handle)
    # Python discards what is raised inside a callback of the collector, such as Hypothesis has one.
    gc.disable()
    try:
        _watched(call, instruction)
    except BaseException as error:
        return bool(struck), error
    finally:
        gc.enable()
        signal.signal(_STRIKE, before)
    return bool(struck), None


def _watched(call: Callable[[], object], instruction: int) -> None:
    """Run `call`, and strike when so many instructions have begun on this thread."""
    left = [instruction]
    here = threading.get_ident()
    if sys.version_info < (3, 12):

        def local(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "opcode":
                left[0] -= 1
                if left[0] == 0:
                    sys.settrace(None)  # or this would be the next code to be entered
                    _ = _STRIKE.now
            return local

        def each(frame: FrameType, event: str, argument: Any) -> Any:
            if not frame.f_code.co_filename.startswith(_OURS):
                return None
            frame.f_trace_opcodes = True
            return local

        sys.settrace(each)
        try:
            call()
        finally:
            sys.settrace(None)
    else:
        # Tracing sees a function's instructions only from its second call on here.
        monitoring = sys.monitoring

        def at(code: CodeType, offset: int) -> object:
            if threading.get_ident() == here:
                left[0] -= 1
                if left[0] == 0:
                    monitoring.register_callback(monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION, None)
                    _ = _STRIKE.now
            return None

        _instrument()
        monitoring.register_callback(monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION, at)
        try:
            call()
        finally:
            monitoring.register_callback(monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION, None)


@functools.cache
def _instrument() -> None:
    """Have the instructions of all our functions reported, once and for good: it takes long."""
    if sys.version_info >= (3, 12):
        monitoring = sys.monitoring
        monitoring.use_tool_id(monitoring.DEBUGGER_ID, __name__)
        for function in gc.get_objects():
            # Not `isinstance`: objects of other tests pretend to be of other classes, or raise when asked.
            if type(function) is FunctionType:
                for code in _with_inner(function.__code__):
                    if code.co_filename.startswith(_OURS):
                        monitoring.set_local_events(
                            monitoring.DEBUGGER_ID, code, monitoring.events.INSTRUCTION
                        )


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)


def every_instruction(step: int = 1) -> Iterator[int]:
    """Numbers for `strike`, until the loop over them ends: it knows when the call is over."""
    instruction = 1
    while True:
        yield instruction
        instruction += step
