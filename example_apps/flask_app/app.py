"""A small shop on Flask that reports its errors.

Install:  pip install 'transport-kit[flask]'
Run:      TRANSPORT_KIT_DSN='http://<key>@<host>/<project>' flask run
          (`transport-kit receiver` prints a DSN for a local server; without one, nothing is sent)
See:      /carts/1          the sum of a cart
          /carts/2          500, and an event: CartError, caused by KeyError
          /carts/3          404 from an error handler, and an event that the handler reports
          /export           200 and half a body, and an event
          /transport/health whether events arrive; /transport/live and /transport/ready for probes
          flask transport check, flask transport send-test   the same from a shell
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flask import Flask, Response

from transport_kit_flask import TransportKit

PRICES = {"tea": 450, "cup": 1290}
CARTS = {1: ["tea", "cup"], 2: ["tea", "pot"]}

kit = TransportKit()


class CartError(Exception):
    """A cart can't be summed up."""


def price_of(item: str) -> int:
    try:
        return PRICES[item]
    except KeyError as error:
        raise CartError(f"no price for {item}") from error


def show_cart(number: int) -> dict[str, Any]:
    items = CARTS[number]
    return {"items": items, "cents": sum(price_of(item) for item in items)}


def export() -> Response:
    def rows() -> Iterator[str]:
        for number, items in CARTS.items():
            yield f"{number},{sum(price_of(item) for item in items)}\n"

    return Response(rows(), mimetype="text/csv")


def no_such_cart(error: KeyError) -> tuple[str, int]:
    # An exception with an error handler counts as handled and is not reported; this handler reports it.
    kit.capture_exception(error)
    return "There is no such cart.\n", 404


def create_app(**config: object) -> Flask:
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config.update(config)
    app.add_url_rule("/carts/<int:number>", view_func=show_cart)
    app.add_url_rule("/export", view_func=export)
    app.register_error_handler(KeyError, no_such_cart)
    # Last, because it reads the complete config. The DSN comes from the environment.
    kit.init_app(app)
    return app


app = create_app()
