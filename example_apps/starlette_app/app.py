"""A small shop on Starlette that reports its errors.

Install:  pip install 'transport-kit[starlette]' uvicorn
Run:      TRANSPORT_KIT_DSN='http://<key>@<host>/<project>' uvicorn app:app
          (`transport-kit receiver` prints a DSN for a local server; without one, nothing is sent)
See:      /carts/1          the sum of a cart
          /carts/2          500, and an event: CartError, caused by KeyError
          /export           200 and half a body, and an event
          /checkout  POST   200, and an event from the task that runs after the response
          /transport/health whether events arrive; /transport/live and /transport/ready for probes
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from transport_kit_starlette import TransportMiddleware

PRICES = {"tea": 450, "cup": 1290}
CARTS = {1: ["tea", "cup"], 2: ["tea", "pot"]}


class CartError(Exception):
    """A cart can't be summed up."""


def price_of(item: str) -> int:
    try:
        return PRICES[item]
    except KeyError as error:
        raise CartError(f"no price for {item}") from error


async def show_cart(request: Request) -> Response:
    items = CARTS[request.path_params["number"]]
    return JSONResponse({"items": items, "cents": sum(price_of(item) for item in items)})


async def export(request: Request) -> Response:
    async def rows() -> AsyncIterator[str]:
        for number, items in CARTS.items():
            yield f"{number},{sum(price_of(item) for item in items)}\n"

    return StreamingResponse(rows(), media_type="text/csv")


async def checkout(request: Request) -> Response:
    return PlainTextResponse("thank you\n", background=BackgroundTask(price_of, "pot"))


app = Starlette(
    routes=[
        Route("/carts/{number:int}", show_cart),
        Route("/export", export),
        Route("/checkout", checkout, methods=["POST"]),
    ]
)
# Added last, so that it is the outermost middleware. The DSN comes from the environment.
app.add_middleware(TransportMiddleware)
