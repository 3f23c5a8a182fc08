"""Objects: reads the fields of instances without running the app's code.

This module reads the fields of dataclasses, attrs classes, Pydantic models and namedtuples, and the shape of
arrays and tables. Of all other objects (Django's lazy texts and querysets, Werkzeug's locals, anything with a
`__getattr__`) only the class is read.

Fields are read from instance dicts and slots through the interpreter's own C descriptors; a property,
`__getattr__` or `__class__` of the app never runs. Fields declared with `repr=False` are left out, as their
author wants them hidden.

Threads: stateless.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import GetSetDescriptorType, MappingProxyType, MemberDescriptorType
from typing import Any, Final

from transport_kit.runtime.interrupts import let_through

__all__ = ["fields_of", "may_have_shape", "member_name", "names_of", "Plan", "plan_of", "shape_of"]

_MAX_FIELDS: Final = 50
_NAME_LENGTH: Final = 64

_module: Callable[[type], Any] = type.__dict__["__module__"].__get__
_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_namespace: Callable[[type], MappingProxyType[str, Any]] = type.__dict__["__dict__"].__get__

#: Each field of a class with the position, in the method resolution order, of the class that has its slot; -1
#: for the instance dict. Not the slots themselves: they refer to their class, and the cache must not keep it
#: alive.
Plan = tuple[tuple[str, int], ...]


def fields_of(value: object, cls: type, plan: Plan) -> dict[str, Any]:
    """Return the fields of an instance that are set."""
    bases = _mro(cls)
    attributes = _dict_of(value, cls)
    fields: dict[str, Any] = {}
    for name, place in plan:
        if place < 0:
            if name in attributes:
                fields[name] = attributes[name]
            continue
        slot = _namespace(bases[place]).get(name) if place < len(bases) else None
        if type(slot) is MemberDescriptorType:
            try:
                fields[name] = slot.__get__(value, cls)
            except AttributeError:
                continue  # not set
    return fields


def plan_of(cls: type) -> Plan | None:
    """Return the plan for reading a dataclass, attrs class or Pydantic model; None for any other class."""
    names = _field_names(cls)
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
    """Return the names of a namedtuple's elements, in order; empty for any other tuple."""
    for base in _mro(cls):
        names = _namespace(base).get("_fields")
        if type(names) is tuple and all(type(name) is str for name in names):
            return names
    return ()


def member_name(member: object, cls: type) -> object:
    """Return the name of an Enum's member."""
    return _dict_of(member, cls).get("_name_")


def _field_names(cls: type) -> list[str] | None:
    """Return the names of the fields to show, in order; None for a class of another kind."""
    for base in _mro(cls):
        space = _namespace(base)
        for marker, names_in in (
            ("__dataclass_fields__", _names_of_mapping),
            ("__attrs_attrs__", _names_of_tuple),
            ("__pydantic_fields__", _names_of_mapping),
        ):
            if marker in space:
                try:
                    names = names_in(space[marker])
                except Exception as error:
                    let_through(error)
                    return None  # the marker attribute has another meaning in this class
                return [name for name in names if type(name) is str and len(name) <= _NAME_LENGTH]
    return None


def _names_of_mapping(fields: Any) -> list[str]:
    return [name for name, field in dict.items(fields) if field.repr]


def _names_of_tuple(fields: Any) -> list[str]:
    return [field.name for field in tuple.__iter__(fields) if field.repr]


def _dict_of(value: object, cls: type) -> dict[str, Any]:
    for base in _mro(cls):
        descriptor = _namespace(base).get("__dict__")
        if type(descriptor) is GetSetDescriptorType:
            attributes = descriptor.__get__(value, cls)
            return dict(dict.items(attributes)) if issubclass(type(attributes), dict) else {}
    return {}


def may_have_shape(cls: type) -> bool:
    """Return True if `shape_of` may return a shape for instances of this class."""
    try:
        module = _module(cls)
    except AttributeError:
        return False  # deleted by the app
    return type(module) is str and module.startswith(("numpy", "pandas"))


def shape_of(value: Any, cls: type) -> str | None:
    """Return `shape (3, 4) of float64` for an array or table of NumPy or pandas; None for other objects."""
    try:
        numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
        if numpy is not None and cls is numpy.ndarray:
            return f"shape {value.shape} of {value.dtype}"
        # Exactly these classes: a subclass may have given `shape` another meaning.
        if pandas is not None and cls in (pandas.DataFrame, pandas.Series):
            return f"shape {value.shape}"
    except Exception as error:
        let_through(error)
        return None  # a module or object that is not fully initialised
    return None
