"""Scrubbing: recognises names of secrets, and removes secrets from text.

Owns the deny-lists and the marker. Works on names and text only; `bounded.py` walks values. All patterns are
linear in the length of the text: they begin at a boundary and never back-track over more than one run of
characters.

Source: the protocol's PII rules: a case-insensitive substring list for secrets, whose values are always
hidden, and one for addresses, hidden unless `send_default_pii` is on. Names stay.

Threads: stateless except for caches that any thread may fill.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_plus

__all__ = [
    "FILTERED",
    "is_personal",
    "is_private",
    "is_sensitive",
    "scrub_cookies",
    "scrub_query",
    "scrub_text",
    "scrub_userinfo",
]

#: Replaces a secret.
FILTERED: Final = "[Filtered]"
_CACHED_LENGTH: Final = 64

_SENSITIVE: Final = (
    r"auth|token|secret|passw|passphrase|pwd|key|jwt|bearer|sso|saml|csrf|xsrf|credential|session|sessid"
    r"|cookie|identity|(?<![a-z])sid(?![a-z])"
)
_SECRET = re.compile(_SENSITIVE, re.IGNORECASE)
_PERSONAL = re.compile(
    r"forwarded[-_]for|(?<![a-z])forwarded$|remote[-_](?:addr|user|host)|ip[-_]?addr|(?<![a-z])ip(?![a-z])",
    re.IGNORECASE,
)
# `scheme://user:password@`: up to the last @ before the path. No run overlaps the next: "/" ends each.
_USERINFO = re.compile(r"""(?<=://)[^/\s'"<>]*@""")
# A value: a quoted string (the quotes may be escaped), matched whole even if the text ends inside it; a list
# or dict up to the first closing bracket; or a run of other characters.
_VALUE: Final = (
    r"""(?:[bBrRuUfF]{1,2}+(?=["']))?+"""
    r"""(?:"(?:[^"\\]++|\\.|\\$)*+"?|'(?:[^'\\]++|\\.|\\$)*+'?"""
    r"""|\\"(?:[^"\\]++|\\[^"])*+(?:\\")?|\\'(?:[^'\\]++|\\[^'])*+(?:\\')?"""
    r"""|\[[^\]]*+\]?|\{[^}]*+\}?|\([^)]*+\)?|[^&\s;,"'}\])]++)"""
)
# `name=value` and `"name": value`. Most words are not followed by a sign, so the sign is checked first. The
# name is matched before the value, which may be a pair itself.
_PAIR = re.compile(
    r"""(?<![\w.\-\[\]%])(?=[\w.\-\[\]%]++(?:[ \t]*+[=:]|\\?["']))"""
    rf"""(?=[\w.\-\[\]%]*?(?:{_SENSITIVE}))([\w.\-\[\]%]++)"""
    r"""([ \t]*+(?:={1,3}+>?|:=)[ \t]*+|\\?["']\]?+\s*+(?::|=>?)\s*+)"""
    rf"""({_VALUE})""",
    re.DOTALL | re.IGNORECASE,
)


# A header in running text, to the end of its line or quote.
_HEADER = re.compile(
    r"""(?<![\w\-])((?:proxy-)?authorization|(?:set-)?cookie|(?:x-)?(?:api|auth|access|csrf|xsrf)-?(?:key|token))"""
    r"""([ \t]*+:[ \t]*+)[^\r\n"'\[{][^\r\n"']*+""",
    re.IGNORECASE,
)
# `name: value` with a name that does not occur in prose.
_SETTING = re.compile(
    r"""(?<![\w\-"'])([\w\-]++)(?=[ \t]*+:)(?:(?<=password)|(?<=passwd)|(?<=passphrase)|(?<=pwd)"""
    r"""|(?<=secret)|(?<=[_\-]key)|(?<=[_\-]token)|(?-i:(?<=[a-z0-9]Key)|(?<=[a-z0-9]Token)))"""
    rf"""([ \t]*+:[ \t]*+)({_VALUE})""",
    re.DOTALL | re.IGNORECASE,
)
# `--password value`, quoted or not, in one text or in the repr of an argument list.
_FLAG = re.compile(
    r"""(?<![\w\-])(--[\w.\-]++)([ \t]++|["'],\s*+[bu]?["'])"""
    r"""([^\s"'\-][^\s"']*+|(?<=[ \t])(?:"[^"]*+"?|'[^']*+'?))"""
)
# An XML element with a secret, up to its end tag or to the cut of the text. The repr of an object has no end
# tag and no attributes, so it does not match.
_ELEMENT = re.compile(
    rf"""(<(?=[\w:.\-]*?(?:{_SENSITIVE}))[\w:.\-]++(?:\s++(?:(?=[^<>=]++=)[^<>]*+)?+)?+(?<!/)>)"""
    r"""(?:\s*+<!\[CDATA\[(?:[^\]]++|\](?!\]>))*+(?:\]\]>)?|[^<]++(?:(?=<\\?/)|(?<=\.\.\.)\Z))""",
    re.IGNORECASE,
)
# The scheme and credentials of an `Authorization` value, anywhere.
_SCHEME = re.compile(r"(?<!\w)(bearer|basic|digest|negotiate)([ \t]++)([\w.~+/=:\-]{6,}+)", re.IGNORECASE)
# Credentials by form: JSON web tokens, and keys with the prefix of their issuer.
_TOKEN = re.compile(
    r"""(?<![\w\-])(?:eyJ[\w\-]{8,}+\.[\w\-]{4,}+(?:\.[\w\-]*+)?|(?:sk|rk)_(?:live|test)_\w{8,}+|gh[oprsu]_\w{20,}+"""
    r"""|github_pat_\w{20,}+|glpat-[\w\-]{16,}+|xox[abeoprs]-[\w\-]{8,}+|(?:AKIA|ASIA)[A-Z0-9]{16}(?!\w))"""
)
_SHORTEST_TOKEN: Final = 11
#: Substrings without which a pattern above can't match; most texts contain none.
_SCHEME_SIGNS: Final = ("earer", "EARER", "asic", "ASIC", "igest", "IGEST", "egotiate", "EGOTIATE")
_TOKEN_SIGNS: Final = ("eyJ", "_live_", "_test_", "gh", "github_pat_", "glpat", "xox")


def is_sensitive(name: str) -> bool:
    """Return True if a value under this name is a secret, hidden whatever the options."""
    return _classify(name)[0]


def is_personal(name: str) -> bool:
    """Return True if a value under this name identifies the client, hidden without `send_default_pii`."""
    return _classify(name)[1]


def is_private(name: str) -> bool:
    """Return True if a value under this name is hidden without `send_default_pii`."""
    secret, personal = _classify(name)
    return secret or personal


def _classify(name: str) -> tuple[bool, bool]:
    # Clients choose the names of headers and cookies, so long ones are not cached.
    return _cached_search(name) if len(name) <= _CACHED_LENGTH else _search(name)


def _search(name: str) -> tuple[bool, bool]:
    return _SECRET.search(name) is not None, _PERSONAL.search(name) is not None


_cached_search = lru_cache(maxsize=4096)(_search)


def scrub_userinfo(text: str) -> str:
    """Return the text with user and password removed from every URL in it."""
    return _USERINFO.sub(FILTERED + "@", text) if "@" in text and "://" in text else text


def scrub_text(text: str) -> str:
    """Return the text with everything filtered that is a secret by its place or form.

    That is: credentials in URLs, values of sensitive `name=value` pairs, of quoted `"name": value` pairs and
    of `--flag value`, of settings such as `api_key: …`, of headers such as `Authorization: …` and of elements
    of XML; credentials after `Bearer` and similar schemes, and tokens of well-known forms. Prose is left
    alone.
    """
    if ":" in text or "=" in text:
        text = scrub_userinfo(text)
        if _SECRET.search(text) is not None:
            text = _PAIR.sub(_filter_pair, text)
            if ":" in text:
                text = _SETTING.sub(_filter_pair, _HEADER.sub(_filter_header, text))
    if "<" in text and _SECRET.search(text) is not None:
        text = _ELEMENT.sub(rf"\1{FILTERED}", text)
    if "--" in text:
        text = _FLAG.sub(_filter_flag, text)
    if len(text) > _SHORTEST_TOKEN:
        if " " in text and _any_in(_SCHEME_SIGNS, text):
            text = _SCHEME.sub(_filter_scheme, text)
        # All forms of `_TOKEN` but the last contain one of the three characters.
        if ("_" in text or "-" in text or "." in text) and _any_in(_TOKEN_SIGNS, text):
            return _TOKEN.sub(FILTERED, text)
        if "AKIA" in text or "ASIA" in text:
            return _TOKEN.sub(FILTERED, text)
    return text


def _any_in(signs: tuple[str, ...], text: str) -> bool:
    for sign in signs:  # noqa: SIM110 - a generator costs twice as much
        if sign in text:
            return True
    return False


def _filter_header(match: re.Match[str]) -> str:
    name, sign = match.groups()
    return f"{name}{sign}{FILTERED}"


def _filter_scheme(match: re.Match[str]) -> str:
    scheme, space, value = match.groups()
    if not any(character.isdigit() or character in "=._~+/-" for character in value) and value.islower():
        return match.group()  # "basic authentication": a word
    return f"{scheme}{space}{FILTERED}"


def _filter_pair(match: re.Match[str]) -> str:
    name, sign, value = match.groups()
    quote = value[:2] if value[0] == "\\" else value[0] if value[0] in "\"'" else ""
    return f"{name}{sign}{quote}{FILTERED}{quote}"


def _filter_flag(match: re.Match[str]) -> str:
    name, space, value = match.groups()
    quote = value[0] if value[0] in "\"'" else ""
    return f"{name}{space}{quote}{FILTERED}{quote}" if is_sensitive(name) else match.group()


def scrub_query(query: str, *, send_pii: bool) -> str:
    """Return a query string or form body with the values of sensitive parameters filtered."""
    return "&".join(_scrub_pair(part, unquote_plus, send_pii) for part in query.split("&"))


def scrub_cookies(header: str) -> str:
    """Return a `Cookie` header's value with sensitive cookies filtered; all of it if it can't be parsed."""
    parts = header.split(";")
    if not all("=" in part for part in parts):
        return FILTERED
    return "; ".join(_scrub_pair(part.strip(), str, True) for part in parts)


def _scrub_pair(pair: str, decode: Callable[[str], str], send_pii: bool) -> str:
    name, sign, _ = pair.partition("=")
    plain = decode(name)
    if sign and (is_sensitive(plain) or (not send_pii and is_personal(plain))):
        return f"{name}={FILTERED}"
    return pair
