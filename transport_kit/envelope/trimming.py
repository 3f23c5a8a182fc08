"""Trims oversize events and envelope headers to the size that receivers accept.

This module owns the order: of an event frame variables, then breadcrumbs, then extra, then long strings; of a
header the longest parts. It works on encoded bytes, never on the caller's values.

Threads: pure functions.

Source: docs/protocol.md, section 11, client-side guards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from transport_kit.envelope.encoder import dumps, loads
from transport_kit.envelope.encoding import encode
from transport_kit.runtime.errors import SealError

__all__ = ["trim", "trim_header"]

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


def trim_header(header: bytes, limit: int) -> bytes:
    """Return an envelope header trimmed to at most `limit` bytes, or unchanged if it fits.

    The shortest parts are kept, and the event id in any case. A `trace` that does not fit is cut in the same
    way, and dropped if its `trace_id` or `public_key` would be missing: receivers ignore it then.

    Args:
        header: A JSON object.
        limit: Bytes.
    """
    if len(header) <= limit:
        return header
    headers = loads(header)
    kept = _shortest(headers, ("event_id",), limit)
    trace = headers.get("trace")
    if "trace" not in kept and type(trace) is dict:
        room = limit - len(dumps(kept)) - len(b',"trace":')
        trace = _shortest(trace, ("trace_id", "public_key"), room)
        if trace:
            kept["trace"] = trace
    return dumps({name: kept[name] for name in headers if name in kept})


def _shortest(members: dict[str, Any], essential: tuple[str, ...], limit: int) -> dict[str, Any]:
    """Return the essential members and the shortest others, as many as fit; empty if an essential doesn't."""
    costs = {name: len(dumps({name: value})) - 1 for name, value in members.items()}
    first = {name: members[name] for name in essential if name in members}
    room = limit - 1 - sum(costs[name] for name in first)
    if room < 0:
        return {}
    for name in sorted(members.keys() - first.keys(), key=lambda name: (costs[name], name)):
        room -= costs[name]
        if room < 0:
            break
        first[name] = members[name]
    return {name: value for name, value in members.items() if name in first}


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
