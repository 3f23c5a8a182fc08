"""Rate limits: which categories the receiver asked us to hold back, and until when.

Owns the reading of `X-Sentry-Rate-Limits` and `Retry-After` and the table made of them. Does not drop
anything and owns no clock but the default for HTTP dates: `now` is a parameter.

Threads: a table never changes. One writer replaces it, any number of threads read it without a lock.
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
"""The table's key for a limit on every category, client reports and unknown items included."""

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
"""The data categories a limit may name; names are case-sensitive and others are ignored."""

_DEFAULT_PAUSE = 60.0  # seconds, where the receiver asked for a pause and did not say a usable length
# From here on a length counts as overflown, hence as none, as it does for a receiver that reads its own
# header into 64 bits.
_OVERFLOW = 2.0**63
# Stricter than float(), which takes underscores and the digits of every script.
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

    `RateLimits()` limits nothing. Immutable: `updated` returns a table. Deadlines are monotonic seconds,
    and the table holds at most one per known category and one for all, whatever a receiver sends.

    Source: docs/protocol.md, section 5; RFC 9110 section 10.2.3.
    """

    _until: Mapping[str, float] = field(default_factory=dict)

    def updated(
        self, status: int, headers: Mapping[str, str], now: float, *, wall: float | None = None
    ) -> RateLimits:
        """The table after a response; expired limits are left out, longer ones are never shortened.

        `X-Sentry-Rate-Limits` counts on any status and silences `Retry-After`. Without a readable one, a
        429 limits all categories for `Retry-After`, or 60 s; a 503 does so if it has that header.

        Never raises, whatever the headers hold.

        Args:
            status: The response's HTTP status.
            headers: The response's headers, in any case.
            now: Monotonic seconds.
            wall: Seconds since the epoch, against which a date in `Retry-After` is read; None asks the
                system clock.
        """
        found = dict(self.active(now))
        readable = False
        for category, seconds in _groups(_header(headers, "x-sentry-rate-limits") or ""):
            readable = True
            if category is not None:
                _lengthen(found, category, now, seconds)
        if not readable and status in (429, 503):
            asked = _header(headers, "retry-after")
            if status == 429 or asked is not None:
                pause = _pause(asked or "", time.time() if wall is None else wall)
                _lengthen(found, ALL, now, _DEFAULT_PAUSE if pause is None else pause)
        return self if found == self._until else RateLimits(found)

    def limited_until(self, category: str | None) -> float:
        """When the limits on `category` end, in monotonic seconds; 0.0 without any.

        None stands for items of no category, which only a limit on all holds back.
        """
        # Called for every item sent, so no more than two lookups.
        everything = self._until.get(ALL, 0.0)
        own = self._until.get(category, 0.0) if category is not None else 0.0
        return own if own > everything else everything

    def is_limited(self, category: str | None, now: float) -> bool:
        """Whether `category` is held back at `now`, monotonic seconds; at its deadline it is free."""
        return self.limited_until(category) > now

    def active(self, now: float) -> dict[str, float]:
        """The deadlines after `now` by category, `ALL` standing for all; a copy, in monotonic seconds."""
        return {category: until for category, until in self._until.items() if until > now}

    def __repr__(self) -> str:
        return f"RateLimits({dict(self._until)!r})"

    def __hash__(self) -> int:
        return hash(frozenset(self._until.items()))


def retry_after_seconds(headers: Mapping[str, str], *, wall: float) -> float | None:
    """The seconds that `Retry-After` asks for, rounded up: 0.0 for a past date or a negative number.

    None when the header is absent or can't be read. Never raises.

    Args:
        headers: In any case.
        wall: Seconds since the epoch, against which a date is read.
    """
    text = _header(headers, "retry-after")
    return None if text is None else _pause(text, wall)


def _lengthen(found: dict[str, float], category: str, now: float, seconds: float) -> None:
    if seconds > 0:
        found[category] = max(now + seconds, found.get(category, 0.0))


def _header(headers: Mapping[str, str], name: str) -> str | None:
    """The header's values, joined as RFC 9110 section 5.2 joins repeated lines; None when absent."""
    # A mapping of foreign make may hold bytes or None; those are not headers to us.
    pairs: Iterable[tuple[object, object]] = headers.items()
    values = [
        value
        for key, value in pairs
        if isinstance(key, str) and isinstance(value, str) and key.lower() == name
    ]
    return ", ".join(values) if values else None


def _groups(text: str) -> Iterator[tuple[str | None, float]]:
    """Category and seconds of every readable group; None for a group that limits nothing we know."""
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
            # The group concerns metrics made by the server's own products, which we never send.
            known -= {"metric_bucket"}
        yield None, seconds
        for category in known:
            yield category, seconds


def _names(parts: list[str], index: int) -> set[str]:
    text = parts[index] if index < len(parts) else ""
    return {name for name in map(str.strip, text.split(";")) if name}


def _number(text: str) -> float | None:
    """Seconds rounded up; what is negative, not finite or overflown asks for no pause. None: no number."""
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
    """Seconds since the epoch of an HTTP date; None when it is none, or no day of the calendar."""
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
