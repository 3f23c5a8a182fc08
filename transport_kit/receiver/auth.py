"""Authentication: the key from a header, the query or the envelope, read as Relay reads it.

This module owns the forms of docs/protocol.md, section 1. A development server accepts any key of the right
shape, and looks up no owner. No error quotes a key.

Threads: pure functions.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from transport_kit.config.dsn import Dsn
from transport_kit.receiver.refusal import Refusal
from transport_kit.runtime.errors import InvalidDsn

__all__ = ["Auth", "authorize", "mask", "mask_values", "parse_project", "request_auth"]

_KEY = re.compile(r"[0-9A-Za-z]{32}\Z")
_NEWEST_VERSION = 8


@dataclass(frozen=True, slots=True)
class Auth:
    """The key and the client's name of a request. `repr` omits the key."""

    key: str = field(repr=False)
    client: str


def parse_project(text: str) -> str:
    """Return the project id of a path, verbatim.

    Raises:
        Refusal: 400 unless it is ASCII digits that fit 64 bits.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and 0 < int(text) < 2**64):
        raise Refusal(400, "bad project path parameter", ["invalid project id: a number is expected"])
    return text


def request_auth(headers: Mapping[str, str], query: str) -> Auth | None:
    """Read the authentication of a request from its headers and query; None if there is none.

    Args:
        headers: Headers, looked up by lower-case name.
        query: Raw query string.

    Raises:
        Refusal: 401 for two forms together or for one that can't be parsed, 400 for a bad key or version.
    """
    forms: list[Mapping[str, str]] = []
    if "x-sentry-auth" in headers:
        forms.append(_pairs(headers["x-sentry-auth"]))
    scheme, _, credentials = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "sentry":
        forms.append(_pairs(headers["authorization"].strip()))
    elif scheme.lower() == "basic":
        forms.append({"sentry_key": _basic_user(credentials)})
    if "sentry_" in query:  # anywhere in it, as in Relay
        forms.append({name: values[0] for name, values in parse_qs(query).items()})
    if not forms:
        return None
    if len(forms) > 1:
        raise Refusal(
            401, "multiple authorization payloads detected", ["send the key in one place: header or query"]
        )
    form = forms[0]
    _check_version(form.get("sentry_version", "7"))
    key = form.get("sentry_key")
    if not key:
        raise Refusal(401, "bad x-sentry-auth header", ["sentry_key is missing"])
    return Auth(_checked_key(key), form.get("sentry_client") or headers.get("user-agent", ""))


def authorize(auth: Auth | None, dsn: object, project: str, user_agent: str) -> Auth:
    """Combine the request's auth with the `dsn` of the envelope's header; either suffices, both must agree.

    Raises:
        Refusal: 401 with neither, or with a bad dsn alone; 400 when the two disagree.
    """
    if dsn is None:
        if auth is None:
            raise Refusal(401, "missing authorization information", ["no key in header, query or envelope"])
        return auth
    try:
        parsed = Dsn.parse(dsn if isinstance(dsn, str) else "")
    except InvalidDsn as error:
        raise Refusal(
            401 if auth is None else 400, "bad envelope authentication header", [f"dsn: {error.hint}"]
        ) from None
    if parsed.project_id.lstrip("0") != project.lstrip("0"):
        raise Refusal(
            400, "bad envelope authentication header", ["the dsn names another project than the path"]
        )
    if auth is None:
        return Auth(_checked_key(parsed.public_key), user_agent)
    if parsed.public_key != auth.key:
        raise Refusal(
            400, "bad envelope authentication header", ["the dsn holds another key than the request"]
        )
    return auth


def mask(text: str, key: str) -> str:
    """Replace the key's tail by as many stars, so that offsets and `length` stay valid.

    Not for JSON: there an escape such as `\\u001b` and what follows may look like a key; see `mask_values`.
    """
    return text.replace(key, key[:4] + "*" * (len(key) - 4))


def mask_values(value: Any, key: str) -> Any:
    """Return a copy of a JSON value with the key masked in all texts and names."""
    if isinstance(value, str):
        return mask(value, key)
    if isinstance(value, dict):
        return {mask(name, key): mask_values(member, key) for name, member in value.items()}
    return [mask_values(member, key) for member in value] if isinstance(value, list) else value


def _pairs(value: str) -> dict[str, str]:
    """Parse `Sentry a=b, c=d`; the prefix is case-insensitive, blanks around the parts are ignored."""
    prefix, _, rest = value.strip().partition(" ")
    if prefix.lower() != "sentry":
        raise Refusal(401, "bad x-sentry-auth header", ["it must begin with the word Sentry"])
    pairs: dict[str, str] = {}
    for part in rest.split(","):
        name, _, content = part.partition("=")
        pairs[name.strip()] = content.strip()
    return pairs


def _basic_user(credentials: str) -> str:
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode("ascii").partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        raise Refusal(401, "bad authorization header", ["not base64 of key:"]) from None


def _check_version(text: str) -> None:
    major = text.partition(".")[0]
    if not (major.isascii() and major.isdigit() and len(major) < 4 and int(major) <= _NEWEST_VERSION):
        raise Refusal(400, "bad sentry version", [f"sentry_version must be at most {_NEWEST_VERSION}"])


def _checked_key(key: str) -> str:
    bare = key.partition(".")[0]  # Relay allows dotted flags behind the key, such as `.no-cache`
    if not _KEY.match(bare):
        raise Refusal(400, "bad sentry key", ["a key has exactly 32 characters, letters and digits"])
    return bare
