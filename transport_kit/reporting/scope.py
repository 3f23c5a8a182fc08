"""Scope: what is known about the unit of work that runs, and which exceptions it has reported.

Owns the context variable, and the mark that says "captured". A scope is one request, task or job; it
begins with what the surrounding one holds, and changes to it stay in it. Outside of any there is one
scope for the process.

Threads: a scope may be read and changed from any thread; each reading takes a copy in one step.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar, Token
from itertools import islice
from types import TracebackType
from typing import Any, Final, TypeAlias

from transport_kit.envelope.ids import random_bytes
from transport_kit.envelope.item import Item
from transport_kit.reporting.unit_of_work import Unit
from transport_kit.reporting.values.bounded import (
    TAG_LENGTH,
    Limits,
    Room,
    as_text,
    bounded,
    cut,
    tag_key,
    tag_value,
    tidy,
)
from transport_kit.reporting.values.scrub import is_sensitive
from transport_kit.runtime.interrupts import let_through

__all__ = [
    "attachment",
    "enter_scope",
    "known_level",
    "leave_scope",
    "mark_captured",
    "new_scope",
    "Processor",
    "Scope",
    "take_mark_back",
    "usable_ip",
    "user_facts",
]

_MARK: Final = "__transport_kit_captured__"
#: Text, elements and depth of a value in `extra` or `user`; the protocol's limits per value and in all.
_EXTRA: Final = Limits(text=8192, breadth=100, depth=6)
_EXTRA_BYTES: Final = 16 * 1024
_EXTRA_TOTAL: Final = 256 * 1024
_USER_BYTES: Final = 4 * 1024
_USER_LENGTHS: Final = {"id": 128, "username": 128, "email": 75}
_CONTEXT_BYTES: Final = 8 * 1024
_CRUMB: Final = Limits(text=2048, breadth=50, depth=5, hides=is_sensitive)
_CRUMB_BYTES: Final = 4 * 1024
_CATEGORY_LENGTH: Final = 128
_MAX_DEPTH: Final = 32
_MAX_ATTACHMENTS: Final = 30
_MAX_CONTEXTS: Final = 50
_MAX_FINGERPRINT: Final = 20
_MAX_TAGS: Final = 100
_MAX_EXTRA: Final = 100
_LEVELS: Final = {name: name for name in ("fatal", "error", "warning", "info", "debug")} | {
    "critical": "fatal",
    "warn": "warning",
    "log": "info",
}

#: Takes an event and its hint; returns the event to go on with, or None to drop it.
Processor: TypeAlias = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any] | None]

# The C getter of every exception's instance dict: a class that overrides `__dict__` or `__setattr__` has
# no say, and a class with `__slots__` has one nevertheless.
_dict_of: Callable[[BaseException], dict[str, Any]] = BaseException.__dict__["__dict__"].__get__


class Scope:
    """User, tags, extra, contexts, level and fingerprint of what is captured in one context.

    Attributes:
        unit: The work it belongs to; the surrounding scope's, unless it began one.
    """

    __slots__ = (
        "_attachments",
        "_contexts",
        "_depth",
        "_extra",
        "_fingerprint",
        "_id",
        "_level",
        "_parent",
        "_processors",
        "_tags",
        "_user",
        "unit",
    )

    def __init__(self, parent: Scope | None = None, unit: Unit | None = None) -> None:
        self._id: str | None = None
        # Kept for `id` only, and not without end: a task that starts its own successor, in a scope of its
        # own, would make a chain that holds all of them.
        self._depth: int = 0 if parent is None else (parent._depth + 1) % _MAX_DEPTH
        self._parent = parent if self._depth else None
        if parent is None:
            self.unit = unit or Unit()
            self._tags: dict[str, str] = {}
            self._extra: dict[str, Any] = {}
            self._contexts: dict[str, dict[str, Any]] = {}
            # Replaced, never changed in place, so that scopes may share them.
            self._user: dict[str, Any] | None = None
            self._level: str | None = None
            self._fingerprint: tuple[str, ...] = ()
            self._processors: tuple[Processor, ...] = ()
            self._attachments: tuple[Item, ...] = ()
        else:
            self.unit = unit or parent.unit
            # Most scopes are in one that has nothing set, and a literal is cheaper than a copy.
            self._tags = parent._tags.copy() if parent._tags else {}
            self._extra = parent._extra.copy() if parent._extra else {}
            self._contexts = parent._contexts.copy() if parent._contexts else {}
            self._user = parent._user
            self._level = parent._level
            self._fingerprint = parent._fingerprint
            self._processors = parent._processors
            self._attachments = parent._attachments

    @property
    def id(self) -> str:
        """Names this scope; begins with the surrounding scope's id and a slash."""
        if self._id is None:
            # Made when asked for: most requests capture nothing.
            own = random_bytes(8).hex()
            self._id = own if self._parent is None else f"{self._parent.id}/{own}"
        return self._id

    @staticmethod
    def current() -> Scope:
        """The scope of the running context; the process's own when there is none."""
        return _current.get()

    def set_tag(self, key: str, value: object) -> None:
        """Tag what is captured from here on; at most 200 characters each, 100 tags. An empty value clears."""
        name, text = tag_key(key), tag_value(value)
        if not text:
            self._tags.pop(name, None)  # servers take none
        elif name and (name in self._tags or len(self._tags) < _MAX_TAGS):
            self._tags[name] = text

    def set_extra(self, key: str, value: object) -> None:
        """Add a value as it is now: a later change to it is not seen. At most 16 KiB of JSON."""
        name = cut(as_text(key), TAG_LENGTH)
        if name in self._extra or len(self._extra) < _MAX_EXTRA:
            self._extra[name] = bounded(value, Room(_EXTRA_BYTES), _EXTRA)

    def set_user(self, user: Mapping[str, object] | None) -> None:
        """Say who the user is (`id`, `username`, `email`, `ip_address`, or keys of your own); None clears.

        What is set by hand is sent, whatever `send_default_pii` says.
        """
        self._user = user_facts(user)

    def set_context(self, name: str, values: Mapping[str, object] | None) -> None:
        """Add a section of facts under `contexts`, as they are now; None removes it. At most 8 KiB each."""
        key = cut(as_text(name), TAG_LENGTH)
        facts = _items_of(values)
        if facts is None:
            self._contexts.pop(key, None)
        elif key in self._contexts or len(self._contexts) < _MAX_CONTEXTS:
            self._contexts[key] = bounded(facts, Room(_CONTEXT_BYTES), _EXTRA)

    def set_level(self, level: str | None) -> None:
        """The level of what is captured from here on, whatever the capture says; None clears."""
        self._level = level if level is None else known_level(level)

    def set_fingerprint(self, fingerprint: Iterable[str] | None) -> None:
        """How servers group what is captured: texts, `{{ default }}` is their own way; None clears."""
        try:
            given = () if fingerprint is None or isinstance(fingerprint, str) else fingerprint
            parts = list(islice(given, _MAX_FINGERPRINT))
        except Exception as error:
            let_through(error)
            parts = []  # it can't be iterated over
        self._fingerprint = tuple(tidy(part, TAG_LENGTH) for part in parts)

    def add_event_processor(self, processor: Processor) -> None:
        """Have `processor(event, hint)` change each event captured from here on; its None drops the event.

        Runs before `before_send`, the one added first is called first.
        """
        if callable(processor):
            self._processors = (*self._processors, processor)

    def add_attachment(
        self,
        payload: object,
        *,
        filename: str,
        content_type: str | None = None,
        attachment_type: str | None = None,
    ) -> None:
        """Send a file with each event captured from here on; at most 30, as servers take no more.

        Args:
            payload: Bytes, text, or a path (`pathlib.Path`), read when an event is captured.
            filename: As servers show it.
        """
        if len(self._attachments) < _MAX_ATTACHMENTS:
            item = attachment(payload, filename, content_type, attachment_type)
            self._attachments = (*self._attachments, item)

    def add_breadcrumb(
        self,
        message: str = "",
        *,
        category: str = "",
        level: str = "info",
        type: str = "default",
        data: Mapping[str, object] | None = None,
    ) -> None:
        """Leave a breadcrumb in the current unit of work: the last 100 go with the next event.

        Secrets in `data`, by their names, and in `message`, by what they look like, are filtered.
        """
        crumb: dict[str, Any] = {"type": cut(as_text(type), _CATEGORY_LENGTH), "level": known_level(level)}
        if category := as_text(category):
            crumb["category"] = cut(category, _CATEGORY_LENGTH)
        if message := as_text(message):
            crumb["message"] = bounded(message, Room(_CRUMB_BYTES), _CRUMB)
        facts = _items_of(data)
        if facts is not None:
            crumb["data"] = bounded(facts, Room(_CRUMB_BYTES), _CRUMB)
        self.unit.add_breadcrumb(crumb)

    @property
    def attachments(self) -> tuple[Item, ...]:
        """The files that go with each event."""
        return self._attachments

    @property
    def processors(self) -> tuple[Processor, ...]:
        """The event processors, in the order in which they are called."""
        return self._processors

    def user(self) -> dict[str, Any] | None:
        """Who the user is, as set; the caller's own copy."""
        return None if self._user is None else self._user.copy()

    def apply(self, event: dict[str, Any]) -> None:
        """Add to an event what it doesn't say itself; the event's own values win."""
        if self._user and event.get("user") is None:
            event["user"] = self.user()
        _merge(event, "tags", self._tags)
        if self._contexts:
            _merge(event, "contexts", self._copied_contexts())
        if self._level is not None:
            event["level"] = self._level
        if self._fingerprint and event.get("fingerprint") is None:
            event["fingerprint"] = list(self._fingerprint)
        if self._extra:
            _merge(event, "extra", self._within_total())

    def _copied_contexts(self) -> dict[str, Any]:
        contexts = list(self._contexts.items())
        return {name: bounded(values, Room(_CONTEXT_BYTES), _EXTRA) for name, values in contexts}

    def _within_total(self) -> dict[str, Any]:
        left, kept = _EXTRA_TOTAL, {}
        for name, value in list(self._extra.items()):
            room = Room(min(left, _EXTRA_BYTES))
            if room.left < 2 * TAG_LENGTH:
                break
            before = room.left
            kept[name] = bounded(value, room, _EXTRA)
            left -= before - room.left + len(name)
        return kept


def _merge(event: dict[str, Any], field: str, values: dict[str, Any]) -> None:
    own = event.get(field)
    if values and own is None:
        event[field] = values.copy()
    elif values and type(own) is dict:
        event[field] = {**values, **own}


def attachment(
    payload: object, filename: str, content_type: str | None = None, attachment_type: str | None = None
) -> Item:
    """A file as an item of an envelope."""
    return Item(
        payload,
        type="attachment",
        filename=cut(as_text(filename), TAG_LENGTH) or "attachment",
        content_type=content_type,
        attachment_type=attachment_type,
    )


def known_level(level: object) -> str:
    """The level as servers know it; `error` when they don't."""
    return _LEVELS.get(str.lower(level), "error") if issubclass(type(level), str) else "error"  # type: ignore[arg-type]


def _items_of(value: object) -> dict[Any, Any] | None:
    """A mapping's items; None for what is no mapping, and for one that fails when it is read."""
    try:
        return dict(value) if isinstance(value, Mapping) else None
    except Exception as error:
        let_through(error)
        return None


def user_facts(user: object) -> dict[str, Any] | None:
    """A user as servers take one; None for what is no mapping."""
    facts = _items_of(user)
    if facts is None:
        return None
    known: dict[str, Any] = bounded(facts, Room(_USER_BYTES), _EXTRA)
    for name, limit in _USER_LENGTHS.items():
        if known.get(name) is not None:
            known[name] = cut(str(known[name]), limit)
    if "ip_address" in known and not usable_ip(known["ip_address"]):
        del known["ip_address"]
    if "geo" in known and type(known["geo"]) is not dict:
        del known["geo"]
    if "data" in known and type(known["data"]) is not dict:
        known["data"] = {"data": known["data"]}
    return known


def usable_ip(address: object) -> bool:
    """Whether a server takes this as a user's address."""
    if type(address) is not str:
        return False
    try:
        # Without the zone that Python allows behind a link-local one.
        return address == "{{auto}}" or "%" not in str(ipaddress.ip_address(address))
    except ValueError:
        return False


# Everything outside of a unit of work; made at import, so that its id is the same on all threads.
_PROCESS: Final = Scope()
_current: ContextVar[Scope] = ContextVar("transport_kit_scope", default=_PROCESS)


def enter_scope(unit: Unit | None = None) -> tuple[Scope, Token[Scope]]:
    """Begin a fresh scope, of a unit of its own when one is given; what `leave_scope` takes comes with it."""
    parent = _current.get()
    if unit is not None:
        # A request that was finished in another context left its scope behind in this one.
        while parent.unit.finished and parent._parent is not None:
            parent = parent._parent
    scope = Scope(parent, unit)
    return scope, _current.set(scope)


def leave_scope(token: Token[Scope] | None) -> None:
    """End the scope that `enter_scope` began; None, or a second time from elsewhere, does nothing."""
    if token is None:
        return
    try:
        _current.reset(token)
    except ValueError:
        # Left in another context than it was entered in (an async generator closed by the event loop):
        # that context never had this scope, and there is nothing to take back.
        pass


class new_scope:  # noqa: N801 - used as a function: `with new_scope() as scope:`
    """A fresh scope for the block: it begins as a copy of the surrounding one, and ends with the block."""

    __slots__ = ("_token",)

    _token: Token[Scope] | None

    def __enter__(self) -> Scope:
        scope, self._token = enter_scope()
        return scope

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        token, self._token = self._token, None
        leave_scope(token)


def mark_captured(error: BaseException) -> bool:
    """Mark the exception as captured in the current scope; False when it was, here or further in.

    The mark is plain text in the exception's own dict: it pickles, it holds nothing alive, and the same
    object raised in a later request counts again because that request's scope has another id.
    """
    scope = _current.get().id
    attributes = _dict_of(error)
    mark = dict.get(attributes, _MARK)
    if type(mark) is str and (mark == scope or mark.startswith(scope + "/")):
        return False
    dict.__setitem__(attributes, _MARK, scope)
    return True


def take_mark_back(error: BaseException) -> None:
    """Undo `mark_captured`: no event came of it, and a layer further out may have better luck."""
    dict.pop(_dict_of(error), _MARK, None)
