"""transport-kit for Django 5.2 and newer.

`INSTALLED_APPS += ["transport_kit_django"]`, `"transport_kit_django.TransportMiddleware"` first in
`MIDDLEWARE`, the dict `TRANSPORT_KIT`, and `include("transport_kit_django.urls")`.
"""

from transport_kit_django.conf import get_kit
from transport_kit_django.middleware import TransportMiddleware

__all__ = ["get_kit", "TransportMiddleware"]
