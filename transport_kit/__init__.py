"""transport-kit: takes what a web app reports, delivers it in the background, and can say what became of it.

The names below are the public ones; what is not among them is private. `transport_kit.testing` is public
too, and `transport_kit.receiver` with the extra of that name.
"""

from transport_kit.dsn import Dsn
from transport_kit.envelope import Envelope, Item
from transport_kit.errors import (
    InvalidDsn,
    InvalidEnvelope,
    MissingExtra,
    OptionsError,
    SealError,
    TransportKitError,
)
from transport_kit.exchange import ExchangeError, Response
from transport_kit.factory import make_transport
from transport_kit.health import Health
from transport_kit.http import BaseHttpTransport, HttpTransport
from transport_kit.kit import Kit
from transport_kit.ledger import LossReason
from transport_kit.limits import RateLimits
from transport_kit.memory_queue import MemoryQueue
from transport_kit.options import IntegrationOptions, ReporterOptions, TransportOptions
from transport_kit.queue import Claim, Put, Queue, QueueStats
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
from transport_kit.retry import Backoff, CircuitBreaker
from transport_kit.routes import LEAVES, Answer, Leaf
from transport_kit.sealing import Priority, SealedEnvelope, SealedItem
from transport_kit.transport import FlushReport, FunctionTransport, NullTransport, Transport
from transport_kit.version import VERSION as __version__  # noqa: N811 - the name that Python looks for
from transport_kit.worker import BackgroundWorker, Outcome

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
