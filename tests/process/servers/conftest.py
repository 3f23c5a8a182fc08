"""What the tests with real servers share: the receiver their workers report to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from transport_kit.testing import FaultServer


@pytest.fixture(name="receiver")
def _receiver() -> Iterator[FaultServer]:
    """Takes everything at once until told otherwise."""
    with FaultServer() as receiver:
        yield receiver
