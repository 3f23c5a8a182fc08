"""What an envelope holds, to be shown without keys.

It was sent by anyone: keys are left out where they are known to stand, and wherever a known one occurs.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from transport_kit.cli._text import masked

if TYPE_CHECKING:
    from transport_kit.envelope.sealed import SealedEnvelope

__all__ = ["contents"]

_KEYS: Final = frozenset({"dsn", "public_key", "secret_key", "sentry_key", "sentry_secret"})
_DEEPEST: Final = 60


def contents(sealed: SealedEnvelope, secrets: tuple[str, ...]) -> dict[str, Any]:
    """Headers and payloads, parsed; what is no JSON is None.

    Args:
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
    """The value with *** in the place of keys; cut where it is deeper than anyone reads."""
    if isinstance(value, str):
        for secret in secrets:
            value = re.sub(re.escape(secret), "***", value, flags=re.IGNORECASE)
        return masked(value)
    if depth >= _DEEPEST and isinstance(value, dict | list):
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
