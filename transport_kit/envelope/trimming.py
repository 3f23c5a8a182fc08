"""Trims an oversize event to the size that receivers accept; the least useful parts are removed first.

Owns the order: frame variables, then breadcrumbs, then extra, then long strings. Works on encoded bytes,
never on the caller's values.

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
# Maximum lengths of strings, tried in this order until the event fits.
_STRING_LENGTHS: Final = (8192, 1024, 256)


def trim(body: bytes, limit: int, path: str) -> bytes:
    """Return `body` trimmed to at most `limit` bytes, or unchanged if it fits.

    No more is removed than necessary. Variables of the outermost calls, the oldest breadcrumbs and the
    largest values of extra are removed first.

    Args:
        body: An event as JSON.
        limit: Bytes.
        path: The name of the event in an error.

    Raises:
        SealError: It isn't a JSON object, or is too big even when trimmed.
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
    pending: list[dict[str, Any] | list[Any]] = [event]
    while pending:
        container = pending.pop()
        members: Any = container.items() if type(container) is dict else enumerate(container)
        for key, value in list(members):
            if type(value) is str:
                if len(value) > length:
                    container[key] = value[: length - 1] + "…"
            elif type(value) is dict or type(value) is list:
                pending.append(value)


def _values(part: object) -> list[Any]:
    """Return the members of an interface that is `{"values": […]}`, a list, or a single object."""
    if type(part) is dict and "values" not in part:
        return [part]
    return _list(_dict(part).get("values") if type(part) is dict else part)


def _dict(value: object) -> dict[str, Any]:
    return value if type(value) is dict else {}


def _list(value: object) -> list[Any]:
    return value if type(value) is list else []
