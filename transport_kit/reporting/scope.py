"""Scope: what is known about the unit of work that runs, and which exceptions it has reported.

Owns the context variable, and the mark that says "captured". A scope is one request, task or job; it
begins with what the surrounding one holds, and changes to it stay in it. Outside of any there is one
scope for the process.

Threads: a scope may be read and changed from any thread; each reading takes a copy in one step.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Final

from transport_kit.reporting.values import Limits, Room, bounded, cut

__all__ = ["mark_captured", "new_scope", "Scope", "take_mark_back"]

_MARK: Final = "__transport_kit_captured__"
#: Text, elements and depth of a value in `extra` or `user`; the protocol's limits per value and in all.
_EXTRA: Final = Limits(text=8192, breadth=100, depth=6)
_EXTRA_BYTES: Final = 16 * 1024
_EXTRA_TOTAL: Final = 256 * 1024
_USER_BYTES: Final = 4 * 1024
_USER_LENGTHS: Final = {"id": 128, "username": 128, "email": 75}
_MAX_TAGS: Final = 100
_MAX_EXTRA: Final = 100
_TAG_LENGTH: Final = 200
_NOT_IN_TAG_KEY = re.compile(r"[^A-Za-z0-9_.:\-]")

# The C getter of every exception's instance dict: a class that overrides `__dict__` or `__setattr__` has
# no say, and a class with `__slots__` has one nevertheless.
_dict_of: Callable[[BaseException], dict[str, Any]] = BaseException.__dict__["__dict__"].__get__


class Scope:
    """User, tags and extra of one unit of work.

    Attributes:
        id: Names this scope; begins with the surrounding scope's id and a slash.
    """

    __slots__ = ("_extra", "_tags", "_user", "id")

    def __init__(self, parent: Scope | None = None) -> None:
        own = os.urandom(8).hex()
        self.id: str = own if parent is None else f"{parent.id}/{own}"
        self._tags: dict[str, str] = {} if parent is None else parent._tags.copy()
        self._extra: dict[str, Any] = {} if parent is None else parent._extra.copy()
        # Replaced, never changed in place, so that scopes may share it.
        self._user: dict[str, Any] | None = None if parent is None else parent._user

    @staticmethod
    def current() -> Scope:
        """The scope of the running context; the process's own when there is none."""
        return _current.get()

    def set_tag(self, key: str, value: object) -> None:
        """Tag what is captured from here on; at most 200 characters each, 100 tags."""
        name = tag_key(key)
        if name and (name in self._tags or len(self._tags) < _MAX_TAGS):
            self._tags[name] = tag_value(value)

    def set_extra(self, key: str, value: object) -> None:
        """Add a value as it is now: a later change to it is not seen. At most 16 KiB of JSON."""
        name = cut(_as_text(key), _TAG_LENGTH)
        if name in self._extra or len(self._extra) < _MAX_EXTRA:
            self._extra[name] = bounded(value, Room(_EXTRA_BYTES), _EXTRA)

    def set_user(self, user: Mapping[str, object] | None) -> None:
        """Say who the user is (`id`, `username`, `email`, `ip_address`, or keys of your own); None clears.

        What is set by hand is sent, whatever `send_default_pii` says.
        """
        if not isinstance(user, Mapping):
            self._user = None
            return
        known: dict[str, Any] = bounded(dict(user), Room(_USER_BYTES), _EXTRA)
        for name, limit in _USER_LENGTHS.items():
            if known.get(name) is not None:
                known[name] = cut(str(known[name]), limit)
        if "ip_address" in known and not usable_ip(known["ip_address"]):
            del known["ip_address"]
        self._user = known

    def user(self) -> dict[str, Any] | None:
        """Who the user is, as set; the caller's own copy."""
        return None if self._user is None else self._user.copy()

    def apply(self, event: dict[str, Any]) -> None:
        """Add to an event what it doesn't say itself; the event's own values win."""
        if self._user and event.get("user") is None:
            event["user"] = self.user()
        _merge(event, "tags", self._tags)
        if self._extra:
            _merge(event, "extra", self._within_total())

    def _within_total(self) -> dict[str, Any]:
        left, kept = _EXTRA_TOTAL, {}
        for name, value in list(self._extra.items()):
            room = Room(min(left, _EXTRA_BYTES))
            if room.left < 2 * _TAG_LENGTH:
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


def tag_key(key: object) -> str:
    """A tag's key as servers take it: spaces become `-`, other characters outside the set `_`."""
    return _NOT_IN_TAG_KEY.sub("_", cut(_as_text(key), _TAG_LENGTH).strip().replace(" ", "-"))


def tag_value(value: object) -> str:
    """A tag's value as servers take it: one line of text."""
    return cut(" ".join(_as_text(value).splitlines()), _TAG_LENGTH)


def _as_text(value: object) -> str:
    return str(bounded(value, Room(2048), _EXTRA))


def usable_ip(address: object) -> bool:
    """Whether a server takes this as a user's address."""
    if address == "{{auto}}":
        return True
    try:
        ipaddress.ip_address(address if isinstance(address, str) else "")
    except ValueError:
        return False
    return True


# Everything outside of a unit of work; made at import, so that its id is the same on all threads.
_PROCESS: Final = Scope()
_current: ContextVar[Scope] = ContextVar("transport_kit_scope", default=_PROCESS)


class new_scope:  # noqa: N801 - used as a function: `with new_scope() as scope:`
    """A fresh scope for the block: it begins as a copy of the surrounding one, and ends with the block."""

    __slots__ = ("_token",)

    def __enter__(self) -> Scope:
        scope = Scope(_current.get())
        self._token: Token[Scope] | None = _current.set(scope)
        return scope

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        token, self._token = self._token, None
        if token is None:
            return
        try:
            _current.reset(token)
        except ValueError:
            # Left in another context than it was entered in (an async generator closed by the event loop):
            # that context never had this scope, and there is nothing to take back.
            pass


def mark_captured(error: BaseException) -> bool:
    """Mark the exception as captured in the current scope; False when it was, here or further in.

    The mark is plain text in the exception's own dict: it pickles, it holds nothing alive, and the same
    object raised in a later request counts again because that request's scope has another id.
    """
    scope = _current.get().id
    attributes = _dict_of(error)
    mark = attributes.get(_MARK)
    if type(mark) is str and (mark == scope or mark.startswith(scope + "/")):
        return False
    attributes[_MARK] = scope
    return True


def take_mark_back(error: BaseException) -> None:
    """Undo `mark_captured`: no event came of it, and a layer further out may have better luck."""
    _dict_of(error).pop(_MARK, None)
