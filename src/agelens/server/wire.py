"""
What goes over HTTP: the shapes of requests and answers, with an example each.

Analyses are the objects of ``agelens.results``, the same as in files.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
)

from agelens.bundle import Bundle
from agelens.detection import DEFAULT_MIN_FACE
from agelens.errors import ArgumentError
from agelens.results import (
    DEFAULT_AGE_GROUPS,
    DEFAULT_LEVEL,
    AgeDistribution,
    Analysis,
    AnalysisDict,
    Face,
    GenderEstimate,
    Quality,
    age_group_starts,
)
from agelens.server.jobs import Form, PictureOptions
from agelens.settings import MOST_IN_A_LIST

BASE64_PATTERN: Final = (
    r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})$"
)
EXAMPLE_PICTURE: Final = "R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw=="
"""A GIF of one pixel, which can be read and has no face."""
_WHOLE: Final = re.compile(r"-?[0-9]{1,9}", re.ASCII)
_NUMBER: Final = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,15})?([eE][-+]?[0-9]{1,2})?", re.ASCII)


def _switch(value: object) -> object:
    # pydantic would also take 1, yes and on, which the description does not promise.
    if isinstance(value, str):
        if value not in ("true", "false"):
            raise ValueError("expected true or false")
        return value == "true"
    return value


def _whole(value: object) -> object:
    if isinstance(value, str):
        if _WHOLE.fullmatch(value) is None:
            raise ValueError("expected a whole number")
        return int(value)
    return value


def _number(value: object) -> object:
    if isinstance(value, str):
        if _NUMBER.fullmatch(value) is None:
            raise ValueError("expected a number")
        return float(value)
    return value


def _rising(text: str) -> str:
    try:
        age_group_starts(_edges(text))
    except ArgumentError as error:
        raise ValueError(str(error)) from error
    return text


def _edges(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


Switch = Annotated[bool, BeforeValidator(_switch)]
Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number)]
AgeStarts = Annotated[
    str,
    Field(pattern=r"^[0-9]{1,3}(,[0-9]{1,3}){0,100}$"),
    AfterValidator(_rising),
]


class AnalyzeQuery(BaseModel):
    """The options of ``agelens analyze`` as query parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(
        None, min_length=1, max_length=100, description="Name of a model of GET /v1/models."
    )
    detector: Literal["default", "none"] = Field(
        "default", description="none: each picture is one face."
    )
    crops: Switch = Field(
        False,
        description="Each picture is one face crop: take the whole picture when no face is found.",
    )
    gender: Switch = Field(True, description="false: estimate age only.")
    min_face: Whole = Field(
        DEFAULT_MIN_FACE, ge=1, le=10_000, description="Smallest face to look for, in pixels."
    )
    max_faces: Annotated[Whole, Field(ge=1, le=10_000)] | None = Field(
        None, description="Keep this many faces, the most prominent first."
    )
    flip: Switch = Field(False, description="Average with the mirrored face: slower, a bit better.")
    distribution: Switch = Field(False, description="Add the probability of each age 0 to 100.")
    age_groups: AgeStarts = Field(
        ",".join(map(str, DEFAULT_AGE_GROUPS)),
        description="Starts of the age groups, rising, within 0 to 100.",
    )
    level: Number = Field(DEFAULT_LEVEL, gt=0, lt=1, description="Level of the age interval.")

    @property
    def picture(self) -> PictureOptions:
        """What a worker has to know."""
        names = PictureOptions.__dataclass_fields__
        return PictureOptions(**{name: getattr(self, name) for name in names})

    @property
    def form(self) -> Form:
        """How analyses are answered."""
        return Form(_edges(self.age_groups), self.level, self.distribution)

    def written(self, analysis: Analysis) -> AnalysisDict:
        """An analysis as it is answered."""
        form = self.form
        return analysis.to_dict(edges=form.edges, level=form.level, distribution=form.distribution)


_Name = Annotated[str, Field(max_length=255)]


class EncodedImage(BaseModel):
    """A picture in the request."""

    model_config = ConfigDict(extra="forbid")

    name: _Name | None = Field(None, description="Comes back as `path`.")
    base64: str = Field(
        min_length=4,
        description="The bytes of the file in base64 (RFC 4648), with padding, in one line.",
        json_schema_extra={"pattern": BASE64_PATTERN, "contentEncoding": "base64"},
    )


class LinkedImage(BaseModel):
    """A picture to fetch, where the server allows it."""

    model_config = ConfigDict(extra="forbid")

    name: _Name | None = Field(None, description="Comes back as `path`; the address if left out.")
    url: str = Field(
        min_length=8,
        max_length=2048,
        description="An https or http address on a host that the server lists.",
        json_schema_extra={"pattern": "^https?://[!-~]+$"},
    )


def _kind(value: Any) -> str:
    is_linked = "url" in value if isinstance(value, dict) else isinstance(value, LinkedImage)
    return "url" if is_linked else "base64"


AnyImage = Annotated[
    Annotated[EncodedImage, Tag("base64")] | Annotated[LinkedImage, Tag("url")],
    Discriminator(_kind),
]


class ImagesBody(BaseModel):
    """The JSON body of POST /v1/analyze."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"images": [{"name": "dot.gif", "base64": EXAMPLE_PICTURE}]}]
        },
    )

    images: list[AnyImage] = Field(min_length=1, max_length=MOST_IN_A_LIST)


def _example() -> dict[str, Any]:
    face = Face(
        (120.0, 80.0, 251.0, 262.0),
        0.93,
        Quality(154.4, 1.2, 0.55, -4.0, 2.5, 1.0),
        AgeDistribution.from_normal(34, 5),
        GenderEstimate(0.97),
    )
    return {**Analysis("a.jpg", 640, 480, (face,), None, "agelens-s@1.1").to_dict()}


class AnalyzeAnswer(BaseModel):
    """The pictures of a request, in its order; one that cannot be read has an ``error``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"analyses": [_example()]}]})

    analyses: list[AnalysisDict]


class ModelRow(BaseModel):
    """A model that requests may name."""

    name: str
    version: str
    model: str = Field(description='"name@version", as analyses carry it.')
    summary: str
    licence: str
    licence_class: Literal["commercial", "research"]
    attribution: str
    gender: bool = Field(description="Whether it estimates perceived gender.")
    default: bool = Field(description="Whether it answers when no model is named.")

    @classmethod
    def of(cls, bundle: Bundle, *, default: bool) -> ModelRow:
        """What is told of a model on disk."""
        card = bundle.card
        return cls(
            name=card.name,
            version=card.version,
            model=card.identifier,
            summary=card.summary,
            licence=card.licence,
            licence_class=card.licence_class,
            attribution=card.attribution,
            gender=card.gender is not None,
            default=default,
        )


class ModelsAnswer(BaseModel):
    """The models of this server, the default one first."""

    models: list[ModelRow]


class HealthAnswer(BaseModel):
    """The process lives."""

    status: Literal["ok"] = "ok"


class ReadyAnswer(BaseModel):
    """Every worker is warm."""

    ready: Literal[True] = True


class Fault(BaseModel):
    """What is wrong with one parameter or one member of a body."""

    model_config = ConfigDict(populate_by_name=True)

    name: str
    where: str = Field(alias="in")
    message: str


class ImageFault(BaseModel):
    """Why one picture could not be read."""

    index: int
    name: str | None
    code: str
    message: str


class ProblemDetails(BaseModel):
    """RFC 9457. Each ``code`` stands in the reference of the HTTP API."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:agelens:problem:overloaded",
                    "title": "Too much to do",
                    "status": 503,
                    "detail": "64 pictures are waiting, of at most 64; try again in 1.2 s",
                    "code": "overloaded",
                    "request_id": "0b5c0f7e0a4b4d60a7b4cc2d5ac0a0c1",
                }
            ]
        },
    )

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None
    faults: list[Fault] | None = None
    errors: list[ImageFault] | None = None
