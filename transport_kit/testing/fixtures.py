"""pytest fixtures for the tests of an app: `pytest_plugins = ["transport_kit.testing"]` loads them.

This module owns the fixtures only. The only module of this package that imports pytest. PYTEST_DONT_REWRITE:
a conftest may have imported this before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from transport_kit.envelope.envelope import Envelope
from transport_kit.testing.captured import CapturedTransport

__all__ = ["captured_envelopes", "captured_events", "captured_transport"]


@pytest.fixture
def captured_transport() -> Iterator[CapturedTransport]:
    """A transport that stores captured envelopes; closed after the test."""
    with CapturedTransport() as transport:
        yield transport


@pytest.fixture
def captured_envelopes(captured_transport: CapturedTransport) -> list[Envelope]:
    """The envelopes that `captured_transport` has captured so far."""
    return captured_transport.envelopes


@pytest.fixture
def captured_events(captured_transport: CapturedTransport) -> list[dict[str, Any]]:
    """The error events that `captured_transport` has captured so far."""
    return captured_transport.events
