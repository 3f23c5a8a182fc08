"""`TransportKit`: the Flask extension. It translates; the kit decides.

Owns what `init_app` puts into an app: its kit, the WSGI layer, a hook, a signal's receiver, a blueprint
and commands. All of it is held by the app, nothing by the extension, so one extension serves any number
of apps, and an app that goes takes its part along.

Threads: `init_app` belongs to the app's set-up; everything else may be called from any thread.
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
    """Delivers what goes wrong in Flask apps, and says how that goes.

    `kit = TransportKit()`, then `kit.init_app(app)` for each app, once, after its config is complete. Reads
    `TRANSPORT_KIT_DSN` and every option as `TRANSPORT_KIT_<NAME>` from `app.config`; what is not there,
    from the environment. Apps with equal DSN and transport options share one transport.

    - An exception that Flask makes a 500 of, or lets through, is captured; one that an `errorhandler` for
      its class, or for `Exception`, answers is not. One that breaks a streamed body is.
    - `live`, `ready`, `health` and `flush` are answered under `TRANSPORT_KIT_PATH`, before the app's own
      hooks, and before its session is opened.
    - `flask transport check`, `send-test`, `flush` and `health`.
    - The transport starts with the first request, and ends with the process.

    Args:
        app: Calls `init_app` for it.

    Raises:
        RuntimeError: The app has been initialised before.
        TransportKitError: With `TRANSPORT_KIT_STRICT` only; otherwise a configuration error is one line in
            the log, and health says `fail`.
    """

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Put everything into the app; see the class for what and for what is raised."""
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
            # First, as Flask refuses this one, such as after the first request: then nothing is changed.
            app.register_blueprint(_blueprint(layer, kit.options.path))
        app.extensions[EXTENSION] = layer
        app.wsgi_app = layer  # type: ignore[method-assign]  # what Flask's documentation says to do
        # Weakly held by the signal, strongly by the app.
        got_request_exception.connect(layer.on_exception, app)
        # Before all others; and after all others, as Flask calls these in reverse.
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
        """The current app's reporter; raises as `transport` does."""
        return get_kit().reporter

    def capture_exception(self, error: BaseException | None = None) -> str | None:
        """Report an exception that the app handles itself, by default the one being handled.

        Returns:
            The event's id when it was accepted. None when it was not, when there is no exception, when it
            was captured before in the same request, and outside of an app that was initialised: that is
            one line in the log. Never raises.
        """
        layer = current_app.extensions.get(EXTENSION) if has_app_context() else None
        if not isinstance(layer, Layer):
            logger.error("an exception was not captured: no app with a TransportKit is current")
            return None
        return layer.capture(error)


def _blueprint(layer: Layer, path: str) -> Blueprint:
    """The four routes by name, for `url_for` and `flask routes`; requests get their answer further out."""
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
