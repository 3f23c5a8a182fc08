"""Set-up of every test: a fresh process scope, Hypothesis profiles, a Relay that reads captured envelopes."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.needs import do_without
from transport_kit import Envelope, Scope, SealedEnvelope
from transport_kit.reporting import runtime_facts
from transport_kit.reporting.scope import _current

#: Envelopes of one test that Relay reads: thousands of the same kind would show nothing new.
MAX_READ = 300


def pytest_configure(config: pytest.Config) -> None:
    """Let coverage measure the processes that share the suite, but not those that tests start.

    Measuring changes the disposition of SIGTERM, which is what some of these are about.
    """
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


# A shell ignores SIGINT for a suite that it runs in the background, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples have no deadline: a test of speed asserts seconds of its own thread. The suite tries few examples;
# `make chaos` tries many.
settings.register_profile(
    "suite", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("campaign", settings.get_profile("suite"), max_examples=3000)
# A mutant is one of hundreds and needs any failure, so examples are not shrunk.
settings.register_profile(
    "mutants",
    settings.get_profile("suite"),
    max_examples=25,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
settings.load_profile("suite")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests with child processes, which mostly wait, to two of the workers that share the suite."""
    processes = [item for item in items if "/process/" in item.nodeid]
    for position, item in enumerate(processes):
        item.add_marker(pytest.mark.xdist_group(f"process-{position % 2}"))


@pytest.fixture(autouse=True)
def _fresh_process_scope() -> Iterator[None]:
    """Empty the process scope after the test, as a test that is in no request writes to it."""
    # In an empty context the current scope is the process scope. It is reset in place, as others refer to it.
    scope = Context().run(Scope.current)
    token = _current.set(scope)
    yield
    _current.reset(token)
    type(scope).__init__(scope)


@pytest.fixture(scope="session", name="relay_reader")
def _relay_reader() -> Callable[[SealedEnvelope], None] | None:
    """`tests.relay.read`, imported before a test can patch anything; None without its native package."""
    if importlib.util.find_spec("sentry_relay") is None:
        return None
    from tests import relay

    return relay.read


@pytest.fixture(autouse=True)
def _relay_reads_what_is_captured(
    monkeypatch: pytest.MonkeyPatch, relay_reader: Callable[[SealedEnvelope], None] | None
) -> Iterator[None]:
    """Have Relay read every envelope that a reporter made in the test, and fail for what it would change.

    Without the package a test whose reporter made none passes; the others are skipped once they have passed,
    and fail where `CI` is set.
    """
    sealed: list[SealedEnvelope] = []
    seal = Envelope.seal

    def recording_seal(self: Envelope, **bounds: Any) -> SealedEnvelope:
        result = seal(self, **bounds)
        if len(sealed) < MAX_READ and self.headers.get("sdk") == runtime_facts.sdk():
            sealed.append(result)
        return result

    monkeypatch.setattr(Envelope, "seal", recording_seal)
    yield
    for envelope in sealed:
        if relay_reader is None:
            do_without("no package sentry_relay in this environment")
        relay_reader(envelope)
