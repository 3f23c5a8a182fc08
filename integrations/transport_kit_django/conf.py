"""Configuration: the settings dict `TRANSPORT_KIT`, and the kit made from it: one per process, on first use.

This module owns the kit. `checks.py` validates the dict in advance, the kit itself at run time.

Threads: any. There is no lock, so that a forked child can't inherit a locked one: if two threads make the
first kit at once, one of the two is dropped before it has started anything.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

from django.conf import settings

from transport_kit import Kit

__all__ = ["get_kit", "on_setting_changed", "SETTING", "SOURCE", "values"]

#: The name of the setting.
SETTING: Final = "TRANSPORT_KIT"
#: Name of the source in messages.
SOURCE: Final = f"settings.{SETTING}"

# Holds one kit at most. `setdefault` and `pop` are atomic.
_kits: dict[str, Kit] = {}


def get_kit() -> Kit:
    """Return the kit of this process, with its transport, reporter and options.

    `get_kit().capture_exception()` reports an exception that the app handles itself. Call it for each use,
    because a test that overrides the setting gets another kit.

    Raises:
        TransportKitError: An option or the DSN can't be used; with `"STRICT": True` only.
    """
    kit = _kits.get("kit")
    return _kits.setdefault("kit", _make_kit()) if kit is None else kit


def values() -> Any:
    """Return the setting's value; an empty dict without it, as the environment may have all options."""
    return getattr(settings, SETTING, {})


def on_setting_changed(*, setting: str, **_: object) -> None:
    """Close and drop the kit when a test overrides the setting; its queue is counted as lost."""
    if setting == SETTING:
        kit = _kits.pop("kit", None)
        if kit is not None:
            kit.close(0)


def _make_kit() -> Kit:
    if _is_reloader_parent():
        # It serves no requests, but only restarts the child process, which has its own kit.
        return Kit({"dsn": ""}, environ={})
    return Kit(values(), source=SOURCE)


def _is_reloader_parent() -> bool:
    """Return True in the process of `runserver` that only watches and restarts the serving process."""
    watches = sys.argv[1:2] == ["runserver"] and "--noreload" not in sys.argv
    return watches and os.environ.get("RUN_MAIN") != "true"
