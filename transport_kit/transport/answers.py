"""The meaning of a server's answers: each becomes an outcome, a log line, and facts for health.

This module owns the table of verdicts by status, and everything a process knows about its server: limits, the
last success and failure, and the failures that were logged.

Threads: senders call `read` and `read_failure`; any thread reads `limits`, `facts` and `active_limits`.

Source: docs/protocol.md, sections 4 and 5.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Collection, Mapping
from typing import NamedTuple

from transport_kit.config.dsn import Dsn, mask_keys
from transport_kit.config.options import TransportOptions
from transport_kit.envelope.losses import LossReason
from transport_kit.envelope.sealed import SealedEnvelope
from transport_kit.runtime.log import log
from transport_kit.transport.wire.exchange import ExchangeError, Response
from transport_kit.transport.worker.limits import RateLimits, retry_after_seconds
from transport_kit.transport.worker.outcome import Outcome
from transport_kit.transport.worker.refusals import FAULT, MAX_FAULTS

__all__ = ["ServerFacts", "ServerState", "Verdict", "verdict_of"]

#: The number of characters of an error answer that are logged.
SHOWN = 200
#: Answers of what stands before the server: nothing is delivered until a person has acted.
_SIGN_IN = {407: "the proxy{proxy} wants a login (407)", 511: "a network{proxy} wants a sign-in (511)"}
_ADVICE = {
    400: " (it could not read the envelope)",
    401: " (check the DSN's key)",
    403: " (check the DSN's key and project)",
    404: " (check the DSN's host and project)",
    405: " (check the DSN's host and project)",
    413: " (it is too large for this server)",
}


class Verdict(enum.Enum):
    """The meaning of a status."""

    ACCEPTED = enum.auto()
    #: Kept and retried: the server, or something before it, can't take the envelope now.
    RETRIED = enum.auto()
    #: As after a timeout, the server may have the envelope: retried only if it recognises a repeat.
    AMBIGUOUS = enum.auto()
    #: A fault of the server that may be caused by this envelope: retried a few times if repeatable.
    FAULT = enum.auto()
    #: Discarded, and the server has counted the loss.
    LIMITED = enum.auto()
    #: Discarded: the server refuses the DSN's key.
    KEY_REFUSED = enum.auto()
    #: Discarded: a redirect is not followed.
    REDIRECT = enum.auto()
    #: Discarded.
    FINAL = enum.auto()


#: Verdicts of statuses that are in `retry_statuses`, and of those that are not; otherwise RETRIED and FINAL.
_IF_RETRIED = {
    FAULT: Verdict.FAULT,
    504: Verdict.AMBIGUOUS,
    520: Verdict.AMBIGUOUS,  # a CDN got an unreadable answer
    524: Verdict.AMBIGUOUS,  # a CDN got no answer in time
}
_IF_FINAL = {429: Verdict.LIMITED, 401: Verdict.KEY_REFUSED, 403: Verdict.KEY_REFUSED}


def verdict_of(status: int, retried: Collection[int]) -> Verdict:
    """Return the meaning of a final answer's status.

    Args:
        status: From 200 to 599.
        retried: The option `retry_statuses`; any other status is final.
    """
    if status < 300:
        return Verdict.ACCEPTED
    if status < 400:
        return Verdict.REDIRECT
    if status in retried:
        return _IF_RETRIED.get(status, Verdict.RETRIED)
    return _IF_FINAL.get(status, Verdict.FINAL)


class ServerFacts(NamedTuple):
    """A snapshot of a `ServerState`, for health. Times are monotonic seconds.

    Attributes:
        last_success: Time of the last delivery, or None.
        last_error: Kind, status (None without an answer) and time of the last failure, or None.
        failing: True if the last delivery failed.
        limits: The limits in force: monotonic end by category.
        problem: The reason why the server accepts nothing from this DSN, or None.
        doubt: The reason to doubt that deliveries arrive where they should, or None.
    """

    last_success: float | None
    last_error: tuple[str, int | None, float] | None
    failing: bool
    limits: Mapping[str, float]
    problem: str | None
    doubt: str | None = None


class ServerState:
    """What one process knows about its server.

    Args:
        dsn: The DSN; its keys are masked in log lines.
        options: The options; `retry_statuses` and `retry_window` are used.
        proxy: The proxy's URL without its login, or None.
        forwarded: True if the proxy forwards requests, so that an answer may be its own.

    Attributes:
        limits: The limits, an immutable table; any thread reads it without a lock.
    """

    def __init__(
        self, dsn: Dsn, options: TransportOptions, proxy: str | None = None, *, forwarded: bool = False
    ) -> None:
        self._dsn = dsn
        self._options = options
        self._proxy = "" if proxy is None else f" {proxy}"
        self._forwarded = forwarded
        # Guards the attributes below. Held for a few assignments at a time, never during I/O or logging.
        self._lock = threading.Lock()
        self.limits = RateLimits()
        self._last_success: float | None = None
        self._last_error: tuple[str, int | None, float] | None = None
        self._refused: int | None = None  # the status with which the server refuses the DSN's key
        self._sign_in: int | None = None  # the last answer's status, if it is one of `_SIGN_IN`
        self._page = False  # True if the last success was a web page
        self._logged: set[int | str] = set()  # statuses and kinds of errors since the last success

    def facts(self, now: float) -> ServerFacts:
        """Return a snapshot at the monotonic second `now`."""
        with self._lock:
            success, error, refused = self._last_success, self._last_error, self._refused
            sign_in, page = self._sign_in, self._page
        return ServerFacts(
            last_success=success,
            last_error=error,
            # A 429 comes from a working server; `limits` shows it.
            failing=error is not None and error[1] != 429 and (success is None or error[2] > success),
            limits=self.limits.active(now),
            problem=self._problem(refused, sign_in),
            doubt="a web page answers: probably no ingest server, check the DSN's host and path"
            if page
            else None,
        )

    def _problem(self, refused: int | None, sign_in: int | None) -> str | None:
        if sign_in is not None:
            return _SIGN_IN[sign_in].format(proxy=self._proxy)
        if refused is None:
            return None
        may_be_proxy = f"; the proxy{self._proxy} may have answered" if self._forwarded else ""
        return f"the server refuses this DSN's key ({refused}){may_be_proxy}"

    # -- failures without an answer --------------------------------------------------------------------

    def read_failure(self, error: ExchangeError, sealed: SealedEnvelope) -> Outcome:
        """Return the outcome of a delivery of `sealed` that got no usable answer."""
        with self._lock:
            self._last_error = (error.kind, None, time.monotonic())
            # A proxy that refuses a tunnel answers before there is a connection to the server.
            self._sign_in = 407 if error.kind == "proxy" and "407" in error.detail else None
        self._warn_once(error.kind, "a delivery failed and is repeated later: %s", error)
        if error.kind == "timeout" and error.body_sent and not sealed.repeatable:
            # The server may have received it, and would not recognise a repeat.
            return Outcome(LossReason.NETWORK_ERROR, answered=False)
        return Outcome.retry(LossReason.NETWORK_ERROR)

    # -- answers ---------------------------------------------------------------------------------------

    def read(self, response: Response, sealed: SealedEnvelope) -> Outcome:
        """Return the outcome of a delivery of `sealed` that was answered."""
        now = time.monotonic()
        verdict = verdict_of(response.status, self._options.retry_statuses)
        recovered = self._record(response, verdict, now)
        if verdict is Verdict.ACCEPTED:
            if recovered:
                log.info("deliveries work again")
            return Outcome()
        again = verdict is Verdict.RETRIED or (
            verdict in (Verdict.AMBIGUOUS, Verdict.FAULT) and sealed.repeatable
        )
        self._log(response, verdict, again)
        if verdict is Verdict.FAULT:
            return Outcome(LossReason.SEND_ERROR, again, server_fault=True, refusal=response.status)
        if verdict is Verdict.AMBIGUOUS and not again:
            return Outcome(LossReason.NETWORK_ERROR, answered=False, server_fault=True)
        if again:
            pause = retry_after_seconds(response.headers, wall=time.time()) or 0.0
            pause = min(pause, self._options.retry_window)
            return Outcome.retry(LossReason.SEND_ERROR, not_before=now + pause)
        if verdict is Verdict.LIMITED:
            return Outcome(LossReason.RATE_LIMITED)
        return Outcome(LossReason.SEND_ERROR, server_fault=response.status >= 500)

    def _record(self, response: Response, verdict: Verdict, now: float) -> bool:
        """Record an answer; return True if it is the first success after logged failures."""
        status, headers = response.status, response.headers
        with self._lock:
            if status in (429, 503) or "x-sentry-rate-limits" in headers:
                # `Retry-After` with a status that is retried is a pause, not a rate limit: a limit would
                # discard waiting envelopes, and load balancers announce outages this way. Only the other
                # header counts then, as with a 200.
                counted = 200 if status in self._options.retry_statuses else status
                self.limits = self.limits.updated(counted, headers, now)
            if verdict is Verdict.ACCEPTED:
                recovered = bool(self._logged)
                self._logged.clear()
                self._last_success = now
                self._refused = self._sign_in = None
                self._page = headers.get("content-type", "").lower().startswith("text/html")
                return recovered
            self._last_error = ("http", status, now)
            self._sign_in = status if status in _SIGN_IN else None
            if verdict is Verdict.KEY_REFUSED:
                self._refused = status
            return False

    # -- log lines -------------------------------------------------------------------------------------

    def _log(self, response: Response, verdict: Verdict, again: bool) -> None:
        status = response.status
        if again and verdict is Verdict.FAULT:
            self._warn_once(
                status,
                "the server answered %d; the delivery is repeated later, at most %d times: %s",
                status,
                MAX_FAULTS - 1,
                self._excerpt(response.body),
            )
        elif again and status in _SIGN_IN:
            sign_in = _SIGN_IN[status].format(proxy=self._proxy)
            self._warn_once(status, "%s; the delivery is repeated later", sign_in)
        elif again:
            self._warn_once(status, "the server answered %d; the delivery is repeated later", status)
        elif verdict is Verdict.LIMITED:
            self._warn_once(status, "the server answered 429; limited categories are dropped meanwhile")
        elif verdict is Verdict.REDIRECT:
            self._warn_once(
                status,
                "the server answered %d and the envelope was discarded; a redirect is not followed: %s",
                status,
                self._excerpt(response.headers.get("location", "").encode()),
            )
        else:
            # An own line if others with this status are repeated.
            key = f"{status}, discarded" if verdict in (Verdict.AMBIGUOUS, Verdict.FAULT) else status
            self._warn_once(
                key,
                "the server answered %d%s and the envelope was discarded: %s",
                status,
                _ADVICE.get(status, ""),
                self._excerpt(response.body),
            )

    def _warn_once(self, failure: int | str, message: str, *arguments: object) -> None:
        """Log one warning per kind of failure until deliveries work again."""
        with self._lock:
            is_new = failure not in self._logged
            self._logged.add(failure)
        if is_new:
            log.warning(message, *arguments)

    def _excerpt(self, answer: bytes) -> str:
        """Return the beginning of a server's text, printable and with the DSN's keys masked."""
        text = answer.decode("utf-8", "replace")
        text = mask_keys(text, (self._dsn.secret_key, self._dsn.public_key))
        return "".join(c if c.isprintable() else " " for c in text[:SHOWN])
