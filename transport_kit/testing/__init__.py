"""Tools for tests of apps that send envelopes, and for our own.

Owns the public names only; each tool has its own module. Nothing here starts a thread or opens a
socket when imported.
"""

from transport_kit.testing.answers import FAULTS
from transport_kit.testing.captured import CapturedTransport
from transport_kit.testing.fault_server import FaultServer
from transport_kit.testing.received import ReceivedRequest

__all__ = ["CapturedTransport", "FAULTS", "FaultServer", "ReceivedRequest"]
