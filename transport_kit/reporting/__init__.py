"""Reporting: turns errors, requests, logs and jobs of an app into events and passes them to a transport.

This package owns the content of an event and what is left out of it. It knows no framework (integrations pass
a `RequestInfo`) and no HTTP.
"""

from transport_kit.reporting.log_buffer import is_own_logger
from transport_kit.reporting.log_handler import TransportHandler
from transport_kit.reporting.monitors import Monitor
from transport_kit.reporting.reporter import Reporter
from transport_kit.reporting.request_info import RequestInfo
from transport_kit.reporting.scope import Scope, attachment, new_scope
from transport_kit.reporting.served_request import RequestFacts, ServedRequest
from transport_kit.reporting.tracing.spans import Span

__all__ = [
    "attachment",
    "is_own_logger",
    "Monitor",
    "new_scope",
    "Reporter",
    "RequestFacts",
    "RequestInfo",
    "Scope",
    "ServedRequest",
    "Span",
    "TransportHandler",
]
