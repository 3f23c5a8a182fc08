"""The request in events of a Flask app: only data that is in memory, and only data that may be sent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, NoReturn

import flask_login
import pytest
from flask import Request, g, request
from werkzeug.exceptions import HTTPException
from werkzeug.test import create_environ, run_wsgi_app

from tests.integrations.flask_support import CartError, Site, fail, kit, site_for
from transport_kit import Scope


@pytest.fixture(name="site")
def _site(sink: Any) -> Site:
    """Make an app whose events go to the sink."""
    return site_for(sink)


def test_the_layer_opens_no_session_and_reads_no_body(site: Site) -> None:
    """Accessing a session adds `Vary: Cookie`; reading a body consumes it."""
    app = site(send_default_pii=True)

    @app.post("/")
    def view() -> bytes:
        with pytest.raises(CartError):
            fail()
        return request.stream.read()

    answer = app.test_client().post("/", data=b"body")
    assert answer.data == b"body"
    assert "Vary" not in answer.headers


@pytest.mark.parametrize(
    ("read", "sent"),
    [
        (lambda: request.form, {"item": "tea", "n": ["1", "2"], "password": "[Filtered]"}),
        (lambda: request.get_data(), "item=tea&n=1&n=2&password=[Filtered]"),
        (lambda: request.stream.read(), None),
        (lambda: None, None),
    ],
    ids=["form", "data", "stream", "unread"],
)
def test_a_body_is_sent_as_far_as_the_app_kept_it(
    read: Callable[[], object], sent: object, site: Site, sink: Any
) -> None:
    """Reading it for an event could block on a slow client, or take it from the app."""
    app = site(send_default_pii=True)

    @app.post("/")
    def view() -> NoReturn:
        read()
        raise CartError

    app.test_client().post("/", data={"item": "tea", "n": ["1", "2"], "password": "secret"})
    assert sink.event["request"].get("data") == sent


def test_without_pii_no_body_no_user_and_no_address_is_sent(site: Site, sink: Any) -> None:
    """This is the default."""
    app = site()

    @app.post("/")
    def view() -> NoReturn:
        g._login_user = SimpleNamespace(id=7)
        request.get_data()
        raise CartError

    app.test_client().post("/", data={"item": "tea"}, environ_base={"REMOTE_ADDR": "192.0.2.7"})
    assert "data" not in sink.event["request"]
    assert "user" not in sink.event
    assert "REMOTE_ADDR" not in sink.event["request"]["env"]


class Account(flask_login.UserMixin):  # type: ignore[misc]  # comes without types
    """A model whose attributes need a query unless they are loaded."""

    def __init__(self, **loaded: object) -> None:
        self.__dict__.update(loaded)

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"{name} was asked for: a query")


@pytest.mark.parametrize("loads", [True, False])
def test_the_user_of_flask_login_is_sent_if_it_was_loaded(loads: bool, site: Site, sink: Any) -> None:
    """Loading it would need a query during an error."""
    app = site(send_default_pii=True)
    app.secret_key = "x"
    manager = flask_login.LoginManager(app)
    loaded: list[str] = []

    def load(number: str) -> Account:
        loaded.append(number)
        return Account(id=int(number), email="tea@shop.example", name="not sent")

    manager.user_loader(load)

    @app.get("/login")
    def login() -> str:
        flask_login.login_user(Account(id=7))
        return "welcome"

    @app.get("/fail")
    def view() -> NoReturn:
        if loads:
            assert flask_login.current_user.is_authenticated
        raise CartError

    browser = app.test_client()
    browser.get("/login")
    browser.get("/fail", environ_base={"REMOTE_ADDR": "192.0.2.7"})
    expected = {"id": "7", "email": "tea@shop.example"} if loads else {}
    assert sink.event["user"] == {"ip_address": "192.0.2.7"} | expected
    assert loaded == ["7"] * loads


def test_a_user_set_by_hand_wins(site: Site, sink: Any) -> None:
    """The app knows better than the extension."""
    app = site(send_default_pii=True)

    @app.get("/")
    def view() -> NoReturn:
        g._login_user = SimpleNamespace(id=7)
        Scope.current().set_user({"id": "by hand"})
        raise CartError

    app.test_client().get("/")
    assert sink.event["user"]["id"] == "by hand"


def test_a_host_that_flask_refuses_is_what_the_event_shows(site: Site, sink: Any) -> None:
    """`request.url` raises for it, and the event must show the cause."""

    class Strict(Request):
        trusted_hosts = ["shop.example"]  # noqa: RUF012 - Werkzeug's declaration

    app = site()
    app.request_class = Strict
    app.add_url_rule("/", view_func=lambda: request.url)

    @app.errorhandler(400)
    def refused(error: HTTPException) -> str:
        raise CartError("while refusing")

    app.test_client().get("/", base_url="http://evil.example:81")
    assert sink.event["request"]["url"] == "http://evil.example:81/"


def test_a_request_without_a_host_header_shows_the_servers_name(site: Site, sink: Any) -> None:
    """HTTP/1.0 requires no host header."""
    app = site()
    app.add_url_rule("/", view_func=fail)
    for port in ("80", "8000"):
        environ = create_environ("/") | {"SERVER_NAME": "inside", "SERVER_PORT": port}
        del environ["HTTP_HOST"]
        run_wsgi_app(app, environ, buffered=True)
    assert [event["request"]["url"] for event in sink.events] == ["http://inside/", "http://inside:8000/"]


def test_an_environ_that_breaks_pep_3333_costs_the_request_not_the_event(
    site: Site, sink: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The exception matters more than its request."""
    app = site(init=False)

    def broken(environ: Any, start_response: Any) -> Iterable[bytes]:
        environ["SCRIPT_NAME"] = "\ud800"
        environ["HTTP_X"] = 3
        raise CartError("odd")

    app.wsgi_app = broken  # type: ignore[method-assign]
    kit.init_app(app)
    with caplog.at_level(logging.WARNING), pytest.raises(CartError):
        run_wsgi_app(app, create_environ("/"), buffered=True)
    assert sink.exception["value"] == "odd"
