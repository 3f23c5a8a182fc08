"""A small shop on Django, in one file, that reports its errors.

Install:  pip install 'transport-kit[django]' gunicorn uvicorn
Run:      TRANSPORT_KIT_DSN='http://<key>@<host>/<project>' gunicorn app:application
          or uvicorn app:asgi_application, or python app.py runserver
          (`transport-kit receiver` prints a DSN for a local server; without one, nothing is sent)
See:      /carts/1          the sum of a cart
          /carts/2          500, and an event: CartError, caused by KeyError
          /export           200 and half a body, and an event
          /transport/health whether events arrive; /transport/live and /transport/ready for probes
          python app.py transport check, send-test, health
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.urls import include, path

from transport_kit_django.asgi import with_lifespan
from transport_kit_django.wsgi import with_capture

settings.configure(
    SECRET_KEY=os.environ.get("SECRET_KEY", "only for an example"),
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["transport_kit_django"],
    # First, so that it is the outermost middleware.
    MIDDLEWARE=["transport_kit_django.TransportMiddleware", "django.middleware.common.CommonMiddleware"],
    # The DSN comes from the environment.
    TRANSPORT_KIT={"RELEASE": "shop@1.2.0"},
    USE_TZ=True,
)

PRICES = {"tea": 450, "cup": 1290}
CARTS = {1: ["tea", "cup"], 2: ["tea", "pot"]}


class CartError(Exception):
    """A cart can't be summed up."""


def price_of(item: str) -> int:
    try:
        return PRICES[item]
    except KeyError as error:
        raise CartError(f"no price for {item}") from error


def show_cart(request: HttpRequest, number: int) -> JsonResponse:
    items = CARTS[number]
    return JsonResponse({"items": items, "cents": sum(price_of(item) for item in items)})


def export(request: HttpRequest) -> StreamingHttpResponse:
    def rows() -> Iterator[str]:
        for number, items in CARTS.items():
            yield f"{number},{sum(price_of(item) for item in items)}\n"

    return StreamingHttpResponse(rows(), content_type="text/csv")


urlpatterns = [
    path("carts/<int:number>", show_cart),
    path("export", export),
    path("transport/", include("transport_kit_django.urls")),
]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
else:
    # The wrappers capture errors in a streaming body; the one for ASGI also closes the transport with the
    # server. A project has one of the two lines, in its wsgi.py or its asgi.py.
    application = with_capture(get_wsgi_application())
    asgi_application = with_lifespan(get_asgi_application())
