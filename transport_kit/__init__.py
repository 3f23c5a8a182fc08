"""transport-kit: delivers a web app's reports in the background, and accounts for each of them.

`__all__` lists the public names; every other name is private. `transport_kit.testing` is public too, and so
is `transport_kit.receiver`, which needs the extra of that name.
"""

from transport_kit.config.dsn import Dsn
from transport_kit.config.options import IntegrationOptions, ReporterOptions, TransportOptions
from transport_kit.envelope.envelope import Envelope
from transport_kit.envelope.item import Item
from transport_kit.envelope.item_types import Priority
from transport_kit.envelope.losses import LossReason
from transport_kit.envelope.sealed import SealedEnvelope, SealedItem
from transport_kit.kit.kit import Kit
from transport_kit.kit.routes import LEAVES, Answer, Leaf
from transport_kit.queues.memory import MemoryQueue
from transport_kit.queues.protocol import Claim, Put, Queue, QueueStats
from transport_kit.reporting import (
    Monitor,
    Reporter,
    RequestFacts,
    RequestInfo,
    Scope,
    ServedRequest,
    Span,
    TransportHandler,
    attachment,
    new_scope,
)
from transport_kit.runtime.errors import (
    InvalidDsn,
    InvalidEnvelope,
    MissingExtra,
    OptionsError,
    SealError,
    TransportKitError,
)
from transport_kit.runtime.version import VERSION as __version__  # noqa: N811 - the name that Python looks for
from transport_kit.transport.base import Transport
from transport_kit.transport.factory import make_transport
from transport_kit.transport.health import Health
from transport_kit.transport.http import BaseHttpTransport, HttpTransport
from transport_kit.transport.local import FunctionTransport, NullTransport
from transport_kit.transport.wire.exchange import ExchangeError, Response
from transport_kit.transport.worker.limits import RateLimits
from transport_kit.transport.worker.outcome import FlushReport, Outcome
from transport_kit.transport.worker.retry import Backoff, CircuitBreaker
from transport_kit.transport.worker.worker import BackgroundWorker

__all__ = [
    "__version__",
    "Answer",
    "attachment",
    "BackgroundWorker",
    "Backoff",
    "BaseHttpTransport",
    "CircuitBreaker",
    "Claim",
    "Dsn",
    "Envelope",
    "ExchangeError",
    "FlushReport",
    "FunctionTransport",
    "Health",
    "HttpTransport",
    "IntegrationOptions",
    "InvalidDsn",
    "InvalidEnvelope",
    "Item",
    "Kit",
    "Leaf",
    "LEAVES",
    "LossReason",
    "make_transport",
    "MemoryQueue",
    "MissingExtra",
    "Monitor",
    "new_scope",
    "NullTransport",
    "OptionsError",
    "Outcome",
    "Priority",
    "Put",
    "Queue",
    "QueueStats",
    "RateLimits",
    "Reporter",
    "ReporterOptions",
    "RequestFacts",
    "RequestInfo",
    "Response",
    "Scope",
    "SealedEnvelope",
    "SealedItem",
    "SealError",
    "ServedRequest",
    "Span",
    "Transport",
    "TransportHandler",
    "TransportKitError",
    "TransportOptions",
]
