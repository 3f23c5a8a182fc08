"""`path("transport/", include("transport_kit_django.urls"))`: live, ready, health, flush."""

from __future__ import annotations

from django.urls import path

from transport_kit_django.views import VIEWS

__all__ = ["app_name", "urlpatterns"]

app_name = "transport_kit"
urlpatterns = [path(leaf, view, name=leaf) for view, leaf in VIEWS.items()]
