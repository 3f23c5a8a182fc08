"""The four routes of a Flask app: answered before hooks, session and host checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, Response, redirect, request, url_for
from flask.sessions import SessionInterface
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client, TestResponse
from werkzeug.wrappers import Response as WerkzeugResponse

from transport_kit import FlushReport, FunctionTransport
from transport_kit_flask import TransportKit

LEAVES = ("live", "ready", "health")
TOKEN = "a-long-enough-token"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def site(prepare: Callable[[Flask], object] = lambda app: None, **options: object) -> Flask:
    app = Flask("shop", subdomain_matching=bool(options.pop("subdomains", False)))
    app.logger.disabled = True
    app.config["TRANSPORT_KIT_DSN"] = ""
    app.config.update({f"TRANSPORT_KIT_{name.upper()}": value for name, value in options.items()})
    prepare(app)
    TransportKit().init_app(app)
    app.add_url_rule("/<path:path>", view_func=lambda path: ("app", 418), methods=["GET", "POST"])
    return app


def said(answer: TestResponse) -> Any:
    """Return the JSON of a response; None if its content type is another."""
    return answer.json


def test_the_four_leaves_answer_under_the_default_path() -> None:
    """One line in the app gives an orchestrator its probes."""
    browser = site(flush_token=TOKEN).test_client()
    assert [browser.get(f"/transport/{leaf}").status_code for leaf in LEAVES] == [200] * 3
    flushed = browser.post("/transport/flush?timeout=0", headers=BEARER)
    assert (flushed.status_code, said(flushed)["ok"]) == (200, True)
    assert flushed.headers["Cache-Control"] == "no-store"
    assert browser.post("/transport/flush").status_code == 404
    assert said(browser.get("/transport/health", headers=BEARER))["scope"] == "process"
    assert browser.get("/transport/health", headers={"Accept": "text/html"}).mimetype == "text/html"
    assert browser.get("/transport/health?format=text").text == "status: pass\n"
    head = browser.head("/transport/health")
    assert (head.status_code, head.data) == (200, b"")


def login_first(app: Flask) -> None:
    app.before_request(lambda: redirect("/login"))


def https_only(app: Flask) -> None:
    app.before_request(lambda: redirect("https://shop.example" + request.path))


def blueprint_wide(app: Flask) -> None:
    app.before_request_funcs.setdefault("transport_kit", []).append(lambda: redirect("/login"))


def trusted_hosts(app: Flask) -> None:
    app.config["TRUSTED_HOSTS"] = ["shop.example"]


def after_request(app: Flask) -> None:
    def sign(response: Response) -> Response:
        response.headers["X-App"] = "1"
        return response

    app.after_request(sign)


class NoStore(SessionInterface):
    """A session store that is down."""

    def open_session(self, app: Flask, request: Any) -> None:
        raise ConnectionError("no store")


def broken_sessions(app: Flask) -> None:
    app.session_interface = NoStore()


@pytest.mark.parametrize(
    "prepare", [login_first, https_only, blueprint_wide, trusted_hosts, after_request, broken_sessions]
)
def test_they_answer_before_whatever_the_app_puts_around_its_views(
    prepare: Callable[[Flask], object],
) -> None:
    """A probe has no session and speaks plain HTTP to an address; the session store may be down."""
    browser = site(prepare, flush_token=TOKEN).test_client()
    answers = [browser.get(f"/transport/{leaf}") for leaf in LEAVES]
    answers.append(browser.post("/transport/flush?timeout=0", headers=BEARER))
    assert [answer.status_code for answer in answers] == [200] * 4
    for answer in answers:
        assert "X-App" not in answer.headers
        assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/transport",
        "/transport/",
        "/transport/healthy",
        "/Transport/health",
        "/x/transport/health",
        "/health",
    ],
)
def test_every_other_path_is_the_apps(path: str) -> None:
    """Only four paths are taken, not a prefix."""
    assert site().test_client().get(path).status_code == 418


def test_another_path_or_none_can_be_chosen() -> None:
    """`/transport` may be a page of the app."""
    browser = site(path="/_internal").test_client()
    assert browser.get("/_internal/live").status_code == 200
    assert browser.get("/transport/live").status_code == 418
    app = site(path=None)
    assert app.test_client().get("/transport/live").status_code == 418
    assert "transport_kit" not in app.blueprints


def test_a_mounted_app_answers_below_its_mount() -> None:
    """Each app has its own health."""
    inner = site(dsn="nonsense")
    browser = Client(DispatcherMiddleware(site(), {"/inner": inner}), WerkzeugResponse)
    assert browser.get("/transport/health").status_code == 200
    assert browser.get("/inner/transport/health").status_code == 503


def test_the_routes_have_names() -> None:
    """For `url_for` in an admin page, and for `flask routes`."""
    app = site(path="/_internal")
    with app.test_request_context():
        assert url_for("transport_kit.health") == "/_internal/health"
        assert url_for("transport_kit.flush") == "/_internal/flush"


@pytest.mark.parametrize("prepare", [login_first, https_only])
def test_the_hook_answers_first_where_the_layer_was_not_passed(prepare: Callable[[Flask], object]) -> None:
    """A test that dispatches by hand gets the same answers as a client of the server."""
    app = site(prepare)
    with app.test_request_context("/transport/health"):
        answer = app.full_dispatch_request()
        assert (answer.status_code, answer.json) == (200, {"status": "pass"})
        assert app.ensure_sync(app.view_functions["transport_kit.health"])().status_code == 200
    with app.test_request_context("/carts"):
        assert app.full_dispatch_request().status_code == 302
    assert app.before_request_funcs[None][0].__name__ == "before_request"


def test_a_flush_that_takes_too_long_is_a_504() -> None:
    """`curl -f` in a deployment script detects it."""

    class Slow(FunctionTransport):
        def _flush(self, timeout: float, until: str) -> FlushReport:
            return FlushReport(False, pending=3)

    app = site(dsn=Slow(lambda envelope: None), flush_token=TOKEN)
    answer = app.test_client().post("/transport/flush?timeout=0.1", headers=BEARER)
    assert (answer.status_code, said(answer)["pending"]) == (504, 3)


def test_requests_for_the_routes_start_nothing_and_are_not_captured() -> None:
    """A pod that only answers probes needs no transport."""
    started: list[bool] = []

    class Watched(FunctionTransport):
        def start(self) -> None:
            started.append(True)

    app = site(dsn=Watched(lambda envelope: started.append(False)), traces_sample_rate=1.0)
    browser = app.test_client()
    browser.get("/transport/live")
    assert started == []
    browser.get("/carts")
    assert started[0] is True
