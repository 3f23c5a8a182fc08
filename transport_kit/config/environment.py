"""Environment variables: their prefix, the DSN's name, and those that are no options.

This module reads nothing at import. `options.py` reads the options, the factory and the kit read the DSN.

Threads: every function may be called from any thread.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Final

from transport_kit.runtime.log import log

__all__ = ["DSN_VARIABLE", "ENV_PREFIX", "nearest", "warn_of_variables"]

#: The prefix of every option's variable: `max_senders` is `TRANSPORT_KIT_MAX_SENDERS`.
ENV_PREFIX: Final = "TRANSPORT_KIT_"
#: The variable of the DSN, which is no option.
DSN_VARIABLE: Final = "TRANSPORT_KIT_DSN"

# Variables that this process has warned about. Adding to a set is atomic, and nothing is removed.
_reported_variables: set[str] = set()


def warn_of_variables(keys: Iterable[str], known: Collection[str]) -> None:
    """Log, once per process, the variables with our prefix that are no options.

    Kubernetes and Docker set such ones beside a service whose name is this library's.

    Args:
        keys: The names of the variables. Their values are not logged.
        known: The names of all options, one of which may have been meant.
    """
    new = [key for key in keys if key not in _reported_variables]
    if not new:
        return
    _reported_variables.update(new)
    near = ((key, nearest(key[len(ENV_PREFIX) :].lower(), (*known, "dsn"))) for key in new)
    words = [
        key[:100] + (f" (did you mean {ENV_PREFIX}{name.upper()}?)" if name else "") for key, name in near
    ]
    log.warning("environment variables that are no options are ignored: %s", ", ".join(words))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like `name`; None if none is."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return near[0] if near else None
