"""How a request is named: the prefixes of the mounts that it passes, and its route, as the app wrote them.

Owns the search. Starlette 1 and FastAPI leave the route in the scope; where it is missing (Starlette 0.46),
or tells only of the innermost router (under a Mount), the app's own routes are asked once more.

Threads: any; the routes are only read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from starlette.routing import Host, Match, Mount
from starlette.types import Scope

__all__ = ["below", "route_of"]

#: Layers of middleware that are looked through for an app's routes.
_MAX_LAYERS: Final = 100


def below(path: str, root_path: str) -> str:
    """The path below the mount point. Some servers put `root_path` in front of `path`, some leave it out."""
    if path.startswith(root_path) and path[len(root_path) : len(root_path) + 1] in ("", "/"):
        return path[len(root_path) :]
    return path


def route_of(scope: Scope, path: str, root_path: str, apps: Iterable[object]) -> str | None:
    """The route of a request below `root_path`, such as `/shop/carts/{number}`; None when none fits.

    Args:
        scope: The request's, as it is now.
        path: Its `path`, as it was before any router saw it.
        root_path: Its `root_path`, as it was then.
        apps: Whose routes may be asked; the first that has any is.
    """
    route = scope.get("route")
    if route is not None and scope.get("root_path", "") == root_path:
        return _path_in_scope(route, scope)
    before = {
        key: scope[key] for key in ("type", "method", "scheme", "headers", "query_string") if key in scope
    }
    before |= {"path": path, "root_path": root_path}
    try:
        for app in apps:
            routes = _routes(app)
            if routes:
                found = _search(routes, before)
                if found:
                    return found
                break
    except Exception:
        # A route or a convertor of the app's own has failed; the router would have failed the same way.
        pass
    if route is None:
        return None
    # What routed is not to be seen from here: the mounts' prefixes as they are in this request.
    return below(scope.get("root_path", ""), root_path) + _path_in_scope(route, scope)


def _path_in_scope(route: Any, scope: Scope) -> str:
    # FastAPI's included routers leave the route as it was written in its own router, and beside it what it
    # has become with their prefixes.
    beside = scope.get("fastapi")
    context = beside.get("effective_route_context") if isinstance(beside, dict) else None
    if context is not None and getattr(context, "original_route", None) is route:
        return _path_of(context)
    return _path_of(route)


def _path_of(route: Any) -> str:
    path = getattr(route, "path", "")
    return path if isinstance(path, str) else ""


def _routes(app: object) -> list[Any]:
    """The routes of an app, also through layers around it, which by custom keep what they wrap as `app`."""
    for _ in range(_MAX_LAYERS):
        routes = getattr(app, "routes", None)
        if routes or app is None:
            return list(routes or ())
        app = getattr(app, "app", None)
    return []


def _search(routes: Iterable[Any], scope: dict[str, Any]) -> str | None:
    """As routers do it: the first route that fits, or else the first that would with another method."""
    partial: str | None = None
    for route in routes:
        match, child = route.matches(scope)
        if match is Match.FULL:
            return _written(route, scope | child)
        if match is Match.PARTIAL and partial is None:
            partial = _written(route, scope | child)
    return partial


def _written(route: Any, scope: dict[str, Any]) -> str | None:
    candidates = getattr(route, "effective_candidates", None)
    if candidates is not None:  # FastAPI's included router: its routes know the whole path
        return _search(candidates(), scope)
    route = getattr(route, "starlette_route", None) or route
    if isinstance(route, Mount | Host):
        return _path_of(route) + (_search(_routes(route.app), scope) or "")
    return _path_of(route)
