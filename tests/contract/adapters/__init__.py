"""The adapters of frameworks to the contract: one module each, which defines an `Adapter` named ADAPTER.

An adapter makes the contract's site in its framework, and serves it. The site has these paths:

| path | effect |
| --- | --- |
| `/` | answers `hello`, with a header `X-Shop: yes` |
| `/boom` | raises `ShopError("boom")` |
| `/logged` | logs the exception with `logging.exception`, and lets it escape |
| `/handled` | catches a `ShopError`, reports it by hand, and answers the event's id |
| `/answered` | raises `KnownError("known")`, for which the app has a handler: 400, `we know` |
| `/tagged/<number>` | tags the scope with `number`, lets others run, raises `ShopError("tagged <number>")` |

and the routes of the integration under `/transport`. A 500 has a page of the app's own: `our page`.
"""

from __future__ import annotations

import importlib
import json
import logging
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from transport_kit import Envelope, Kit

__all__ = ["Adapter", "adapters", "App", "KnownError", "LOGGER", "Reply", "ShopError", "Sink", "Site"]

#: The site's logger.
LOGGER: Final = logging.getLogger("shop")


class ShopError(Exception):
    """An error of the site."""


class KnownError(ShopError):
    """An error for which the site has a handler."""


class Sink:
    """A transport function that stores envelopes, and reads the events in them."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    def __call__(self, envelope: Envelope) -> None:
        self.envelopes.append(envelope)

    @property
    def events(self) -> list[dict[str, Any]]:
        items = [item for envelope in tuple(self.envelopes) for item in envelope.items]
        return [json.loads(item.get_bytes()) for item in items if item.type == "event"]

    @property
    def event(self) -> dict[str, Any]:
        """The event, if there is exactly one."""
        (event,) = self.events
        return event

    @property
    def exception(self) -> dict[str, Any]:
        """The exception of the only event that was raised last."""
        value: dict[str, Any] = self.event["exception"]["values"][-1]
        return value


@dataclass(frozen=True)
class Reply:
    """A response as a client receives it; header names are in lower case."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Site(Protocol):
    """An app that is being served."""

    def get(self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Reply:
        """Make one request; the path may have a query."""

    def many(self, paths: Iterable[str]) -> list[Reply]:
        """Make requests at the same time."""


class App(Protocol):
    """An app that can be served several times in a row."""

    @property
    def kit(self) -> Kit:
        """The kit of the integration."""

    def serve(self) -> AbstractContextManager[Site]:
        """Start it as a server does; the end of the block ends it as a server does."""


@dataclass(frozen=True)
class Adapter:
    """One framework.

    Attributes:
        make: `make(dsn, nested=False, **options)` is a context manager around an `App`. A `dsn` of None
            makes the site without the integration. With `nested` an error passes
            several layers of the integration.
        route: The transaction name of an error in `/tagged/7`, and its source.
        several_apps: True if one process may hold several apps.
        not_yet: The reasons for which tests do not pass yet, by the function's name. Each is run, and fails
            the suite as soon as it passes.
    """

    name: str
    make: Callable[..., AbstractContextManager[App]]
    route: tuple[str, str]
    several_apps: bool = True
    not_yet: Mapping[str, str] = field(default_factory=dict)


def adapters() -> list[Adapter]:
    """Return all adapters, sorted by name."""
    all_adapters = []
    for module in pkgutil.iter_modules(__path__):
        adapter = getattr(importlib.import_module(f"{__name__}.{module.name}"), "ADAPTER", None)
        all_adapters += [adapter] if adapter is not None else []
    return sorted(all_adapters, key=lambda adapter: adapter.name)
