"""The public signatures, one line for each: type-checked by mypy and pyright, never run.

A line that no longer type-checks is a change that users' code notices. `assert_type` fixes what a call
returns; an assignment fixes what an argument accepts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, assert_type

from flask import Flask
from starlette.requests import Request
from starlette.responses import Response as HttpResponse
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

import transport_kit.celery
import transport_kit.gunicorn
import transport_kit.rq
import transport_kit_django
import transport_kit_flask
import transport_kit_starlette
from transport_kit import (
    LEAVES,
    Answer,
    BackgroundWorker,
    Backoff,
    BaseHttpTransport,
    CircuitBreaker,
    Claim,
    Dsn,
    Envelope,
    ExchangeError,
    FlushReport,
    FunctionTransport,
    Health,
    HttpTransport,
    IntegrationOptions,
    InvalidDsn,
    InvalidEnvelope,
    Item,
    Kit,
    Leaf,
    LossReason,
    MemoryQueue,
    MissingExtra,
    Monitor,
    NullTransport,
    OptionsError,
    Outcome,
    Priority,
    Put,
    Queue,
    QueueStats,
    RateLimits,
    Reporter,
    ReporterOptions,
    RequestFacts,
    RequestInfo,
    Response,
    Scope,
    SealedEnvelope,
    SealedItem,
    SealError,
    ServedRequest,
    Span,
    Transport,
    TransportHandler,
    TransportKitError,
    TransportOptions,
    __version__,
    attachment,
    make_transport,
    new_scope,
)
from transport_kit.receiver import Faults, Receiver, Store, StoredEnvelope, create_app
from transport_kit.serverless import flush_after, report_uncaught
from transport_kit.testing import FAULTS, CapturedTransport, FaultServer, ReceivedRequest


def used(*values: object) -> None:
    """Accept names whose type or existence alone is checked."""


def dsn(text: str) -> None:
    parsed = assert_type(Dsn.parse(text), Dsn)
    assert_type(parsed.scheme, str)
    assert_type(parsed.public_key, str)
    assert_type(parsed.secret_key, str | None)
    assert_type(parsed.host, str)
    assert_type(parsed.port, int | None)
    assert_type(parsed.prefix, str)
    assert_type(parsed.project_id, str)
    assert_type(parsed.envelope_url, str)
    assert_type(parsed.auth_header("client/1"), str)
    assert_type(parsed.reveal(), str)
    version: str = __version__
    used(version)


def errors(dsn: InvalidDsn, envelope: InvalidEnvelope, option: OptionsError, seal: SealError) -> None:
    assert_type(dsn.reason, str)
    assert_type(envelope.reason, str)
    assert_type(envelope.offset, int)
    assert_type(option.field, str)
    assert_type(option.problem, str)
    assert_type(option.source, str)
    assert_type(seal.path, str)
    common: tuple[TransportKitError, ...] = (dsn, envelope, option, seal)
    used(common)
    assert issubclass(MissingExtra, TransportKitError)


def envelopes(event: dict[str, Any], data: bytes) -> None:
    envelope = assert_type(Envelope({"event_id": "a"}, [Item({}, type="event")]), Envelope)
    assert_type(Envelope.event(event), Envelope)
    assert_type(Envelope.transaction(event), Envelope)
    assert_type(envelope.add_event(event), Envelope)
    assert_type(envelope.add_transaction(event), Envelope)
    assert_type(envelope.add_session({}), Envelope)
    assert_type(envelope.add_sessions({}), Envelope)
    assert_type(envelope.add_check_in({}), Envelope)
    assert_type(envelope.add_log([{}]), Envelope)
    assert_type(envelope.add_attachment(b"", filename="a.txt", content_type="text/plain"), Envelope)
    assert_type(envelope.add_client_report({}), Envelope)
    assert_type(envelope.add_item(Item(Path("a"), type="attachment", filename="a")), Envelope)
    assert_type(envelope.serialize(), bytes)
    assert_type(Envelope.deserialize(data, max_items=10), Envelope)
    assert_type(envelope.validate(), None)
    counts: tuple[tuple[str, int], ...] = envelope.quantities()
    used(counts, envelope.item_counts())
    assert_type(envelope.seal(max_event_bytes=1), SealedEnvelope)


def items(item: Item) -> None:
    assert_type(Item("text", type="x", headers={"a": 1}, item_count=1), Item)
    assert_type(item.type, str)
    assert_type(item.data_category, str | None)
    pairs: tuple[tuple[str, int], ...] = item.quantities
    used(pairs)
    assert_type(item.get_bytes(), bytes)
    assert_type(item.seal(max_attachment_bytes=1), SealedItem)
    assert_type(attachment(b"", "a.txt", "text/plain"), Item)


def sealed(envelope: SealedEnvelope, item: SealedItem) -> None:
    assert_type(envelope.items, tuple[SealedItem, ...])
    assert_type(envelope.packed(), SealedEnvelope)
    assert_type(envelope.unpacked(), SealedEnvelope)
    assert_type(envelope.with_items([item]), SealedEnvelope)
    assert_type(envelope.serialize("2026-01-02T03:04:05Z"), bytes)
    assert_type(envelope.priority, Priority)


def transports(transport: Transport, options: TransportOptions, dsn: Dsn, envelope: Envelope) -> None:
    assert_type(make_transport("https://key@host/1", max_senders=4), Transport)
    assert_type(make_transport(dsn), Transport)
    assert_type(make_transport(print), Transport)
    assert_type(make_transport(None), Transport)
    assert_type(HttpTransport(dsn, options), HttpTransport)
    assert_type(HttpTransport(dsn, make_queue=lambda: MemoryQueue(1, 1)), HttpTransport)
    assert_type(FunctionTransport(print, options), FunctionTransport)
    assert_type(NullTransport(options, problem="off"), NullTransport)
    assert_type(transport.capture_envelope(envelope), bool)
    assert_type(transport.capture_event({}), bool)
    assert_type(transport.record_lost_event("before_send", "error", quantity=2), None)
    assert_type(transport.record_lost_event("before_send", item=Item({}, type="event")), None)
    assert_type(transport.start(), None)
    assert_type(transport.before_flush(lambda: None), None)
    assert_type(transport.flush(1.0, until="delivered"), FlushReport)
    assert_type(transport.close(1.0), FlushReport)
    assert_type(transport.kill(), None)
    assert_type(transport.health(), Health)
    assert_type(transport.is_healthy(), bool)
    assert_type(transport.pending, int)
    assert_type(transport.closed, bool)
    assert_type(transport.options, TransportOptions)
    assert_type(transport.dsn, Dsn | None)
    assert issubclass(BaseHttpTransport, Transport)


async def waiting(transport: Transport) -> None:
    assert_type(await transport.aflush(1.0), FlushReport)
    assert_type(await transport.aclose(1.0), FlushReport)
    with transport as entered:
        assert_type(entered, Transport)
    async with transport as entered:
        assert_type(entered, Transport)


def reports(report: FlushReport, health: Health) -> None:
    assert_type(report.ok, bool)
    assert_type(
        (report.delivered, report.discarded, report.stored, report.pending), tuple[int, int, int, int]
    )
    assert_type(bool(report), bool)
    assert_type(health.status, str)
    assert_type(health.reasons, tuple[str, ...])
    assert_type(health.discarded, dict[str, int])
    assert_type(health.as_dict(), dict[str, Any])
    assert_type(health.as_health_json(details=False), dict[str, Any])
    assert_type(health.as_text(), str)


def options(dsn: Dsn) -> None:
    assert_type(TransportOptions(queue="file:///var/spool/app", retry_statuses=(503,)), TransportOptions)
    assert_type(ReporterOptions(release="shop@1", before_send=lambda event, hint: event), ReporterOptions)
    assert_type(IntegrationOptions(path=None, flush_token="t"), IntegrationOptions)
    assert_type(TransportOptions.from_mapping({"MAX_SENDERS": 2}, source="settings"), TransportOptions)
    assert_type(TransportOptions.names(), frozenset[str])
    patterns: tuple[str | re.Pattern[str], ...] | None = ReporterOptions().trace_propagation_targets
    assert patterns is None


def queues(queue: Queue, envelope: SealedEnvelope, claim: Claim) -> None:
    assert_type(MemoryQueue(10, 1024), MemoryQueue)
    accepted: Queue = MemoryQueue(10, 1024)
    assert accepted is not queue
    assert_type(queue.prepare(envelope), SealedEnvelope)
    assert_type(queue.put(envelope), Put)
    assert_type(queue.claim(1, 0.5), list[Claim])
    assert_type(queue.ack([claim]), None)
    assert_type(queue.release([claim], 1.0), None)
    assert_type(queue.bury(claim, "reason"), None)
    assert_type(queue.wake(hasten=True), None)
    assert_type(queue.stats(), QueueStats)
    assert_type(queue.close(), list[Claim])
    assert_type(
        (claim.id, claim.sealed, claim.attempts, claim.put_at), tuple[int, SealedEnvelope, int, float]
    )


def workers(queue: Queue, options: TransportOptions, envelope: SealedEnvelope) -> None:
    worker = BackgroundWorker(queue, lambda sealed, within: Outcome(), options)
    assert_type(worker.submit(envelope), bool)
    assert_type(worker.start(), None)
    assert_type(worker.flush(1.0), FlushReport)
    assert_type(worker.close(1.0), FlushReport)
    assert_type(worker.kill(), None)
    assert_type(worker.is_alive(), bool)
    assert_type(Outcome(LossReason.SEND_ERROR), Outcome)
    assert_type(Backoff(0.5, 60.0).delay(1, 0.5), float)
    assert_type(CircuitBreaker(Backoff(0.5, 60.0)).permits(1.0), bool)
    assert_type(RateLimits().updated(429, {"Retry-After": "1"}, 1.0), RateLimits)
    assert_type(RateLimits().limited_until("error"), float)


def exchanges(response: Response, error: ExchangeError) -> None:
    assert_type(response.status, int)
    headers: Mapping[str, str] = response.headers
    used(headers)
    assert_type(response.body, bytes)
    assert_type(error.body_sent, bool)


def kits(kit: Kit, facts: RequestFacts, error: Exception) -> None:
    assert_type(Kit({"dsn": ""}, source="settings", environ={}, shared=True), Kit)
    assert_type(kit.transport, Transport)
    assert_type(kit.reporter, Reporter)
    assert_type(kit.options, IntegrationOptions)
    assert_type(kit.problem, str | None)
    assert_type(kit.start(), None)
    assert_type(kit.try_to_start(), None)
    assert_type(kit.close(1.0), FlushReport)
    assert_type(kit.serve(facts, op="http.server", mechanism="auto.http.yours"), ServedRequest)
    assert_type(kit.capture_exception(error, handled=False, facts=facts), str | None)
    assert_type(kit.capture_unhandled(error, mechanism="generic"), str | None)
    assert_type(kit.send_test(error, 1.0), dict[str, Any])
    assert_type(kit.match("/transport/live"), Leaf | None)
    assert_type(kit.answer("live", method="GET", query_string="", accept=None, authorization=None), Answer)
    assert len(LEAVES) == 4


def reporting(reporter: Reporter, transport: Transport, error: Exception, info: RequestInfo) -> None:
    assert_type(Reporter(transport, ReporterOptions()), Reporter)
    assert_type(reporter.capture_exception(error, request=info, attachments=[]), str | None)
    assert_type(reporter.capture_message("hello", "warning"), str | None)
    assert_type(reporter.capture_event({}, {}), str | None)
    assert_type(reporter.capture_feedback("hello", email="a@b.example"), str | None)
    assert_type(reporter.add_breadcrumb("hello", data={}), None)
    assert_type(reporter.transaction("job", op="task", headers={}), ServedRequest)
    assert_type(reporter.monitor("nightly", schedule="0 2 * * *", timezone="UTC"), Monitor)
    assert_type(reporter.monitor("nightly", schedule=(1, "day")), Monitor)
    assert_type(reporter.span("db", "SELECT"), Span)
    assert_type(reporter.scope(), new_scope)
    assert_type(reporter.outgoing_headers("https://shop.example", baggage=""), dict[str, str])
    handler: logging.Handler = TransportHandler(reporter, logging.INFO, event_level=logging.ERROR)
    used(handler)


def scopes(span: Span) -> None:
    with new_scope() as scope:
        assert_type(scope, Scope)
    assert_type(Scope.current(), Scope)
    assert_type(scope.set_tag("a", 1), None)
    assert_type(scope.set_extra("a", 1), None)
    assert_type(scope.set_user({"id": 1}), None)
    assert_type(scope.set_context("a", {}), None)
    assert_type(scope.set_level("error"), None)
    assert_type(scope.set_fingerprint(["a"]), None)
    assert_type(scope.add_attachment(b"", filename="a"), None)
    assert_type(span.set_data("a", 1), None)
    assert_type(span.set_tag("a", "b"), None)
    assert_type(span.set_status("ok"), None)
    assert_type(span.set_http_status(200), None)
    assert_type(span.finish(None), None)


def hooks(kit: Kit, server: object, worker: object) -> None:
    assert_type(transport_kit.celery.connect(kit), None)
    assert_type(transport_kit.gunicorn.post_fork(server, worker), None)
    assert_type(transport_kit.gunicorn.worker_exit(server, worker), None)
    mixin: type[Any] = transport_kit.rq.ReportingMixin
    used(mixin)

    @flush_after(kit, timeout=1.0)
    def handler(event: str, context: int) -> bytes:
        return b""

    assert_type(handler("event", 1), bytes)
    assert_type(report_uncaught(kit), None)


def tools(tmp: Path) -> None:
    captured = CapturedTransport(max_senders=1)
    assert_type(captured.payloads("event"), list[Any])
    assert_type(captured.clear(), None)
    with FaultServer(host="127.0.0.1") as server:
        assert_type(server, FaultServer)
    assert_type((server.url, server.dsn, server.port), tuple[str, str, int])
    assert_type(server.answer(503, {"Retry-After": "1"}, times=1), None)
    assert_type(server.fault("reset", times=1), None)
    assert_type(server.accepted, list[ReceivedRequest])
    assert_type(server.event_ids(), list[str])
    assert_type(server.wait_for(1, timeout=1.0), bool)
    used(FAULTS)
    with Receiver(store=tmp / "store.sqlite3", rate_limit="error:60") as receiver:
        assert_type(receiver, Receiver)
    assert_type(receiver.events(limit=1), list[dict[str, Any]])
    assert_type(receiver.wait_for(1, timeout=1.0), bool)
    used(create_app, Faults, Store, StoredEnvelope)


def flask(app: Flask, error: Exception) -> None:
    kit = transport_kit_flask.TransportKit()
    assert_type(kit.init_app(app), None)
    assert_type(kit.transport, Transport)
    assert_type(kit.reporter, Reporter)
    assert_type(kit.capture_exception(error), str | None)
    assert_type(transport_kit_flask.get_kit(), Kit)


def starlette(app: ASGIApp, kit: Kit, request: Request) -> None:
    middleware: ASGIApp = transport_kit_starlette.TransportMiddleware(app, dsn="", max_senders=1)
    used(middleware)
    assert_type(transport_kit_starlette.get_kit(request), Kit)
    assert_type(transport_kit_starlette.transport_routes(kit), list[BaseRoute])
    handler: Callable[[Request, Exception], Awaitable[HttpResponse]]
    handler = transport_kit_starlette.report_server_errors()
    used(handler)
    lifespan: Callable[[Any], AbstractAsyncContextManager[Any]] = transport_kit_starlette.lifespan(kit=kit)
    used(lifespan)


def django() -> None:
    assert_type(transport_kit_django.get_kit(), Kit)
    middleware: type[Any] = transport_kit_django.TransportMiddleware
    used(middleware)
