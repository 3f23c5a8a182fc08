"""The kit: builds a transport, a reporter and the four routes from settings, for every integration.

This module owns the decisions that integrations share: the source of the DSN, the effect of a configuration
error, the replacement of a closed transport, and the right to close one. It knows no framework; integrations
translate.

Threads: every method may be called from any thread, and in a forked child. There is no lock, as a fork could
inherit it locked; `start` relies on an atomic operation of a dict.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transport_kit.config.dsn import Dsn
from transport_kit.config.environment import DSN_VARIABLE
from transport_kit.config.options import (
    Effect,
    IntegrationOptions,
    OptionProblem,
    ReporterOptions,
    TransportOptions,
    resolve,
)
from transport_kit.kit.outside import UNSEEN, OutsideView, ask_flush, ask_health, own_view, spool_view
from transport_kit.kit.routes import LEAVES, Answer, FlushDue, Leaf, answer, flush_answer, parse_query
from transport_kit.reporting import Reporter, RequestFacts, Scope, ServedRequest
from transport_kit.runtime.errors import OptionsError, TransportKitError
from transport_kit.transport.base import Transport
from transport_kit.transport.factory import build_transport
from transport_kit.transport.health import Health
from transport_kit.transport.http import BaseHttpTransport
from transport_kit.transport.local import NullTransport
from transport_kit.transport.worker.outcome import FlushReport

__all__ = ["Kit"]

logger = logging.getLogger("transport_kit")

# The transports that kits share, while a kit refers to them. There is no lock: two kits that are made at the
# same moment may get one transport each, which costs a connection and loses nothing.
_shared: weakref.WeakValueDictionary[tuple[Dsn, TransportOptions], Transport] = weakref.WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class Generation:
    """One transport and its reporter; after the transport was closed, `successor` may hold the next one."""

    transport: Transport
    reporter: Reporter
    successor: dict[str, Generation] = field(default_factory=dict)


class Kit:
    """A transport, a reporter and routes, built from settings; one per app.

    A configuration error never takes the app down. For an option that can't be used the kit logs one ERROR
    line that names it and its source, uses the default or a safe value, and adds a reason to health. For a
    DSN that can't be used it logs one ERROR line (without the key), delivers nothing but counts every
    capture, and reports health `fail`. With `strict=True` either error is raised.

    Args:
        values: `dsn` and any option of `TransportOptions`, `ReporterOptions` and `IntegrationOptions`, in
            lower or upper case. Without a `dsn`, or with None, `TRANSPORT_KIT_DSN` is read; "" is off.
            A `dsn` may be anything that `make_transport` accepts. A `Transport` instance belongs to its
            creator: `close` flushes it, and never closes it.
        source: The origin of `values` for messages, such as `settings.TRANSPORT_KIT`.
        environ: None reads `os.environ`.
        shared: True to share one transport with other such kits of the same DSN and the same transport
            options; for apps that end with their process. `close` closes it for all of them.

    Attributes:
        match: `match(path)` returns the route that has exactly this path; None for any other path, and
            always if the option `path` is None.

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
        self._is_shared = shared
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
        # The bound method of a dict, as every request calls it.
        self.match: Callable[[str], Leaf | None] = leaves.get
        self._generation = self._make_generation()
        # The process id of the last start; see `serve`.
        self._started_in = 0

    # -- properties ------------------------------------------------------------------------------------

    @property
    def transport(self) -> Transport:
        """The current transport; look it up for each use, as `start` may replace a closed one."""
        return self._generation.transport

    @property
    def reporter(self) -> Reporter:
        """The current reporter, which captures into the current transport."""
        return self._generation.reporter

    @property
    def options(self) -> IntegrationOptions:
        """The integration's options, with the default for each one that could not be used."""
        return self._options

    @property
    def problem(self) -> str | None:
        """The configuration error because of which nothing is delivered, or None."""
        return self._problem

    @property
    def option_problems(self) -> tuple[str, ...]:
        """One sentence for each option that could not be used, with the consequence."""
        return tuple(map(str, self._option_problems))

    # -- start and close -------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to deliver. A closed transport is replaced by a new one; idempotent otherwise.

        Called at the app's start, in a worker after a fork, or with the first request.
        """
        # Set first, so that a start that fails is not tried again with each request.
        self._started_in = os.getpid()
        generation = self._generation
        while generation.transport.closed and not self._borrowed:
            # `setdefault` is atomic: concurrent callers all use the first successor, and a late caller
            # follows the successors to the current generation. No generation refers to an older one.
            if not generation.successor:
                generation.successor.setdefault("next", self._make_generation())
            generation = generation.successor["next"]
        self._generation = generation
        generation.transport.start()

    def try_to_start(self) -> None:
        """Call `start` and log its exception, for a framework that must continue."""
        try:
            self.start()
        except Exception:
            logger.exception("the transport could not be started")

    def close(self, timeout: float | None = None) -> FlushReport:
        """Flush, then refuse captures until `start`; block for at most `timeout` seconds (plus 0.2)."""
        transport = self._generation.transport
        return transport.flush(timeout) if self._borrowed else transport.close(timeout)

    # -- from a process of its own ---------------------------------------------------------------------

    def health_from_outside(self, url: str | None = None) -> OutsideView:
        """Return the health of the processes that serve the app, for a command.

        Asks the running server at `url` or at the option `server_url`; without one, shows a spool's figures.
        The settings' own problems come first: with them a server delivers nothing either.

        Args:
            url: The address of the server, or of its routes.
        """
        url = url or self._options.server_url
        if url is not None:
            return ask_health(url, self._options)
        transport = self.transport
        health = transport.health()
        if health.status == "fail" or self._borrowed or isinstance(transport, NullTransport):
            return own_view(health)
        if health.spool is None or not isinstance(transport, BaseHttpTransport):
            return UNSEEN
        return spool_view(health.spool["path"], transport.dsn)

    def flush_from_outside(self, url: str | None = None, timeout: float | None = None) -> OutsideView:
        """Flush the running server, or a spool; see `health_from_outside`.

        Args:
            url: The address of the server, or of its routes.
            timeout: Seconds; None for `shutdown_timeout`, or the longest time that a server accepts.
        """
        url = url or self._options.server_url
        if url is not None:
            return ask_flush(url, self._options, timeout)
        transport = self.transport
        if (
            transport.health().spool is None
            and not self._borrowed
            and not isinstance(transport, NullTransport)
        ):
            return UNSEEN
        self.start()
        report = self.transport.flush(timeout, until="delivered")
        facts = dataclasses.asdict(report)
        text = ", ".join(f"{name} {value}" for name, value in facts.items() if name != "ok")
        return OutsideView(int(not report.ok), facts, text + "\n")

    async def aclose(self, timeout: float | None = None) -> FlushReport:
        """`close`, without blocking the event loop."""
        transport = self._generation.transport
        return await (transport.aflush(timeout) if self._borrowed else transport.aclose(timeout))

    async def try_to_close(self) -> None:
        """Call `aclose` and log its exception, for a framework that must continue."""
        try:
            await self.aclose()
        except Exception:
            logger.exception("the transport could not be closed")

    # -- capturing -------------------------------------------------------------------------------------

    def serve(
        self, facts: RequestFacts, *, op: str = "http.server", mechanism: str = "generic"
    ) -> ServedRequest:
        """Begin a request; the integration calls `finish` at its end. Never raises.

        Gives the request a fresh scope, continues the caller's trace, and begins a transaction if the request
        is sampled. `finish` records the session's outcome, and reports an exception that escaped unless
        `capture_errors` is off. Costs a few microseconds for a request that reports nothing.

        The first request of a process, and the first one after a fork, starts the kit if `start` was not
        called in that process. A closed kit stays closed.

        Args:
            facts: Facts about the request; read only for an event or a transaction.
            op: `http.server`, `websocket.server`, `queue.task`, …. Only one that ends with
                `.server` counts as a session.
            mechanism: Name of the code that catches exceptions, such as `auto.http.flask`.
        """
        if self._started_in != os.getpid():
            self.try_to_start()
        return ServedRequest(
            self._generation.reporter, facts, op, mechanism, self._options.capture_errors
        ).begin()

    def capture_exception(
        self,
        error: BaseException | None = None,
        *,
        mechanism: str = "generic",
        handled: bool = True,
        facts: RequestFacts | None = None,
    ) -> str | None:
        """Report an exception, by default the one being handled; return its event id if accepted, else None.

        Never raises. An exception that was captured before in the same scope is skipped.

        Args:
            error: The exception; None for the one being handled.
            mechanism: Name of the code that caught it.
            handled: False if the app did not handle it.
            facts: Facts about the request in which it was raised, if that is not being served: `serve` has
                the facts of its own request.
        """
        reporter = self._generation.reporter
        if facts is None or isinstance(Scope.current().unit, ServedRequest):
            return reporter.capture_exception(error, mechanism=mechanism, handled=handled)
        # Never begun: the scope of a begun request has no record of exceptions that were captured before.
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
        """Report an exception that the app did not handle; return its event id if accepted, else None.

        Does nothing if `capture_errors` is off, or for an error that is no `Exception`. A request that is
        being served counts as crashed.
        """
        if not self._options.capture_errors or not isinstance(error, Exception):
            return None
        unit = Scope.current().unit
        if isinstance(unit, ServedRequest):
            return unit.capture(error)
        return self.capture_exception(error, mechanism=mechanism, handled=False, facts=facts)

    def send_test(self, error: Exception, timeout: float) -> dict[str, Any]:
        """Report `error` as the app would, and wait up to `timeout` seconds for the result.

        Returns:
            Plain values: `ok`, `event_id`, `pending`, `problem` (None if it was delivered), `seconds`.
        """
        before = self.transport.health()
        began = time.monotonic()
        event_id = self.capture_exception(error, mechanism="command")
        report = self.transport.flush(timeout, until="delivered")
        seconds = time.monotonic() - began
        problem = _delivery_problem(event_id, before, self.transport.health())
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
        """Return the answer to one request; see `routes.answer`. A permitted flush blocks while it waits."""
        decision = self._decide(leaf, method, query_string, accept, authorization)
        if isinstance(decision, FlushDue):
            return flush_answer(self.transport.flush(decision.timeout))
        return decision

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
        decision = self._decide(leaf, method, query_string, accept, authorization)
        if isinstance(decision, FlushDue):
            return flush_answer(await self.transport.aflush(decision.timeout))
        return decision

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
        """Resolve the target and the options, from `values`, else `environment`, else the defaults."""
        settings: object = values  # a settings file may contain anything
        mapping = settings if isinstance(settings, Mapping) else {}
        options = {key: value for key, value in mapping.items() if str(key).lower() != "dsn"}
        targets = [value for key, value in mapping.items() if str(key).lower() == "dsn"]
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
        if mapping is not values:
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

    def _make_generation(self) -> Generation:
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
            return self._shared_transport() or self._make_own_transport()
        except OptionsError as error:
            if error.field == "target":  # the name in `make_transport`
                error = OptionsError("dsn", error.problem, self._target_source)
            self._give_up(error, str(error))
        except TransportKitError as error:
            self._give_up(error, f"dsn ({self._target_source}): {error}")
        except Exception as error:
            # Not an error of this library: its text may contain a key, so only `strict` shows it.
            self._give_up(error, f"dsn ({self._target_source}): {type(error).__name__} while building")
        return NullTransport(self._transport_options, problem=self._problem)

    def _shared_transport(self) -> Transport | None:
        """Return the shared transport of this DSN and these options; None if this kit does not share."""
        target = self._target
        if not self._is_shared or not isinstance(target, str | Dsn) or not str(target).strip():
            return None
        key = (target if isinstance(target, Dsn) else Dsn.parse(target), self._transport_options)
        transport = _shared.get(key)
        if transport is None or transport.closed:
            transport = _shared[key] = self._make_own_transport()
        return transport

    def _make_own_transport(self) -> Transport:
        tolerated = dict.fromkeys(TransportOptions.names(), self._source)
        transport = build_transport(
            self._target,
            self._transport_options,
            self._option_problems,
            None if self._options.strict else tolerated,
        )
        new_problems = [
            problem for problem in transport.option_problems if problem not in self._option_problems
        ]
        if new_problems and not self._borrowed:
            # The build substituted options; the next transport gets the substitutes, and logs no line.
            self._option_problems += new_problems
            self._transport_options = transport.options
        return transport

    def _give_up(self, error: Exception, problem: str) -> None:
        if self._options.strict:
            raise error
        self._problem = problem
        logger.error("nothing will be delivered: %s", problem)


def _delivery_problem(event_id: str | None, before: Health, after: Health) -> str | None:
    """Return the reason that an event did not arrive; None if it did."""
    if after.problem is not None:
        return after.problem
    for reason, totals in after.discarded_by_category.items():
        if totals.get("error", 0) > before.discarded_by_category.get(reason, {}).get("error", 0):
            return f"discarded: {reason}{_last_error(after)}"
    if event_id is None:
        return "the event was not accepted"
    if after.delivered.get("error", 0) > before.delivered.get("error", 0):
        return None
    return f"still waiting{_last_error(after)}"


def _last_error(health: Health) -> str:
    error = health.last_error
    return "" if error is None else f" ({error.kind}{'' if error.status is None else f' {error.status}'})"
