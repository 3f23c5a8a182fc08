"""Replies of `FaultServer` to a request: an answer to render, or a fault by name.

This module owns the table of faults and the bytes of answers. It knows no socket.

Threads: all values are immutable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

__all__ = ["FAULTS", "OK", "Reply", "reply_for"]

FAULTS: Mapping[str, str] = {
    "reset": "RST after the request was read",
    "reset_on_accept": "RST as soon as a connection is accepted, and on those already open",
    "hang": "no answer until `release` (then an ok) or `stop`",
    "close": "FIN after the request was read, no answer",
    "half": "half of an answer, then FIN",
    "garbage": "bytes that are not HTTP, then FIN",
    "drip": "an ok, a byte at a time, `drip_interval` seconds apart until `release`",
    "html": "502 with a page, as a load balancer answers",
    "early": "413 after the headers, the body unread, then FIN",
}
_PAGE = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n"
    b"<body><h1>502 Bad Gateway</h1></body>\r\n</html>\r\n"
)


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply to one request: an answer, or the fault `kind` (see `FAULTS`)."""

    kind: str = "answer"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b'{"id":""}'

    def render(self, *, close: bool = False) -> bytes:
        """Return the bytes of the answer."""
        names = {name.lower() for name, _ in self.headers}
        has_no_body = self.status in (204, 304)
        lines = [f"HTTP/1.1 {self.status} {_reason(self.status)}"]
        if not has_no_body and "content-length" not in names:
            lines.append(f"Content-Length: {len(self.body)}")
        if "content-type" not in names:
            lines.append("Content-Type: application/json")
        if close:
            lines.append("Connection: close")
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if has_no_body else self.body)


OK = Reply()
_HTML = Reply("html", 502, (("Content-Type", "text/html"),), _PAGE)
_EARLY = Reply("early", 413, (), b'{"detail":"too large"}')


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def reply_for(kind: str) -> Reply:
    """Return the reply that performs the fault `kind`.

    Raises:
        ValueError: The fault is unknown.
    """
    if kind not in FAULTS:
        raise ValueError(f"unknown fault {kind!r}; known: {', '.join(sorted(FAULTS))}")
    return {"html": _HTML, "early": _EARLY}.get(kind) or Reply(kind)
