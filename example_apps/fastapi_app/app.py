"""A small shop on FastAPI that reports its errors.

Install:  pip install 'transport-kit[starlette]' fastapi uvicorn
Run:      TRANSPORT_KIT_DSN='http://<key>@<host>/<project>' uvicorn app:app
          (`transport-kit receiver` prints a DSN for a local server; without one, nothing is sent)
See:      /carts/1          the sum of a cart
          /carts/2          500, and an event: CartError, caused by KeyError
          /carts/two        422, and no event: an invalid request is not an error of the app
          /export           200 and half a body, and an event
          /checkout  POST   200, and an event from the task that runs after the response
          /transport/health whether events arrive; not in /docs
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse

from transport_kit_starlette import TransportMiddleware

PRICES = {"tea": 450, "cup": 1290}
CARTS = {1: ["tea", "cup"], 2: ["tea", "pot"]}

app = FastAPI(title="A small shop")


class CartError(Exception):
    """A cart can't be summed up."""


def price_of(item: str) -> int:
    try:
        return PRICES[item]
    except KeyError as error:
        raise CartError(f"no price for {item}") from error


def cart(number: int) -> list[str]:
    return CARTS[number]


@app.get("/carts/{number}")
def show_cart(items: Annotated[list[str], Depends(cart)]) -> dict[str, object]:
    return {"items": items, "cents": sum(price_of(item) for item in items)}


@app.get("/export")
def export() -> StreamingResponse:
    def rows() -> Iterator[str]:
        for number, items in CARTS.items():
            yield f"{number},{sum(price_of(item) for item in items)}\n"

    return StreamingResponse(rows(), media_type="text/csv")


@app.post("/checkout")
def checkout(tasks: BackgroundTasks) -> str:
    tasks.add_task(price_of, "pot")
    return "thank you"


# Added last, so that it is the outermost middleware. The DSN comes from the environment.
app.add_middleware(TransportMiddleware)
