"""Rate limits: the data categories that the receiver refuses for now, and the time at which each limit ends.

This module owns the parsing of `X-Sentry-Rate-Limits` and `Retry-After`, and the table of limits. It drops no
items. It reads no clock except the system clock, by default, for HTTP dates: `now` is a parameter.

Threads: a table never changes. One writer replaces it; any number of threads read it without a lock.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

__all__ = ["ALL", "KNOWN_CATEGORIES", "RateLimits", "retry_after_seconds"]

ALL = "*"
"""The table's key for a limit on all categories, including client reports and items of no category."""

KNOWN_CATEGORIES = frozenset(
    {
        "attachment",
        "attachment_item",
        "default",
        "error",
        "feedback",
        "internal",
        "log_byte",
        "log_item",
        "metric_bucket",
        "monitor",
        "profile",
        "profile_chunk",
        "profile_chunk_ui",
        "replay",
        "security",
        "session",
        "span",
        "trace_metric",
        "trace_metric_byte",
        "transaction",
    }
)
"""The data categories a limit may name, case-sensitive; other names are ignored."""

_DEFAULT_PAUSE = 60.0  # seconds of a limit without a readable length
# Most seconds of a limit. After that an envelope of the category may try, and a limit that is still meant is
# answered again: one absurd header must not silence an app for years.
_LONGEST = 86_400.0
# A length of this many seconds or more is treated as 0: it overflows in receivers that use 64 bits.
_OVERFLOW = 2.0**63
# Stricter than float(), which accepts underscores and the digits of every script.
_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf(?:inity)?)", re.I)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_CLOCK = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
# The three forms of RFC 9110 section 5.6.7: the current one, RFC 850's and asctime's.
_DATES = tuple(
    re.compile(pattern, re.I)
    for pattern in (
        rf"[a-z]{{3}}, (?P<day>[0-9]{{2}}) (?P<month>[a-z]{{3}}) (?P<year>[0-9]{{4}}) {_CLOCK} GMT",
        rf"[a-z]{{6,9}}, (?P<day>[0-9]{{2}})-(?P<month>[a-z]{{3}})-(?P<year>[0-9]{{2}}) {_CLOCK} GMT",
        rf"[a-z]{{3}} (?P<month>[a-z]{{3}}) (?P<day>[ 0-9][0-9]) {_CLOCK} (?P<year>[0-9]{{4}})",
    )
)


@dataclass(frozen=True, slots=True, repr=False)
class RateLimits:
    """The limits in force, by category.

    `RateLimits()` contains no limit. Immutable: `updated` returns a new table. Deadlines are monotonic
    seconds; a table contains at most one per known category and one for all, whatever a receiver sends.

    Source: docs/protocol.md, section 5; RFC 9110 section 10.2.3.
    """

    _until: Mapping[str, float] = field(default_factory=dict)

    def updated(
        self, status: int, headers: Mapping[str, str], now: float, *, wall: float | None = None
    ) -> RateLimits:
        """Return the table after a response, without expired limits. A limit is never shortened.

        `X-Sentry-Rate-Limits` applies with any status and overrides `Retry-After`. Without a readable one, a
        429 limits all categories for the time in `Retry-After`, or 60 s; a 503 does so only if it has that
        header. A limit lasts a day at most.

        Never raises, whatever the headers contain.

        Args:
            status: The response's HTTP status.
            headers: The response's headers, names in any case.
            now: Monotonic seconds.
            wall: Seconds since the epoch; None is the system clock. Subtracted from a date in `Retry-After`
            if
                the response has no `Date`.
        """
        limits = dict(self.active(now))
        readable = False
        for category, seconds in _groups(_header(headers, "x-sentry-rate-limits") or ""):
            readable = True
            if category is not None:
                _extend(limits, category, now, seconds)
        if not readable and status in (429, 503):
            retry_after = _header(headers, "retry-after")
            if status == 429 or retry_after is not None:
                pause = _pause(retry_after or "", _wall_of(headers, time.time() if wall is None else wall))
                _extend(limits, ALL, now, _DEFAULT_PAUSE if pause is None else pause)
        return self if limits == self._until else RateLimits(limits)

    def limited_until(self, category: str | None) -> float:
        """Return the monotonic second at which the limits on `category` end; 0.0 without a limit.

        Items of no category (None) are subject only to a limit on all categories.
        """
        # Called for every item sent: at most two lookups.
        general = self._until.get(ALL, 0.0)
        own = self._until.get(category, 0.0) if category is not None else 0.0
        return own if own > general else general

    def is_limited(self, category: str | None, now: float) -> bool:
        """Return True if `category` is limited at `now`, in monotonic seconds; False from its deadline on."""
        return self.limited_until(category) > now

    def active(self, now: float) -> dict[str, float]:
        """Return the deadlines after `now` by category or `ALL`, in monotonic seconds; a new dict."""
        return {category: until for category, until in self._until.items() if until > now}

    def __bool__(self) -> bool:
        """True if the table contains a limit, expired or not."""
        return bool(self._until)

    def __repr__(self) -> str:
        return f"RateLimits({dict(self._until)!r})"

    def __hash__(self) -> int:
        return hash(frozenset(self._until.items()))


def retry_after_seconds(headers: Mapping[str, str], *, wall: float) -> float | None:
    """Return the seconds in `Retry-After`, rounded up; 0.0 for a past date or a negative number.

    Returns None if the header is absent or can't be read. Never raises.

    Args:
        headers: Names in any case.
        wall: Seconds since the epoch, subtracted from a date if the response has no `Date`.
    """
    text = _header(headers, "retry-after")
    return None if text is None else _pause(text, _wall_of(headers, wall))


def _wall_of(headers: Mapping[str, str], wall: float) -> float:
    """Return the server's own time of the response, so that a wrong clock on either side does not matter."""
    moment = _date((_header(headers, "date") or "").strip())
    return wall if moment is None else moment


def _extend(limits: dict[str, float], category: str, now: float, seconds: float) -> None:
    if seconds > 0:
        limits[category] = max(now + min(seconds, _LONGEST), limits.get(category, 0.0))


def _header(headers: Mapping[str, str], name: str) -> str | None:
    """Return the header's values, joined by commas as in RFC 9110 section 5.2; None if absent."""
    # A third party's mapping may contain bytes or None, which are ignored.
    pairs: Iterable[tuple[object, object]] = headers.items()
    values = [
        value
        for key, value in pairs
        if isinstance(key, str) and isinstance(value, str) and key.lower() == name
    ]
    return ", ".join(values) if values else None


def _groups(text: str) -> Iterator[tuple[str | None, float]]:
    """Yield category and seconds of each limit, and a category of None once per readable group."""
    for group in text.split(","):
        parts = group.split(":")
        seconds = _number(parts[0])
        if seconds is None:
            continue
        categories = _names(parts, 1)
        if not categories:
            yield ALL, seconds
            continue
        known = categories & KNOWN_CATEGORIES
        namespaces = _names(parts, 4)
        if namespaces and "custom" not in namespaces:
            # The group limits only metrics of namespaces that this library never sends.
            known -= {"metric_bucket"}
        yield None, seconds
        for category in known:
            yield category, seconds


def _names(parts: list[str], index: int) -> set[str]:
    text = parts[index] if index < len(parts) else ""
    return {name for name in map(str.strip, text.split(";")) if name}


def _number(text: str) -> float | None:
    """Return seconds, rounded up; 0.0 if negative, not finite or too large; None if not a number."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return None
    seconds = float(text)
    return float(math.ceil(seconds)) if 0 < seconds < _OVERFLOW else 0.0


def _pause(text: str, wall: float) -> float | None:
    seconds = _number(text)
    if seconds is not None:
        return seconds
    moment = _date(text.strip())
    return None if moment is None else max(0.0, float(math.ceil(moment - wall)))


def _date(text: str) -> float | None:
    """Return an HTTP date as seconds since the epoch; None if it has another form or no such day exists."""
    match = next(filter(None, (pattern.fullmatch(text) for pattern in _DATES)), None)
    if match is None or match["month"].lower() not in _MONTHS:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:
        year += 2000 if year < 70 else 1900
    try:
        moment = datetime(
            year,
            _MONTHS.index(match["month"].lower()) + 1,
            int(match["day"]),
            int(match["hour"]),
            int(match["minute"]),
            min(int(match["second"]), 59) if match["second"] == "60" else int(match["second"]),
            tzinfo=UTC,
        )
    except ValueError:
        return None
    return moment.timestamp()
