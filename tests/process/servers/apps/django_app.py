"""The Django example, with a slow view; as a program, its `manage.py`.

`plain_asgi` is the site under ASGI without `with_lifespan`.
"""

from __future__ import annotations

from tests.process.servers import noting  # isort: skip - watches before the app is made

import sys

from django.core.asgi import get_asgi_application
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.urls import path

from example_apps.django_app import app as example
from transport_kit_django import get_kit

__all__ = ["application", "asgi_application", "plain_asgi"]


def later(request: HttpRequest) -> HttpResponse:
    """The slow view; Django runs it on a thread, as it sleeps."""
    noting.later()


example.urlpatterns.append(path("later", later))
application = example.application
asgi_application = example.asgi_application
plain_asgi = get_asgi_application()

if __name__ == "__main__":
    # A report during the set-up of a site, which happens in two processes under `runserver`.
    get_kit().capture_exception(RuntimeError("set up"))
    execute_from_command_line(sys.argv)
