"""An error answer of the receiver: a status, one line, and its causes.

This module owns the body and the header of error answers. It imports nothing of the receiver.

Threads: raised and handled on any thread; shares no state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.responses import Response

from transport_kit.envelope.encoder import dumps

__all__ = ["Refusal"]


class Refusal(Exception):
    """A request is answered with an error, as Relay answers it (docs/protocol.md, section 4).

    Attributes:
        status: HTTP status, 400 or above.
        detail: One sentence; also sent as `X-Sentry-Error`. Never contains a key.
        causes: The causes, outermost first.
        headers: Further response headers, such as rate limits.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        causes: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail
        self.causes = tuple(causes)
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """Return the answer: JSON `{"detail", "causes"}`, and the detail as a header."""
        # A header must be one line of visible ASCII, and the detail may quote the request.
        line = "".join(c if " " <= c <= "~" else "?" for c in self.detail[:256])
        return Response(
            dumps({"detail": self.detail, "causes": self.causes}),
            status_code=self.status,
            headers={"X-Sentry-Error": line, **self.headers},
            media_type="application/json",
        )
