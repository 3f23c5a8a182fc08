"""The contract's site in Django, under WSGI with `with_capture`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.handlers.wsgi import WSGIHandler

from tests.contract.adapters import Adapter
from tests.contract.adapters.django_asgi import ROUTE, site
from tests.contract.adapters.wsgi import WsgiApp
from transport_kit_django import get_kit
from transport_kit_django.wsgi import with_capture


@contextmanager
def make(dsn: Any, *, nested: bool = False, **options: Any) -> Iterator[WsgiApp]:
    with site(dsn, nested, options):
        yield WsgiApp(WSGIHandler(), None) if dsn is None else WsgiApp(with_capture(WSGIHandler()), get_kit)


ADAPTER = Adapter("django-wsgi", make, route=ROUTE, several_apps=False)
