"""Tags: their keys and values as servers take them.

Threads: stateless.
"""

from __future__ import annotations

import re
from typing import Final

from transport_kit.reporting.values import as_text, cut

__all__ = ["tag_key", "TAG_LENGTH", "tag_value"]

#: Characters of a key, and of a value.
TAG_LENGTH: Final = 200
_NOT_IN_TAG_KEY = re.compile(r"[^A-Za-z0-9_.:\-]")


def tag_key(key: object) -> str:
    """A tag's key as servers take it: spaces become `-`, other characters outside the set `_`."""
    return _NOT_IN_TAG_KEY.sub("_", cut(as_text(key), TAG_LENGTH).strip().replace(" ", "-"))


def tag_value(value: object) -> str:
    """A tag's value as servers take it: one line of text."""
    return cut(" ".join(as_text(value).splitlines()), TAG_LENGTH)
