"""Request: what an event says about the HTTP request it was made in.

Owns `RequestInfo`, the plain value that integrations fill in, and its scrubbed form. Holds no framework
object, reads no stream, and looks nothing up.

Source: the protocol's request interface and its PII rules. Without `send_default_pii` no cookie, no client
address and no body is sent; a sensitive header, cookie or parameter keeps its name and loses its value in
either case.

Threads: values never change; functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import orjson

from transport_kit.reporting.scrub import (
    FILTERED,
    is_personal,
    is_sensitive,
    scrub_cookies,
    scrub_query,
    scrub_text,
    scrub_userinfo,
)
from transport_kit.reporting.values import Limits, Room, bounded, clean, cut

__all__ = ["request_interface", "RequestInfo"]

_MAX_URL: Final = 256
_MAX_QUERY: Final = 4096
_MAX_HEADERS: Final = 100
_MAX_HEADER: Final = 1024
_MAX_COOKIES: Final = 50
_MAX_BODY: Final = 8 * 1024
#: Bytes of a body that is sent, by `max_request_body_size`; a body of nothing is never there.
_BODIES: Final = {"never": -1, "small": 1000, "medium": 10_000, "always": 1 << 64}
_METHOD = re.compile(r"[A-Za-z]{1,32}")
_BODY: Final = Limits(text=2048, breadth=50, depth=5, hides=is_sensitive)


@dataclass(frozen=True, kw_only=True)
class RequestInfo:
    """An HTTP request, as plain values. The repr leaves out what may hold a secret.

    Attributes:
        method: Such as `GET`.
        url: Absolute, without query.
        query_string: Without the question mark.
        headers: Names and values in the order received; names in any case.
        cookies: None leaves it to the `Cookie` header.
        data: The body, parsed or as text, if it had already been read; None otherwise.
        env: `SERVER_NAME` and `SERVER_PORT`; other names are not sent.
        remote_addr: The client's address as the server saw it.
    """

    method: str = ""
    url: str = field(default="", repr=False)
    query_string: str = field(default="", repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    cookies: Mapping[str, str] | None = field(default=None, repr=False)
    data: object | None = field(default=None, repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    remote_addr: str | None = field(default=None, repr=False)


def request_interface(info: RequestInfo, *, send_pii: bool, bodies: str = "medium") -> dict[str, Any]:
    """The `request` of an event: scrubbed, bounded, and without what the options leave out.

    Args:
        bodies: `max_request_body_size`.
    """
    result: dict[str, Any] = {}
    if _METHOD.fullmatch(info.method):
        result["method"] = info.method.upper()
    url, _, query = info.url.partition("#")[0].partition("?")
    if url:
        result["url"] = cut(clean(scrub_userinfo(url)), _MAX_URL)
    query = info.query_string or query
    if query:
        result["query_string"] = scrub_query(cut(clean(query), _MAX_QUERY), send_pii=send_pii)
    if info.headers:
        result["headers"] = _headers(info.headers, send_pii)
    env = {
        name: cut(clean(info.env[name]), _MAX_URL)
        for name in ("SERVER_NAME", "SERVER_PORT")
        if name in info.env
    }
    if send_pii:
        if info.remote_addr:
            env["REMOTE_ADDR"] = info.remote_addr
        if info.cookies:
            result["cookies"] = _cookies(info.cookies)
        if info.data is not None and _length(info) <= _BODIES[bodies]:
            result["data"] = _body(info)
    if env:
        result["env"] = env
    return result


def _headers(headers: tuple[tuple[str, str], ...], send_pii: bool) -> dict[str, str]:
    result: dict[str, str] = {}
    for name, value in headers[:_MAX_HEADERS]:
        name = cut(clean(name), _MAX_URL)
        value = _header(name, cut(clean(value), _MAX_HEADER), send_pii)
        # A name received twice is one header with both values (RFC 9110 section 5.3).
        result[name] = cut(f"{result[name]}, {value}", _MAX_HEADER) if name in result else value
    return result


def _header(name: str, value: str, send_pii: bool) -> str:
    if send_pii and name.lower() == "cookie":
        return scrub_cookies(value)
    if is_sensitive(name) or (not send_pii and is_personal(name)):
        return FILTERED
    return scrub_text(value)


def _cookies(cookies: Mapping[str, str]) -> dict[str, str]:
    result: dict[str, str] = {}
    for name, value in islice(cookies.items(), _MAX_COOKIES):
        name = cut(clean(name), _MAX_URL)
        result[name] = FILTERED if is_sensitive(name) else cut(clean(value), _MAX_HEADER)
    return result


def _length(info: RequestInfo) -> int:
    """Bytes of the body: as its header says, and not less than what was read of it."""
    said = next((value for name, value in info.headers if name.lower() == "content-length"), "")
    read = len(info.data) if isinstance(info.data, str | bytes) else 0
    return max(int(said) if said.isdecimal() and said.isascii() and len(said) < 20 else 0, read)


def _body(info: RequestInfo) -> Any:
    data = info.data
    if type(data) is bytes:
        data = data[: _MAX_BODY + 1].decode("utf-8", "replace")
    if isinstance(data, str):
        data = _parsed(data, info)
    return bounded(data, Room(_MAX_BODY), _BODY)


def _parsed(text: str, info: RequestInfo) -> object:
    """A body's text in the form in which names can be seen, so that values can be filtered by name."""
    kind = next((value.lower() for name, value in info.headers if name.lower() == "content-type"), "")
    if "json" in kind and len(text) <= _MAX_BODY:
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            return text
    if "form-urlencoded" in kind:
        return scrub_query(text[:_MAX_BODY], send_pii=True)
    return text
