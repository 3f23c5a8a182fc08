"""The life cycle of the extension: set-up, several apps, invalid settings, processes."""

from __future__ import annotations

import gc
import json
import logging
import os
import weakref
from typing import Any, NoReturn

import pytest
from flask import Blueprint, Flask, got_request_exception

from tests.timing import SOON
from transport_kit import InvalidDsn, NullTransport, OptionsError
from transport_kit.testing import CapturedTransport, FaultServer
from transport_kit_flask import TransportKit, get_kit

DSN = "http://0123456789abcdef0123456789abcdef@127.0.0.1:9/42"


def fail() -> NoReturn:
    raise ValueError("broken")


def site(**options: object) -> Flask:
    app = Flask("shop")
    app.logger.disabled = True
    app.config.update({f"TRANSPORT_KIT_{name.upper()}": value for name, value in options.items()})
    TransportKit(app)
    app.add_url_rule("/", view_func=fail)
    return app


def test_the_state_is_the_apps_and_the_extension_has_none() -> None:
    """Flask's rule for extensions: one object serves any number of apps, also in a factory."""
    kit = TransportKit()
    apps = [Flask("one"), Flask("two")]
    transports = [CapturedTransport(), CapturedTransport()]
    for app, transport in zip(apps, transports, strict=True):
        app.config["TRANSPORT_KIT_DSN"] = transport
        kit.init_app(app)
    assert vars(kit) == {}
    for app, transport in zip(apps, transports, strict=True):
        assert get_kit(app).transport is transport
        with app.app_context():
            assert kit.transport is transport
            assert kit.reporter is get_kit().reporter
            assert kit.capture_exception(ValueError(app.name)) is not None
    for app, transport in zip(apps, transports, strict=True):
        (event,) = transport.events
        assert event["exception"]["values"][0]["value"] == app.name


def test_a_second_init_app_raises_and_changes_nothing() -> None:
    """Otherwise everything would be captured twice."""
    app = site(dsn="")
    before = app.wsgi_app
    with pytest.raises(RuntimeError, match="'shop' before"):
        TransportKit().init_app(app)
    assert app.wsgi_app is before
    assert len(list(got_request_exception.receivers_for(app))) == 1


def test_an_app_that_refuses_the_routes_is_left_as_it_was() -> None:
    """Flask refuses blueprints after the first request, and duplicates: no partial set-up may remain."""
    served = Flask("served")
    served.add_url_rule("/", view_func=lambda: "hello")
    served.test_client().get("/")
    named = Flask("named")
    named.register_blueprint(Blueprint("transport_kit", __name__))
    for app, refusal in ((served, AssertionError), (named, ValueError)):
        before = app.wsgi_app
        with pytest.raises(refusal):
            TransportKit(app)
        assert app.wsgi_app == before
        assert app.extensions == {}
        assert app.before_request_funcs.get(None, []) == []
        assert app.after_request_funcs.get(None, []) == []
        assert list(got_request_exception.receivers_for(app)) == []
        assert "transport" not in app.cli.commands


def test_a_key_of_the_config_that_is_no_text_is_somebody_elses() -> None:
    """A dict may have any keys."""
    app = Flask("shop")
    app.config.update({7: "seven", "TRANSPORT_KIT_DSN": ""})
    TransportKit(app)
    assert get_kit(app).problem is None


def test_an_app_without_the_extension_says_so() -> None:
    """With a clear message instead of an AttributeError."""
    with pytest.raises(RuntimeError, match="init_app"):
        get_kit(Flask("bare"))
    with Flask("bare").app_context(), pytest.raises(RuntimeError, match="init_app"):
        TransportKit().transport.start()


def test_apps_with_equal_dsn_and_options_share_one_transport() -> None:
    """They share the queue, the connections and the server's rate limits."""
    first, second = site(dsn=DSN, release="a"), site(dsn=DSN, release="b", path="/other")
    assert get_kit(first).transport is get_kit(second).transport
    assert get_kit(first).reporter is not get_kit(second).reporter
    assert get_kit(site(dsn=DSN, max_senders=2)).transport is not get_kit(first).transport


def test_options_come_from_the_config_first_then_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As for Flask's own options."""
    monkeypatch.setenv("TRANSPORT_KIT_DSN", DSN)
    monkeypatch.setenv("TRANSPORT_KIT_RELEASE", "of the environment")
    monkeypatch.setenv("TRANSPORT_KIT_ENVIRONMENT", "staging")
    kit = get_kit(site(release="of the config"))
    assert kit.transport.dsn is not None
    assert (kit.reporter.options.release, kit.reporter.options.environment) == ("of the config", "staging")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dsn": "nonsense"}, "dsn (app.config, names begin with TRANSPORT_KIT_): invalid DSN"),
    ],
)
def test_a_wrong_setting_is_one_line_and_a_health_that_fails(
    options: dict[str, object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It must not stop the app."""
    app = site(**options)
    (record,) = [record for record in caplog.records if record.name == "transport_kit"]
    assert record.levelno == logging.ERROR
    assert said in record.getMessage()
    assert isinstance(get_kit(app).transport, NullTransport)
    browser = app.test_client()
    assert browser.get("/").status_code == 500
    assert browser.get("/transport/health").status_code == 503
    assert browser.get("/transport/live").status_code == 200
    assert get_kit(app).transport.health().discarded_by_category["misconfigured"]["error"] == 1


def test_an_option_that_can_not_be_used_is_one_line_and_deliveries_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A typo costs that option only."""
    app = site(relaese="1", max_senders="many")
    lines = [record.getMessage() for record in caplog.records if record.name == "transport_kit"]
    assert len(lines) == 2
    assert any(
        "RELAESE (app.config, names begin with TRANSPORT_KIT_): unknown option" in line for line in lines
    )
    assert get_kit(app).problem is None
    health = app.test_client().get("/transport/health")
    assert (health.status_code, json.loads(health.data)["status"]) == (200, "warn")


@pytest.mark.parametrize(("options", "error"), [({"relaese": "1"}, OptionsError), ({"dsn": "x"}, InvalidDsn)])
def test_strict_raises_in_init_app_and_leaves_the_app_untouched(
    options: dict[str, object], error: type[Exception]
) -> None:
    """For deployments that prefer not to start."""
    app = Flask("shop")
    before = app.wsgi_app
    app.config.update(
        {"TRANSPORT_KIT_STRICT": True} | {f"TRANSPORT_KIT_{k.upper()}": v for k, v in options.items()}
    )
    with pytest.raises(error):
        TransportKit(app)
    assert app.wsgi_app == before
    assert "transport_kit" not in app.extensions
    assert app.before_request_funcs == {}


def test_the_first_request_starts_the_transport_and_the_first_after_a_fork_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server's parent only forks; its children serve."""
    started: list[int] = []

    class Watched(CapturedTransport):
        def start(self) -> None:
            started.append(os.getpid())
            raise RuntimeError("no more threads")  # which costs no request

    browser = site(dsn=Watched()).test_client()
    assert started == []
    browser.get("/")
    browser.get("/")
    assert len(started) == 1
    monkeypatch.setattr(os, "getpid", lambda: 12345)
    browser.get("/")
    assert started[1:] == [12345]


def test_a_closed_transport_is_replaced_when_the_kit_starts_again() -> None:
    """An app may start again in the same process, as in a test suite."""
    with FaultServer() as server:
        app = site(dsn=server.dsn)
        kit = get_kit(app)
        app.test_client().get("/")
        assert kit.close(SOON).ok
        assert len(server.event_ids()) == 1
        assert app.test_client().get("/transport/health").status_code == 503
        kit.start()
        app.test_client().get("/")
        assert kit.close(SOON).ok
        assert len(set(server.event_ids())) == 2


def test_the_end_of_an_app_context_closes_nothing() -> None:
    """`teardown_appcontext` runs after each request, so it must not close the transport."""
    transport = CapturedTransport()
    app = site(dsn=transport)
    for _ in range(3):
        app.test_client().get("/")
    assert len(transport.events) == 3
    assert not transport.closed
    assert app.teardown_appcontext_funcs == []


def test_an_app_that_goes_takes_its_part_along() -> None:
    """A test suite creates thousands of apps; each must be garbage-collected."""
    app = site(dsn=DSN)
    refs: list[weakref.ref[Any]] = [
        weakref.ref(app),
        weakref.ref(get_kit(app)),
        weakref.ref(get_kit(app).transport),
    ]
    del app
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3
