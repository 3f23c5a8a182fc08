"""The four routes of every integration: live, ready, health, flush.

This module owns access to them and the content of their answers. It knows no framework and does no I/O:
requests and answers are plain values. `answer` never waits: for a permitted flush it returns `FlushDue`, the
integration waits as its framework requires, and `flush_answer` returns the answer.

Threads: functions and frozen values only.

- A flush that was not complete in time is a 504, so that `curl -f` in a deployment script fails.
- Without the right token, flush is a 404 for every method, so that a stranger can't detect that it is on.
- An unknown `format` is ignored, as a monitor should not fail because of a typo.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import html
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args
from urllib.parse import parse_qsl

from transport_kit.config.options import IntegrationOptions
from transport_kit.transport.base import Transport
from transport_kit.transport.health import Health
from transport_kit.transport.worker.outcome import FlushReport

__all__ = ["Answer", "answer", "flush_answer", "FlushDue", "Leaf", "LEAVES", "MAX_FLUSH", "parse_query"]

Leaf: TypeAlias = Literal["live", "ready", "health", "flush"]
#: The last segment of each route, in the order the documentation lists them.
LEAVES: tuple[Leaf, ...] = get_args(Leaf)
#: Seconds; the longest timeout of a flush request.
MAX_FLUSH = 10.0

_HEALTH_JSON = "application/health+json"
_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"
_HTML = "text/html; charset=utf-8"
#: Characters of an `Accept` header that are read; more than any real client sends.
_LONGEST_ACCEPT = 1024
_STATUS = '{"status":"%s"}'

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}"
    "th,td{text-align:left;vertical-align:top;padding:.25rem 1rem .25rem 0;border-bottom:1px solid #8884}"
    "th{font-weight:600;white-space:nowrap}"
    ".pass{color:#1a7f37}.warn{color:#9a6700}.fail{color:#cf222e}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete response. Header names are in lower case and include `content-length`; HEAD has no body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class FlushDue:
    """A permitted flush: flush with this timeout in seconds, then send `flush_answer(report)`."""

    timeout: float


def answer(
    leaf: Leaf,
    *,
    method: str,
    query: Mapping[str, str],
    accept: str | None,
    authorization: bytes | str | None,
    transport: Transport,
    options: IntegrationOptions,
) -> Answer | FlushDue:
    """Return the answer to one request, without waiting. The client's texts may have any content.

    Args:
        leaf: The route.
        method: The request's method in capitals.
        query: The decoded query; see `parse_query`.
        accept: The `Accept` header; several are joined by commas.
        authorization: The `Authorization` header; text is decoded from Latin-1, as in WSGI.
        transport: The transport whose health is shown; look the current one up for each request.
        options: The options with the token and the visibility of details.
    """
    has_token = _authorized(authorization, options.flush_token)
    if leaf == "flush":
        if not has_token:
            return _answer(404, _TEXT, "Not found\n", method)
        if method != "POST":
            return _not_allowed(method, "POST")
        timeout = _flush_timeout(query, transport)
        if timeout is None:
            sentence = f"timeout must be a number of seconds from 0 to {MAX_FLUSH:g}, such as 2.5\n"
            return _answer(400, _TEXT, sentence, method)
        return FlushDue(timeout)
    if method not in ("GET", "HEAD"):
        return _not_allowed(method, "GET, HEAD")
    if leaf == "live":
        return _answer(200, _HEALTH_JSON, _STATUS % "pass", method)
    if leaf == "ready":
        # Health is computed only if it can matter: otherwise ready must not fail when health does.
        ready = not options.ready_requires_delivery or transport.health().status != "fail"
        return _answer(200 if ready else 503, _HEALTH_JSON, _STATUS % ("pass" if ready else "fail"), method)
    details = has_token or options.health_details == "always"
    return _health_answer(transport.health(), details, query.get("format"), accept, method)


def flush_answer(report: FlushReport) -> Answer:
    """Return the answer to a permitted flush: 200 if everything was settled in time, else 504."""
    return _answer(200 if report.ok else 504, _JSON, json.dumps(dataclasses.asdict(report)), "POST")


def parse_query(raw: bytes | str) -> dict[str, str]:
    """Return a query string as a mapping; the last of equal names wins. Empty if it can't be parsed."""
    text = raw.decode("latin-1") if isinstance(raw, bytes) else raw
    try:
        return dict(parse_qsl(text, keep_blank_values=True, errors="replace", max_num_fields=32))
    except ValueError:
        return {}


def _health_answer(
    health: Health, details: bool, format_name: str | None, accept: str | None, method: str
) -> Answer:
    status = 503 if health.status == "fail" else 200
    vary = (("vary", "Accept"),)
    if format_name == "text":
        return _answer(status, _TEXT, health.as_text(details=details), method, vary)
    if format_name == "html" or (format_name != "json" and _prefers_html(accept)):
        page = _page(health, details)
        return _answer(status, _HTML, page, method, (*vary, ("content-security-policy", _POLICY)))
    body = json.dumps(health.as_health_json(details=details))
    return _answer(status, _HEALTH_JSON, body, method, vary)


def _not_allowed(method: str, allow: str) -> Answer:
    return _answer(405, _TEXT, f"Method not allowed; use {allow}\n", method, (("allow", allow),))


def _answer(
    status: int, content_type: str, text: str, method: str, headers: tuple[tuple[str, str], ...] = ()
) -> Answer:
    body = text.encode("utf-8", "replace")
    common = (
        ("content-type", content_type),
        ("content-length", str(len(body))),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
    )
    return Answer(status, (*common, *headers), b"" if method == "HEAD" else body)


def _authorized(authorization: bytes | str | None, token: str | None) -> bool:
    """Return True if the header is `Bearer` and the token, compared in constant time.

    A token outside ASCII is accepted in UTF-8 and in Latin-1, as clients use either.
    """
    if token is None or authorization is None:
        return False
    scheme, _, credentials = _raw(authorization).partition(b" ")
    credentials = credentials.strip(b" ")
    matches = [hmac.compare_digest(credentials, encoded) for encoded in _encodings(token)]
    return scheme.lower() == b"bearer" and any(matches)


def _raw(header: bytes | str) -> bytes:
    """Return the received bytes of a header, which a framework may have decoded from Latin-1."""
    if isinstance(header, bytes):
        return header
    try:
        return header.encode("latin-1")
    except UnicodeEncodeError:
        return header.encode("utf-8", "surrogatepass")


def _encodings(token: str) -> list[bytes]:
    encodings = [token.encode("utf-8", "surrogatepass")]
    try:
        encodings.append(token.encode("latin-1"))
    except UnicodeEncodeError:
        pass  # not in Latin-1
    return encodings


def _flush_timeout(query: Mapping[str, str], transport: Transport) -> float | None:
    """Return the seconds to wait; None if the query contains no number in range."""
    text = query.get("timeout")
    if text is None:
        return min(transport.options.shutdown_timeout, MAX_FLUSH)
    try:
        timeout = float(text)
    except ValueError:
        return None
    return timeout if math.isfinite(timeout) and 0 <= timeout <= MAX_FLUSH else None


def _prefers_html(accept: str | None) -> bool:
    """Return True if `Accept` gives HTML more weight than JSON; of equal weights the exact name wins.

    Source: RFC 9110 section 12.5.1. Without the header, and for `*/*`, JSON is sent.
    """
    page = data = (0.0, 0)
    for part in (accept or "")[:_LONGEST_ACCEPT].split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        if not 0 < weight <= 1:  # false for NaN too
            continue
        if name == "text/html":
            page = max(page, (weight, 2))
        elif name == "text/*":
            page = max(page, (weight, 1))
        elif name in (_HEALTH_JSON, _JSON):
            data = max(data, (weight, 2))
        elif name == "application/*":
            data = max(data, (weight, 1))
        elif name == "*/*":
            data = max(data, (weight, 0))
    return page > data


def _page(health: Health, details: bool) -> str:
    """Return the facts of `Health.as_text` as a page; all are escaped, as a server may have sent them."""
    rows = []
    for line in health.as_text(details=details).splitlines()[1:]:
        name, _, value = line.partition(": ")
        rows.append(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>")
    status = html.escape(health.status)
    table = f"<table>{''.join(rows)}</table>" if rows else "<p>Details are shown to holders of the token.</p>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>transport-kit: {status}</title><style>{_STYLE}</style></head>"
        f'<body><h1>transport-kit: <span class="{status}">{status}</span></h1>{table}</body></html>'
    )
