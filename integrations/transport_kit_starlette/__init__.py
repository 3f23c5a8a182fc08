"""transport-kit for Starlette, FastAPI and any other ASGI app.

`app.add_middleware(TransportMiddleware, dsn=DSN)`, added last, is all that most apps need.
"""

from transport_kit_starlette.middleware import TransportMiddleware
from transport_kit_starlette.routes import get_kit, transport_routes

__all__ = ["get_kit", "transport_routes", "TransportMiddleware"]
