"""The DSN: the address of the server, and the key that it accepts.

This module owns parsing, the addresses and the auth value made from a DSN. Opens no connection and reads no
environment. `transport/factory.py` treats an empty DSN, which disables the transport.

Threads: a `Dsn` never changes and may be shared.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn, Self
from urllib.parse import quote

from transport_kit.runtime.errors import InvalidDsn

__all__ = ["Dsn", "mask_keys"]

# Limits the time that the steps below take for any input, the IDNA codec included. Real DSNs have fewer than
# 200 characters.
_MAX_LENGTH = 2048
_DEFAULT_PORTS = {"http": 80, "https": 443}
# RFC 3986 userinfo, without the comma: the auth value is split at commas, so one inside a key could
# add or replace a pair. A percent sign stays as it is; no receiver decodes the key.
_CREDENTIAL = re.compile(r"[A-Za-z0-9\-._~%!$&'()*+;=]+")
_SECRET = re.compile(r"[A-Za-z0-9\-._~%!$&'()*+;=:]*")
# Underscores are not allowed in host names, but container networks use them.
_HOST = re.compile(r"(?=.{1,254}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")
_ZONE = re.compile(r"[A-Za-z0-9\-._~]+")
_DIGITS = re.compile(r"[0-9]+")
_HEX_KEY = re.compile(r"[0-9a-fA-F]{32}")
_ORG_LABEL = re.compile(r"o([0-9]+)\.")
# Servers issue keys of 32 characters. A much shorter one is a placeholder, and may be a part of any word.
_SHORTEST_REAL_KEY = 16
_PATH_SAFE = "/%!$&'()*+,;=:@-._~"


@dataclass(frozen=True, slots=True, repr=False)
class Dsn:
    """A parsed DSN. Build it with `parse`; the constructor checks nothing.

    Neither `str` nor `repr` show the key or the secret, and pickling is refused; `reveal` is the only way
    to the whole text. Equal DSNs have the same parts, whatever their spelling was.

    Attributes:
        scheme: `http` or `https`.
        public_key: As written; a percent-encoded character stays encoded, as receivers expect.
        secret_key: The deprecated second half of the credentials, or None. Never empty.
        host: In lower case, without brackets; an international name in its ASCII form, an IPv6 address
            with its zone (`fe80::1%eth0`).
        port: None if it is the default port of the scheme.
        prefix: The path before the project: empty, or `/a/b`. Percent-encoded.
        project_id: ASCII digits, leading zeros kept.

    Source: docs/protocol.md, section 1; RFC 3986; RFC 6874 for zones.
    """

    scheme: str
    public_key: str = field(repr=False)
    secret_key: str | None = field(repr=False)
    host: str
    port: int | None
    prefix: str
    project_id: str

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read a DSN such as `https://key@sentry.example/42`.

        Whitespace around it is ignored, and so are query and fragment. Accepts any object, so that a setting
        of another type gets the same error as a wrong text.

        Raises:
            InvalidDsn: With `reason` and a hint; neither holds any part of the text.
        """
        if not isinstance(text, str):
            raise InvalidDsn("invalid_url", "a DSN is text such as https://key@sentry.example/42")
        if len(text) > _MAX_LENGTH:
            raise InvalidDsn("invalid_url", f"a DSN has at most {_MAX_LENGTH} characters")
        text = text.strip(" \t\r\n\f\v")
        if not text:
            raise InvalidDsn("invalid_url", "the text is empty; leave the DSN out to disable the transport")
        # One test for control, format and separator characters and lone surrogates. A line
        # break inside, which URL parsers drop silently, is a copying mistake and must be reported.
        if " " in text or not text.isprintable():
            raise InvalidDsn("invalid_url", "remove the whitespace or control character inside the DSN")
        scheme, separator, rest = text.partition("://")
        scheme = scheme.lower()
        if not separator or scheme not in _DEFAULT_PORTS:
            raise InvalidDsn("invalid_scheme", "start the DSN with https:// or http://")
        rest = re.split("[?#]", rest, maxsplit=1)[0]
        authority, slash, path = rest.partition("/")
        credentials, at, address = authority.rpartition("@")
        public_key, secret_key = _credentials(credentials, at)
        host, port_text = _address(address)
        prefix, project_id = _path(slash + path)
        port = _port(port_text)
        return cls(
            scheme=scheme,
            public_key=public_key,
            secret_key=secret_key,
            host=host,
            port=None if port == _DEFAULT_PORTS[scheme] else port,
            prefix=prefix,
            project_id=project_id,
        )

    @property
    def origin(self) -> str:
        """Scheme, host and port, such as `https://sentry.example:9000`; an IPv6 host in brackets."""
        return f"{self.scheme}://{self._netloc()}"

    @property
    def envelope_url(self) -> str:
        """The URL that envelopes are POSTed to. ASCII only; holds no key."""
        return f"{self.origin}{self.prefix}/api/{self.project_id}/envelope/"

    @property
    def org_id(self) -> str | None:
        """The organization's digits when the host begins with a label such as `o123`, else None."""
        match = _ORG_LABEL.match(self.host)
        return match[1] if match else None

    @property
    def key_looks_valid(self) -> bool:
        """True if the key is 32 hexadecimal digits, as most receivers require; otherwise worth a warning."""
        return _HEX_KEY.fullmatch(self.public_key) is not None

    def auth_header(self, client: str) -> str:
        """The value of `X-Sentry-Auth`; a secret, as it holds the key.

        Args:
            client: Name and version of the sender, such as `transport-kit/0.1.0`.
        """
        value = f"Sentry sentry_key={self.public_key}, sentry_version=7, sentry_client={client}"
        return value if self.secret_key is None else f"{value}, sentry_secret={self.secret_key}"

    def reveal(self) -> str:
        """The canonical text with the key and, if there is one, the secret."""
        secret = "" if self.secret_key is None else f":{self.secret_key}"
        return self._text(f"{self.public_key}{secret}")

    def __str__(self) -> str:
        return self._text("***")

    def __repr__(self) -> str:
        return f"Dsn({self._text('***')!r})"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Dsn is not pickled, as the pickle would hold its key; pass reveal() on purpose")

    def _netloc(self) -> str:
        host = self.host
        if ":" in host:
            # In a URL the zone's own percent sign is written encoded (RFC 6874).
            host = f"[{host.replace('%', '%25')}]"
        return host if self.port is None else f"{host}:{self.port}"

    def _text(self, credentials: str) -> str:
        return f"{self.scheme}://{credentials}@{self._netloc()}{self.prefix}/{self.project_id}"


def mask_keys(text: str, keys: Iterable[str | None]) -> str:
    """Replace keys by ***, in upper and lower case, wherever they stand.

    A key of fewer than 16 characters is replaced only where no letter or digit touches it: in any other place
    it is a part of a word.

    Args:
        text: A text from elsewhere, such as a server's answer that repeats the request.
        keys: The keys; None and empty ones are skipped.
    """
    for key in sorted(filter(None, keys), key=len, reverse=True):
        pattern = re.escape(key)
        if len(key) < _SHORTEST_REAL_KEY:
            # What stands before it may be a percent-encoded character.
            pattern = rf"(?:(?<![^\W_])|(?<=%[0-9A-Fa-f]{{2}})){pattern}(?![^\W_])"
        text = re.sub(pattern, "***", text, flags=re.IGNORECASE)
    return text


def _credentials(text: str, at: str) -> tuple[str, str | None]:
    public_key, _, secret_key = text.partition(":")
    if not at or not public_key:
        raise InvalidDsn("missing_public_key", "put the public key before the host: https://key@host/42")
    if not _CREDENTIAL.fullmatch(public_key) or not _SECRET.fullmatch(secret_key):
        raise InvalidDsn("invalid_url", "the key holds a character that must be percent-encoded")
    return public_key, secret_key or None


def _address(text: str) -> tuple[str, str]:
    """Return the host, and the port as text, from the part behind the credentials."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidDsn("invalid_url", "close the IPv6 address with ] and put only a port behind it")
        return _ipv6(host), rest[1:]
    host, _, port = text.partition(":")
    if ":" in port:
        raise InvalidDsn("invalid_url", "put an IPv6 address in brackets: https://key@[::1]/42")
    if not host:
        raise InvalidDsn("missing_host", "put the host after the key: https://key@host/42")
    ascii_host = _ascii(host)
    if ascii_host is None or not _HOST.fullmatch(ascii_host):
        raise InvalidDsn("invalid_url", "the host is not a valid name or address")
    return ascii_host, port


def _ipv6(text: str) -> str:
    address, percent, zone = text.partition("%")
    # Both spellings of a zone are in use; `%25` alone is interface number 25.
    if zone.startswith("25") and zone != "25":
        zone = zone[2:]
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        valid = False
    else:
        valid = not percent or _ZONE.fullmatch(zone) is not None
    # Raised here, not above: an exception's context would hold a part of the DSN.
    if not valid:
        raise InvalidDsn("invalid_url", "the brackets must hold an IPv6 address")
    return address.lower() + percent + zone


def _ascii(host: str) -> str | None:
    """Return the host in lower-case ASCII, or None if it has no such form."""
    if host.isascii():
        return host.lower()
    try:
        return host.encode("idna").decode("ascii").lower()
    except UnicodeError:
        return None


def _port(text: str) -> int | None:
    """Return the port; None for an absent or empty one, the scheme's default (RFC 3986 section 3.2.3)."""
    if not text:
        return None
    port = int(text) if _DIGITS.fullmatch(text) else 0
    if not 1 <= port <= 65535:
        raise InvalidDsn("invalid_port", "the port must be a number from 1 to 65535")
    return port


def _path(path: str) -> tuple[str, str]:
    """Return the prefix and the project of a path that is empty or begins with a slash."""
    prefix, _, project_id = path.rpartition("/")
    if not project_id:
        hint = "remove the slash behind the project id" if prefix else "end the DSN with the project id"
        raise InvalidDsn("missing_project_id", hint)
    if not _DIGITS.fullmatch(project_id):
        raise InvalidDsn("invalid_project_id", "the project id, the last part of the path, must be digits")
    return quote(prefix, safe=_PATH_SAFE), project_id
