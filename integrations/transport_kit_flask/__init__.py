"""transport-kit for Flask.

`TransportKit().init_app(app)`, with `TRANSPORT_KIT_DSN` in the app's config, is all that most apps need.
"""

from transport_kit_flask.extension import TransportKit, get_kit

__all__ = ["get_kit", "TransportKit"]
