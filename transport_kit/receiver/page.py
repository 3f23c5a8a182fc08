"""The receiver's page: a list of envelopes, newest first, and one event in full.

This module owns the HTML, its style sheet and its content security policy: no script, and nothing from other
origins. All shown values are hostile input: `details.py` bounds them, the templates escape them, and the
sender's key is masked.

Threads: handlers are blocking and run in worker threads.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from transport_kit.config.dsn import Dsn
from transport_kit.receiver.auth import mask
from transport_kit.receiver.details import describe
from transport_kit.receiver.refusal import Refusal
from transport_kit.receiver.store import Store, StoredEnvelope
from transport_kit.receiver.summary import visible

__all__ = ["Page"]

_TEMPLATES = Path(__file__).parent / "templates"
_LISTED = 100
_REFRESH_SECONDS = 3
_POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Page:
    """The handlers of the routes for people.

    Args:
        store: The envelopes.
        dsn: Shown on the empty page with a masked key.
    """

    def __init__(self, store: Store, dsn: str) -> None:
        self._store = store
        self._dsn = mask(dsn, Dsn.parse(dsn).public_key) if dsn else ""
        self._templates = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_finalize,
        )
        self._templates.filters["clock"] = _clock
        self._templates.filters["size"] = _size
        self._style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")

    def index(self, request: Request) -> Response:
        """GET / : the newest envelopes; reloads itself unless `?pause` is in the query."""
        envelopes, size = self._store.totals()
        return self._html(
            "index.html",
            records=self._store.latest(_LISTED),
            envelopes=envelopes,
            bytes=size,
            dsn=self._dsn,
            refresh=None if "pause" in request.query_params else _REFRESH_SECONDS,
        )

    def event(self, request: Request) -> Response:
        """GET /events/{n}: exception, frames and request of one envelope, and its raw bytes."""
        stored = self._find(request)
        return self._html("event.html", key=stored.key, record=stored.record, **describe(stored.body))

    def raw(self, request: Request) -> Response:
        """GET /envelopes/{n}: the bytes of the envelope as text, unchanged but for the masked key."""
        stored = self._find(request)
        tail = stored.key[:4] + "*" * (len(stored.key) - 4)
        return PlainTextResponse(stored.body.replace(stored.key.encode(), tail.encode()))

    def style(self, _request: Request) -> Response:
        """GET /style.css"""
        return Response(self._style, media_type="text/css")

    def refused(self, request: Request, refusal: Refusal) -> Response:
        """Answer a request that was refused: with a page for a browser, with JSON otherwise."""
        if not self.is_for_people(request):
            return refusal.response()
        response = self._html(
            "error.html", status=refusal.status, detail=refusal.detail, causes=refusal.causes
        )
        response.status_code = refusal.status
        response.headers.update(refusal.headers)
        return response

    @staticmethod
    def is_for_people(request: Request) -> bool:
        """Return True if a browser shows the answer: HTML is accepted, and the path is not one for tools."""
        return not request.url.path.startswith("/api/") and "text/html" in request.headers.get("accept", "")

    def _find(self, request: Request) -> StoredEnvelope:
        number = request.path_params["number"]
        # SQLite's integers end at 63 bits.
        stored = self._store.by_number(number) if number < 2**63 else None
        if stored is None:
            raise Refusal(404, "unknown envelope", ["it never arrived, or newer ones have replaced it"])
        return stored

    def _html(self, template: str, *, key: str = "", **values: Any) -> Response:
        html = self._templates.get_template(template).render(**values)
        return Response(
            mask(html, key) if key else html,
            media_type="text/html",
            headers={"Content-Security-Policy": _POLICY},
        )


def _finalize(value: object) -> object:
    """Make the invisible characters of a value visible; markup of the templates' own is left as it is."""
    return visible(value, layout="\n\t") if type(value) is str else value


def _clock(received_at: str) -> str:
    """Return the local time of day."""
    return datetime.fromisoformat(received_at).astimezone().strftime("%H:%M:%S")


def _size(count: int) -> str:
    """Return bytes for people: 713 B, 10.4 kB, 2.0 MB."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"
