"""transport-kit for Starlette, FastAPI and any other ASGI app.

Most apps only need `app.add_middleware(TransportMiddleware, dsn=DSN)`, added last.
"""

from transport_kit_starlette.handlers import report_server_errors
from transport_kit_starlette.lifespan_events import lifespan
from transport_kit_starlette.middleware import TransportMiddleware
from transport_kit_starlette.routes import get_kit, transport_routes

__all__ = ["get_kit", "lifespan", "report_server_errors", "transport_routes", "TransportMiddleware"]
