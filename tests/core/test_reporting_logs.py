"""Logs: batched, bounded, each error reported once, and never this library's own records."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import loguru
import pytest
import structlog

from tests.core.reporting_support import Kept, reporter_for
from transport_kit.envelope.envelope import Envelope
from transport_kit.reporting import Reporter, TransportHandler
from transport_kit.reporting.log_buffer import BATCH, LogBuffer


@pytest.fixture(name="kept")
def _kept() -> Iterator[Kept]:
    with Kept() as transport:
        yield transport


@pytest.fixture(name="logger")
def _logger() -> Iterator[logging.Logger]:
    """A logger of the app to which the test adds handlers."""
    logger = logging.getLogger("shop.cart")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.handlers.clear()
    logger.filters.clear()
    logger.propagate = True


def named() -> tuple[str, str]:
    return ("/cart", "route")


def values(log: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a log item without their types."""
    return {name: attribute["value"] for name, attribute in log["attributes"].items()}


def test_a_record_becomes_a_log_item(kept: Kept, logger: logging.Logger) -> None:
    """Body, level, trace and searchable attributes, each with its type."""
    reporter = reporter_for(kept, release="shop@1", environment="staging", server_name="web-1")
    logger.addHandler(TransportHandler(reporter))
    with reporter.request(named=named):
        logger.warning("%s bought %d", "bob", 3, extra={"cart": {"n": 1}, "paid": True, "price": 1.5})
        reporter.capture_message("m")
    kept.flush()
    (envelope,) = [envelope for envelope in kept.envelopes if envelope.items[0].type == "log"]
    assert "trace" not in envelope.headers
    assert envelope.items[0].headers["item_count"] == 1
    envelope.validate()
    (log,) = kept.logs()
    trace = kept.events[0]["contexts"]["trace"]
    assert (log["trace_id"], log["span_id"]) == (trace["trace_id"], trace["span_id"])
    assert (log["body"], log["level"], log["severity_number"]) == ("bob bought 3", "warn", 13)
    told = values(log)
    assert told["message.template"] == "%s bought %d"
    assert (told["message.parameter.0"], told["message.parameter.1"]) == ("bob", 3)
    assert (told["logger.name"], told["code.function.name"]) == (
        "shop.cart",
        "test_a_record_becomes_a_log_item",
    )
    assert told["sentry.release"] == "shop@1"
    assert told["sentry.environment"] == "staging"
    assert told["server.address"] == "web-1"
    assert {log["attributes"][name]["type"] for name in ("paid", "price", "code.line.number", "cart")} == {
        "boolean",
        "double",
        "integer",
        "string",
    }


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (logging.CRITICAL, ("fatal", 21)),
        (logging.ERROR, ("error", 17)),
        (logging.WARNING, ("warn", 13)),
        (25, ("info", 9)),
        (logging.DEBUG, ("debug", 5)),
        (5, ("trace", 1)),
    ],
)
def test_levels_are_those_of_the_protocol(
    kept: Kept, logger: logging.Logger, level: int, expected: tuple[str, int]
) -> None:
    """A number between two usual levels counts as the lower one."""
    logger.setLevel(1)
    logger.addHandler(TransportHandler(reporter_for(kept), log_level=1))
    logger.log(level, "m")
    kept.flush()
    assert (kept.logs()[0]["level"], kept.logs()[0]["severity_number"]) == expected
    assert "message.template" not in kept.logs()[0]["attributes"]


def test_a_full_batch_goes_at_once_and_the_rest_at_the_flush(kept: Kept, logger: logging.Logger) -> None:
    """At most 100 items per container; flush and close leave none behind."""
    logger.addHandler(TransportHandler(reporter_for(kept)))
    for number in range(2 * BATCH + 7):
        logger.info("%d", number)
    assert [len(container["items"]) for container in kept.payloads("log")] == [BATCH, BATCH]
    kept.close()
    assert [log["body"] for log in kept.logs()] == [str(number) for number in range(2 * BATCH + 7)]


def test_a_batch_that_is_not_full_goes_after_a_while(kept: Kept) -> None:
    """A log line must not wait for 99 others."""
    sent = threading.Event()
    buffer = LogBuffer(kept, seconds=0.01)

    def send() -> None:
        buffer.send()
        sent.set()

    buffer._ticker._empty = send
    buffer.add({"body": "m"})
    assert sent.wait(timeout=30)
    assert [log["body"] for log in kept.logs()] == ["m"]


def test_what_no_transport_takes_is_bounded_and_counted() -> None:
    """While nothing can be sent, the newest items are dropped and counted."""

    class Stuck(Kept):
        """A transport whose captures log, as a transport function may."""

        def capture_envelope(self, envelope: Envelope) -> bool:
            return False

    with Stuck() as stuck:
        buffer = LogBuffer(stuck)
        buffer.send = lambda: None  # type: ignore[method-assign]
        for _ in range(1010):
            buffer.add({"body": "m"})
        assert stuck.lost() == {"buffer_overflow": {"log_item": 10, "log_byte": 8010}}


def test_many_threads_log_without_loss(kept: Kept) -> None:
    """Each item is in exactly one container."""
    buffer = LogBuffer(kept)

    def work(first: int) -> None:
        for number in range(first, first + 1000):
            buffer.add({"body": number})

    threads = [threading.Thread(target=work, args=(first * 1000,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    kept.flush()
    assert sorted(log["body"] for log in kept.logs()) == list(range(4000))
    assert max(len(container["items"]) for container in kept.payloads("log")) <= BATCH


def test_a_forked_child_sends_its_own_logs_only(kept: Kept) -> None:
    """Otherwise the parent's lines would arrive twice."""
    buffer = LogBuffer(kept)
    buffer.add({"body": "parent"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            buffer.send()
            early = len(kept.sealed)
            buffer.add({"body": "child"})
            buffer.send()
            os._exit(0 if early == 0 and [log["body"] for log in kept.logs()] == ["child"] else 1)
        except BaseException:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    kept.flush()
    assert [log["body"] for log in kept.logs()] == ["parent"]


def test_records_become_breadcrumbs_of_the_work_they_were_made_in(kept: Kept, logger: logging.Logger) -> None:
    """The steps before an error, from records that are logged anyway."""
    reporter = reporter_for(kept)
    logger.addHandler(TransportHandler(reporter, log_level=None))
    with reporter.request(named=named):
        logger.debug("too low")
        logger.warning("password=%s", "hunter2")
        logger.info("n %d", 7)
        reporter.capture_message("m")
    crumbs = kept.events[0]["breadcrumbs"]["values"]
    assert [(crumb["message"], crumb["level"], crumb["category"]) for crumb in crumbs] == [
        ("password=[Filtered]", "warning", "shop.cart"),
        ("n 7", "info", "shop.cart"),
    ]
    kept.flush()
    assert kept.logs() == []


def test_error_records_become_events_when_asked_for(kept: Kept, logger: logging.Logger) -> None:
    """Grouped by the template, with the exception if there is one."""
    reporter = reporter_for(kept)
    logger.addHandler(TransportHandler(reporter, log_level=None, event_level=logging.ERROR))
    with reporter.request(named=named):
        logger.warning("not this")
        logger.error("%s failed", "payment", extra={"cart": 7})
        try:
            raise KeyError("sku")
        except KeyError:
            logger.exception("lookup of %(what)s failed", {"what": "sku"})
    plain, failed = kept.events
    assert plain["logentry"] == {
        "message": "%s failed",
        "params": ["payment"],
        "formatted": "payment failed",
    }
    assert (plain["logger"], plain["level"], plain["transaction"]) == ("shop.cart", "error", "/cart")
    assert plain["extra"] == {"cart": 7}
    assert failed["exception"]["values"][0]["type"] == "KeyError"
    assert failed["exception"]["values"][0]["mechanism"]["type"] == "logging"
    assert failed["logentry"]["formatted"] == "lookup of sku failed"
    assert [crumb["message"] for crumb in failed["breadcrumbs"]["values"]] == ["not this", "payment failed"]


def test_what_was_logged_is_not_reported_again_by_the_request(kept: Kept, logger: logging.Logger) -> None:
    """`logger.exception` and `raise` in one view is one error, whichever layer sees it first."""
    reporter = reporter_for(kept)
    logger.addHandler(TransportHandler(reporter, event_level=logging.ERROR))

    def view() -> None:
        try:
            raise ValueError("boom")
        except ValueError:
            logger.exception("failed")
            raise

    with pytest.raises(ValueError, match="boom"), reporter.request(named=named):
        view()
    assert len(kept.events) == 1


def test_our_own_records_and_threads_are_skipped(kept: Kept) -> None:
    """A failing delivery logs; reporting that record would fail and log again."""
    handler = TransportHandler(reporter_for(kept), event_level=logging.DEBUG)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        for name in ("transport_kit", "transport_kit.http", "transport_kit_flask"):
            logging.getLogger(name).error("a delivery failed")
        thread = threading.Thread(
            target=lambda: logging.getLogger("urllib3").error("reset"), name="transport-kit-sender"
        )
        thread.start()
        thread.join(timeout=30)
    finally:
        root.removeHandler(handler)
    kept.flush()
    assert kept.sealed == []


def test_a_handler_follows_the_reporter_that_is_current(kept: Kept, logger: logging.Logger) -> None:
    """A restarted kit has a new reporter, but handlers are set up once."""
    with Kept() as second:
        reporters: list[Reporter] = [reporter_for(kept)]
        logger.addHandler(TransportHandler(lambda: reporters[-1]))
        logger.info("first")
        reporters.append(reporter_for(second))
        logger.info("second")
        kept.flush()
        second.flush()
        assert [log["body"] for log in kept.logs()] == ["first"]
        assert [log["body"] for log in second.logs()] == ["second"]


def test_filters_decide_and_no_lock_is_held(kept: Kept, logger: logging.Logger) -> None:
    """A hook that waits for another thread's log call would otherwise deadlock."""

    def hook(event: dict[str, Any], hint: dict[str, Any]) -> dict[str, Any]:
        thread = threading.Thread(target=lambda: logger.info("from the hook"))
        thread.start()
        thread.join(timeout=30)
        assert not thread.is_alive()
        return event

    handler = TransportHandler(reporter_for(kept, before_send=hook), event_level=logging.ERROR)
    handler.addFilter(lambda record: record.getMessage() != "unwanted")
    logger.addHandler(handler)
    logger.error("unwanted")
    logger.error("wanted")
    kept.flush()
    assert [event["logentry"]["formatted"] for event in kept.events] == ["wanted"]
    assert [log["body"] for log in kept.logs()] == ["wanted", "from the hook"]


def test_a_filter_may_replace_the_record(kept: Kept) -> None:
    """As Python 3.12 allows."""
    handler = TransportHandler(reporter_for(kept))
    other = logging.makeLogRecord({"msg": "replaced", "levelno": logging.INFO, "name": "x"})
    handler.filter = lambda record: other  # type: ignore[assignment,method-assign,return-value]
    assert handler.handle(logging.makeLogRecord({"msg": "m", "levelno": logging.INFO})) is True
    kept.flush()
    assert [log["body"] for log in kept.logs()] == ["replaced"]


@pytest.mark.parametrize(
    ("message", "args", "body"),
    [
        ("%d", ("no number",), "%d"),
        (object(), (7,), "<unprintable message>"),
        ("\ud800 %s", ("\udfff",), "\\ud800 \\udfff"),
        ("m" * 20_000, (), "m" * 8189 + "..."),
    ],
)
def test_a_record_that_is_wrong_is_logged_as_far_as_it_goes(
    kept: Kept, message: Any, args: Any, body: str
) -> None:
    """A mistake in the app's log call must not raise in the handler, nor print to stderr."""
    handler = TransportHandler(reporter_for(kept), event_level=logging.INFO)
    handler.handle(logging.LogRecord("x", logging.INFO, "f.py", 1, message, args, None))
    kept.flush()
    assert kept.logs()[0]["body"] == body
    assert len(kept.events) == 1


def test_secrets_in_records_are_filtered(kept: Kept, logger: logging.Logger) -> None:
    """By the name of a parameter or extra, and by their form in the text."""
    logger.addHandler(TransportHandler(reporter_for(kept)))
    logger.info("%(token)s for %(who)s", {"token": "hunter2-a", "who": "bob"}, extra={"api_key": "hunter2-b"})
    logger.info("url %s", "postgres://bob:hunter2-c@db/x")
    logger.info("Authorization: Bearer hunter2-d")
    kept.flush()
    first = values(kept.logs()[0])
    assert (first["message.parameter.token"], first["message.parameter.who"]) == ("[Filtered]", "bob")
    assert first["api_key"] == "[Filtered]"
    assert "hunter2-b" not in str(kept.sealed)
    assert "hunter2-c" not in str(kept.sealed)
    assert "hunter2-d" not in str(kept.sealed)


@pytest.mark.parametrize(
    ("message", "parameters"),
    [
        ("login of %s, password=%s", ("bob", "hunter2")),
        ("password=%s of %s", ("hunter2", "bob")),
        ("%s: password=%r", ("bob", "hunter2\\")),
        ("for %s Authorization: Bearer %s", ("bob", "hunter2")),
        ("%s: https://u:%s@host/", ("bob", "hunter2")),
        ("%s %s has api_key=%s", ("bob", "bob", ["hunter2"])),
    ],
)
def test_a_parameter_that_is_a_secret_by_its_place_is_filtered(
    kept: Kept, logger: logging.Logger, message: str, parameters: tuple[object, ...]
) -> None:
    """`"password=%s"` is how apps log passwords: text and parameter must both be filtered."""
    logger.addHandler(TransportHandler(reporter_for(kept), event_level=logging.ERROR))
    logger.error(message, *parameters)
    kept.flush()
    assert "hunter2" not in str(kept.sealed)
    assert "bob" in values(kept.logs()[0]).values()
    assert "bob" in kept.events[0]["logentry"]["params"]


def test_a_password_that_is_also_the_users_name_is_not_told_by_its_place(
    kept: Kept, logger: logging.Logger
) -> None:
    """The same text elsewhere in the message stays, without showing that it is the password."""
    logger.addHandler(TransportHandler(reporter_for(kept)))
    logger.info("user %s, password=%s", "bob", "bob")
    kept.flush()
    assert values(kept.logs()[0])["message.parameter.1"] == "[Filtered]"


def test_structlog_hands_over_its_keys_as_the_docs_say(kept: Kept, logger: logging.Logger) -> None:
    """The last processor that `docs/capturing.md` recommends; the usual one renders a dict as text."""
    logger.addHandler(TransportHandler(reporter_for(kept), event_level=logging.ERROR))
    log = structlog.wrap_logger(
        logger,
        processors=[structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    try:
        raise ValueError("boom")
    except ValueError:
        log.exception("declined", order=3, api_key="hunter2")
    kept.flush()
    assert kept.logs()[0]["body"] == "declined"
    assert (values(kept.logs()[0])["order"], values(kept.logs()[0])["api_key"]) == (3, "[Filtered]")
    assert kept.events[0]["exception"]["values"][-1]["type"] == "ValueError"


def test_loguru_hands_over_no_values_of_variables_as_the_docs_say(kept: Kept) -> None:
    """Its tracebacks show the values of variables, without the names by which secrets are recognised."""
    shop = loguru.logger
    reporter = reporter_for(kept)
    number = shop.add(TransportHandler(lambda: reporter), format=lambda record: "{message}")

    def log_in(password: str) -> None:
        raise ValueError(len(password))

    try:
        log_in("hunter" + "2")
    except ValueError:
        shop.exception("declined {}", 3)
    finally:
        shop.remove(number)
    kept.flush()
    assert kept.logs()[0]["body"] == "declined 3"
    assert "hunter2" not in str(kept.sealed)


def test_nothing_escapes_from_the_handler(kept: Kept) -> None:
    """Logging must work even if reporting fails."""

    def gone() -> Reporter:
        raise RuntimeError("no reporter")

    record = logging.makeLogRecord({"msg": "m", "levelno": logging.ERROR})
    assert TransportHandler(gone).handle(record) is True
    assert TransportHandler(reporter_for(kept), log_level=None, breadcrumb_level=None).handle(record) is True
    kept.flush()
    assert kept.sealed == []
