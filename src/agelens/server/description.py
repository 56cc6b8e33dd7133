"""
The OpenAPI description: what FastAPI cannot see of the routes, said in one place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from agelens.server.problems import CODES, MEDIA_TYPE
from agelens.server.service import Service
from agelens.server.wire import ProblemDetails
from agelens.settings import ServerSettings

BINARY: Final = {"type": "string", "format": "binary"}
IMAGE_TYPES: Final = (
    "image/jpeg",
    "image/png",
    "image/webp",
    "image/gif",
    "image/tiff",
    "image/bmp",
    "image/avif",
    "image/heic",
    "application/octet-stream",
)
TAGS: Final = (
    {"name": "pictures", "description": "Faces, ages and perceived gender in pictures."},
    {"name": "gate", "description": "Age checks by policy, with signed tokens."},
    {"name": "visitors", "description": "Who came: sums of visits, and who is there now."},
    {"name": "about", "description": "Models, health and counters."},
)
_DESCRIPTION: Final = """\
Age and perceived gender of faces as calibrated distributions, with reasons when it cannot tell.

Every error is a problem (RFC 9457, `application/problem+json`) with a stable `code`. Every answer
carries `X-Request-Id`. Where the server has keys, send one as `Authorization: Bearer al_...` or as
`X-API-Key`.
"""
_METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch")
_SCHEMAS: Final = "#/components/schemas/"
_MODELS: Final = "x-agelens-models"

_ALWAYS: Final = {
    400: "The request cannot be understood, or is for another host.",
    431: "The head of the request is too large.",
    500: "A fault of the server.",
    503: "Not ready, or too much to do; `Retry-After` says when to come again.",
}
_WITH_KEY: Final = {
    401: "No valid key or token.",
    403: "The key may not do this.",
    429: "Too many requests; `Retry-After` says when to come again.",
}
_WITH_BODY: Final = {
    408: "The body came too slowly.",
    413: "The body, or every picture, is too large.",
    415: "The content type is not accepted.",
    422: "The content is not what is expected.",
}
_RETRY: Final = {
    "Retry-After": {"schema": {"type": "integer", "minimum": 0}, "description": "Seconds."}
}
_REQUEST_ID: Final = {
    "X-Request-Id": {
        "schema": {"type": "string"},
        "description": "That of the request when it had a proper one, else a new one.",
    }
}


def request_body(
    content: Mapping[str, Any], *, models: tuple[type[BaseModel], ...] = ()
) -> dict[str, Any]:
    """For ``openapi_extra`` of a route that reads its body itself.

    Args:
        content: Media types with their schemas; models as ``#/components/schemas/NAME``.
        models: The models that those schemas name.
    """
    return {
        "requestBody": {"required": True, "content": dict(content)},
        _MODELS: {model.__name__: _schema(model) for model in models},
    }


def describe(app: FastAPI, service: Service, routers: Iterable[APIRouter]) -> None:
    """Let the application give the whole description of itself.

    Args:
        app: The application.
        service: Its service, whose limits are described.
        routers: Those whose routes are part of the API.
    """
    answers = tuple(_answers(routers))

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _description(app, service, answers)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _description(
    app: FastAPI, service: Service, answers: Iterable[type[BaseModel]]
) -> dict[str, Any]:
    whole = get_openapi(
        title=app.title,
        version=app.version,
        description=_DESCRIPTION,
        routes=app.routes,
        tags=[dict(tag) for tag in TAGS],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    used = {tag for operation in _operations(whole) for tag in operation.get("tags", ())}
    whole["tags"] = [tag for tag in whole["tags"] if tag["name"] in used]
    components = whole.setdefault("components", {})
    schemas: dict[str, Any] = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for model in answers:
        # FastAPI leaves out what is null, also in examples, where it may be required.
        if "examples" in (schema := _schema(model)):
            schemas[model.__name__]["examples"] = schema["examples"]
    _add(schemas, "ProblemDetails", _schema(ProblemDetails))
    schemas["ProblemDetails"]["properties"]["code"]["enum"] = sorted(CODES)
    for operation in _operations(whole):
        for name, schema in operation.pop(_MODELS, {}).items():
            _add(schemas, name, schema)
        for parameter in operation.get("parameters", ()):
            _without_null(parameter)
        _complete(operation, closed="security" in operation)
    if service.analyses:
        _limit(whole, service.settings, service.models)
    return whole


def _operations(whole: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for item in whole["paths"].values():
        for method in _METHODS:
            if method in item:
                yield item[method]


def _answers(routers: Iterable[APIRouter]) -> Iterator[type[BaseModel]]:
    for router in routers:
        for route in router.routes:
            model = getattr(route, "response_model", None)
            if isinstance(model, type) and issubclass(model, BaseModel):
                yield model


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(ref_template=_SCHEMAS + "{model}")


def _add(schemas: dict[str, Any], name: str, schema: Mapping[str, Any]) -> None:
    """Add a schema to the components, and those that it defines beside them."""
    schemas.update(schema.get("$defs", {}))
    schemas[name] = {key: value for key, value in schema.items() if key != "$defs"}


def _complete(operation: dict[str, Any], *, closed: bool) -> None:
    """Add the security, the problems that may be answered, and the headers of each answer."""
    responses: dict[str, Any] = operation.setdefault("responses", {})
    problems = dict(_ALWAYS)
    if closed:
        problems |= _WITH_KEY
    if "requestBody" in operation:
        problems |= _WITH_BODY
    if operation.get("parameters"):
        problems[422] = _WITH_BODY[422]
    for status, text in problems.items():
        found = responses.setdefault(str(status), {})
        if not found.get("description") or "Validation Error" in found["description"]:
            found["description"] = text
        found["content"] = {MEDIA_TYPE: {"schema": {"$ref": _SCHEMAS + "ProblemDetails"}}}
        if status in (429, 503):
            found["headers"] = dict(_RETRY)
    for answer in responses.values():
        answer.setdefault("headers", {}).update(_REQUEST_ID)
    operation["responses"] = dict(sorted(responses.items()))


def _without_null(parameter: dict[str, Any]) -> None:
    """A parameter that may be left out is not one that may be null."""
    schema = parameter["schema"]
    kinds = [kind for kind in schema.pop("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        schema.update(kinds[0])


def _limit(whole: dict[str, Any], settings: ServerSettings, models: Iterable[str]) -> None:
    """Say the limits of this very server."""
    operation = whole["paths"]["/v1/analyze"]["post"]
    for parameter in operation["parameters"]:
        if parameter["name"] == "model":
            parameter["schema"]["enum"] = list(models)
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    form["properties"]["image"]["maxItems"] = settings.max_images
    images = whole["components"]["schemas"]["ImagesBody"]["properties"]["images"]
    images["maxItems"] = settings.max_images
