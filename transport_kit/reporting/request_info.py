"""Request info: the HTTP request of an event.

This module owns `RequestInfo`, the plain value that integrations fill in, and its scrubbed form. It holds no
framework object and reads no stream.

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
from transport_kit.reporting.values.scrub import scrub_cookies, scrub_query, scrub_text, scrub_userinfo
from transport_kit.reporting.values.secret_forms import scrub_forms
from transport_kit.reporting.values.secret_names import FILTERED, is_personal, is_sensitive

__all__ = ["request_interface", "RequestInfo"]

_MAX_URL: Final = 256
_MAX_QUERY: Final = 4096
_MAX_HEADERS: Final = 100
_MAX_HEADER: Final = 1024
_MAX_COOKIES: Final = 50
_MAX_BODY: Final = 8 * 1024
#: Largest body in bytes that is sent, by `max_request_body_size`.
_BODIES: Final = {"never": -1, "small": 1000, "medium": 10_000, "always": 1 << 64}
_METHOD = re.compile(r"[A-Za-z]{1,32}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: Rules for a header's value: secrets filtered, always hidden, hidden without PII, filtered per cookie.
_SCRUBBED, _SECRET, _PERSONAL, _COOKIES = range(4)
_CACHED_LENGTH: Final = 64
#: Length and number of the cached header values that hold no secret.
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
        cookies: None if only the `Cookie` header has them.
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
        # One update: the `__init__` that dataclasses generate for a frozen class takes three times as long.
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
        """Make it from a WSGI environ or Django's `META`; reads only text from it, no stream.

        Args:
            environ: As defined by PEP 3333.
            url: Absolute, without query. A parameter, because the choice of the host name is the site's.
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


# Key of an environ -> name of its header; empty for a key that is no header. Changed in atomic steps.
_header_names: dict[str, str] = {}


def _header_name(key: str) -> str:
    name = ""
    if key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        name = key
    elif key.startswith("HTTP_") and key not in ("HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"):
        name = key[5:]
    name = name.replace("_", "-").title()
    # Clients choose the names of headers, so the cache is bounded.
    if len(key) <= _CACHED_LENGTH:
        if len(_header_names) >= _MAX_HARMLESS:
            _header_names.clear()
        _header_names[key] = name
    return name


def request_interface(info: RequestInfo, *, send_pii: bool, bodies: str = "medium") -> dict[str, Any]:
    """Return the `request` of an event: scrubbed, bounded, and without the parts that the options exclude.

    Args:
        info: The request.
        send_pii: `send_default_pii`.
        bodies: `max_request_body_size`.
    """
    result: dict[str, Any] = {}
    method = info.method
    if method in _METHODS or _METHOD.fullmatch(method):
        result["method"] = method.upper()
    url, _, query = info.url.partition("#")[0].partition("?")
    if url:
        result["url"] = tidy(scrub_forms(scrub_userinfo(url)), _MAX_URL)
    query = info.query_string or query
    if query:
        result["query_string"] = scrub_text(
            scrub_query(tidy(query, _MAX_QUERY), send_pii=send_pii, path=url[:_MAX_URL])
        )
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
    for received_name, value in headers[:_MAX_HEADERS]:
        name, rule = _rule(received_name) if len(received_name) <= _CACHED_LENGTH else _rule_of(received_name)
        if rule == _SCRUBBED or (rule == _PERSONAL and send_pii):
            text = _harmless.get(value)
            if text is None:
                text = _scrub_value(value)
        elif rule == _COOKIES and send_pii:
            text = scrub_text(scrub_cookies(tidy(value, _MAX_HEADER)))
        else:
            text = FILTERED
        # A name received twice is one header with both values (RFC 9110 section 5.3).
        result[name] = cut(f"{result[name]}, {text}", _MAX_HEADER) if name in result else text
    return result


def _rule_of(received_name: str) -> tuple[str, int]:
    """Return a header's name as it is sent, and the rule for its value."""
    name = tidy(received_name, _MAX_URL)
    if name.lower() == "cookie":
        return name, _COOKIES
    return name, _SECRET if is_sensitive(name) else _PERSONAL if is_personal(name) else _SCRUBBED


_rule = lru_cache(maxsize=4096)(_rule_of)

# Header values that scrubbing does not change: most clients send the same few values with each request. Never
# holds a secret. Changed in atomic steps.
_harmless: dict[str, str] = {}


def _scrub_value(value: str) -> str:
    text = scrub_text(tidy(value, _MAX_HEADER))
    if type(value) is str and text == value and len(value) <= _HARMLESS_LENGTH:
        if len(_harmless) >= _MAX_HARMLESS:
            _harmless.clear()
        _harmless[value] = value
    return text


def _cookies(cookies: Mapping[str, str]) -> dict[str, str]:
    result: dict[str, str] = {}
    for name, value in islice(cookies.items(), _MAX_COOKIES):
        name = tidy(name, _MAX_URL)
        result[name] = FILTERED if is_sensitive(name) else scrub_text(tidy(value, _MAX_HEADER))
    return result


def _length(info: RequestInfo) -> int:
    """Return the bytes of the body: the declared length, and not less than the available data."""
    declared = next((value for name, value in info.headers if name.lower() == "content-length"), "")
    available = len(info.data) if isinstance(info.data, str | bytes) else 0
    return max(
        int(declared) if declared.isdecimal() and declared.isascii() and len(declared) < 20 else 0, available
    )


def _body(info: RequestInfo) -> Any:
    data = info.data
    if type(data) is bytes:
        data = data[: _MAX_BODY + 1].decode("utf-8", "replace")
    if isinstance(data, str):
        data = _parsed(data, info)
    return bounded(data, Room(_MAX_BODY), _BODY)


def _parsed(text: str, info: RequestInfo) -> object:
    """Return a body's text parsed by its content type, so that values can be filtered by name."""
    content_type = next((value.lower() for name, value in info.headers if name.lower() == "content-type"), "")
    if "json" in content_type and len(text) <= _MAX_BODY:
        try:
            return loads(text)
        except ValueError:
            return text
    if "form-urlencoded" in content_type:
        return scrub_query(text[:_MAX_BODY], send_pii=True)
    return text
