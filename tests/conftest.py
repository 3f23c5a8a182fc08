"""What every test gets: a process's scope as a new process has it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextvars import Context

import pytest

from transport_kit import Scope
from transport_kit.reporting.scope import _current

# A shell that runs the suite in the background has Ctrl-C ignored, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fresh_process_scope() -> Iterator[None]:
    """What a test sets outside of any request goes to the process's scope, and must end with the test."""
    # In an empty context the current scope is the process's; it is begun anew and stays the same object.
    scope = Context().run(Scope.current)
    token = _current.set(scope)
    yield
    _current.reset(token)
    type(scope).__init__(scope)
