"""Documentation of the options: a description of each, from its field and its line in the docstring.

The tables of docs/reference/options.md, `transport-kit options` and the help of commands use it, so they
always agree with the code.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transport_kit.config.environment import ENV_PREFIX
from transport_kit.config.options import (
    Effect,
    IntegrationOptions,
    ReporterOptions,
    TransportOptions,
    field_kind,
    field_substitute,
    shown_default,
)

__all__ = ["GROUPS", "OptionDescription", "describe", "markdown_table", "meaning", "substitutes_table"]

#: Every class of options, in the order of the documentation.
GROUPS: tuple[type[TransportOptions] | type[ReporterOptions] | type[IntegrationOptions], ...] = (
    TransportOptions,
    ReporterOptions,
    IntegrationOptions,
)
_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n      +.*)*)", re.M)


@dataclass(frozen=True, slots=True)
class OptionDescription:
    """One option.

    Attributes:
        name: The keyword argument.
        variable: The environment variable.
        type_name: The Python type, such as `int or None`.
        bounds: The accepted values in words; empty if the type is the only condition.
        default: The default as source code; `none` and `empty` for None and an empty tuple.
        secret: The value is left out of every repr.
        meaning: The description.
        substitute: The consequence of a value that can't be used.
        health: The status of health then, `warn` or `fail`.
    """

    name: str
    variable: str
    type_name: str
    bounds: str
    default: str
    secret: bool
    meaning: str
    substitute: str
    health: str


def describe(options: type[Any]) -> list[OptionDescription]:
    """Return a description of each option of the class, in the order of its fields.

    Raises:
        LookupError: The class's docstring has no line for an option.
    """
    text = inspect.cleandoc(options.__doc__ or "")
    meanings = {name: " ".join(meaning.split()) for name, meaning in _ATTRIBUTE.findall(text)}
    descriptions = []
    for field in dataclasses.fields(options):
        if field.name not in meanings:
            raise LookupError(f"{options.__name__} does not describe {field.name}")
        kind = field_kind(field)
        descriptions.append(
            OptionDescription(
                name=field.name,
                variable=ENV_PREFIX + field.name.upper(),
                type_name=kind.type_name,
                bounds=kind.bounds,
                default=shown_default(field),
                secret=not field.repr,
                meaning=meanings[field.name],
                substitute=field_substitute(field).words,
                health="warn" if field_substitute(field).effect is Effect.WARNS else "fail",
            )
        )
    return descriptions


def meaning(name: str) -> str:
    """Return the description of the transport's option of that name.

    Raises:
        LookupError: `TransportOptions` has no such option.
    """
    for option in describe(TransportOptions):
        if option.name == name:
            return option.meaning
    raise LookupError(f"no option {name}")


def markdown_table(descriptions: Sequence[OptionDescription]) -> str:
    """Return the descriptions as a table of docs/reference/options.md, without a newline at its end."""
    rows = ["| option | type | accepted | default | meaning |", "| --- | --- | --- | --- | --- |"]
    for option in descriptions:
        default = option.default if option.default in ("none", "empty") else f"`{option.default}`"
        cells = (f"`{option.name}`", option.type_name, option.bounds, default, option.meaning)
        rows.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    return "\n".join(rows)


def substitutes_table(descriptions: Sequence[OptionDescription]) -> str:
    """The options that something safer than the default stands in for, as a table of the documentation."""
    rows = ["| option | when it can't be used | health |", "| --- | --- | --- |"]
    rows += [
        f"| `{option.name}` | {option.substitute} | `{option.health}` |"
        for option in descriptions
        if not option.substitute.startswith("its default")
    ]
    return "\n".join(rows)
