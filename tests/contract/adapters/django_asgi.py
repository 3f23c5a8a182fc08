"""The contract's site in Django, under ASGI with `with_lifespan`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from tests.contract.adapters import LOGGER, Adapter, ShopError
from tests.contract.adapters.asgi import AsgiApp
from tests.integrations.django_support import ASGIHandler, override_settings
from transport_kit import Scope
from transport_kit_django import get_kit
from transport_kit_django.asgi import with_lifespan

OURS = "transport_kit_django.TransportMiddleware"
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
        path("tagged/<int:number>", tagged),
        path("transport/", include("transport_kit_django.urls")),
    ]
    return module


@contextmanager
def make(dsn: Any, *, nested: bool = False, **options: Any) -> Iterator[AsgiApp]:
    given = {"ROOT_URLCONF": urlconf(), "MIDDLEWARE": [COMMON]}
    if dsn is None:
        with override_settings(**given):
            yield AsgiApp(ASGIHandler(), lambda: None)
        return
    given["MIDDLEWARE"] = [OURS, COMMON, OURS] if nested else [OURS, COMMON]
    setting = {"DSN": dsn, **{name.upper(): value for name, value in options.items()}}
    with override_settings(TRANSPORT_KIT=setting, DEBUG_PROPAGATE_EXCEPTIONS=nested, **given):
        yield AsgiApp(with_lifespan(ASGIHandler()), get_kit)


ADAPTER = Adapter("django", make, route=("tagged/<int:number>", "route"), several_apps=False)
