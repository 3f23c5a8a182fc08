"""A local Sentry-compatible server: for development, demos and tests. Not for production.

It receives what clients send, stores it in SQLite and shows it on a page. `Receiver` runs it inside a test or
a script; `transport-kit receiver` runs it from a shell. Needs the extra `receiver`.
"""

try:
    import brotli  # type: ignore[import-untyped] # noqa: F401
    import jinja2  # noqa: F401
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
    import zstandard  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the receiver needs the package {error.name}: pip install 'transport-kit[receiver]'", name=error.name
    ) from None

from transport_kit.receiver.app import create_app
from transport_kit.receiver.faults import Faults
from transport_kit.receiver.serve import Receiver
from transport_kit.receiver.store import Store, StoredEnvelope

__all__ = ["create_app", "Faults", "Receiver", "Store", "StoredEnvelope"]
