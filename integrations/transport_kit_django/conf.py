"""The settings dict `TRANSPORT_KIT`, and the kit that is made of it: one per process, when first needed.

Owns the kit. Whether the dict makes sense is `checks.py`'s to say before, and the kit's own at run time.

Threads: any. There is no lock, so that a fork can't inherit one: when two threads need the kit first, one
of the two kits they make is forgotten before it has started anything.
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
#: The same for messages.
SOURCE: Final = f"settings.{SETTING}"

# Holds one kit at most. `setdefault` and `pop` are atomic.
_kits: dict[str, Kit] = {}


def get_kit() -> Kit:
    """The kit of this process: its transport, its reporter, its options.

    `get_kit().capture_exception()` reports what the app handles itself. Look it up for each use: tests that
    override the setting get another one.

    Raises:
        TransportKitError: With `"STRICT": True` only: an option or the DSN can't be used.
    """
    kit = _kits.get("kit")
    return _kits.setdefault("kit", _make_kit()) if kit is None else kit


def values() -> Any:
    """What the setting holds; an empty dict without it, as the environment may say all."""
    return getattr(settings, SETTING, {})


def on_setting_changed(*, setting: str, **_: object) -> None:
    """Forget the kit when a test overrides the setting; what waits in it is counted, not waited for."""
    if setting == SETTING:
        kit = _kits.pop("kit", None)
        if kit is not None:
            kit.close(0)


def _make_kit() -> Kit:
    if _is_reloader_parent():
        # It serves nothing: it restarts the child that does, and that one reports.
        return Kit({"dsn": ""}, environ={})
    return Kit(values(), source=SOURCE)


def _is_reloader_parent() -> bool:
    """Whether this process is the one of `runserver` that only watches another."""
    watches = sys.argv[1:2] == ["runserver"] and "--noreload" not in sys.argv
    return watches and os.environ.get("RUN_MAIN") != "true"
