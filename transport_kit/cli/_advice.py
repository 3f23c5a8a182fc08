"""Advice on a failed delivery, for the person at the terminal.

This module owns the texts of `send` and `check`. It maps answers and errors to sentences. An answer is
hostile input: `_connection.py` makes it printable and removes the key before it is shown.

Threads: pure functions.

Source: docs/protocol.md, sections 1 and 4, for what servers mean by a status.
"""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from transport_kit.transport.wire.exchange import ExchangeError, Response

__all__ = ["advice_for_answer", "advice_for_error", "advice_for_name", "is_page", "redirect_target"]

_RETRIED = "an app's transport keeps what it has and tries again"
_ANSWERS = {
    400: "the server could not read the envelope; a proxy on the way may have changed it",
    401: "the server does not know this key; copy the DSN again from the project's settings",
    403: "the server refuses this key or project; copy the DSN again, and see that the project is enabled",
    404: "nothing takes envelopes at this address; check the DSN's host, path and project id",
    405: "nothing takes envelopes at this address; check the DSN's host, path and project id",
    407: "the proxy wants a login; put it into the proxy URL, best in TRANSPORT_KIT_PROXY",
    408: "the server waited too long for the body; the network on the way is slow",
    413: "too large for this server, or for a proxy before it; send less, or raise the limit there",
    429: "the project's quota or rate limit is used up; wait, or raise it in the project's settings",
    502: f"the load balancer reaches no server; {_RETRIED}",
    503: f"the server is overloaded or in maintenance; {_RETRIED}",
    504: f"the server is too slow for its load balancer; {_RETRIED}",
}
_PAGE = "this is a web page and not a Sentry-compatible server; check the DSN's host and path"


def is_page(response: Response) -> bool:
    """Return True if the answer is HTML, which no Sentry-compatible server returns for an envelope."""
    content_type = response.headers.get("content-type", "").lower()
    return "html" in content_type or response.body[:512].lstrip().startswith(b"<")


def redirect_target(response: Response) -> str | None:
    """Return scheme, host and port of a redirect; the rest of its address may contain secrets."""
    try:
        parts = urlsplit(response.headers.get("location", ""))
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")


def advice_for_answer(response: Response) -> str | None:
    """Return advice on an answer; None for the answer to a delivered envelope."""
    status = response.status
    if 200 <= status < 300:
        return _PAGE if is_page(response) else None
    if 300 <= status < 400:
        target = redirect_target(response)
        where = "use the address it names in the DSN" if target is None else f"use {target} in the DSN"
        return f"{where}, or go around the proxy or login page that answers; redirects are not followed"
    if status in _ANSWERS:
        advice = _ANSWERS[status]
        return f"{advice}; {_PAGE}" if status in (403, 404, 405) and is_page(response) else advice
    if status >= 500:
        return "the server failed; its own log says why"
    return "the server did not want this; its answer may say why"


def advice_for_name(error: OSError, what: str) -> str:
    """Return advice on a name that does not resolve.

    Args:
        error: The resolver's error.
        what: A phrase for the name, such as `the DSN's host`.
    """
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        return f"no name server answered for {what}; check this machine's DNS and network"
    return f"check the spelling of {what}, and that this machine's DNS knows it (a VPN, /etc/resolv.conf)"


def advice_for_error(error: ExchangeError, *, scheme: str, proxy: str | None) -> str:
    """Return advice on a request that had no usable answer.

    Args:
        error: The reason that there is no answer.
        scheme: The DSN's scheme.
        proxy: Address of the proxy in use, without its login, or None.
    """
    advice = _advice_for_error(error, scheme, proxy)
    if proxy is not None and error.kind != "proxy":
        advice = f"{advice}; the proxy {proxy} is in use, --no-proxy '*' goes around it"
    if error.body_sent:
        advice = f"{advice}; the server may have taken the envelope all the same"
    return advice


def _advice_for_error(error: ExchangeError, scheme: str, proxy: str | None) -> str:
    detail = error.detail
    if error.kind == "proxy":
        if "407" in detail:
            return f"{proxy} wants a login; put it into the proxy URL, best in TRANSPORT_KIT_PROXY"
        return f"check that {proxy} runs and may reach the server; --no-proxy '*' goes around it"
    if error.kind == "tls":
        return _advice_for_tls(detail)
    if error.kind == "timeout":
        if error.body_sent:
            return "the server takes the envelope and does not answer; its own log may say why"
        if "handshake" in detail:
            return "the port may not speak TLS; check the DSN's scheme and port"
        return "the host is down, or a firewall drops what is sent to this port; --timeout waits longer"
    if error.kind == "protocol":
        return "what answers there does not speak HTTP/1.1; check the DSN's port and scheme"
    if error.kind == "reset" or "reset" in detail.lower():
        if scheme == "https":
            return "the connection was cut; the server may want a certificate: --client-cert, --client-key"
        return "the connection was cut; if the port speaks https, begin the DSN with https://"
    if "refused" in detail.lower():
        return "nothing listens there; check the DSN's host and port, and that the server runs"
    if "gaierror" in detail or "resol" in detail.lower():
        return "check the spelling of the DSN's host, and that this machine's DNS knows it"
    return "there is no way to this address; check the network, a VPN, a firewall"


def _advice_for_tls(detail: str) -> str:
    text = detail.lower()
    if "notfound" in text or "permission" in text or "isadirectory" in text:
        return "the file given as ca_certs, client_cert or client_key can't be read"
    if "expired" in text or "not yet valid" in text:
        return "renew the server's certificate, or set this machine's clock right"
    if "mismatch" in text or "not valid for" in text:
        return "the certificate is for another name; use that name in the DSN"
    if "verify failed" in text:
        return "nobody known vouches for the certificate; give your authority's file with --ca-certs"
    if "wrong_version_number" in text or "record_layer" in text or "record layer" in text:
        return "the port does not speak TLS; begin the DSN with http://, or correct its port"
    if "alert" in text or "required" in text:
        return "the server refuses this client; it may want a certificate: --client-cert, --client-key"
    return "check the files of --ca-certs, --client-cert and --client-key, and the server's TLS settings"
