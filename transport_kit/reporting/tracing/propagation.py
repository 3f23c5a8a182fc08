"""Propagation: traces in the headers `sentry-trace`, `baggage` and `traceparent`, and in events.

This module owns parsing and writing of the three headers and the content of the dynamic sampling context
(DSC). Received headers are untrusted: they are bounded, and invalid ones raise nothing.

Source: docs/protocol.md, section 9. The DSC is frozen when it arrives from outside, and when it first leaves
this process; from then on all copies are the same.

Threads: stateless except for options that never change; the trace itself is in `trace.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from transport_kit.config.dsn import Dsn
from transport_kit.config.options import ReporterOptions
from transport_kit.envelope.encoder import dumps_text
from transport_kit.reporting.tracing.spans import running_span
from transport_kit.reporting.tracing.trace import Trace
from transport_kit.reporting.unit_of_work import Unit
from transport_kit.reporting.values.bounded import clean, cut, tidy
from transport_kit.runtime.interrupts import let_through

__all__ = ["trace_facts", "Tracing"]

_SENTRY_TRACE = re.compile(r"[ \t]*([0-9a-fA-F]{32})-([0-9a-fA-F]{16})(?:-([01]))?[ \t]*")
_TRACEPARENT = re.compile(
    r"[ \t]*([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-[\x21-\x7e]*)?[ \t]*"
)
_PREFIX: Final = "sentry-"
_MAX_BAGGAGE: Final = 8192
#: Bytes of JSON. Servers refuse an envelope with a header above 8 KiB, and the header holds more than the
#: DSC.
_MAX_DSC: Final = 4000
_MAX_MEMBERS: Final = 64
_MAX_VALUE: Final = 1024
#: Characters unescaped in a baggage value, beyond letters, digits and `_.-~` (RFC 6265's cookie octets).
_UNESCAPED: Final = "!#$&'()*+/:<=>?@[]^`{|}"
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16

Header = Callable[[str], str | None]


class Tracing:
    """Continues the traces of callers and propagates them to other services, for one reporter.

    Args:
        options: `release`, `environment`, and the rules for continuing and propagating traces.
        dsn: Its key and organisation go into the DSC; None leaves them out.
    """

    def __init__(self, options: ReporterOptions, dsn: Dsn | None) -> None:
        self.options = options
        self._host = None if dsn is None else dsn.host
        self._org_id = None if dsn is None else dsn.org_id
        self._key = "none" if dsn is None else dsn.public_key
        self._fixed: dict[str, str] = {}
        if dsn is not None:
            self._fixed["public_key"] = dsn.public_key
        for name, value in (
            ("release", options.release),
            ("environment", options.environment),
            ("org_id", self._org_id),
        ):
            if value:
                self._fixed[name] = tidy(value, 200)

    # -- incoming --------------------------------------------------------------------------------------

    def trace_of(self, unit: Unit) -> Trace:
        """Return a unit's trace; on first use, continue the caller's trace or begin a new one."""
        return unit.trace or unit.settle_trace(self._continue_trace(unit.header))

    def _continue_trace(self, header: Header) -> Trace:
        try:
            return self._parse_trace(header)
        except Exception as error:
            let_through(error)
            return Trace()  # `header` of the integration failed

    def _parse_trace(self, header: Header) -> Trace:
        text = header("sentry-trace")
        match = None if text is None else _SENTRY_TRACE.fullmatch(text)
        if match is not None:
            trace_id, span_id, flag = match.group(1).lower(), match.group(2).lower(), match.group(3)
            sampled = None if flag is None else flag == "1"
            # Without baggage, another kind of SDK began the trace; its DSC stays empty.
            dsc: dict[str, str] | None = sentry_members(header("baggage") or "")
        elif self.options.propagate_traceparent and (text := header("traceparent")) is not None:
            match = _TRACEPARENT.fullmatch(text)
            if match is None or match.group(1) == "ff":
                return Trace()
            trace_id, span_id = match.group(2), match.group(3)
            sampled = bool(int(match.group(4), 16) & 1)
            dsc = sentry_members(header("baggage") or "") or None
        else:
            return Trace()
        if trace_id == _NO_TRACE or span_id == _NO_SPAN or self._is_of_other_organisation(dsc or {}):
            return Trace()
        return Trace(trace_id, span_id, sampled, dsc)

    def _is_of_other_organisation(self, dsc: Mapping[str, str]) -> bool:
        """Return True if the trace is of another organisation, or, in strict mode, may be of another."""
        org_id = dsc.get("org_id")
        if org_id and self._org_id:
            return org_id != self._org_id
        return self.options.strict_trace_continuation and org_id != self._org_id

    # -- outgoing --------------------------------------------------------------------------------------

    def sampling_context(self, unit: Unit, event: Mapping[str, Any]) -> dict[str, str]:
        """Return the envelope header `trace` of an event; empty if the event's trace is not its unit's."""
        trace = self.trace_of(unit)
        contexts = event.get("contexts")
        context = contexts.get("trace") if isinstance(contexts, dict) else None
        if not isinstance(context, dict) or context.get("trace_id") != trace.trace_id:
            return {}
        return dict(trace.frozen(self._key, lambda: self._new_dsc(trace, unit)))

    def _new_dsc(self, trace: Trace, unit: Unit) -> dict[str, str]:
        dsc = {"trace_id": trace.trace_id, "sample_rand": f"{trace.sample_rand:.6f}", **self._fixed}
        if trace.sample_rate is not None:
            dsc["sample_rate"] = _rate_text(trace.sample_rate)
            if trace.sampled is not None:
                dsc["sampled"] = "true" if trace.sampled else "false"
            name = unit.name()
            if name is not None and type(name[1]) is str and name[1] != "url":
                dsc["transaction"] = tidy(name[0], 200)
        return dsc

    def outgoing_headers(
        self, unit: Unit, span_id: str | None, url: str | None, baggage: str
    ) -> dict[str, str]:
        """Return the headers by which the receiver of a request to `url` continues the trace.

        Args:
            unit: The unit of work that sends the request.
            span_id: The calling span; None takes the unit's own.
            url: The request's URL. None sends the headers in any case.
            baggage: The request's present `baggage`; entries of other vendors are kept.
        """
        if url is not None and not self._is_target(url):
            return {}
        trace = self.trace_of(unit)
        headers = {"sentry-trace": trace.header(span_id)}
        if self.options.propagate_traceparent:
            flag = "01" if trace.sampled else "00"
            headers["traceparent"] = f"00-{trace.trace_id}-{span_id or trace.span_id}-{flag}"
        members = [part for part in baggage.split(",") if part.strip() and not _is_ours(part)]
        dsc = trace.frozen(self._key, lambda: self._new_dsc(trace, unit))
        members += [f"{_PREFIX}{quote(name)}={quote(value, safe=_UNESCAPED)}" for name, value in dsc.items()]
        if members:
            headers["baggage"] = ",".join(members)
        return headers

    def _is_target(self, url: str) -> bool:
        try:
            host = urlsplit(url).hostname
        except ValueError:
            return False
        if host is not None and host == self._host:
            return False  # the server that receives the events
        targets = self.options.trace_propagation_targets
        return targets is None or any(
            target in url if isinstance(target, str) else target.search(url) is not None for target in targets
        )


def sentry_members(baggage: str) -> dict[str, str]:
    """Return the DSC of a `baggage` header; unreadable and excess members are left out."""
    members: dict[str, str] = {}
    bytes_left = _MAX_DSC
    for part in baggage[:_MAX_BAGGAGE].split(",")[:_MAX_MEMBERS]:
        name, sign, value = part.partition(";")[0].strip().partition("=")
        name = name.strip()
        if sign and name.startswith(_PREFIX) and len(name) > len(_PREFIX):
            name = clean(unquote(name[len(_PREFIX) :]))
            value = clean(cut(unquote(value.strip()), _MAX_VALUE))
            bytes_left -= len(dumps_text(name)) + len(dumps_text(value)) + 3
            if bytes_left < 0:
                break
            members[name] = value
    return members


def _is_ours(member: str) -> bool:
    return member.strip().startswith(_PREFIX)


@lru_cache(maxsize=64)
def _rate_text(rate: float) -> str:
    return f"{rate:.6f}".rstrip("0").rstrip(".")


def trace_facts(unit: Unit, tracing: Tracing) -> Mapping[str, Any]:
    """Return `contexts.trace` for an event captured now."""
    trace = tracing.trace_of(unit)
    span = running_span(unit)
    if span is not None:
        return span.context(trace.trace_id)
    facts: dict[str, Any] = {"trace_id": trace.trace_id, "span_id": trace.span_id}
    if trace.parent_span_id is not None:
        facts["parent_span_id"] = trace.parent_span_id
    return facts
