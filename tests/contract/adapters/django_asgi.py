"""The contract's site in Django, under ASGI with `with_lifespan`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from django.core.handlers.asgi import ASGIHandler
from django.utils.deprecation import MiddlewareMixin

from tests.contract.adapters import LOGGER, Adapter, KnownError, ShopError
from tests.contract.adapters.asgi import AsgiApp
from tests.integrations.django_support import override_settings
from transport_kit import Scope
from transport_kit_django import get_kit
from transport_kit_django.asgi import with_lifespan

OURS = "transport_kit_django.TransportMiddleware"
KNOWN_ERRORS = f"{__name__}.KnownErrors"
COMMON = "django.middleware.common.CommonMiddleware"


def hello(request: Any) -> Any:
    from django.http import HttpResponse

    return HttpResponse("hello", headers={"X-Shop": "yes"})


def boom(request: Any) -> Any:
    raise ShopError("boom")


def logged(request: Any) -> Any:
    try:
        raise ShopError("logged")
    except ShopError:
        LOGGER.exception("it went wrong")
        raise


def handled(request: Any) -> Any:
    from django.http import HttpResponse

    try:
        raise ShopError("handled")
    except ShopError as error:
        return HttpResponse(get_kit().capture_exception(error))


def answered(request: Any) -> Any:
    raise KnownError("known")


class KnownErrors(MiddlewareMixin):
    """A middleware of the site that answers a known error."""

    def process_exception(self, request: Any, error: Exception) -> Any:
        from django.http import HttpResponse

        return HttpResponse("we know", status=400) if isinstance(error, KnownError) else None


def page(request: Any) -> Any:
    from django.http import HttpResponse

    return HttpResponse("our page", status=500)


async def tagged(request: Any, number: int) -> Any:
    Scope.current().set_tag("number", number)
    await asyncio.sleep(0)
    raise ShopError(f"tagged {number}")


def urlconf() -> Any:
    from django.urls import include, path

    module: Any = ModuleType("urls_of_the_contract")
    module.urlpatterns = [
        path("", hello),
        path("boom", boom),
        path("logged", logged),
        path("handled", handled),
        path("answered", answered),
        path("tagged/<int:number>", tagged),
        path("transport/", include("transport_kit_django.urls")),
    ]
    module.handler500 = page
    return module


@contextmanager
def site(dsn: Any, nested: bool, options: dict[str, Any]) -> Iterator[None]:
    """Set the settings for handlers that are made in the block."""
    values: dict[str, Any] = {"ROOT_URLCONF": urlconf(), "MIDDLEWARE": [COMMON, KNOWN_ERRORS]}
    if dsn is not None:
        values["MIDDLEWARE"] = [OURS, *values["MIDDLEWARE"], *([OURS] if nested else [])]
        values["DEBUG_PROPAGATE_EXCEPTIONS"] = nested
        values["TRANSPORT_KIT"] = {"DSN": dsn, **{name.upper(): value for name, value in options.items()}}
    with override_settings(**values):
        yield


@contextmanager
def make(dsn: Any, *, nested: bool = False, **options: Any) -> Iterator[AsgiApp]:
    with site(dsn, nested, options):
        if dsn is None:
            yield AsgiApp(ASGIHandler(), lambda: None)
        else:
            yield AsgiApp(with_lifespan(ASGIHandler()), get_kit)


#: The transaction name of its errors, and its source.
ROUTE = ("tagged/<int:number>", "route")
ADAPTER = Adapter("django-asgi", make, route=ROUTE, several_apps=False)
