"""The FastAPI example, with a slow view."""

from __future__ import annotations

from tests.process.servers import noting  # isort: skip - watches before the app is made

from example_apps.fastapi_app.app import app

__all__ = ["app"]

app.add_api_route("/later", noting.later, response_model=None)
