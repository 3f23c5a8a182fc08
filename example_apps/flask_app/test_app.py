"""The Flask example works as its header describes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

from example_apps.flask_app.app import create_app
from transport_kit.testing import CapturedTransport, FaultServer
from transport_kit_flask import get_kit


@pytest.fixture(name="transport")
def _transport() -> CapturedTransport:
    """Stores what the shop reports."""
    return CapturedTransport()


@pytest.fixture(name="shop")
def _shop(transport: CapturedTransport) -> Iterator[FlaskClient]:
    """A client of the shop."""
    app = create_app(TRANSPORT_KIT_DSN=transport)
    app.logger.disabled = True
    with app.test_client() as browser:
        yield browser


def test_a_cart_that_can_be_summed_is(shop: FlaskClient, transport: CapturedTransport) -> None:
    """The app works, and reports nothing."""
    assert shop.get("/carts/1").json == {"items": ["tea", "cup"], "cents": 1740}
    assert transport.events == []


def test_a_cart_without_a_price_is_a_500_and_an_event_with_its_cause(
    shop: FlaskClient, transport: CapturedTransport
) -> None:
    """The header promises both, and `make demo APP=flask` shows them."""
    assert shop.get("/carts/2").status_code == 500
    (event,) = transport.events
    values = event["exception"]["values"]
    assert [value["type"] for value in values] == ["KeyError", "CartError"]
    assert values[-1]["value"] == "no price for pot"
    assert values[-1]["stacktrace"]["frames"][-1]["function"] == "price_of"
    assert event["transaction"] == "/carts/<int:number>"


def test_a_cart_that_is_not_there_is_handled_and_reported(
    shop: FlaskClient, transport: CapturedTransport
) -> None:
    """An exception with an error handler is not reported by itself; the handler calls `capture_exception`."""
    assert shop.get("/carts/3").status_code == 404
    (event,) = transport.events
    assert event["exception"]["values"][-1]["mechanism"]["handled"] is True


def test_what_fails_after_the_response_began_is_an_event(
    shop: FlaskClient, transport: CapturedTransport
) -> None:
    """The client has already received a 200: only the event shows the failure."""
    answer = shop.get("/export")
    with pytest.raises(Exception, match="no price for pot"):
        answer.get_data()
    assert answer.status_code == 200
    assert "no price for pot" in json.dumps(transport.events)


def test_the_routes_and_the_commands_answer(shop: FlaskClient) -> None:
    """The header names the paths and the commands."""
    assert [shop.get(f"/transport/{leaf}").status_code for leaf in ("live", "ready", "health")] == [200] * 3
    app = shop.application
    assert isinstance(app, Flask)
    assert app.test_cli_runner().invoke(args=["transport", "send-test"]).exit_code == 0


def test_the_event_arrives_at_a_server() -> None:
    """The other tests replace the transport; this one sends over HTTP."""
    with FaultServer() as receiver:
        app = create_app(TRANSPORT_KIT_DSN=receiver.dsn)
        app.logger.disabled = True
        app.test_client().get("/carts/2")
        assert receiver.wait_for(1)
        assert get_kit(app).close(5).ok
