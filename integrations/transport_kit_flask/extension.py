"""`TransportKit`: the Flask extension. It translates between Flask and the kit.

This module owns the parts that `init_app` adds to an app: its kit, the WSGI layer, hooks, a signal's
receiver, a blueprint and commands. The app holds all of them and the extension none, so that one extension
serves any number of apps, and an app can be garbage-collected.

Threads: call `init_app` during the app's set-up; everything else may be called from any thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from flask import Blueprint, Flask, Response, current_app, got_request_exception, has_app_context

from transport_kit import LEAVES, Kit, Leaf, Reporter, Transport
from transport_kit_flask.commands import transport_group
from transport_kit_flask.layer import EXTENSION, Layer, after_request, before_request, get_kit

__all__ = ["get_kit", "TransportKit"]

logger = logging.getLogger("transport_kit")

PREFIX: Final = "TRANSPORT_KIT_"


class TransportKit:
    """Captures and delivers errors of Flask apps, and serves the health routes.

    `kit = TransportKit()`, then `kit.init_app(app)` once for each app, after its config is complete. Reads
    `TRANSPORT_KIT_DSN` and every option as `TRANSPORT_KIT_<NAME>` from `app.config`, and missing ones from
    the environment. Apps with equal DSN and transport options share one transport.

    - An exception that Flask turns into a 500, or propagates, is captured. One that an `errorhandler` for
      its class, or for `Exception`, handles is not. One that breaks a streamed body is.
    - `live`, `ready`, `health` and `flush` are served under `TRANSPORT_KIT_PATH`, before the app's own
      hooks, and before its session is opened.
    - Adds the commands `flask transport check`, `send-test`, `flush` and `health`.
    - The transport starts with the first request and is closed at the end of the process.

    Args:
        app: If given, `init_app` is called for it.

    Raises:
        RuntimeError: The app has been initialised before.
        TransportKitError: An invalid configuration, with `TRANSPORT_KIT_STRICT` only; otherwise it is logged,
            and the health status is `fail`.
    """

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Add all parts to the app. Raises as described for the class."""
        if EXTENSION in app.extensions:
            raise RuntimeError(f"TransportKit.init_app was called for {app.name!r} before")
        values = {
            key[len(PREFIX) :]: value
            for key, value in app.config.items()
            if isinstance(key, str) and key.startswith(PREFIX)
        }
        kit = Kit(values, source=f"app.config, names begin with {PREFIX}", shared=True)
        layer = Layer(kit, app.wsgi_app)
        if kit.options.path is not None:
            # First, because Flask may refuse it, such as after the first request; then nothing else is
            # changed.
            app.register_blueprint(_blueprint(layer, kit.options.path))
        app.extensions[EXTENSION] = layer
        app.wsgi_app = layer  # type: ignore[method-assign]  # as Flask's documentation recommends
        # The signal holds the receiver weakly, the app holds the layer.
        got_request_exception.connect(layer.on_exception, app)
        # `before_request` runs first; `after_request` last, because Flask calls these in reverse.
        app.before_request_funcs.setdefault(None, []).insert(0, before_request)
        app.after_request_funcs.setdefault(None, []).insert(0, after_request)
        if transport_group.name not in app.cli.commands:
            app.cli.add_command(transport_group)

    @property
    def transport(self) -> Transport:
        """The current app's transport.

        Raises:
            RuntimeError: There is no current app, or `init_app` was not called for it.
        """
        return get_kit().transport

    @property
    def reporter(self) -> Reporter:
        """The current app's reporter. Raises as `transport` does."""
        return get_kit().reporter

    def capture_exception(self, error: BaseException | None = None) -> str | None:
        """Report an exception that the app handles itself, by default the one being handled. Never raises.

        Returns:
            The event's id if it was accepted. None if it was not, if there is no exception, if it was
            captured before in the same request, and outside of an initialised app, which is logged.
        """
        layer = current_app.extensions.get(EXTENSION) if has_app_context() else None
        if not isinstance(layer, Layer):
            logger.error("an exception was not captured: no app with a TransportKit is current")
            return None
        return layer.capture(error)


def _blueprint(layer: Layer, path: str) -> Blueprint:
    """Return the four routes, for `url_for` and `flask routes`; the layer answers their requests."""
    blueprint = Blueprint("transport_kit", __name__, url_prefix=path, cli_group=None)
    for leaf in LEAVES:
        blueprint.add_url_rule(
            f"/{leaf}",
            endpoint=leaf,
            view_func=_view(layer, leaf),
            methods=["POST"] if leaf == "flush" else ["GET"],
            provide_automatic_options=False,
        )
    return blueprint


def _view(layer: Layer, leaf: Leaf) -> Callable[[], Response]:
    return lambda: layer.respond(leaf)
