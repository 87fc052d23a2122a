"""Vertex AI's predictions: one request that holds several requests for other routes.

Runs on a connection thread, which starts threads for the instances. An instance is the body for another route. Its
field `@requestFormat` names the route by its path, or by a word made of the path ("chatCompletions"). Without this
field, an instance with `messages` is a chat, others go to /v1/completions. An instance's error becomes its prediction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from server import memory
from server.api.request.fields import Body, Field, make_warning_header
from server.errors import ApiError
from server.models.models import Models
from server.records import replace
from server.web.message import CLIENT_CLOSED, JSON_TYPE, ErrorShape, Request, Response, make_error_body, to_json
from server.web.router import Route

ASKED = (
    *("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/v1/embeddings", "/v1/rerank"),
    *("/completion", "/infill", "/embedding", "/tokenize", "/detokenize", "/apply-template"),
    *("/v1/chat/completions/input_tokens", "/v1/messages/count_tokens"),
)
"""The routes that instances may use."""
MAX_INSTANCES, N_AT_ONCE = 128, 16  # in one request, and how many of them run at the same time
FORMAT = "@requestFormat"
BODY = Body(("AIP_PREDICT_ROUTE",), ((Field("instances", list, None, "bodies of other routes"),),))


class PredictHandler:
    def __init__(self, models: Models, table: Iterable[Route]) -> None:
        self._models = models
        by_path = {route.path: route for route in table}
        self._routes = {path: by_path[path] for path in ASKED if path in by_path}
        self._paths = {make_word(path): path for path in self._routes}

    def handle(self, request: Request) -> Response:
        """`{"predictions": [...]}`: one answer for each instance."""
        from concurrent.futures import ThreadPoolExecutor  # imported here: few servers need it

        body = request.read_json_object()
        if self._models.lone is not None:  # with several models, each instance names its own
            self._models.get(None, request)
        instances = BODY.read(body)["instances"]
        if not isinstance(instances, list):
            raise ApiError(400, "instances: a list of objects is required")
        if len(instances) > MAX_INSTANCES:
            raise ApiError(400, f"instances: {len(instances)} are too many, at most {MAX_INSTANCES} are allowed")
        share = memory.get_current()

        def predict(instance: object) -> bytes:
            memory.use(share)
            return self._predict(request, instance)

        with ThreadPoolExecutor(N_AT_ONCE, "predict") as pool:
            predictions = b",".join(pool.map(predict, instances))
        headers = {"Content-Type": JSON_TYPE, **make_warning_header(BODY.list_unread(body))}
        return Response(200, b'{"predictions":[%b]}' % predictions, headers)

    def _predict(self, request: Request, instance: object) -> bytes:
        """The answer of an instance's route as JSON, or its error."""
        shape: ErrorShape = make_error_body
        try:
            if not isinstance(instance, dict):
                raise ApiError(400, "the instance is not an object")
            route = self._route(instance)
            shape = route.error_shape
            fields = {name: value for name, value in instance.items() if name != FORMAT}
            if "stream" in fields or route.path == "/infill":  # with --compat 2024, /infill streams by default
                fields["stream"] = False
            data = to_json(fields)
            memory.hold(len(data))
            own = replace(request, path=route.path, body=data, params={}, endings=[])
            try:
                answer = route.handler(own)
            finally:
                own.end()  # lets go of the model, whose memory another request may need
            assert isinstance(answer, Response)
            return answer.body
        except ApiError as error:
            if error.status == CLIENT_CLOSED:
                raise
            return to_json(shape(error))

    def _route(self, instance: dict[str, Any]) -> Route:
        name = instance.get(FORMAT)
        if name is None:
            name = "chatCompletions" if "messages" in instance else "completions"
        path = self._paths.get(name, name) if isinstance(name, str) else None
        if path not in self._routes:
            raise ApiError(400, f"{FORMAT}: {str(name)[:80]!r} is unknown; use one of {', '.join(self._paths)}")
        return self._routes[path]


def make_word(path: str) -> str:
    """`chatCompletions` for /v1/chat/completions."""
    first, *others = path.removeprefix("/v1").strip("/").replace("_", "/").replace("-", "/").split("/")
    return first + "".join(part[:1].upper() + part[1:] for part in others)
