"""Captured once: the mark that keeps an exception from being reported twice in one scope.

Threads: any; a mark is set and removed in one atomic step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from transport_kit.reporting.scope import Scope

__all__ = ["mark_captured", "take_mark_back"]

_MARK: Final = "__transport_kit_captured__"

# The C getter of every exception's instance dict: works even if the class overrides `__dict__` or
# `__setattr__`, or defines `__slots__`.
_dict_of: Callable[[BaseException], dict[str, Any]] = BaseException.__dict__["__dict__"].__get__


def mark_captured(error: BaseException) -> bool:
    """Mark the exception as captured in the current scope; return False if it was, here or further in.

    The mark is plain text in the exception's own dict, so it pickles and keeps nothing alive. The same object
    raised in a later request counts again, because that request's scope has another id.
    """
    scope = Scope.current().id
    attributes = _dict_of(error)
    mark = dict.get(attributes, _MARK)
    if type(mark) is str and (mark == scope or mark.startswith(scope + "/")):
        return False
    dict.__setitem__(attributes, _MARK, scope)
    return True


def take_mark_back(error: BaseException) -> None:
    """Undo `mark_captured` after a failed capture, so that a caller further out may capture the exception."""
    dict.pop(_dict_of(error), _MARK, None)
