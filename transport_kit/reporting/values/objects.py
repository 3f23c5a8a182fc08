"""Objects: what can be told of an instance without running a line of the app's code.

Owns how fields of dataclasses, attrs classes, Pydantic models and namedtuples are read, and how arrays and
tables are told by their shape. All other objects (Django's lazy texts and querysets, Werkzeug's locals,
anything with a `__getattr__`) are told by their class alone, which asks them nothing.

Fields are read from instance dicts and slots through the interpreter's own C descriptors; a property,
`__getattr__` or `__class__` of the app never runs. Fields declared with `repr=False` are left out: their
author doesn't want them shown.

Threads: stateless.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import GetSetDescriptorType, MappingProxyType, MemberDescriptorType
from typing import Any, Final

from transport_kit.runtime.interrupts import let_through

__all__ = ["fields_of", "may_have_shape", "names_of", "Plan", "plan_of", "shape_of"]

_MAX_FIELDS: Final = 50
_NAME_LENGTH: Final = 64

_module: Callable[[type], Any] = type.__dict__["__module__"].__get__
_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_namespace: Callable[[type], MappingProxyType[str, Any]] = type.__dict__["__dict__"].__get__

#: The fields of a class, and where in its method resolution order the slot of each is; -1 for the instance
#: dict. Not the slots themselves: they hold their class, and what is remembered must not keep it alive.
Plan = tuple[tuple[str, int], ...]


def fields_of(value: object, cls: type, plan: Plan) -> dict[str, Any]:
    """The fields of an instance, those that are set."""
    bases = _mro(cls)
    held = _dict_of(value, cls)
    fields: dict[str, Any] = {}
    for name, place in plan:
        if place < 0:
            if name in held:
                fields[name] = held[name]
            continue
        slot = _namespace(bases[place]).get(name) if place < len(bases) else None
        if type(slot) is MemberDescriptorType:
            try:
                fields[name] = slot.__get__(value, cls)
            except AttributeError:
                continue  # not set
    return fields


def plan_of(cls: type) -> Plan | None:
    """How instances of a dataclass, an attrs class or a Pydantic model are read; None for any other class."""
    names = _declared(cls)
    if names is None:
        return None
    spaces = [_namespace(base) for base in _mro(cls)]
    plan: list[tuple[str, int]] = []
    for name in names[:_MAX_FIELDS]:
        place = next((place for place, space in enumerate(spaces) if name in space), -1)
        is_slot = place >= 0 and type(spaces[place][name]) is MemberDescriptorType
        plan.append((name, place if is_slot else -1))
    return tuple(plan)


def names_of(cls: type) -> tuple[str, ...]:
    """The names of a namedtuple's elements, in order; none for any other tuple."""
    for base in _mro(cls):
        names = _namespace(base).get("_fields")
        if type(names) is tuple and all(type(name) is str for name in names):
            return names
    return ()


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
                except Exception as error:
                    let_through(error)
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


def may_have_shape(cls: type) -> bool:
    """Whether `shape_of` is worth a call."""
    try:
        module = _module(cls)
    except AttributeError:
        return False  # somebody deleted it
    return type(module) is str and module.startswith(("numpy", "pandas"))


def shape_of(value: Any, cls: type) -> str | None:
    """`shape (3, 4) of float64` for an array or table of NumPy or pandas; None for any other object."""
    try:
        numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
        if numpy is not None and cls is numpy.ndarray:
            return f"shape {value.shape} of {value.dtype}"
        # Exactly these classes: a subclass may have given `shape` another meaning.
        if pandas is not None and cls in (pandas.DataFrame, pandas.Series):
            return f"shape {value.shape}"
    except Exception as error:
        let_through(error)
        return None  # half-imported, or half-built
    return None
