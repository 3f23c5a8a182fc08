"""Scrubbing: removes secrets from text.

This module finds the value beside the name of a secret. `secret_names.py` has the names, `secret_forms.py`
has the secrets that are recognised without a name, and `bounded.py` walks values.

The grammar is one list of places (`_PLACES`). A place is a pattern that finds a value beside a name:
`name=value`, `"name": value`, `--name value`, `('name', 'value')`, a database's `Key (name)=(value)`, a
validation error whose field is on the line above, and so on. One function filters them all. A place has
signs, texts of which one must occur before its pattern is tried, as most texts hold no secret.

All patterns take time that is linear in the length of the text: each begins at a boundary, and a run of
characters is possessive or bounded.

Threads: stateless, except for a cache of harmless texts that any thread may fill.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple
from urllib.parse import unquote_plus

from transport_kit.reporting.values.secret_forms import scrub_forms
from transport_kit.reporting.values.secret_names import (
    FILTERED,
    NAME,
    STEMS,
    counts_below,
    is_personal,
    is_sensitive,
)

__all__ = [
    "scrub_cookies",
    "scrub_query",
    "scrub_text",
    "scrub_userinfo",
    "secret_flag",
]

#: Characters of a text that is remembered as harmless, and the number of such texts.
_REMEMBERED_LENGTH: Final = 256
_REMEMBERED: Final = 4096

# `scheme://user:password@`: up to the last @ before the path.
_USERINFO = re.compile(r"""(?<=://)[^/\s'"<>]*@""")
# The same with a raw "/" in the password. The URL of a database or a broker has no "@" in its path. In any
# other, what is before the first "/" must not be a host and a port.
_DATABASE_USERINFO = re.compile(
    r"""(?<=://)(?<!http://)(?<!https://)(?<!ws://)(?<!wss://)(?<!git://)(?<!ssh://)[^/\s'"<>:@]*+:[^\s'"<>]*@"""
)
_WEB_USERINFO = re.compile(r"""(?<=://)[^/\s'"<>:@]++:(?!\d{1,5}+(?:[/?#]|$))[^\s'"<>]*@""")
# `user:password@tcp(host)`, as the drivers of Go write it.
_SOCKET_USERINFO = re.compile(r"""(?<![\w.\-:/@])[\w.\-]++:[^\s'"<>@]++@(?=(?:tcp|unix|udp)\()""")

_FLAGS: Final = re.DOTALL | re.IGNORECASE | re.ASCII | re.MULTILINE
# A quoted string, matched whole even if the text ends inside it. The quotes may be escaped.
_QUOTED: Final = (
    r"""(?:[bBrRuUfF]{1,2}+(?=["']))?+(?:"(?:[^"\\]++|\\.|\\\Z)*+"?|'(?:[^'\\]++|\\.|\\\Z)*+'?"""
    r"""|\\"(?:[^"\\]++|\\[^"])*+(?:\\")?|\\'(?:[^'\\]++|\\[^'])*+(?:\\')?)"""
)
# A value: a quoted string; a list or dict up to the first closing bracket; a placeholder; or a run of other
# characters.
_VALUE: Final = (
    rf"""(?:{_QUOTED}|\[[^\]]*+\]?|\{{[^}}]*+\}}?|\([^)]*+\)?|%\(\w++\)[sdr]|\$\{{\w++\}}"""
    r"""|[^&\s;,"'}\])]++)"""
)
_CHARACTER: Final = r"[\w.\-\[\]%ñÑ]"  # of a name
_NAME: Final = rf"(?={_CHARACTER}*?(?:{NAME}))(?P<name>{_CHARACTER}++)"
_QUOTE: Final = r"""(?P<quote>\\?["'])"""  # opens a string; `(?P=quote)` closes it
_IN_QUOTES: Final = (
    rf"""(?=[bu]?\\?["'][^"'\\\r\n]{{0,100}}?(?:{NAME}))[bu]?\\?["'][^"'\\\r\n]{{0,160}}+\\?["']"""
)
_IN_TUPLE: Final = rf"""[^()\r\n]{{0,150}}?["'](?=[^"'()\r\n]{{0,60}}?(?:{NAME}))"""
_LINE_END: Final = r"(?:\r?\n|\\r\\n|\\n)"
_BETWEEN: Final = (
    r"""(?:[ \t]++|["'],\s*+[bu]?["'])"""  # between two arguments of a command, or of a list of them
)
_TO_BRACKET: Final = (
    r"(?:(?!\)[.;\"']*[ \t]*$|\) )[^\r\n])*+"  # up to the bracket that ends the line or a word
)

_PLACEHOLDER = re.compile(
    r"\?|%s|%\(\w+\)[sdr]|\$\d+|:[a-z_]\w*|@p\d+|\{\w*\}|\$\{\w+\}|\*+|<(?:redacted|hidden|masked|filtered)>"
    r"|\[Filtered\]?",
    re.IGNORECASE | re.ASCII,
)
#: Characters before the parameters of a statement in which the statement is searched for.
_STATEMENT_LENGTH: Final = 2000
_FLAG_WORDS: Final = frozenset({"none", "null", "nil", "undefined", "true", "false"})


class _Place(NamedTuple):
    """One way of placing a value beside its name.

    Attributes:
        signs: Lower-case texts; one of them is in each text that has such a place.
        pattern: Has a group `value`. A group `name` is examined for placeholders and counts only.
        examine: Returns the text that replaces the value, or None to leave the value as it is.
    """

    signs: tuple[str, ...]
    pattern: re.Pattern[str]
    examine: Callable[[re.Match[str]], str | None]


def _place(signs: tuple[str, ...], pattern: str, examine: Callable[[re.Match[str]], str | None]) -> _Place:
    return _Place(signs, re.compile(pattern, _FLAGS), examine)


def _quoted_marker(value: str) -> str:
    quote = value[:2] if value[0] == "\\" else value[0] if value[0] in "\"'" else ""
    return f"{quote}{FILTERED}{quote}"


def _by_name(match: re.Match[str]) -> str | None:
    """Return the marker, unless the value is a placeholder, a flag or a count."""
    value = match["value"]
    if not value:
        return None
    if len(value) <= 40:
        bare = value.strip("\"'\\")
        if not bare or _PLACEHOLDER.fullmatch(bare) is not None or value.rstrip(".").lower() in _FLAG_WORDS:
            return None
        if bare.isdecimal() and "name" in match.re.groupindex and int(bare) < counts_below(match["name"]):
            return None
    return _quoted_marker(value)


def _if_sensitive(match: re.Match[str]) -> str | None:
    """The same, for a pattern that does not look for the name of a secret itself."""
    return _by_name(match) if match["name"] and is_sensitive(match["name"]) else None


def _of_flag(match: re.Match[str]) -> str | None:
    """The same, for a command's flag. A single dash may also begin several flags of one letter."""
    name = match["name"]
    return _by_name(match) if (name.startswith("--") or len(name) > 3) and is_sensitive(name) else None


def _of_columns(match: re.Match[str]) -> str | None:
    """Filter the values of sensitive columns; all values if there are more or fewer than columns."""
    columns, values = match["name"].split(","), match["value"].split(",")
    if not any(map(is_sensitive, columns)):
        return None
    if len(columns) != len(values):
        return FILTERED
    row = []
    for column, value in zip(columns, values, strict=True):
        bare = value.strip()
        if (
            not is_sensitive(column)
            or _PLACEHOLDER.fullmatch(bare)
            or not bare
            or bare.lower() in _FLAG_WORDS
        ):
            row.append(value)
        else:
            row.append(value[: len(value) - len(value.lstrip())] + _quoted_marker(bare))
    return ",".join(row)


def _of_statement(match: re.Match[str]) -> str | None:
    """Filter the parameters of an SQL statement that is quoted before them and has a sensitive column."""
    end = match.start()
    start = match.string.rfind("[SQL:", max(0, end - _STATEMENT_LENGTH), end)
    return FILTERED if start >= 0 and is_sensitive(match.string[start:end]) else None


def _of_input(match: re.Match[str]) -> str | None:
    """Filter the input of a validation error whose field, on the line above, is sensitive.

    A long input was shortened in its middle, which may have removed a name from its value.
    """
    value, text = match["value"], match.string
    line_start = text.rfind("\n", 0, match.start())
    field = text[text.rfind("\n", 0, max(line_start, 0)) + 1 : max(line_start, 0)]
    if is_sensitive(field) or (value[:1] in "{[(" and "..." in value):
        return _quoted_marker(value) if value else None
    return None


def _always(match: re.Match[str]) -> str | None:
    return _quoted_marker(match["value"]) if match["value"] else None


_PLACES: Final = (
    # `'name': 'password', 'value': 'x'`, in either order, and Pydantic's `'loc': ('body', 'password')` and
    # `'input': 'x'`. First, as `'key': 'password'` is a pair by itself.
    _place(
        ("value", "input"),
        rf"""{_QUOTE}(?:name|key|field|header|param|parameter|variable|setting|option|id|loc)(?P=quote)\s*+:\s*+"""
        rf"""(?:{_IN_QUOTES}|(?=[(\[][^)\]]{{0,200}}?(?:{NAME}))[(\[][^)\]]{{0,300}}+[)\]])\s*+,[^{{}}]{{0,400}}?"""
        rf"""(?P=quote)(?:value|input|val|content|default)(?P=quote)\s*+:\s*+(?P<value>{_VALUE})""",
        _by_name,
    ),
    _place(
        ("value", "input"),
        rf"""{_QUOTE}(?:value|val|input)(?P=quote)\s*+:\s*+(?P<value>{_VALUE})\s*+,[^{{}}]{{0,200}}?"""
        rf"""(?P=quote)(?:name|key|field|header|param|variable|setting|loc)(?P=quote)\s*+:\s*+[(\[]?{_IN_QUOTES}""",
        _by_name,
    ),
    # `<input name="password" value="x">`, `<add key="ApiKey" value="x"/>`.
    _place(
        ("value",),
        rf"""(?<![\w\-])(?:name|key|id|type)\s*+=\s*+{_IN_QUOTES}[^<>]{{0,300}}?(?<![\w\-])value\s*+=\s*+"""
        rf"""(?P<value>(?=\\?["']){_QUOTED})""",
        _by_name,
    ),
    # `name=value` and `"name": value`. Most words are not followed by a sign, so the sign is checked first.
    # The name is matched before the value, which may be a pair itself.
    _place(
        ("=", '"', "'"),
        rf"""(?<!{_CHARACTER})(?={_CHARACTER}++(?:[ \t]*+[=:]|\\?["'])){_NAME}"""
        r"""(?:[ \t]*+(?:={1,3}+>?|:=)[ \t]*+|\\?["']\]?+\s*+(?::|=>?)\s*+)"""
        rf"""(?P<value>{_VALUE})""",
        _by_name,
    ),
    # `{('password',): 'x'}`: a key of several parts.
    _place(
        ("):", ") :"),
        rf"""\((?={_IN_TUPLE})[^()\r\n]{{1,200}}+\)\s*+:\s*+(?P<value>{_VALUE})""",
        _by_name,
    ),
    # A header in running text, to the end of its line or quote.
    _place(
        (":",),
        r"""(?<![\w\-])(?:(?:proxy-)?authorization|(?:set-)?cookie|[\w\-]{1,60}-signature(?:-\d{1,3})?"""
        r"""|(?:x-)?(?:api|auth|access|csrf|xsrf)-?(?:key|token))[ \t]*+:[ \t]*+"""
        r"""(?P<value>[^\r\n"'\[{][^\r\n"']*+)""",
        _always,
    ),
    # `name: value` with a name that does not occur in prose.
    _place(
        (":",),
        r"""(?<![\w\-"'])(?P<name>[\w\-]++)(?=[ \t]*+:)(?:(?<=password)|(?<=passwd)|(?<=passphrase)"""
        r"""|(?<=passcode)|(?<=pwd)|(?<=secret)|(?<=[_\-]key)|(?<=[_\-]token)|(?<=[_\-]pass)|(?<=[_\-]pin)|(?<=[_\-]otp)"""
        r"""|(?-i:(?<=[a-z0-9]Key)|(?<=[a-z0-9]Token)|(?<=[a-z0-9]Pass)|(?<=[a-z0-9]Pin)))"""
        rf"""[ \t]*+:[ \t]*+(?P<value>{_VALUE})""",
        _by_name,
    ),
    # `{ token: "x" }`: a key without quotes, as JavaScript and MongoDB print it.
    _place(
        ("{",), rf"""(?<=[{{,\s]){_NAME}\s*+:\s*+(?P<value>(?=\\?["']){_QUOTED})(?=\s*+[,}}])""", _by_name
    ),
    # `('name', 'value')`, `[b'name', b'value']`.
    _place(
        ("',", '",', "' ,", '" ,'),
        rf"""[(\[]\s*+[bu]?{_QUOTE}{_NAME}(?P=quote)\s*+,\s*+(?P<value>{_QUOTED})(?=\s*+,?\s*+[)\]]|\Z)""",
        _by_name,
    ),
    # `--password value`, `-password value`, quoted or not, in a text or in a list of arguments.
    _place(
        ("-",),
        rf"""(?<![\w.\-])(?P<name>--?[a-z][\w.\-]*+){_BETWEEN}"""
        r"""(?P<value>[^\s"'\-][^\s"']*+|(?<=[ \t])(?:"[^"]*+"?|'[^']*+'?))""",
        _of_flag,
    ),
    # An element of XML, up to its end tag or to the cut of the text. The repr of an object has no end tag and
    # no attributes, so it does not match.
    _place(
        ("<",),
        rf"""<(?=[\w:.\-]*?(?:{NAME}))[\w:.\-]++(?:\s++(?:(?=[^<>=]++=)[^<>]*+)?+)?+(?<!/)>"""
        r"""(?P<value>\s*+<!\[CDATA\[(?:[^\]]++|\](?!\]>))*+(?:\]\]>)?|[^<]++(?:(?=<\\?/)|(?<=\.\.\.)\Z))""",
        _always,
    ),
    # A part of a multipart body.
    _place(
        ("name=",),
        rf"""(?<![\w\-])name={_IN_QUOTES}[^\r\n\\]{{0,200}}+"""
        rf"""(?:{_LINE_END}[\w\-]{{1,40}}+:[^\r\n\\]{{0,300}}+){{0,4}}+"""
        rf"""{_LINE_END}{_LINE_END}(?P<value>(?:(?!{_LINE_END}--).)++)""",
        _by_name,
    ),
    # SQL: `WITH PASSWORD 'x'`, `IDENTIFIED BY 'x'`, `PASSWORD('x')`.
    _place(
        ("'", '"'),
        r"""(?<!\w)(?:passw(?:or)?d|pwd|passphrase|secret|identified(?:\s++with\s++["']?\w++["']?)?\s++(?:by|as)"""
        r"""|encryption\s++key)(?:\s*+\(\s*+|\s++)(?P<value>[ne]?+'(?:[^'\\]++|''|\\.)*+'?|"(?:[^"\\]++|\\.)*+"?)""",
        _by_name,
    ),
    # `INSERT INTO users (name, password) VALUES ('bob', 'x')`.
    _place(
        ("values",),
        r"""\((?P<name>[^()\r\n]{1,1000}+)\)\s*+values\s*+\((?P<value>(?:[^()'"]++|'(?:[^'\\]++|''|\\.)*+'?|"[^"]*+"?)*+)""",
        _of_columns,
    ),
    # PostgreSQL: `Key (name, token)=(bob, x) already exists.`
    _place(
        (")=(",),
        rf"""\((?P<name>(?:[^()\r\n]|\([^()\r\n]{{0,100}}+\)){{1,300}}+)\)=\((?P<value>{_TO_BRACKET})""",
        _of_columns,
    ),
    # MySQL: `Duplicate entry 'x' for key 'users.token'`.
    _place(
        ("for key",),
        r"""(?<=duplicate entry )'(?P<value>(?:(?!' for key ')[^\r\n])*+)"""
        r"""(?:' for key '(?P<name>[^'\r\n]*+))?+""",
        _if_sensitive,
    ),
    # SQL Server: `with unique index 'ix_token'. The duplicate key value is (x).`
    _place(
        ("key value is (",),
        r"""(?:index|constraint) '(?P<name>[^'\r\n]{1,200}+)'\.[^\r\n(]{0,200}+"""
        rf"""\((?P<value>{_TO_BRACKET})""",
        _if_sensitive,
    ),
    # SQLAlchemy: `[SQL: INSERT INTO users (name, password) VALUES (?, ?)]` and `[parameters: ('bob', 'x')]`.
    _place(
        ("[parameters:",),
        r"""\[parameters: (?P<value>[(\[](?:(?!\][ \t]*\r?$)[^\r\n])*+)""",
        _of_statement,
    ),
    # Pydantic: a field on a line of its own, and on the next `… [type=…, input_value='x', input_type=str]`.
    _place(("input_value=",), r"""(?<=\binput_value=)(?P<value>(?:(?!, input_type=)[^\r\n])*+)""", _of_input),
    # The following places tell by themselves that the value is a secret.
    # PostgreSQL, of a row that a constraint refused: all columns, without their names.
    _place(("failing row",), rf"""(?<=failing row contains )\((?P<value>{_TO_BRACKET})""", _always),
    # `OTP: 123456`, `the code is 123456`: a short word that is followed by a number.
    _place(
        ("pin", "otp", "cv", "csc", "code"),
        r"""(?<![\w\-"'])(?:pin|t?otp|cvv2?|cvc2?|csc|(?:security|verification|login|access|sms)[ ]code)"""
        r"""[ \t]*+(?::|\bis\b)[ \t]*+(?P<value>\d{3,10}+)(?![\w.])""",
        _always,
    ),
    # A shell's commands with a password in a short flag.
    _place(
        ("mysql", "mariadb"),
        rf"""(?<![\w\-])(?:mysql\w*+|mariadb[\w\-]*+)(?={_BETWEEN})[^\r\n|;&]{{0,200}}?{_BETWEEN}(?-i:-p)"""
        r"""(?P<value>[^\s'"]++)""",
        _by_name,
    ),
    _place(
        ("login", "sshpass", "mongo", "cqlsh"),
        rf"""(?<![\w\-])(?:(?:docker|podman|buildah|skopeo|nerdctl|crane|oras|helm|az|oc|argocd)(?={_BETWEEN})"""
        rf"""[^\r\n|;&]{{0,40}}?\blogin|sshpass|mongo\w*+|cqlsh)(?={_BETWEEN})[^\r\n|;&]{{0,200}}?{_BETWEEN}"""
        rf"""(?-i:-p)(?:{_BETWEEN}|=)?+(?P<value>"[^"]*+"?|'[^']*+'?|[^\s'",\]]++)""",
        _by_name,
    ),
    _place(
        ("redis-cli", "ldap", "sqlcmd", "zip"),
        rf"""(?<![\w\-])(?:redis-cli(?={_BETWEEN})[^\r\n|;&]{{0,200}}?{_BETWEEN}(?-i:-a)"""
        rf"""|ldap\w++(?={_BETWEEN})[^\r\n|;&]{{0,200}}?{_BETWEEN}(?-i:-w)"""
        rf"""|(?:sqlcmd|(?:un)?zip)(?={_BETWEEN})[^\r\n|;&]{{0,200}}?{_BETWEEN}(?-i:-P))"""
        rf"""(?:{_BETWEEN}|=)?+(?P<value>"[^"]*+"?|'[^']*+'?|[^\s'",\]]++)""",
        _by_name,
    ),
    _place(
        ("curl", "wget", "smbclient"),
        rf"""(?<![\w\-])(?:(?:curl|wget)(?={_BETWEEN})[^\r\n|;&]{{0,200}}?{_BETWEEN}(?-i:-u|-U|--user|--proxy-user)"""
        rf"""(?:{_BETWEEN}|=)?+["']?[^\s:'"]*+:|smbclient(?={_BETWEEN})[^\r\n|;&]{{0,200}}?{_BETWEEN}(?-i:-U)"""
        rf"""{_BETWEEN}?+["']?[^\s%'"]*+%)(?P<value>[^\s'",\]]++)""",
        _by_name,
    ),
    # `openssl -passin pass:x`.
    _place(("pass:",), rf"""(?<=-pass)(?:in|out)?+{_BETWEEN}pass:(?P<value>[^\s'"]++)""", _by_name),
    # `machine host login bob password x`, as in `.netrc`.
    _place((" login ",), r"""\blogin[ \t]++\S++\s++password[ \t]++(?P<value>\S++)""", _by_name),
)
#: Commands whose password is the value of a short flag.
_SHORT_FLAGS: Final = {
    **dict.fromkeys(
        ("mysql", "mysqldump", "mysqladmin", "mysqlimport", "mysqlcheck", "mysqlsh", "mysqlpump"), "-p"
    ),
    **dict.fromkeys(("mariadb", "mariadb-dump", "mariadb-admin", "mariadb-import", "mariadb-check"), "-p"),
    **dict.fromkeys(("mongo", "mongosh", "mongodump", "mongorestore", "mongoexport", "mongoimport"), "-p"),
    **dict.fromkeys(("ldapsearch", "ldapadd", "ldapmodify", "ldappasswd", "ldapwhoami", "ldapdelete"), "-w"),
    **dict.fromkeys(("sqlcmd", "bcp", "zip", "unzip"), "-P"),
    "sshpass": "-p",
    "cqlsh": "-p",
    "redis-cli": "-a",
}
#: Beginnings of the commands whose password is never an argument of its own.
_ATTACHED: Final = ("mysql", "mariadb")
#: Commands with a sub-command `login`.
_LOGIN: Final = frozenset(
    ("docker", "podman", "buildah", "skopeo", "nerdctl", "crane", "oras", "helm", "az", "oc", "argocd")
)

# An OAuth code, in a query or a form.
_OAUTH_CODE = re.compile(r"""(?<![\w.\-])code=(?P<value>[^&\s'"#<>]++)""", re.ASCII)
_OAUTH = re.compile(
    r"(?<![\w.\-])state=|grant_type=|callback|oauth|oidc|openid|/authorize|/signin|/login|/sso", re.IGNORECASE
)
# The scheme and credentials of an `Authorization` value, anywhere.
_SCHEME = re.compile(r"(?<!\w)(bearer|basic|digest|negotiate)([ \t]++)([\w.~+/=:\-]{6,}+)", re.IGNORECASE)
_SCHEMES: Final = ("earer", "EARER", "asic", "ASIC", "igest", "IGEST", "egotiate", "EGOTIATE")
#: One of these is in the lower-case form of each text that has a place.
_STEMS: Final = (
    *(*STEMS, "identified", "encryption", "failing row", "login", "mysql", "mariadb", "mongo", "cqlsh"),
    *("redis-cli", "ldap", "sqlcmd", "zip", "curl", "wget", "smbclient"),
)
_PUNCTUATION: Final = ("=", ":", "'", '"', "-", "(", "<", " is ", " login ")

# Texts that scrubbing does not change; the same names and words are in each event. Changed in atomic steps.
_harmless: dict[str, None] = {}


def scrub_userinfo(text: str) -> str:
    """Return the text with user and password removed from every URL in it."""
    if "@" not in text:
        return text
    if "://" in text:
        text = _USERINFO.sub(FILTERED + "@", text)
        if "@" in text:
            text = _WEB_USERINFO.sub(FILTERED + "@", _DATABASE_USERINFO.sub(FILTERED + "@", text))
    if "@tcp(" in text or "@unix(" in text or "@udp(" in text:
        text = _SOCKET_USERINFO.sub(FILTERED + "@", text)
    return text


def secret_flag(arguments: list[object]) -> tuple[str, bool]:
    """Return the short flag that precedes a password in these arguments of a command, or an empty string.

    Also returns True if the password can only be attached to the flag, as in `mysql -pSECRET`.
    """
    program = arguments[0]
    if type(program) is not str:
        return "", False
    name = program[-64:].replace("\\", "/").rpartition("/")[2].lower().removesuffix(".exe")
    if name in _LOGIN and "login" in arguments[1:4]:
        return "-p", False
    return _SHORT_FLAGS.get(name, ""), name.startswith(_ATTACHED)


def scrub_text(text: str) -> str:
    """Return the text with everything filtered that is a secret by its place or form.

    That is: credentials in URLs, values beside the name of a secret (`_PLACES`), passwords of well-known
    commands, credentials after `Bearer` and similar schemes, and tokens of well-known forms. Prose is left
    alone.
    """
    if text in _harmless:
        return text
    result = _scrub(text)
    if result is text and len(text) <= _REMEMBERED_LENGTH:
        if len(_harmless) >= _REMEMBERED:
            _harmless.clear()
        _harmless[text] = None
    return result


def _scrub(text: str) -> str:
    if _any_in(_PUNCTUATION, text):
        if ":" in text:
            text = scrub_userinfo(text)
        # Substrings are looked for by a loop, as that takes a tenth of the time of one pattern of
        # alternatives.
        lowered = text.lower()
        if _any_in(_STEMS, lowered):
            text = _filter_places(_PLACES, text, lowered)
    if "code=" in text and _OAUTH.search(text) is not None:
        text = _OAUTH_CODE.sub(partial(_replaced, _by_name), text)
    if " " in text and _any_in(_SCHEMES, text):
        text = _SCHEME.sub(_filter_scheme, text)
    return scrub_forms(text)


def _filter_places(places: tuple[_Place, ...], text: str, lowered: str) -> str:
    for signs, pattern, examine in places:
        if _any_in(signs, lowered):
            text = pattern.sub(partial(_replaced, examine), text)
    return text


def _replaced(examine: Callable[[re.Match[str]], str | None], match: re.Match[str]) -> str:
    """Return the whole match, with its value replaced by what `examine` returns."""
    replacement = examine(match)
    if replacement is None:
        return match.group()
    start, end = match.span("value")
    return f"{match.string[match.start() : start]}{replacement}{match.string[end : match.end()]}"


def _any_in(signs: tuple[str, ...], text: str) -> bool:
    for sign in signs:  # noqa: SIM110 - a generator costs twice as much
        if sign in text:
            return True
    return False


def _filter_scheme(match: re.Match[str]) -> str:
    scheme, space, value = match.groups()
    if not any(character.isdigit() or character in "=._~+/" for character in value) and value.islower():
        return match.group()  # "basic authentication", "digest auth-int": a word
    return f"{scheme}{space}{FILTERED}"


def scrub_query(query: str, *, send_pii: bool, path: str = "") -> str:
    """Return a query string or form body with the values of sensitive parameters filtered.

    Args:
        query: The string, without a question mark.
        send_pii: `send_default_pii`.
        path: The path, or the URL, that the query belongs to; it shows whether `code` is an OAuth code.
    """
    if "code=" in query and (_OAUTH.search(path) is not None or _OAUTH.search(query) is not None):
        query = _OAUTH_CODE.sub(partial(_replaced, _by_name), query)
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
