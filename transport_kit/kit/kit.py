"""The kit: what every integration holds. Settings in; a transport, a reporter and the four routes out.

Owns the decisions that integrations share: where the DSN comes from, what a configuration error does, when
a closed transport is replaced, and who closes what. Knows no framework; integrations translate.

Threads: every method may be called from any thread, and in a forked child. There is no lock, so none can
be inherited held; `start` says how several callers agree.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transport_kit.config.dsn import DSN_VARIABLE, Dsn
from transport_kit.config.options import (
    Effect,
    IntegrationOptions,
    OptionProblem,
    ReporterOptions,
    TransportOptions,
    resolve,
)
from transport_kit.kit.routes import LEAVES, Answer, FlushDue, Leaf, answer, flush_answer, parse_query
from transport_kit.reporting import Reporter, RequestFacts, Scope, ServedRequest
from transport_kit.runtime.errors import OptionsError, TransportKitError
from transport_kit.transport.base import Transport
from transport_kit.transport.factory import build_transport
from transport_kit.transport.health import Health
from transport_kit.transport.local import NullTransport
from transport_kit.transport.worker.outcome import FlushReport

__all__ = ["Kit"]

logger = logging.getLogger("transport_kit")

# The transports that kits share, as long as one of them is held. No lock: of two kits that are made at the
# same moment each may get its own, which costs a connection and loses nothing.
_shared: weakref.WeakValueDictionary[tuple[Dsn, TransportOptions], Transport] = weakref.WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class Generation:
    """One transport and its reporter, from start to close; `successor` holds at most the next life."""

    transport: Transport
    reporter: Reporter
    successor: dict[str, Generation] = field(default_factory=dict)


class Kit:
    """Settings made into a transport, a reporter and routes; one per app.

    A configuration error never takes the app down. An option that can't be used is one ERROR line that names
    it and its source, and a reason of health; its default, or what is safe, stands in for it. A DSN that
    can't be used is one ERROR line (without the key), a transport that counts what it is given, and health
    `fail`. With `strict=True` either is raised.

    Args:
        values: `dsn` and any option of `TransportOptions`, `ReporterOptions` and `IntegrationOptions`, in
            lower or upper case. Without a `dsn`, or with None, `TRANSPORT_KIT_DSN` is read; "" is off.
            A `dsn` may be all that `make_transport` takes. A `Transport` instance stays its maker's:
            `close` flushes it, and never closes it.
        source: Where `values` come from, for messages, such as `settings.TRANSPORT_KIT`.
        environ: None reads `os.environ`.
        shared: Whether a transport to the same DSN with the same transport options, made by another kit
            that shares, is used too; for apps that end with their process. `close` closes it for all.

    Attributes:
        match: `match(path)` says which of the four routes a path is, exactly; None for any other, and
            always without the option `path`.

    Raises:
        TransportKitError: With `strict` only: an option or the DSN can't be used.
    """

    def __init__(
        self,
        values: Mapping[str, object],
        *,
        source: str = "arguments",
        environ: Mapping[str, str] | None = None,
        shared: bool = False,
    ) -> None:
        self._shares = shared
        self._source = source
        environment = dict(os.environ if environ is None else environ)
        self._problem: str | None = None
        self._option_problems: list[OptionProblem] = []
        self._target: Any = None
        self._target_source = source
        self._resolve(values, source, environment)
        self._borrowed = isinstance(self._target, Transport)
        leaves: dict[str, Leaf] = {}
        if self._options.path is not None:
            leaves = {f"{self._options.path}/{leaf}": leaf for leaf in LEAVES}
        # The dict's own method: it is called with each request.
        self.match: Callable[[str], Leaf | None] = leaves.get
        self._life = self._make_life()
        # The process in which it was started, by whomever; see `serve`.
        self._started_in = 0

    # -- what it holds ---------------------------------------------------------------------------------

    @property
    def transport(self) -> Transport:
        """The current transport; look it up for each use, as `start` may replace a closed one."""
        return self._life.transport

    @property
    def reporter(self) -> Reporter:
        """The current reporter, which captures into the current transport."""
        return self._life.reporter

    @property
    def options(self) -> IntegrationOptions:
        """What the integration does around the app; defaults stand for what could not be used."""
        return self._options

    @property
    def problem(self) -> str | None:
        """Why nothing is delivered: the configuration error, or None."""
        return self._problem

    @property
    def option_problems(self) -> tuple[str, ...]:
        """Options that could not be used, each with the consequence, as sentences."""
        return tuple(map(str, self._option_problems))

    # -- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin delivering. A closed transport is replaced by a new one; idempotent otherwise.

        Called at the app's start, in a worker after a fork, or with the first request.
        """
        # First: a start that fails is not tried again with each request.
        self._started_in = os.getpid()
        life = self._life
        while life.transport.closed and not self._borrowed:
            # `setdefault` is atomic: of several callers one decides, and a caller that comes late walks
            # on to the life that is current. Old lives are not referred to by newer ones.
            if not life.successor:
                life.successor.setdefault("life", self._make_life())
            life = life.successor["life"]
        self._life = life
        life.transport.start()

    def try_to_start(self) -> None:
        """`start`, by a framework that goes on whatever happens: what goes wrong is logged."""
        try:
            self.start()
        except Exception:
            logger.exception("the transport could not be started")

    def close(self, timeout: float | None = None) -> FlushReport:
        """Flush, then refuse captures until `start`; blocks at most `timeout` seconds (plus 0.2)."""
        transport = self._life.transport
        return transport.flush(timeout) if self._borrowed else transport.close(timeout)

    async def aclose(self, timeout: float | None = None) -> FlushReport:
        """`close`, without blocking the event loop."""
        transport = self._life.transport
        return await (transport.aflush(timeout) if self._borrowed else transport.aclose(timeout))

    async def try_to_close(self) -> None:
        """`aclose`, by a framework that goes on whatever happens: what goes wrong is logged."""
        try:
            await self.aclose()
        except Exception:
            logger.exception("the transport could not be closed")

    # -- capturing -------------------------------------------------------------------------------------

    def serve(
        self, facts: RequestFacts, *, op: str = "http.server", mechanism: str = "generic"
    ) -> ServedRequest:
        """Begin a request; the integration calls `finish` at its end. Never raises.

        Gives the request a fresh scope, continues the caller's trace, runs a transaction when the request
        is sampled; `finish` records the session's outcome, and reports the exception that escaped unless
        `capture_errors` is off. Costs a few microseconds when nothing happens.

        Starts the kit with the first request of each process in which nobody else did, and with the first
        one after a fork. A closed kit stays closed.

        Args:
            facts: Asked only when an event or a transaction is made.
            op: `http.server`, `websocket.server`, `queue.task`, …. Only what a server does for a client
                counts as a session.
            mechanism: How exceptions are caught, such as `auto.http.flask`.
        """
        if self._started_in != os.getpid():
            self.try_to_start()
        return ServedRequest(self._life.reporter, facts, op, mechanism, self._options.capture_errors).begin()

    def capture_exception(
        self,
        error: BaseException | None = None,
        *,
        mechanism: str = "generic",
        handled: bool = True,
        facts: RequestFacts | None = None,
    ) -> str | None:
        """Report an exception, by default the one being handled; its event id when accepted, else None.

        Never raises. An exception that was captured before in the same scope is skipped.

        Args:
            facts: Of the request that it happened in, where none is being served: `serve` knows its own.
        """
        reporter = self._life.reporter
        if facts is None or isinstance(Scope.current().unit, ServedRequest):
            return reporter.capture_exception(error, mechanism=mechanism, handled=handled)
        # Never begun: in a scope of its own it would not be known that the exception was captured before.
        request = ServedRequest(reporter, facts, "", mechanism)
        name, source = request.name() or (None, "url")
        return reporter.capture_exception(
            error,
            mechanism=mechanism,
            handled=handled,
            request=request.request(),
            transaction=name,
            transaction_source=source,
        )

    def capture_unhandled(
        self, error: BaseException | None, *, mechanism: str, facts: RequestFacts | None = None
    ) -> str | None:
        """`capture_exception`, of one that a framework tells of because the app did not handle it.

        Nothing with `capture_errors` off, and for what is no `Exception`. The request that is being served
        counts as crashed.
        """
        if not self._options.capture_errors or not isinstance(error, Exception):
            return None
        unit = Scope.current().unit
        if isinstance(unit, ServedRequest):
            return unit.capture(error)
        return self.capture_exception(error, mechanism=mechanism, handled=False, facts=facts)

    def send_test(self, error: Exception, timeout: float) -> dict[str, Any]:
        """Report `error` as the app would, wait up to `timeout` seconds, and say what became of it.

        Returns plain values: `ok`, `event_id`, `pending`, `problem` (None when it was delivered), `seconds`.
        """
        before = self.transport.health()
        began = time.monotonic()
        event_id = self.capture_exception(error, mechanism="command")
        report = self.transport.flush(timeout, until="delivered")
        seconds = time.monotonic() - began
        problem = _what_became_of_it(event_id, before, self.transport.health())
        return {
            "ok": problem is None,
            "event_id": event_id,
            "pending": report.pending,
            "problem": problem,
            "seconds": round(seconds, 3),
        }

    # -- routes ----------------------------------------------------------------------------------------

    def answer(
        self,
        leaf: Leaf,
        *,
        method: str,
        query_string: bytes | str,
        accept: str | None,
        authorization: bytes | str | None,
    ) -> Answer:
        """The answer to one request; see `routes.answer`. A permitted flush blocks while it waits."""
        decided = self._decide(leaf, method, query_string, accept, authorization)
        if isinstance(decided, FlushDue):
            return flush_answer(self.transport.flush(decided.timeout))
        return decided

    async def aanswer(
        self,
        leaf: Leaf,
        *,
        method: str,
        query_string: bytes | str,
        accept: str | None,
        authorization: bytes | str | None,
    ) -> Answer:
        """`answer`, without blocking the event loop."""
        decided = self._decide(leaf, method, query_string, accept, authorization)
        if isinstance(decided, FlushDue):
            return flush_answer(await self.transport.aflush(decided.timeout))
        return decided

    def _decide(
        self,
        leaf: Leaf,
        method: str,
        query_string: bytes | str,
        accept: str | None,
        authorization: bytes | str | None,
    ) -> Answer | FlushDue:
        return answer(
            leaf,
            method=method,
            query=parse_query(query_string),
            accept=accept,
            authorization=authorization,
            transport=self.transport,
            options=self._options,
        )

    # -- building --------------------------------------------------------------------------------------

    def _resolve(self, values: Mapping[str, object], source: str, environment: dict[str, str]) -> None:
        """Take the target and the options from `values`, then `environment`, then the defaults."""
        anything: object = values  # a settings file may hold that
        given = anything if isinstance(anything, Mapping) else {}
        options = {key: value for key, value in given.items() if str(key).lower() != "dsn"}
        targets = [value for key, value in given.items() if str(key).lower() == "dsn"]
        self._target = targets[0] if targets else None
        if self._target is None and environment.get(DSN_VARIABLE):
            self._target = environment[DSN_VARIABLE]
            self._target_source = f"environment {DSN_VARIABLE}"
        problems = self._option_problems
        self._transport_options, self._reporter_options, self._options = resolve(
            options,
            (TransportOptions, ReporterOptions, IntegrationOptions),
            source=source,
            environ=environment,
            problems=problems,
            tolerant=True,
        )
        errors = []
        if given is not values:
            errors.append(OptionsError("options", f"must be a mapping, not {type(values).__name__}", source))
        if len(targets) > 1:
            errors.append(OptionsError("dsn", "given twice, in upper and in lower case", source))
        if isinstance(self._target, Transport):
            problem = "can't be set: the transport given as dsn exists already"
            problems += [
                OptionProblem(str(key), problem, source, "it is ignored", Effect.WARNS)
                for key in options
                if str(key).lower() in TransportOptions.names()
            ]
        if self._options.strict:
            errors += [OptionsError(problem.name, problem.problem, problem.source) for problem in problems]
            for error in errors:
                raise error
        for option_problem in problems:
            logger.error("an option can't be used: %s", option_problem)
        if errors:
            self._give_up(errors[0], str(errors[0]))

    def _make_life(self) -> Generation:
        transport = self._make_transport()
        return Generation(transport, Reporter(transport, self._reporter_options))

    def _make_transport(self) -> Transport:
        transport = self._build_transport()
        transport.note_option_problems(self._option_problems)
        if self._problem is None and isinstance(transport, NullTransport):
            self._problem = transport.problem
        return transport

    def _build_transport(self) -> Transport:
        if self._problem is not None:
            return NullTransport(self._transport_options, problem=self._problem)
        try:
            return self._shared_transport() or self._own_transport()
        except OptionsError as error:
            if error.field == "target":  # what `make_transport` calls it
                error = OptionsError("dsn", error.problem, self._target_source)
            self._give_up(error, str(error))
        except TransportKitError as error:
            self._give_up(error, f"dsn ({self._target_source}): {error}")
        except Exception as error:
            # Not ours: its text may hold anything, a key included. `strict` shows it.
            self._give_up(error, f"dsn ({self._target_source}): {type(error).__name__} while building")
        return NullTransport(self._transport_options, problem=self._problem)

    def _shared_transport(self) -> Transport | None:
        """The transport of this DSN and these options; None when this kit has its own."""
        target = self._target
        if not self._shares or not isinstance(target, str | Dsn) or not str(target).strip():
            return None
        key = (target if isinstance(target, Dsn) else Dsn.parse(target), self._transport_options)
        found = _shared.get(key)
        if found is None or found.closed:
            found = _shared[key] = self._own_transport()
        return found

    def _own_transport(self) -> Transport:
        tolerated = dict.fromkeys(TransportOptions.names(), self._source)
        transport = build_transport(
            self._target,
            self._transport_options,
            self._option_problems,
            None if self._options.strict else tolerated,
        )
        fresh = [each for each in transport.option_problems if each not in self._option_problems]
        if fresh and not self._borrowed:
            # Substituted while it was built; the next transport is built without that line in the log.
            self._option_problems += fresh
            self._transport_options = transport.options
        return transport

    def _give_up(self, error: Exception, problem: str) -> None:
        if self._options.strict:
            raise error
        self._problem = problem
        logger.error("nothing will be delivered: %s", problem)


def _what_became_of_it(event_id: str | None, before: Health, after: Health) -> str | None:
    """Why an event did not arrive; None when it did."""
    if after.problem is not None:
        return after.problem
    for reason, totals in after.discarded_by_category.items():
        if totals.get("error", 0) > before.discarded_by_category.get(reason, {}).get("error", 0):
            return f"discarded: {reason}{_last(after)}"
    if event_id is None:
        return "the event was not accepted"
    if after.delivered.get("error", 0) > before.delivered.get("error", 0):
        return None
    return f"still waiting{_last(after)}"


def _last(health: Health) -> str:
    error = health.last_error
    return "" if error is None else f" ({error.kind}{'' if error.status is None else f' {error.status}'})"
