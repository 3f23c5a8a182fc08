"""Tools for tests of apps that send envelopes, and for our own.

This package owns the public names only; each tool has its own module. An import starts no thread and opens no
socket. Only pytest imports the fixtures: `pytest_plugins = ["transport_kit.testing"]`. PYTEST_DONT_REWRITE: a
conftest may have imported this before.
"""

from transport_kit.testing.answers import FAULTS
from transport_kit.testing.captured import CapturedTransport
from transport_kit.testing.fault_server import FaultServer
from transport_kit.testing.received import ReceivedRequest

__all__ = ["CapturedTransport", "FAULTS", "FaultServer", "pytest_plugins", "ReceivedRequest"]

#: Read by pytest when this module is loaded as a plugin.
pytest_plugins = ("transport_kit.testing.fixtures",)
