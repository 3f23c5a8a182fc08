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
from functools import lru_cache
from itertools import islice
from typing import Any, Final, Self

from transport_kit.envelope.encoder import loads
from transport_kit.reporting.values.bounded import Limits, Room, bounded, cut, tidy
from transport_kit.reporting.values.scrub import (
    FILTERED,
    is_personal,
    is_sensitive,
    scrub_cookies,
    scrub_query,
    scrub_text,
    scrub_userinfo,
)

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
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: How a header's value is shown: with its secrets filtered, not at all, not without PII, cookie by cookie.
_SCRUBBED, _SECRET, _PERSONAL, _COOKIES = range(4)
_REMEMBERED_LENGTH: Final = 64
#: Characters and number of the header values that are known to hold no secret.
_HARMLESS_LENGTH: Final = 256
_MAX_HARMLESS: Final = 1024
_BODY: Final = Limits(text=2048, breadth=50, depth=5, hides=is_sensitive)


@dataclass(frozen=True, init=False)
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

    def __init__(
        self,
        *,
        method: str = "",
        url: str = "",
        query_string: str = "",
        headers: tuple[tuple[str, str], ...] = (),
        cookies: Mapping[str, str] | None = None,
        data: object | None = None,
        env: Mapping[str, str] | None = None,
        remote_addr: str | None = None,
    ) -> None:
        # All at once: what dataclasses generate for a frozen class takes three times as long, per request.
        self.__dict__.update(
            method=method,
            url=url,
            query_string=query_string,
            headers=headers,
            cookies=cookies,
            data=data,
            env={} if env is None else env,
            remote_addr=remote_addr,
        )

    @classmethod
    def from_environ(cls, environ: Mapping[str, Any], *, url: str, data: object | None = None) -> Self:
        """What a WSGI environ, or Django's `META`, says of a request; nothing in it is read but text.

        Args:
            environ: As PEP 3333 has it.
            url: Absolute, without query: which of its names for the host a site goes by is its own choice.
            data: The body, if it had already been read.
        """
        headers = []
        for key in environ:
            name = _header_names.get(key)
            if name is None:
                name = _header_name(key)
            if name and ((value := environ[key]) or key[:5] == "HTTP_"):
                headers.append((name, value))
        return cls(
            method=environ.get("REQUEST_METHOD", ""),
            url=url,
            query_string=environ.get("QUERY_STRING", ""),
            headers=tuple(headers),
            data=data,
            env={name: str(environ[name]) for name in ("SERVER_NAME", "SERVER_PORT") if environ.get(name)},
            remote_addr=environ.get("REMOTE_ADDR"),
        )


# Key of an environ -> the header it holds; empty for one that is none. Changed in single steps.
_header_names: dict[str, str] = {}


def _header_name(key: str) -> str:
    name = ""
    if key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        name = key
    elif key.startswith("HTTP_") and key not in ("HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"):
        name = key[5:]
    name = name.replace("_", "-").title()
    # A client chooses the names of its headers: they must not fill the memory.
    if len(key) <= _REMEMBERED_LENGTH:
        if len(_header_names) >= _MAX_HARMLESS:
            _header_names.clear()
        _header_names[key] = name
    return name


def request_interface(info: RequestInfo, *, send_pii: bool, bodies: str = "medium") -> dict[str, Any]:
    """The `request` of an event: scrubbed, bounded, and without what the options leave out.

    Args:
        bodies: `max_request_body_size`.
    """
    result: dict[str, Any] = {}
    method = info.method
    if method in _METHODS or _METHOD.fullmatch(method):
        result["method"] = method.upper()
    url, _, query = info.url.partition("#")[0].partition("?")
    if url:
        result["url"] = tidy(scrub_userinfo(url), _MAX_URL)
    query = info.query_string or query
    if query:
        result["query_string"] = scrub_text(scrub_query(tidy(query, _MAX_QUERY), send_pii=send_pii))
    if info.headers:
        result["headers"] = _headers(info.headers, send_pii)
    env = {
        name: tidy(info.env[name], _MAX_URL) for name in ("SERVER_NAME", "SERVER_PORT") if name in info.env
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
    for given, value in headers[:_MAX_HEADERS]:
        name, kind = _rule(given) if len(given) <= _REMEMBERED_LENGTH else _rule_of(given)
        if kind == _SCRUBBED or (kind == _PERSONAL and send_pii):
            shown = _harmless.get(value)
            if shown is None:
                shown = _scrubbed_value(value)
        elif kind == _COOKIES and send_pii:
            shown = scrub_text(scrub_cookies(tidy(value, _MAX_HEADER)))
        else:
            shown = FILTERED
        # A name received twice is one header with both values (RFC 9110 section 5.3).
        result[name] = cut(f"{result[name]}, {shown}", _MAX_HEADER) if name in result else shown
    return result


def _rule_of(given: str) -> tuple[str, int]:
    """A header's name as it is written, and how its value is shown."""
    name = tidy(given, _MAX_URL)
    if name.lower() == "cookie":
        return name, _COOKIES
    return name, _SECRET if is_sensitive(name) else _PERSONAL if is_personal(name) else _SCRUBBED


_rule = lru_cache(maxsize=4096)(_rule_of)

# Values that scrubbing left as they were: what most clients send with each request is the same few texts.
# Secrets never get in. Changed in single steps.
_harmless: dict[str, str] = {}


def _scrubbed_value(value: str) -> str:
    shown = scrub_text(tidy(value, _MAX_HEADER))
    if type(value) is str and shown == value and len(value) <= _HARMLESS_LENGTH:
        if len(_harmless) >= _MAX_HARMLESS:
            _harmless.clear()
        _harmless[value] = value
    return shown


def _cookies(cookies: Mapping[str, str]) -> dict[str, str]:
    result: dict[str, str] = {}
    for name, value in islice(cookies.items(), _MAX_COOKIES):
        name = tidy(name, _MAX_URL)
        result[name] = FILTERED if is_sensitive(name) else scrub_text(tidy(value, _MAX_HEADER))
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
            return loads(text)
        except ValueError:
            return text
    if "form-urlencoded" in kind:
        return scrub_query(text[:_MAX_BODY], send_pii=True)
    return text
