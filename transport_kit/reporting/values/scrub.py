"""Scrubbing: which names hide a secret, and how a secret is taken out of text.

Owns the deny-lists and the marker. Works on names and on text only; what is walked, and how far, is
`bounded.py`. All patterns are linear in the length of the text: they begin at a boundary and never
back-track over more than one run of characters.

Source: the protocol's PII rules: a case-insensitive substring list for secrets, whose values are always
left out, and one for addresses, left out unless `send_default_pii` is on. Names stay.

Threads: stateless but for caches that any thread may fill.
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

#: Stands where a secret was.
FILTERED: Final = "[Filtered]"
_REMEMBERED_LENGTH: Final = 64

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
# A value: in quotes, escaped ones too, taken whole, even when the text ends inside it; a list or dict up to
# the first bracket that closes; or a run of other characters.
_VALUE: Final = (
    r"""(?:[bBrRuUfF]{1,2}+(?=["']))?+"""
    r"""(?:"(?:[^"\\]++|\\.|\\$)*+"?|'(?:[^'\\]++|\\.|\\$)*+'?"""
    r"""|\\"(?:[^"\\]++|\\[^"])*+(?:\\")?|\\'(?:[^'\\]++|\\[^'])*+(?:\\')?"""
    r"""|\[[^\]]*+\]?|\{[^}]*+\}?|\([^)]*+\)?|[^&\s;,"'}\])]++)"""
)
# `name=value` and `"name": value`. Most names end without a sign; those that don't are looked at before the
# value is, which may be a pair itself.
_PAIR = re.compile(
    r"""(?<![\w.\-\[\]%])(?=[\w.\-\[\]%]++(?:[ \t]*+[=:]|\\?["']))"""
    rf"""(?=[\w.\-\[\]%]*?(?:{_SENSITIVE}))([\w.\-\[\]%]++)"""
    r"""([ \t]*+(?:={1,3}+>?|:=)[ \t]*+|\\?["']\]?+\s*+(?::|=>?)\s*+)"""
    rf"""({_VALUE})""",
    re.DOTALL | re.IGNORECASE,
)


# In running text: a header, to the end of its line or quote; a password, to the next space.
_HEADER = re.compile(
    r"""(?<![\w\-])((?:proxy-)?authorization|(?:set-)?cookie|(?:x-)?(?:api|auth|access|csrf|xsrf)-?(?:key|token))"""
    r"""([ \t]*+:[ \t]*+)[^\r\n"'\[{][^\r\n"']*+""",
    re.IGNORECASE,
)
# `name: value`, where the name is one that nobody uses in prose.
_SETTING = re.compile(
    r"""(?<![\w\-"'])([\w\-]++)(?=[ \t]*+:)(?:(?<=password)|(?<=passwd)|(?<=passphrase)|(?<=pwd)"""
    r"""|(?<=secret)|(?<=[_\-]key)|(?<=[_\-]token)|(?-i:(?<=[a-z0-9]Key)|(?<=[a-z0-9]Token)))"""
    rf"""([ \t]*+:[ \t]*+)({_VALUE})""",
    re.DOTALL | re.IGNORECASE,
)
# `--password value`, quoted or not, in one text or as a list of arguments is shown.
_FLAG = re.compile(
    r"""(?<![\w\-])(--[\w.\-]++)([ \t]++|["'],\s*+[bu]?["'])"""
    r"""([^\s"'\-][^\s"']*+|(?<=[ \t])(?:"[^"]*+"?|'[^']*+'?))"""
)
# A secret's element of XML up to its end, or to where the text was cut. What an object is shown as has
# no end, and nothing like attributes.
_ELEMENT = re.compile(
    rf"""(<(?=[\w:.\-]*?(?:{_SENSITIVE}))[\w:.\-]++(?:\s++(?:(?=[^<>=]++=)[^<>]*+)?+)?+(?<!/)>)"""
    r"""(?:\s*+<!\[CDATA\[(?:[^\]]++|\](?!\]>))*+(?:\]\]>)?|[^<]++(?:(?=<\\?/)|(?<=\.\.\.)\Z))""",
    re.IGNORECASE,
)
# The scheme and credentials of an `Authorization` value, wherever they stand.
_SCHEME = re.compile(r"(?<!\w)(bearer|basic|digest|negotiate)([ \t]++)([\w.~+/=:\-]{6,}+)", re.IGNORECASE)
# What is a credential by its own form: JSON web tokens, and keys whose makers gave them a prefix.
_TOKEN = re.compile(
    r"""(?<![\w\-])(?:eyJ[\w\-]{8,}+\.[\w\-]{4,}+(?:\.[\w\-]*+)?|(?:sk|rk)_(?:live|test)_\w{8,}+|gh[oprsu]_\w{20,}+"""
    r"""|github_pat_\w{20,}+|glpat-[\w\-]{16,}+|xox[abeoprs]-[\w\-]{8,}+|(?:AKIA|ASIA)[A-Z0-9]{16}(?!\w))"""
)
_SHORTEST_TOKEN: Final = 11
#: Cheap signs that a pattern above may be found: most texts hold none.
_SCHEME_SIGNS: Final = ("earer", "EARER", "asic", "ASIC", "igest", "IGEST", "egotiate", "EGOTIATE")
_TOKEN_SIGNS: Final = ("eyJ", "_live_", "_test_", "gh", "github_pat_", "glpat", "xox")


def is_sensitive(name: str) -> bool:
    """Whether a value under this name is a secret, whatever the options say."""
    return _searched(name)[0]


def is_personal(name: str) -> bool:
    """Whether a value under this name tells who the client is: left out unless PII is wanted."""
    return _searched(name)[1]


def is_private(name: str) -> bool:
    """Whether a value under this name is left out while PII is not wanted."""
    secret, personal = _searched(name)
    return secret or personal


def _searched(name: str) -> tuple[bool, bool]:
    # A client chooses the names of its headers and cookies: long ones must not fill the memory.
    return _remembered(name) if len(name) <= _REMEMBERED_LENGTH else _search(name)


def _search(name: str) -> tuple[bool, bool]:
    return _SECRET.search(name) is not None, _PERSONAL.search(name) is not None


_remembered = lru_cache(maxsize=4096)(_search)


def scrub_userinfo(text: str) -> str:
    """The text with user and password taken out of every URL in it."""
    return _USERINFO.sub(FILTERED + "@", text) if "@" in text and "://" in text else text


def scrub_text(text: str) -> str:
    """The text without what is a secret by its place or its form.

    That is: credentials in URLs, values of sensitive `name=value` pairs, of quoted `"name": value` pairs and
    of `--flag value`, of settings such as `api_key: …`, of headers such as `Authorization: …` and of elements
    of XML; credentials after `Bearer` and its like, and tokens of well-known forms. Prose is left alone.
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
        # Each of these forms has one of the three signs in it, but for the last.
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
    """A query string or form body whose sensitive parameters keep their names and lose their values."""
    return "&".join(_scrubbed(part, unquote_plus, send_pii) for part in query.split("&"))


def scrub_cookies(header: str) -> str:
    """A `Cookie` header's value with sensitive cookies filtered; all of it when it can't be read."""
    parts = header.split(";")
    if not all("=" in part for part in parts):
        return FILTERED
    return "; ".join(_scrubbed(part.strip(), str, True) for part in parts)


def _scrubbed(pair: str, decode: Callable[[str], str], send_pii: bool) -> str:
    name, sign, _ = pair.partition("=")
    plain = decode(name)
    if sign and (is_sensitive(plain) or (not send_pii and is_personal(plain))):
        return f"{name}={FILTERED}"
    return pair
