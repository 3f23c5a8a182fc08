"""Health and flush of the processes that serve an app, as seen by a command in a process of its own.

This module owns the request to a running server, and the figures of a spool that belong to no process. A
command's own transport has captured nothing, so its state says nothing about them.

Threads: functions only.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

from transport_kit.config.dsn import Dsn
from transport_kit.config.options import IntegrationOptions
from transport_kit.kit.routes import MAX_FLUSH
from transport_kit.runtime.errors import OptionsError

if TYPE_CHECKING:
    from transport_kit.transport.health import Health

__all__ = ["ask_flush", "ask_health", "OutsideView", "own_view", "spool_view", "UNSEEN"]

#: Seconds to wait for the answer of a server, beside the time of a flush.
PATIENCE: Final = 5.0
_MAX_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class OutsideView:
    """What a command shows.

    Attributes:
        exit_status: 0 for success, 1 for a failure, 2 if nothing could be found out.
        facts: Plain values, for any JSON encoder.
        text: Lines for a person.
    """

    exit_status: int
    facts: dict[str, Any]
    text: str


_UNSEEN_TEXT: Final = (
    "a queue in memory can't be seen from outside its process: name a running server (--url, or the option "
    "server_url), or use a spool"
)
UNSEEN: Final = OutsideView(2, {"status": "unknown", "problem": _UNSEEN_TEXT}, _UNSEEN_TEXT)


def ask_health(url: str, options: IntegrationOptions) -> OutsideView:
    """Return the health that a running server shows of the process that answers.

    Args:
        url: The address of the server, or of its routes, such as http://127.0.0.1:8000/transport.
        options: The options of the app: the path of the routes, and the token for details.
    """
    status, body = _request(url, "health?format=json", "GET", options, PATIENCE)
    facts = _object(body)
    if status not in (200, 503) or facts is None or facts.get("status") not in ("pass", "warn", "fail"):
        return _no_answer(url, status, body)
    lines = [f"status: {facts['status']}"]
    if "output" in facts:
        lines.append(f"reason: {facts['output']}")
    checks = facts.get("checks")
    for name, values in checks.items() if isinstance(checks, dict) else ():
        first = values[0] if isinstance(values, list) and values else {}
        lines.append(f"{name}: {json.dumps(first.get('observedValue') if isinstance(first, dict) else None)}")
    if checks is None:
        lines.append("details: set the option flush_token here as in the server")
    return OutsideView(int(facts["status"] == "fail"), facts, _printable(lines))


def ask_flush(url: str, options: IntegrationOptions, timeout: float | None) -> OutsideView:
    """Flush the process of a running server that answers; see `ask_health`."""
    seconds = MAX_FLUSH if timeout is None else min(timeout, MAX_FLUSH)
    query = urlencode({"timeout": f"{seconds:g}"})
    status, body = _request(url, f"flush?{query}", "POST", options, seconds + PATIENCE)
    facts = _object(body)
    if status not in (200, 504) or facts is None or not isinstance(facts.get("ok"), bool):
        return _no_answer(url, status, body, "; a flush needs the server's flush_token" * (status == 404))
    text = ", ".join(f"{name} {value}" for name, value in facts.items() if name != "ok")
    return OutsideView(int(not facts["ok"]), facts, _printable([text]))


def spool_view(path: str, dsn: Dsn) -> OutsideView:
    """Return the figures of a spool, for all processes of the host."""
    from transport_kit.queues.spool.directory import identity_of
    from transport_kit.queues.spool.inspection import Inspection

    try:
        with Inspection(path, identity_of(dsn)) as inspection:
            drainer, forwarder = inspection.holders()
            published = inspection.status()
            # What was published last is out of date when nobody drains.
            if published is None or drainer is None:
                pending = sum(1 for _ in inspection.waiting())
            else:
                pending = published.pending
    except (OptionsError, OSError) as error:
        problem = error.strerror or "" if isinstance(error, OSError) else str(error)
        facts = {"status": "fail", "problem": problem, "spool": {"path": path}}
        return OutsideView(
            1, facts, _printable(["status: fail", f"reason: {problem}", f"spool path: {path}"])
        )
    reasons = ["no process drains the spool"] if drainer is None else []
    spool: dict[str, Any] = {"path": path, "drainer": drainer, "forwarder": forwarder, "pending": pending}
    if published is not None:
        oldest = published.oldest
        spool |= {
            "bytes": published.size,
            "segments": published.segments,
            "oldest_age": None if oldest is None else round(max(0.0, time.time() - oldest), 3),
            "dead_letters": published.dead,
            "evicted": published.evicted,
            "expired": published.expired,
            "damaged": published.damaged,
            "status_age": round(max(0.0, time.time() - published.wall), 3),
        }
    status = "warn" if reasons else "pass"
    lines = [f"status: {status}", *(f"reason: {reason}" for reason in reasons), "scope: host"]
    lines += [
        f"spool {name.replace('_', ' ')}: {'none' if value is None else value}"
        for name, value in spool.items()
    ]
    return OutsideView(
        0, {"status": status, "scope": "host", "reasons": reasons, "spool": spool}, _printable(lines)
    )


def own_view(health: Health) -> OutsideView:
    """Return the health of this process's own transport."""
    return OutsideView(int(health.status == "fail"), health.as_health_json(), health.as_text())


def _request(
    url: str, leaf: str, method: str, options: IntegrationOptions, timeout: float
) -> tuple[int | None, bytes]:
    """Return status and body; None and the reason if there is no answer."""
    import urllib.error  # late: an app that serves requests never needs these
    import urllib.request

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        """Follows no redirect: the token is for the server that was named."""

        def redirect_request(self, *_: Any) -> None:
            return None

    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return None, b"must begin with http:// or https:// and name a host"
        base = url.rstrip("/")
        if parts.path in ("", "/"):
            base += options.path or "/transport"
        body = b"" if method == "POST" else None
        request = urllib.request.Request(f"{base}/{leaf}", method=method, data=body)  # noqa: S310 - checked
        if options.flush_token is not None:
            request.add_unredirected_header("Authorization", f"Bearer {options.flush_token}")
        # No proxy: the server is one of this app's own.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect)
        try:
            with opener.open(request, timeout=timeout) as response:
                return response.status, response.read(_MAX_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(_MAX_BYTES)
    except urllib.error.URLError as error:
        reason = error.reason
        text = os.strerror(reason.errno) if isinstance(reason, OSError) and reason.errno else str(reason)
        return None, text.encode()
    except Exception as error:  # http.client's errors, a value that can't be encoded
        return None, type(error).__name__.encode()


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        facts = json.loads(body)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None


def _no_answer(url: str, status: int | None, body: bytes, advice: str = "") -> OutsideView:
    if status is None:
        problem = f"no answer from {url}: {body.decode('utf-8', 'replace')}"
    else:
        problem = f"{url} answered {status}, which is no answer of this app's routes{advice}"
    (text,) = _printable([problem]).splitlines() or [""]
    return OutsideView(1, {"status": "unknown", "problem": text}, text)


def _printable(lines: list[str]) -> str:
    """Return lines without what a terminal would interpret."""
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines) + "\n"
