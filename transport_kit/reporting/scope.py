"""Scope: user, tags, contexts and more of the running unit of work.

This module owns the context variable of the current scope. A scope belongs to one request, task, job or
block; it starts as a copy of the surrounding scope, and changes to it stay in it. Outside of all of them
there is one scope for the process.

Threads: a scope may be read and changed from any thread; each read takes a copy in one atomic step.
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
from transport_kit.reporting.values.secret_names import is_sensitive
from transport_kit.runtime.interrupts import let_through

__all__ = [
    "attachment",
    "enter_scope",
    "known_level",
    "leave_scope",
    "new_scope",
    "Processor",
    "Scope",
    "usable_ip",
    "user_facts",
]

#: Limits of a value in `extra` or `user`; then the protocol's bytes per value and in total.
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

#: Takes an event and its hint; returns the event to send, or None to drop it.
Processor: TypeAlias = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any] | None]


class Scope:
    """User, tags, extra, contexts, level and fingerprint of events captured in one context.

    Attributes:
        unit: Its unit of work; the surrounding scope's, unless this scope began a new one.
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
        # For `id` only. Cut at `_MAX_DEPTH`: a task that starts its successor within a scope of its own would
        # otherwise keep an endless chain of scopes alive.
        self._depth: int = 0 if parent is None else (parent._depth + 1) % _MAX_DEPTH
        self._parent = parent if self._depth else None
        if parent is None:
            self.unit = unit or Unit()
            self._tags: dict[str, str] = {}
            self._extra: dict[str, Any] = {}
            self._contexts: dict[str, dict[str, Any]] = {}
            # The following are replaced, never changed in place, so that scopes may share them.
            self._user: dict[str, Any] | None = None
            self._level: str | None = None
            self._fingerprint: tuple[str, ...] = ()
            self._processors: tuple[Processor, ...] = ()
            self._attachments: tuple[Item, ...] = ()
        else:
            self.unit = unit or parent.unit
            # Most parents have nothing set, and a literal is cheaper than a copy.
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
        """Identifies this scope; starts with the surrounding scope's id and a slash."""
        if self._id is None:
            # Made on first use: most requests capture nothing.
            own = random_bytes(8).hex()
            self._id = own if self._parent is None else f"{self._parent.id}/{own}"
        return self._id

    @staticmethod
    def current() -> Scope:
        """Return the scope of the running context; outside of all scopes, the process's."""
        return _current.get()

    def set_tag(self, key: str, value: object) -> None:
        """Set a tag for later captures; at most 100 tags of 200 characters. An empty value removes it."""
        name, text = tag_key(key), tag_value(value)
        if not text:
            self._tags.pop(name, None)  # servers accept no empty value
        elif name and (name in self._tags or len(self._tags) < _MAX_TAGS):
            self._tags[name] = text

    def set_extra(self, key: str, value: object) -> None:
        """Add a copy of a value, cut to 16 KiB of JSON; later changes to the value have no effect."""
        name = cut(as_text(key), TAG_LENGTH)
        if name in self._extra or len(self._extra) < _MAX_EXTRA:
            self._extra[name] = bounded(value, Room(_EXTRA_BYTES), _EXTRA)

    def set_user(self, user: Mapping[str, object] | None) -> None:
        """Set the user (`id`, `username`, `email`, `ip_address`, or other keys); None removes it.

        A user set this way is sent even without `send_default_pii`.
        """
        self._user = user_facts(user)

    def set_context(self, name: str, values: Mapping[str, object] | None) -> None:
        """Add a copy of `values` under `contexts`, cut to 8 KiB; None removes the section."""
        key = cut(as_text(name), TAG_LENGTH)
        facts = _items_of(values)
        if facts is None:
            self._contexts.pop(key, None)
        elif key in self._contexts or len(self._contexts) < _MAX_CONTEXTS:
            self._contexts[key] = bounded(facts, Room(_CONTEXT_BYTES), _EXTRA)

    def set_level(self, level: str | None) -> None:
        """Set the level of later captures, which overrides their own; None removes it."""
        self._level = level if level is None else known_level(level)

    def set_fingerprint(self, fingerprint: Iterable[str] | None) -> None:
        """Set the texts by which servers group events; None removes them.

        `{{ default }}` stands for the server's own grouping.
        """
        try:
            texts = () if fingerprint is None or isinstance(fingerprint, str) else fingerprint
            parts = list(islice(texts, _MAX_FINGERPRINT))
        except Exception as error:
            let_through(error)
            parts = []  # not iterable, or failing
        self._fingerprint = tuple(tidy(part, TAG_LENGTH) for part in parts)

    def add_event_processor(self, processor: Processor) -> None:
        """Call `processor(event, hint)` for each later event; it returns the event, or None to drop it.

        Processors run before `before_send`, in the order in which they were added.
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
        """Send a file with each later event; at most 30, as servers accept no more.

        Args:
            payload: Bytes, text, or a path (`pathlib.Path`) that is read when an event is captured.
            filename: The name that servers show.
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
        """Add a breadcrumb to the current unit of work; its last 100 are sent with the next event.

        Secrets are filtered: in `data` by name, in `message` by form.
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
        """The files that are sent with each event."""
        return self._attachments

    @property
    def processors(self) -> tuple[Processor, ...]:
        """The event processors, in the order in which they are called."""
        return self._processors

    def user(self) -> dict[str, Any] | None:
        """Return a copy of the user that was set."""
        return None if self._user is None else self._user.copy()

    def apply(self, event: dict[str, Any]) -> None:
        """Add the scope's values to an event; the event's own values win, except the level."""
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
        bytes_left, result = _EXTRA_TOTAL, {}
        for name, value in list(self._extra.items()):
            room = Room(min(bytes_left, _EXTRA_BYTES))
            if room.left < 2 * TAG_LENGTH:
                break
            offered = room.left
            result[name] = bounded(value, room, _EXTRA)
            bytes_left -= offered - room.left + len(name)
        return result


def _merge(event: dict[str, Any], field: str, values: dict[str, Any]) -> None:
    own = event.get(field)
    if values and own is None:
        event[field] = values.copy()
    elif values and type(own) is dict:
        event[field] = {**values, **own}


def attachment(
    payload: object, filename: str, content_type: str | None = None, attachment_type: str | None = None
) -> Item:
    """Return a file as an item of an envelope."""
    return Item(
        payload,
        type="attachment",
        filename=cut(as_text(filename), TAG_LENGTH) or "attachment",
        content_type=content_type,
        attachment_type=attachment_type,
    )


def known_level(level: object) -> str:
    """Return the level under the name that servers know; `error` for an unknown level."""
    return _LEVELS.get(str.lower(level), "error") if issubclass(type(level), str) else "error"  # type: ignore[arg-type]


def _items_of(value: object) -> dict[Any, Any] | None:
    """Return a mapping's items; None for any other value, and for a mapping that raises when read."""
    try:
        return dict(value) if isinstance(value, Mapping) else None
    except Exception as error:
        let_through(error)
        return None


def user_facts(user: object) -> dict[str, Any] | None:
    """Return a user in the form that servers accept; None for a value that is no mapping."""
    facts = _items_of(user)
    if facts is None:
        return None
    result: dict[str, Any] = bounded(facts, Room(_USER_BYTES), _EXTRA)
    for name, limit in _USER_LENGTHS.items():
        if result.get(name) is not None:
            result[name] = cut(str(result[name]), limit)
    if "ip_address" in result and not usable_ip(result["ip_address"]):
        del result["ip_address"]
    if "geo" in result and type(result["geo"]) is not dict:
        del result["geo"]
    if "data" in result and type(result["data"]) is not dict:
        result["data"] = {"data": result["data"]}
    return result


def usable_ip(address: object) -> bool:
    """Return True if servers accept this as a user's address."""
    if type(address) is not str:
        return False
    try:
        # Python accepts a zone after a link-local address; servers don't.
        return address == "{{auto}}" or "%" not in str(ipaddress.ip_address(address))
    except ValueError:
        return False


# The scope outside of all units of work; made at import, so that all threads share it.
_PROCESS: Final = Scope()
_current: ContextVar[Scope] = ContextVar("transport_kit_scope", default=_PROCESS)


def enter_scope(unit: Unit | None = None) -> tuple[Scope, Token[Scope]]:
    """Enter a new scope, of a new unit of work if one is given; return it and a token to leave it."""
    parent = _current.get()
    if unit is not None:
        # A request that was finished in another context left its scope in this one.
        while parent.unit.finished and parent._parent is not None:
            parent = parent._parent
    scope = Scope(parent, unit)
    return scope, _current.set(scope)


def leave_scope(token: Token[Scope] | None) -> None:
    """Leave the scope that `enter_scope` entered. Does nothing for None or in another context."""
    if token is None:
        return
    try:
        _current.reset(token)
    except ValueError:
        # Left in another context than it was entered in (an async generator closed by the event loop): that
        # context never had this scope, so there is nothing to reset.
        pass


class new_scope:  # noqa: N801 - used as a function: `with new_scope() as scope:`
    """A scope for a `with` block: starts as a copy of the surrounding scope and ends with the block."""

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
