"""The Flask example, with a slow view."""

from __future__ import annotations

from tests.process.servers import noting  # isort: skip - watches before the app is made

from example_apps.flask_app.app import app

__all__ = ["app"]

app.add_url_rule("/later", view_func=noting.later)
