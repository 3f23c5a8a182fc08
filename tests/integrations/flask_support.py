"""Flask apps for tests, and their errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask

from transport_kit_flask import TransportKit

Site = Callable[..., Flask]
kit = TransportKit()


class CartError(Exception):
    """An error of the app."""


def fail(**values: object) -> str:
    raise CartError("bad cart")


def site_for(sink: Any) -> Site:
    """Make apps whose events go to the sink."""

    def site(*, init: bool = True, **options: object) -> Flask:
        app = Flask("shop")
        app.logger.disabled = True
        app.config["TRANSPORT_KIT_DSN"] = sink
        app.config.update({f"TRANSPORT_KIT_{name.upper()}": value for name, value in options.items()})
        if init:
            kit.init_app(app)
        return app

    return site
