"""Makes an oversize event small enough for receivers, giving up the least telling parts first.

Owns the order: frame variables, then breadcrumbs, then extra, then long strings. Works on bytes that are
already sealed, never on the caller's values.

Threads: pure functions.

Source: docs/protocol.md, section 11, client-side guards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from transport_kit.envelope.encoder import loads
from transport_kit.envelope.encoding import encode
from transport_kit.runtime.errors import SealError

__all__ = ["trim"]

_TRIMMED: Final = "<trimmed>"
# Long strings are cut to the first of these that is short enough for the whole.
_STRING_LENGTHS: Final = (8192, 1024, 256)


def trim(body: bytes, limit: int, path: str) -> bytes:
    """`body` cut down to at most `limit` bytes, or as it is when it fits.

    Within each part the oldest goes first, and only as much as has to: calls far from the failing frame,
    old breadcrumbs, the largest values of extra.

    Raises:
        SealError: It isn't a JSON object, or is too big without all of these.
    """
    if len(body) <= limit:
        return body
    size = len(body)
    try:
        event = loads(body)
    except ValueError:
        event = None
    if type(event) is not dict:
        raise SealError(path, f"{size} bytes, more than {limit}, and not a JSON object to trim")
    for part in (_vars, _breadcrumbs, _extra):
        excess = len(body) - limit
        for cost, cut in part(event):
            if excess <= 0:
                break
            cut()
            excess -= cost
        body = encode(event, path)
        if len(body) <= limit:
            return body
    for length in _STRING_LENGTHS:
        _shorten(event, length)
        body = encode(event, path)
        if len(body) <= limit:
            return body
    raise SealError(path, f"{size} bytes, more than {limit}, and {len(body)} when trimmed")


_Cuts = Iterator[tuple[int, Callable[[], object]]]


def _cost(value: object) -> int:
    return len(encode(value, "part"))


def _vars(event: dict[str, Any]) -> _Cuts:
    traces = [event.get("stacktrace")]
    for part in ("exception", "threads"):
        traces += [_dict(value).get("stacktrace") for value in _values(event.get(part))]
    for trace in traces:
        for frame in _list(_dict(trace).get("frames")):
            if "vars" in _dict(frame):
                yield _cost(frame["vars"]), partial(frame.pop, "vars")


def _breadcrumbs(event: dict[str, Any]) -> _Cuts:
    crumbs = _values(event.get("breadcrumbs"))
    for crumb in list(crumbs):
        yield _cost(crumb) + 1, partial(crumbs.pop, 0)


def _extra(event: dict[str, Any]) -> _Cuts:
    extra = _dict(event.get("extra"))
    costs = sorted(((_cost(value), key) for key, value in extra.items()), reverse=True)
    for cost, key in costs:
        yield cost - len(_TRIMMED) - 2, partial(extra.__setitem__, key, _TRIMMED)


def _shorten(event: dict[str, Any], length: int) -> None:
    open_: list[dict[str, Any] | list[Any]] = [event]
    while open_:
        here = open_.pop()
        members: Any = here.items() if type(here) is dict else enumerate(here)
        for key, value in list(members):
            if type(value) is str:
                if len(value) > length:
                    here[key] = value[: length - 1] + "…"
            elif type(value) is dict or type(value) is list:
                open_.append(value)


def _values(part: object) -> list[Any]:
    """The members of an interface that is `{"values": […]}`, a list, or a single object."""
    if type(part) is dict and "values" not in part:
        return [part]
    return _list(_dict(part).get("values") if type(part) is dict else part)


def _dict(value: object) -> dict[str, Any]:
    return value if type(value) is dict else {}


def _list(value: object) -> list[Any]:
    return value if type(value) is list else []
