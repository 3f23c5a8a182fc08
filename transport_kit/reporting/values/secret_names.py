"""The names of secrets: which keys, headers, variables and parameters have a value that is hidden.

This module classifies names only; `scrub.py` finds names in text, and `bounded.py` finds them in values.

There are two lists. The value of a name in the first list is always hidden; it is the protocol's deny-list
and matches anywhere in a name. A name in the second list is a short word that also occurs in harmless names
(`compass`, `bypass`, `pinned`), so it matches only as the last word of a name. Under such a name a flag, None
or a count is shown.

Source: docs/protocol.md, section 7; the second list follows the keyword rules of secret scanners.

Threads: stateless, except for a cache that any thread may fill.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

__all__ = ["FILTERED", "NAME", "STEMS", "counts_below", "hidden", "is_personal", "is_private", "is_sensitive"]

#: Replaces a secret.
FILTERED: Final = "[Filtered]"
_CACHED_LENGTH: Final = 64
#: Numbers below these are counts under a name of the second list. A code has at least three digits.
_LEAST_CODE: Final = 100
_LEAST_SECRET_NUMBER: Final = 1_000_000

_ALWAYS: Final = (
    r"auth|token|secret|passw|passphrase|passcode|pwd|key|jwt|bearer|sso|saml|csrf|xsrf|credential|session|sessid"
    r"|cookie|identity|contrase[nñ]a|kennwort|wachtwoord|de[_-]?passe|(?<![a-z])senha|mnemonic|storepass"
    r"|webhook[_-]?url|recovery[_-]?code|backup[_-]?code|verification[_-]?code|security[_-]?code|one[_-]?time[_-]?code"
    r"|(?:card|cc)[_-]?(?:number|num)(?![a-z])|(?<![a-z])sid(?![a-z])"
)
_WORDS: Final = r"pass|pw|pin|t?otp|cvv2?|cvc2?|cvn|csc|ssn|sig|signature|private|salt"
_CAMEL: Final = r"Pass|Pw|Pin|T?[oO]tp|OTP|PIN|Cv[vc]2?|CV[VC]2?|Ssn|SSN|Sig|Signature|Private|Salt"
_AT_END: Final = (
    rf"(?:(?<![a-z])(?:{_WORDS})|(?-i:(?<=[a-z0-9])(?:{_CAMEL})))"
    r"(?:[_.-]?(?:hash|codes?|number|value))?(?:[_-]?\d{1,3})?(?![\w-])"
)
#: Part of a name that makes its value a secret. Compiled with IGNORECASE.
NAME: Final = rf"{_ALWAYS}|{_AT_END}"

#: Lower-case texts of which one is in each name of a secret.
STEMS: Final = (
    *("auth", "token", "secret", "pass", "pwd", "key", "jwt", "bearer", "sso", "saml", "srf", "credential"),
    *("sess", "cookie", "identity", "sid", "pw", "pin", "otp", "cv", "csc", "ssn", "sig", "private", "salt"),
    *("code", "card", "ccnum", "cc_num", "cc-num", "mnemonic", "webhook"),
    *("contrase", "kennwort", "wachtwoord", "senha", "de_passe", "depasse", "de-passe"),
)

_SECRET = re.compile(_ALWAYS, re.IGNORECASE)
_SECRET_AT_END = re.compile(_AT_END, re.IGNORECASE)
# Names whose value may be a number of something: "12 pass, 3 fail".
_COUNTED = re.compile(r"pass|pw|private|sig|salt", re.IGNORECASE)
_PERSONAL = re.compile(
    r"forwarded[-_]for|(?<![a-z])forwarded$|remote[-_](?:addr|user|host)|ip[-_]?addr|(?<![a-z])ip(?![a-z])",
    re.IGNORECASE,
)


def is_sensitive(name: str) -> bool:
    """Return True if a value under this name is a secret, hidden whatever the options."""
    return _classify(name)[0]


def is_personal(name: str) -> bool:
    """Return True if a value under this name identifies the client, hidden without `send_default_pii`."""
    return _classify(name)[1]


def is_private(name: str) -> bool:
    """Return True if a value under this name is hidden without `send_default_pii`."""
    secret, personal, _ = _classify(name)
    return secret or personal


def counts_below(name: str) -> int:
    """Return the number below which a value under this name is a count, and is shown; 0 if none is."""
    return _classify(name)[2]


def hidden(name: str, value: Any) -> Any:
    """Return the marker, or the value itself if it is a flag, None or a count that this name shows."""
    cls = type(value)
    if (value is None or cls is bool or cls is int) and (limit := counts_below(name)):
        return value if cls is not int or -limit < value < limit else FILTERED
    return FILTERED


def _classify(name: str) -> tuple[bool, bool, int]:
    # Clients choose the names of headers and cookies, so long ones are not cached.
    return _cached_search(name) if len(name) <= _CACHED_LENGTH else _search(name)


def _search(name: str) -> tuple[bool, bool, int]:
    limit = 0
    secret = _SECRET.search(name) is not None
    if not secret and (match := _SECRET_AT_END.search(name)) is not None:
        secret = True
        limit = _LEAST_SECRET_NUMBER if _COUNTED.match(match.group()) else _LEAST_CODE
    return secret, _PERSONAL.search(name) is not None, limit


_cached_search = lru_cache(maxsize=4096)(_search)
