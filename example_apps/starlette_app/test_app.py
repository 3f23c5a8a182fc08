"""The Starlette example works as its header describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from example_apps.starlette_app.app import app
from transport_kit.testing import FaultServer


@pytest.fixture(name="shop")
def _shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TestClient, FaultServer]]:
    """A client of the app as after a fresh start, and the server that the app sends to."""
    with FaultServer() as receiver:
        monkeypatch.setenv("TRANSPORT_KIT_DSN", receiver.dsn)
        monkeypatch.setattr(app, "middleware_stack", None)
        with TestClient(app, raise_server_exceptions=False) as browser:
            yield browser, receiver


def event_of(receiver: FaultServer) -> dict[str, Any]:
    assert receiver.wait_for(1)
    (request,) = receiver.accepted
    event: dict[str, Any] = json.loads(next(iter(request.envelope.items)).get_bytes())
    return event


def test_a_cart_that_can_be_summed_is(shop: tuple[TestClient, FaultServer]) -> None:
    """The app works, and reports nothing."""
    browser, receiver = shop
    assert browser.get("/carts/1").json() == {"items": ["tea", "cup"], "cents": 1740}
    assert receiver.requests == []


def test_a_cart_without_a_price_is_a_500_and_an_event_with_its_cause(
    shop: tuple[TestClient, FaultServer],
) -> None:
    """The header promises both, and `make demo` shows them."""
    browser, receiver = shop
    assert browser.get("/carts/2").status_code == 500
    values = event_of(receiver)["exception"]["values"]
    assert [value["type"] for value in values] == ["KeyError", "CartError"]
    assert values[-1]["value"] == "no price for pot"
    frame = values[-1]["stacktrace"]["frames"][-1]
    assert frame["function"] == "price_of"
    assert "raise CartError" in frame["context_line"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/export"), ("POST", "/checkout")])
def test_what_fails_after_the_response_began_is_an_event(
    method: str, path: str, shop: tuple[TestClient, FaultServer]
) -> None:
    """The client has already received a 200: only the event shows the failure."""
    browser, receiver = shop
    assert browser.request(method, path).status_code == 200
    assert "no price for pot" in json.dumps(event_of(receiver)["exception"])


def test_the_routes_answer(shop: tuple[TestClient, FaultServer]) -> None:
    """Probes find the routes at the paths in the header."""
    browser, _ = shop
    assert [browser.get(f"/transport/{leaf}").status_code for leaf in ("live", "ready", "health")] == [
        200
    ] * 3
