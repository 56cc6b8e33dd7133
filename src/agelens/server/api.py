"""
REST: pictures in, faces out; the models; and how the service is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request, Response

from agelens.bundle import find_model
from agelens.errors import ArgumentError
from agelens.results import Analysis, AnalysisError
from agelens.server.auth import Caller, Scope, count_pictures, require
from agelens.server.description import BINARY, IMAGE_TYPES, request_body
from agelens.server.intake import (
    MeasuredBody,
    decoded,
    media_type,
    read_bytes,
    read_json,
    read_parts,
    refuse_repeats,
    shown_name,
    while_connected,
)
from agelens.server.jobs import Form, PictureOptions, Written
from agelens.server.metrics import CONTENT_TYPE
from agelens.server.problems import Problem
from agelens.server.service import (
    Service,
    analyzer_options,
    pool_problems,
    service_of,
    turns_of,
)
from agelens.server.wire import (
    AnalyzeAnswer,
    AnalyzeQuery,
    EncodedImage,
    HealthAnswer,
    ImagesBody,
    LinkedImage,
    ModelRow,
    ModelsAnswer,
    ReadyAnswer,
)

router = APIRouter()

_TOO_LARGE: Final = frozenset({"too_many_bytes", "too_many_pixels"})


@router.post(
    "/v1/analyze",
    tags=["pictures"],
    summary="Find faces and estimate age and gender",
    response_model=AnalyzeAnswer,
    openapi_extra=request_body(
        {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "additionalProperties": False,
                    "properties": {
                        "image": {"type": "array", "minItems": 1, "items": BINARY},
                    },
                },
                "encoding": {"image": {"contentType": "image/*, application/octet-stream"}},
            },
            **{name: {"schema": BINARY} for name in IMAGE_TYPES},
            "application/json": {"schema": {"$ref": "#/components/schemas/ImagesBody"}},
        },
        models=(ImagesBody,),
    ),
)
async def analyze(
    request: Request,
    options: Annotated[AnalyzeQuery, Query()],
    caller: Annotated[Caller, Depends(require(Scope.ANALYZE))],
) -> Response:
    """Find the faces in pictures and estimate age and gender.

    The body is one picture as it is (`image/*` or `application/octet-stream`), a form with one or
    more files named `image`, or JSON with pictures in base64 or, where the server allows it, by
    address. The answer has one analysis for each picture, in order. A picture that cannot be read
    has an `error`; when none can be read the answer is a problem `unreadable_image`.
    """
    refuse_repeats(request)
    service = service_of(request)
    picture = picture_options(options, service)
    with service.metrics.stage("receive"):
        uploads = await _uploads(request, service)
    count_pictures(request, caller, len(uploads))
    with service.metrics.stage("analyze"):
        work = _analyzed(service, uploads, picture, options.form, caller)
        answers = await while_connected(request, work)
    _count(answers, service)
    _refuse_unreadable(uploads, answers)
    body = b'{"analyses":[' + b",".join(answer.json for answer in answers) + b"]}"
    return Response(body, media_type="application/json")


@router.get("/v1/models", tags=["about"], summary="The models that requests may name")
async def models(
    request: Request, caller: Annotated[Caller, Depends(require(Scope.ANALYZE))]
) -> ModelsAnswer:
    """The models of this server with their licences, the default one first."""
    places = dict.fromkeys(service_of(request).models.values())
    return ModelsAnswer(
        models=[ModelRow.of(find_model(place), default=n == 0) for n, place in enumerate(places)]
    )


@router.get("/healthz", tags=["about"], summary="Whether the process answers")
async def healthz() -> HealthAnswer:
    """Answers as long as the process lives; for a supervisor that would restart it."""
    return HealthAnswer()


@router.get("/readyz", tags=["about"], summary="Whether it takes requests")
async def readyz(request: Request) -> ReadyAnswer:
    """Answers 200 from the time every worker was warm for the first time, while one is.

    It answers 503 before that, while all workers are being replaced, and from SIGTERM on.
    """
    service = service_of(request)
    if not service.ready:
        replacing = "loading its models" if service.pool_state is None else "replacing its workers"
        state = "about to end" if service.closing else replacing
        raise Problem(503, "not_ready", f"the service is {state}", headers={"retry-after": "1"})
    return ReadyAnswer()


@router.get(
    "/metrics",
    tags=["about"],
    summary="Counters for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(
    request: Request, caller: Annotated[Caller, Depends(require(Scope.ADMIN))]
) -> Response:
    """Requests, times by stage, the queue, faces, batches, errors and workers; nothing personal."""
    service = service_of(request)
    return Response(service.metrics.text(service.pool_state), media_type=CONTENT_TYPE)


# --- from the body to pictures --------------------------------------------------------------------


@dataclass(frozen=True)
class _Upload:
    """A picture of a request: its bytes, or why there are none."""

    name: str | None
    data: bytes = b""
    error: AnalysisError | None = None


async def _uploads(request: Request, service: Service) -> list[_Upload]:
    kind, limit = media_type(request), service.settings.max_images
    if kind == "multipart/form-data":
        parts = await read_parts(request, limit, ("image",))
        uploads = [_Upload(part.filename, bytes(part.data)) for part in parts]
    elif kind == "application/json":
        uploads = await _listed(request, service)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        data = await read_bytes(request)
        uploads = [_Upload(None, data)] if data else []
    else:
        raise Problem(
            415,
            "unsupported_media_type",
            f"the content type is {kind[:100] or 'missing'}; send image/*, "
            "application/octet-stream, multipart/form-data or application/json",
        )
    if not uploads:
        raise Problem(422, "no_image", "the request has no picture; send one as its body")
    return uploads


async def _listed(request: Request, service: Service) -> list[_Upload]:
    images = (await read_json(request, ImagesBody)).images
    limit = service.settings.max_images
    if len(images) > limit:
        raise Problem(
            422,
            "too_many_images",
            f"there are {len(images)} pictures, over the limit of {limit}; send several requests",
            limit=limit,
        )
    urls = [image.url for image in images if isinstance(image, LinkedImage)]
    if urls and service.fetcher is None:
        raise Problem(
            403, "url_disabled", "this server fetches no addresses; send the picture itself"
        )
    given = [
        _Upload(image.name, decoded(image.base64, f"images.{number}.base64"))
        for number, image in enumerate(images)
        if isinstance(image, EncodedImage)
    ]
    fetched: list[bytes | Problem] = []
    if service.fetcher is not None and urls:
        with service.metrics.stage("fetch"):
            count = MeasuredBody.of(request).add
            within_s = service.settings.deadline_s
            fetching = service.fetcher.fetch_all(urls, within_s=within_s, count=count)
            fetched = await while_connected(request, fetching)
    encoded, linked = iter(given), iter(fetched)
    return [
        next(encoded) if isinstance(image, EncodedImage) else _linked(image, next(linked))
        for image in images
    ]


def _linked(image: LinkedImage, found: bytes | Problem) -> _Upload:
    name = shown_name(image.name if image.name is not None else image.url)
    if isinstance(found, Problem):
        return _Upload(name, error=AnalysisError(found.code, found.detail))
    return _Upload(name, found)


# --- from pictures to analyses --------------------------------------------------------------------


def picture_options(options: AnalyzeQuery, service: Service) -> PictureOptions:
    """The options as the workers take them.

    Raises:
        Problem: 422 ``unknown_model`` or ``bad_option``.
    """
    if options.model is not None and options.model not in service.models:
        names = ", ".join(service.models)
        raise Problem(422, "unknown_model", f"this server has no such model; it has {names}")
    found = replace(options.picture, model=service.models[options.model or "default"])
    try:
        base = analyzer_options(service.settings)
        replace(base, **found.changes(base))
    except ArgumentError as error:
        raise Problem(422, "bad_option", str(error)) from error
    return found


async def _analyzed(
    service: Service,
    uploads: Sequence[_Upload],
    options: PictureOptions,
    form: Form,
    caller: Caller,
) -> list[Written]:
    there = [upload for upload in uploads if upload.error is None]
    with pool_problems():
        found = iter(
            await service.pool.write(
                [upload.data for upload in there],
                options,
                form,
                names=[upload.name for upload in there],
                deadline_s=service.settings.deadline_s,
                caller=turns_of(caller),
            )
        )
    return [
        next(found)
        if upload.error is None
        else Written.of(Analysis(upload.name, 0, 0, (), upload.error), form)
        for upload in uploads
    ]


def _count(answers: Sequence[Written], service: Service) -> None:
    metrics = service.metrics
    for answer in answers:
        metrics.pictures.labels("read" if answer.error is None else answer.error.code).inc()
        metrics.faces.labels("abstained").inc(answer.abstained)
        metrics.faces.labels("given").inc(answer.faces - answer.abstained)


def _refuse_unreadable(uploads: Sequence[_Upload], answers: Sequence[Written]) -> None:
    """Answer with a problem when not one picture could be read."""
    faults = [
        {
            "index": index,
            "name": upload.name,
            "code": answer.error.code,
            "message": answer.error.message,
        }
        for index, (upload, answer) in enumerate(zip(uploads, answers, strict=True))
        if answer.error is not None
    ]
    if len(faults) < len(answers):
        return
    codes = {str(fault["code"]) for fault in faults}
    if codes == {"url_refused"}:
        raise Problem(403, "url_refused", str(faults[0]["message"]), errors=faults)
    if codes == {"fetch_failed"}:
        raise Problem(422, "fetch_failed", str(faults[0]["message"]), errors=faults)
    raise Problem(
        413 if codes <= _TOO_LARGE else 422,
        "unreadable_image",
        str(faults[0]["message"])
        if len(faults) == 1
        else f"none of the {len(faults)} pictures can be read; see errors",
        errors=faults,
    )
