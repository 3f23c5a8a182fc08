"""Proxies: the choice of a proxy for a URL, from options and environment variables.

This module owns the parsing of proxy URLs, of the `*_PROXY` variables and of `no_proxy`. `connections.py`
opens the connections.

Threads: pure functions and immutable values.

Source: requests `utils.should_bypass_proxies` and urllib `proxy_bypass_environment` for no_proxy,
except that a suffix matches only at a dot; CVE-2016-5385 for REQUEST_METHOD.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from transport_kit.runtime.errors import OptionsError

__all__ = ["Proxy", "bypasses", "choose_proxy", "parse_proxy"]

_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Proxy:
    """The address of a proxy, its protocol and its credentials.

    Attributes:
        scheme: `http`, `https`, `socks5` (names are resolved locally) or `socks5h` (by the proxy).
        host: In lower case, without brackets.
        port: The URL's port, or the scheme's default.
        username: Percent-decoded; None if the URL has none.
        password: Percent-decoded; None if the URL has none.
    """

    scheme: str
    host: str
    port: int
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @property
    def socks(self) -> bool:
        """True for a SOCKS proxy, False for an HTTP proxy."""
        return self.scheme.startswith("socks")

    @property
    def authorization(self) -> str | None:
        """The value of Proxy-Authorization for the URL's user; None without a user."""
        if self.username is None:
            return None
        pair = f"{self.username}:{self.password or ''}".encode()
        return "Basic " + base64.b64encode(pair).decode("ascii")


def parse_proxy(url: str) -> Proxy:
    """Parse a proxy URL; the default scheme is http.

    Raises:
        ValueError: The URL is invalid. The message does not quote it, as it may contain a password.
    """
    url = url.strip()
    if any(ord(c) < 33 or ord(c) == 127 for c in url):
        raise ValueError("must not contain blanks or control characters")
    if "://" not in url:
        url = "http://" + url
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("must be a URL such as http://proxy.example:3128") from None
    if parts.scheme not in _PORTS:
        raise ValueError(f"must begin with one of {', '.join(f'{s}://' for s in _PORTS)}")
    if not host or port == 0:
        raise ValueError("must be a URL with a host, such as http://proxy.example:3128")
    return Proxy(
        parts.scheme,
        host,
        port or _PORTS[parts.scheme],
        None if parts.username is None else unquote(parts.username),
        None if parts.password is None else unquote(parts.password),
    )


def choose_proxy(
    scheme: str,
    host: str,
    port: int,
    *,
    proxy: str | None,
    no_proxy: str | None,
    trust_env: bool,
    environ: Mapping[str, str],
) -> Proxy | None:
    """Return the proxy for connections to `host`, or None to connect directly.

    Args:
        scheme: The server's scheme, `http` or `https`.
        host: The server's host, without brackets.
        port: The server's port.
        proxy: The URL of a proxy. If given, no variable is read, not even NO_PROXY.
        no_proxy: The hosts to connect to directly. If given, it replaces NO_PROXY.
        trust_env: Read the proxy variables from `environ`.
        environ: The environment variables.

    Raises:
        OptionsError: The URL of the proxy is invalid. The error names the option or the variable.
    """
    source = "arguments"
    if proxy is None and trust_env:
        source, proxy = _from_environment(scheme, environ)
        if no_proxy is None:
            no_proxy = _variable("no_proxy", environ)[1]
    if proxy is None or bypasses(host, port, no_proxy or ""):
        return None
    try:
        return parse_proxy(proxy)
    except ValueError as problem:
        raise OptionsError("proxy", str(problem), source) from None


def _from_environment(scheme: str, environ: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the first proxy variable that is not empty, as a source and its value."""
    for name in (f"{scheme}_proxy", "all_proxy"):
        key, value = _variable(name, environ)
        # Under CGI a request's header `Proxy:` arrives as HTTP_PROXY.
        if value and not (key == "HTTP_PROXY" and "REQUEST_METHOD" in environ):
            return f"environment {key}", value
    return "environment", None


def _variable(name: str, environ: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the variable's key and value; the lower-case key, even if empty, precedes the upper-case one."""
    key = name if name in environ else name.upper()
    value = environ.get(key, "").strip()
    return key, value or None


def bypasses(host: str, port: int, no_proxy: str) -> bool:
    """Return True if `no_proxy` lists `host`.

    Entries are separated by commas; blanks and case are ignored, and an invalid entry matches nothing.
    `*` matches every host; `example.com` and `.example.com` match that host and its subdomains; an IP
    address matches itself, a network such as `10.0.0.0/8` or `fd00::/8` its addresses. `:port` restricts an
    entry to that port.
    """
    host = host.lower().rstrip(".")
    address = _address(host)
    for entry in no_proxy.lower().split(","):
        entry = "".join(entry.split())
        if entry == "*":
            return True
        name, entry_port = _split_port(entry)
        if not name or entry_port not in (None, port):
            continue
        if address is not None:
            if _covers(name, address):
                return True
        else:
            name = name.removeprefix("*").strip(".")
            if name and (host == name or host.endswith("." + name)):
                return True
    return False


def _split_port(entry: str) -> tuple[str, int | None]:
    """Return an entry's host, and its port or None; the host is empty if the port is invalid."""
    if entry.startswith("["):
        name, bracket, rest = entry[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return "", None
        port = rest[1:]
    elif entry.count(":") == 1:
        name, _, port = entry.partition(":")
    else:
        return entry, None
    if not port:
        return name, None
    return (name, int(port)) if port.isascii() and port.isdigit() and len(port) < 6 else ("", None)


def _address(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _covers(name: str, address: _Address) -> bool:
    try:
        network = ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False
    return address in network
