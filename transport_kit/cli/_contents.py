"""The contents of an envelope as JSON values, with keys masked.

The contents are hostile input. A key is masked under the names that hold keys; a known key, wherever it is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from transport_kit.cli._text import masked
from transport_kit.config.dsn import mask_keys

if TYPE_CHECKING:
    from transport_kit.envelope.sealed import SealedEnvelope

__all__ = ["contents"]

_KEYS: Final = frozenset({"dsn", "public_key", "secret_key", "sentry_key", "sentry_secret"})
_MAX_DEPTH: Final = 60


def contents(sealed: SealedEnvelope, secrets: tuple[str, ...]) -> dict[str, Any]:
    """Return headers and payloads, parsed; None stands for what is not JSON.

    Args:
        sealed: The envelope.
        secrets: Keys that must not be shown.
    """
    return {
        "headers": _without_keys(_parsed(sealed.header), secrets),
        "items": [
            {
                "type": _without_keys(item.type, secrets),
                "bytes": len(item.payload),
                "headers": _without_keys(_parsed(item.header), secrets),
                "payload": _without_keys(_parsed(item.payload), secrets),
            }
            for item in sealed.items
        ],
    }


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _without_keys(value: Any, secrets: tuple[str, ...], depth: int = 0) -> Any:
    """Return the value with *** for keys, and with `...` for what is nested deeper than `_MAX_DEPTH`."""
    if isinstance(value, str):
        return masked(mask_keys(value, secrets))
    if depth >= _MAX_DEPTH and isinstance(value, dict | list):
        return "..."
    if isinstance(value, list):
        return [_without_keys(each, secrets, depth + 1) for each in value]
    if isinstance(value, dict):
        return {
            _without_keys(name, secrets): "***"
            if name.lower() in _KEYS
            else _without_keys(each, secrets, depth + 1)
            for name, each in value.items()
        }
    return value
