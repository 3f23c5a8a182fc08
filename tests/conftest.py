"""What every test gets: a process's scope as a new process has it, and how long to look for examples."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextvars import Context

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.relay import _relay_reads_what_is_captured  # noqa: F401 - a fixture
from transport_kit import Scope
from transport_kit.reporting.scope import _current

# A shell that runs the suite in the background has Ctrl-C ignored, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline for an example: what has to be quick asserts it, in seconds of its own thread. A few examples
# in each run of the suite, and depth where there is time for it: `make chaos`.
settings.register_profile(
    "suite", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("campaign", settings.get_profile("suite"), max_examples=3000)
# A mutant's run needs a failure, not its smallest example, and is one of hundreds.
settings.register_profile(
    "mutants",
    settings.get_profile("suite"),
    max_examples=25,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
settings.load_profile("suite")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where workers share the suite, two have the child processes, which mostly wait."""
    processes = [item for item in items if "/process/" in item.nodeid]
    for position, item in enumerate(processes):
        item.add_marker(pytest.mark.xdist_group(f"process-{position % 2}"))


@pytest.fixture(autouse=True)
def _fresh_process_scope() -> Iterator[None]:
    """What a test sets outside of any request goes to the process's scope, and must end with the test."""
    # In an empty context the current scope is the process's; it is begun anew and stays the same object.
    scope = Context().run(Scope.current)
    token = _current.set(scope)
    yield
    _current.reset(token)
    type(scope).__init__(scope)
