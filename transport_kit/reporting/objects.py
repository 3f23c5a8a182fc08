"""Objects: what can be told of an instance without running a line of the app's code.

Owns how fields of dataclasses, attrs classes and Pydantic models are read, and how arrays and tables are
told by their shape. All other objects (Django's lazy texts and querysets, Werkzeug's locals, anything with
a `__getattr__`) are told by their class alone, which asks them nothing.

Fields are read from instance dicts and slots through the interpreter's own C descriptors; a property,
`__getattr__` or `__class__` of the app never runs. Fields declared with `repr=False` are left out: their
author doesn't want them shown.

Threads: stateless but for a cache that any thread may fill.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from types import GetSetDescriptorType, MappingProxyType, MemberDescriptorType
from typing import Any, Final

__all__ = ["fields_of", "shape_of"]

_MAX_FIELDS: Final = 50
_NAME_LENGTH: Final = 64

_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_namespace: Callable[[type], MappingProxyType[str, Any]] = type.__dict__["__dict__"].__get__
_module: Callable[[type], Any] = type.__dict__["__module__"].__get__

#: How each field of a class is read: None for its instance dict, else its slot.
_Plan = tuple[tuple[str, "MemberDescriptorType | None"], ...]
# Weak: a class made in a request must not live for ever.
_plans: weakref.WeakKeyDictionary[type, _Plan | None] = weakref.WeakKeyDictionary()


def fields_of(value: object, cls: type) -> dict[str, Any] | None:
    """The fields of a dataclass, attrs or Pydantic instance; None for any other object."""
    try:
        plan = _plans[cls]
    except KeyError:
        plan = _planned(cls)
        _plans[cls] = plan
    except TypeError:
        return None  # a metaclass that forbids hashing its classes
    if plan is None:
        return None
    held = _dict_of(value, cls)
    fields: dict[str, Any] = {}
    for name, slot in plan:
        if slot is not None:
            try:
                fields[name] = slot.__get__(value, cls)
            except AttributeError:
                continue  # not set
        elif name in held:
            fields[name] = held[name]
    return fields


def _planned(cls: type) -> _Plan | None:
    names = _declared(cls)
    if names is None:
        return None
    spaces = [_namespace(base) for base in _mro(cls)]
    plan: list[tuple[str, MemberDescriptorType | None]] = []
    for name in names[:_MAX_FIELDS]:
        found = next((space[name] for space in spaces if name in space), None)
        plan.append((name, found if type(found) is MemberDescriptorType else None))
    return tuple(plan)


def _declared(cls: type) -> list[str] | None:
    """Names of the fields that are to be shown, in order; None for a class of another kind."""
    for base in _mro(cls):
        space = _namespace(base)
        for marker, listed in (
            ("__dataclass_fields__", _of_mapping),
            ("__attrs_attrs__", _of_tuple),
            ("__pydantic_fields__", _of_mapping),
        ):
            if marker in space:
                try:
                    names = listed(space[marker])
                except Exception:
                    return None  # a class that only pretends
                return [name for name in names if type(name) is str and len(name) <= _NAME_LENGTH]
    return None


def _of_mapping(fields: Any) -> list[str]:
    return [name for name, field in dict.items(fields) if field.repr]


def _of_tuple(fields: Any) -> list[str]:
    return [field.name for field in tuple.__iter__(fields) if field.repr]


def _dict_of(value: object, cls: type) -> dict[str, Any]:
    for base in _mro(cls):
        descriptor = _namespace(base).get("__dict__")
        if type(descriptor) is GetSetDescriptorType:
            held = descriptor.__get__(value, cls)
            return dict(dict.items(held)) if issubclass(type(held), dict) else {}
    return {}


def shape_of(value: Any, cls: type) -> str | None:
    """`shape (3, 4) of float64` for an array or table of NumPy or pandas; None for any other object."""
    module = _module(cls)
    if type(module) is not str or not module.startswith(("numpy", "pandas")):
        return None
    try:
        numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
        if numpy is not None and cls is numpy.ndarray:
            return f"shape {value.shape} of {value.dtype}"
        # Exactly these classes: a subclass may have given `shape` another meaning.
        if pandas is not None and cls in (pandas.DataFrame, pandas.Series):
            return f"shape {value.shape}"
    except Exception:
        return None  # half-imported, or half-built
    return None
