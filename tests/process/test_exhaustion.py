"""A process without resources: an operation that fails now may succeed later, so nothing is given up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from transport_kit.testing import FaultServer

Run = Callable[..., Any]

SCRIPT = """
import os, resource, sys
from transport_kit import Envelope, make_transport

transport = make_transport()
if "connected" in sys.argv:
    transport.capture_event({"message": "before"})
    transport.flush(30.0)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
descriptors = []
try:
    while True:
        descriptors.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
# The attachment is too large for one write. Between two writes the sender checks whether the server has
# answered already, and that check opens a descriptor.
event = Envelope.event({"message": "meanwhile"}).add_attachment(os.urandom(3_000_000), filename="core")
transport.capture_envelope(event)
print(transport.flush(0.5).pending)
for descriptor in descriptors:
    os.close(descriptor)
print(transport.flush(30.0).ok, transport.health().pending, transport.health().discarded_by_category)
"""


@pytest.mark.parametrize("state", ["new", "connected"])
def test_an_app_without_a_descriptor_left_loses_nothing(state: str, run: Run, server: FaultServer) -> None:
    """Every request of such an app fails, and its reports must not be lost for the same reason."""
    ended = run(SCRIPT, state)
    assert ended.out.split("\n")[:2] == ["1", "True {} {}"]
    assert len(server.event_ids()) == (2 if state == "connected" else 1)
