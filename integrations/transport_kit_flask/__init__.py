"""transport-kit for Flask.

Most apps only need `TransportKit().init_app(app)`, with `TRANSPORT_KIT_DSN` in the app's config.
"""

from transport_kit_flask.extension import TransportKit, get_kit

__all__ = ["get_kit", "TransportKit"]
