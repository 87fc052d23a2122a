"""The route table: (method, path) -> handler. Pure, immutable after construction, shared by all threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from server.errors import ApiError
from server.records import field, record
from server.web.message import ErrorShape, EventStream, Request, Response, error_body

Handler = Callable[[Request], "Response | EventStream"]


@record(frozen=True)
class Route:
    """One row. In `path`, `{name}` stands for one segment and a last `{name...}` for all that remain.
    `public` needs no API key; `is_free` is not counted by a rate limit; `body_optional` lets a POST come without any
    length (`curl -X POST` sends none); with `takes_form` the body is a form with files; `error_shape` makes the JSON of
    all errors of this path, also of those that are met before a handler is called."""

    method: str
    path: str
    handler: Handler
    public: bool = False
    body_optional: bool = False
    is_free: bool = False
    takes_form: bool = False
    error_shape: ErrorShape = error_body


@record
class _Node:
    """What one path answers to: method -> route."""

    segments: tuple[str, ...]
    routes: dict[str, Route] = field(default_factory=dict)


class Router:
    """`prefix` (for example `/llm`) is put before every path. HEAD goes to the GET route. `hints` are for who asks for
    something else at a path or below it, with or without the prefix; `{prefix}` in them becomes that."""

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
        """The handler and the values of the `{name}` parts; ApiError 404, or 405 with `Allow`."""
        route, params = self.match(method, path)
        return route.handler, params

    def match(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """As `resolve`, with the whole row."""
        node, params = self._find(path)
        if node is None:
            raise ApiError(404, f"There is no {path[:200]!r} here.{self._hint(path)}")
        route = node.routes.get(method) or (node.routes.get("GET") if method == "HEAD" else None)
        if route is None:
            allowed = ", ".join(self.allowed(path))
            raise ApiError(405, f"{method} is not allowed here; use {allowed}.", headers={"Allow": allowed})
        return route, params

    def allowed(self, path: str) -> list[str]:
        """Methods for `Allow`, OPTIONS included; empty when there is no such path."""
        node, _ = self._find(path)
        if node is None:
            return []
        methods = sorted(node.routes)
        return methods + ["HEAD"] * ("GET" in methods and "HEAD" not in methods) + ["OPTIONS"]

    def error_shape(self, path: str) -> ErrorShape:
        """How errors of requests for this path look."""
        node, _ = self._find(path)
        return error_body if node is None else next(iter(node.routes.values())).error_shape

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
