"""Route names: the prefixes of a request's mounts and its route, as the app declares them.

This module owns the search. Starlette 1 and FastAPI put the route into the scope. If it is missing (Starlette
0.46), or is only that of the innermost router (under a Mount), the app's own routes are matched again.

Threads: any; the routes are only read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from starlette.routing import Host, Match, Mount
from starlette.types import Scope

__all__ = ["below", "route_of"]

#: Layers of middleware that are searched for an app's routes.
_MAX_LAYERS: Final = 100


def below(path: str, root_path: str) -> str:
    """Return the path below the mount point. Some servers prepend `root_path` to `path`, some don't."""
    if path.startswith(root_path) and path[len(root_path) : len(root_path) + 1] in ("", "/"):
        return path[len(root_path) :]
    return path


def route_of(scope: Scope, path: str, root_path: str, apps: Iterable[object]) -> str | None:
    """Return the route of a request below `root_path`, such as `/shop/carts/{number}`; None if none matches.

    Args:
        scope: The request's scope in its present state.
        path: Its `path` before routing.
        root_path: Its `root_path` before routing.
        apps: The routes of the first of them that has any are searched.
    """
    route = scope.get("route")
    if route is not None and scope.get("root_path", "") == root_path:
        return _path_in_scope(route, scope)
    original = {
        key: scope[key] for key in ("type", "method", "scheme", "headers", "query_string") if key in scope
    }
    original |= {"path": path, "root_path": root_path}
    try:
        for app in apps:
            routes = _routes(app)
            if routes:
                name = _search(routes, original)
                if name:
                    return name
                break
    except Exception:
        # A route or convertor of the app failed; the router would fail in the same way.
        pass
    if route is None:
        return None
    # The router can't be searched: use the mounts' prefixes as they are in this request's path.
    return below(scope.get("root_path", ""), root_path) + _path_in_scope(route, scope)


def _path_in_scope(route: Any, scope: Scope) -> str:
    # With an included router, FastAPI puts the route without the router's prefix into the scope, and next to
    # it a context that has the full path.
    extras = scope.get("fastapi")
    context = extras.get("effective_route_context") if isinstance(extras, dict) else None
    if context is not None and getattr(context, "original_route", None) is route:
        return _path_of(context)
    return _path_of(route)


def _path_of(route: Any) -> str:
    path = getattr(route, "path", "")
    return path if isinstance(path, str) else ""


def _routes(app: object) -> list[Any]:
    """Return the routes of an app, also below middleware, which by convention has the inner app as `app`."""
    for _ in range(_MAX_LAYERS):
        routes = getattr(app, "routes", None)
        if routes or app is None:
            return list(routes or ())
        app = getattr(app, "app", None)
    return []


def _search(routes: Iterable[Any], scope: dict[str, Any]) -> str | None:
    """Return the first route that matches, else the first that matches but for the method, like a router."""
    partial: str | None = None
    for route in routes:
        match, child = route.matches(scope)
        if match is Match.FULL:
            return _pattern_of(route, scope | child)
        if match is Match.PARTIAL and partial is None:
            partial = _pattern_of(route, scope | child)
    return partial


def _pattern_of(route: Any, scope: dict[str, Any]) -> str | None:
    candidates = getattr(route, "effective_candidates", None)
    if candidates is not None:  # FastAPI's included router: its routes know the whole path
        return _search(candidates(), scope)
    route = getattr(route, "starlette_route", None) or route
    if isinstance(route, Mount | Host):
        return _path_of(route) + (_search(_routes(route.app), scope) or "")
    return _path_of(route)
