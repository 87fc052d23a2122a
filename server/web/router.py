"""Finds the handler for a method and a path. Pure. All threads share a router, which doesn't change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from server.errors import ApiError
from server.records import field, record
from server.web.message import ErrorShape, EventStream, Request, Response, make_error_body

Handler = Callable[[Request], "Response | EventStream"]


@record(frozen=True)
class Route:
    """One row of the route table. In `path`, `{name}` stands for one segment and a last `{name...}` for all remaining
    segments. `public`: needs no API key. `is_free`: not counted by the rate limit. `body_optional`: a POST may have no
    body and no Content-Length. `takes_form`: the body is a form with files. `error_shape` makes the JSON of all errors
    of this path, also of errors before the handler is called."""

    method: str
    path: str
    handler: Handler
    public: bool = False
    body_optional: bool = False
    is_free: bool = False
    takes_form: bool = False
    error_shape: ErrorShape = make_error_body


@record
class _Node:
    """The routes of one path, by method."""

    segments: tuple[str, ...]
    routes: dict[str, Route] = field(default_factory=dict)


class Router:
    """`prefix` (for example `/llm`) is put before every path. HEAD requests go to the GET route. `hints` maps a path to
    a sentence for the 404 answer to unknown paths at or below it, with or without the prefix. `{prefix}` in a sentence
    stands for the prefix."""

    def __init__(
        self, routes: Iterable[Route], prefix: str = "", hints: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.prefix = prefix.rstrip("/")
        self._hints = hints
        self._exact: dict[str, _Node] = {}
        self._patterns: dict[str, _Node] = {}
        for route in routes:
            path = self.prefix + route.path
            nodes = self._patterns if "{" in path else self._exact
            node = nodes.setdefault(path, _Node(tuple(path.split("/"))))
            if route.method in node.routes:
                raise ValueError(f"two routes for {route.method} {path}")
            node.routes[route.method] = route

    def resolve(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """The handler and the values of the `{name}` parts. Raises ApiError 404, or 405 with `Allow`."""
        route, params = self.match(method, path)
        return route.handler, params

    def match(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """As `resolve`, with the whole route instead of its handler."""
        node, params = self._find(path)
        if node is None:
            raise ApiError(404, f"There is no route {path[:200]!r}.{self._hint(path)}")
        route = node.routes.get(method) or (node.routes.get("GET") if method == "HEAD" else None)
        if route is None:
            allowed = ", ".join(self.list_allowed(path))
            raise ApiError(405, f"This route doesn't take {method}; use {allowed}.", headers={"Allow": allowed})
        return route, params

    def list_allowed(self, path: str) -> list[str]:
        """The methods for the `Allow` header, with OPTIONS; empty if there is no such path."""
        node, _ = self._find(path)
        if node is None:
            return []
        methods = sorted(node.routes)
        return methods + ["HEAD"] * ("GET" in methods and "HEAD" not in methods) + ["OPTIONS"]

    def find_error_shape(self, path: str) -> ErrorShape:
        node, _ = self._find(path)
        return make_error_body if node is None else next(iter(node.routes.values())).error_shape

    def _hint(self, path: str) -> str:
        for start, hint in self._hints.items():
            if any(f"{path}/".startswith(f"{base}{start}/") for base in ("", self.prefix)):
                return " " + hint.replace("{prefix}", self.prefix)
        return ""

    def _find(self, path: str) -> tuple[_Node | None, dict[str, str]]:
        if path in self._exact:
            return self._exact[path], {}
        segments = path.split("/")
        for node in self._patterns.values():
            params = _fit(node.segments, segments)
            if params is not None:
                return node, params
        return None, {}


def _fit(pattern: tuple[str, ...], segments: list[str]) -> dict[str, str] | None:
    params: dict[str, str] = {}
    for i, part in enumerate(pattern):
        if part.startswith("{") and part.endswith("...}"):
            rest = "/".join(segments[i:])
            return {**params, part[1:-4]: rest} if rest else None
        if i >= len(segments):
            return None
        if part.startswith("{"):
            if not segments[i]:
                return None
            params[part[1:-1]] = segments[i]
        elif part != segments[i]:
            return None
    return params if len(pattern) == len(segments) else None
