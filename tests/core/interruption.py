"""Runs calls with a signal handler that raises at each instruction in turn.

A storm of signals hits an instruction by chance; here each is hit in order, so that a failure can be
repeated by its number. The signal is sent before the instruction runs, and its handler runs when the
interpreter next checks for signals, as a real one would.
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

#: The tracer of coverage excludes this one.
untraced = pytest.mark.skipif(sys.gettrace() is not None, reason="there is one tracer at a time")

_OURS = str(Path(transport_kit.__file__).parent)


class Interrupted(Exception):
    """The exception that the signal handler raises, like a soft time limit."""


class _Strike(int):
    """A signal number that is sent when `now` is read.

    Reading an attribute is no call: the interpreter does not check for signals after it, and so first checks
    in the traced code.
    """

    now = property(_thread.interrupt_main)


_STRIKE = _Strike(signal.SIGUSR1)


def strike(call: Callable[[], object], instruction: int) -> tuple[bool, BaseException | None]:
    """Run `call` with a signal before the `instruction`-th instruction of the library.

    Returns:
        True if the signal was sent; and the exception that `call` raised, or None.
    """
    struck: list[bool] = []

    def handle(number: int, frame: FrameType | None) -> None:
        struck.append(True)
        raise Interrupted

    before = signal.signal(_STRIKE, handle)
    # Python discards exceptions in a callback of the garbage collector, such as Hypothesis has.
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
    """Run `call`, and send the signal when so many instructions have begun on this thread."""
    left = [instruction]
    here = threading.get_ident()
    if sys.version_info < (3, 12):

        def local(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "opcode":
                left[0] -= 1
                if left[0] == 0:
                    sys.settrace(None)  # otherwise this would be the next code to be entered
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
        # Tracing reports a function's instructions only from its second call on.
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
    """Let all functions of the library report their instructions, once and for good, as it is slow."""
    if sys.version_info >= (3, 12):
        monitoring = sys.monitoring
        monitoring.use_tool_id(monitoring.DEBUGGER_ID, __name__)
        for function in gc.get_objects():
            # Not `isinstance`: objects of other tests imitate other classes, or raise.
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
    """Yield numbers for `strike`, until the loop over them has reached the end of the call."""
    instruction = 1
    while True:
        yield instruction
        instruction += step
