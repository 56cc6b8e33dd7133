"""
What can go wrong in a request, as RFC 9457 problem details with stable codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

MEDIA_TYPE: Final = "application/problem+json"

CODES: Final[Mapping[str, str]] = {
    "unauthorized": "No valid key or token",
    "forbidden": "The key may not do this",
    "rate_limited": "Too many requests",
    "header_timeout": "The head of the request came too slowly",
    "header_too_large": "The head of the request is too large",
    "body_too_large": "The body is too large",
    "body_timeout": "The body came too slowly",
    "client_gone": "The client went away",
    "bad_request": "The request cannot be understood",
    "bad_multipart": "The multipart body cannot be understood",
    "bad_json": "The JSON body cannot be understood",
    "unsupported_media_type": "The content type is not accepted",
    "no_image": "There is no picture in the request",
    "too_many_images": "There are too many pictures in the request",
    "unknown_model": "There is no such model",
    "unknown_policy": "There is no such policy",
    "bad_option": "An option is wrong",
    "unknown_camera": "There is no such camera",
    "url_disabled": "Addresses are not fetched",
    "url_refused": "This address is not fetched",
    "fetch_failed": "The picture could not be fetched",
    "unreadable_image": "The picture cannot be read",
    "overloaded": "Too much to do",
    "not_ready": "Not ready",
    "deadline": "No answer in time",
    "poison": "The picture cannot be analysed",
    "worker_lost": "The worker was lost",
    "gate_shut": "The gate is shut",
    "gate_failed": "The gate cannot decide",
    "journal_failed": "The gate's journal cannot be written",
    "store_failed": "The visits cannot be read",
    "no_picture": "The camera has given no picture yet",
    "not_found": "There is nothing here",
    "method_not_allowed": "This method is not possible here",
    "host_not_allowed": "This host name is not served",
    "internal": "Something went wrong here",
}
"""Every code that a problem can have, with its title."""

_BY_STATUS: Final = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    429: "rate_limited",
    503: "overloaded",
}


_MOST_FAULTS: Final = 200


class Problem(HTTPException):
    """An answer that is not what was asked for.

    An ``HTTPException``, because FastAPI passes on only those from where it reads a body.

    Attributes:
        status: HTTP status.
        code: One of ``CODES``.
        detail: One sentence: what was found, what is expected, what to do.
        headers: Further response headers.
        members: Further members of the JSON object.
    """

    headers: dict[str, str]

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        if code not in CODES:
            raise AssertionError(f"unknown problem code {code!r}")
        super().__init__(status, detail, dict(headers or {}))
        self.status = status
        self.code = code
        self.members = members

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.detail}"

    def to_dict(self, request_id: str | None = None) -> dict[str, Any]:
        """Wire form."""
        return {
            "type": f"urn:agelens:problem:{self.code}",
            "title": CODES[self.code],
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
            **self.members,
        }

    def response(self, request_id: str | None = None) -> JSONResponse:
        """The problem as an answer."""
        return JSONResponse(
            self.to_dict(request_id),
            self.status,
            headers={"cache-control": "no-store", **self.headers},
            media_type=MEDIA_TYPE,
        )


def install(app: FastAPI) -> None:
    """Answer every error of the application with a problem."""
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


def request_id_of(request: Request) -> str | None:
    """The id that the answer and the log lines carry."""
    found: str | None = request.scope.get("agelens.request_id")
    return found


async def _problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Problem)
    request.scope["agelens.problem"] = error.code
    return error.response(request_id_of(request))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return await _problem(request, invalid(error))


def invalid(error: RequestValidationError) -> Problem:
    """What FastAPI found wrong with parameters or a body, without repeating their values."""
    faults = listed_faults(error.errors())
    first = faults[0]
    code = "bad_json" if first["in"] == "body" else "bad_option"
    return Problem(422, code, f"{first['name']}: {first['message']}", faults=faults)


def listed_faults(errors: Sequence[Any], place: str | None = None) -> list[dict[str, str]]:
    """What pydantic found wrong, as the member ``faults`` of a problem; at most ten.

    Args:
        errors: Of a ``ValidationError`` or a ``RequestValidationError``.
        place: "body" where the locations do not begin with it.
    """
    faults = []
    for fault in errors[:10]:
        where = [*([place] if place else []), *(str(part) for part in fault["loc"])]
        message = str(fault["msg"]).removeprefix("Value error, ")
        faults.append(
            {
                "name": ".".join(where[1:])[:100] or where[0],
                "in": where[0],
                "message": f"{message[:1].lower()}{message[1:]}"[:300],
            }
        )
    return faults


def faults_of(error: ValidationError, place: str) -> tuple[str, list[dict[str, str]]]:
    """What pydantic found wrong in a text: the kind of the first fault, and a list of at most ten.

    Args:
        error: Of one text.
        place: What the text is, as "body".
    """
    count = error.error_count()
    if count > _MOST_FAULTS:  # each costs more than the text that it came from
        message = f"there are {count:,} faults in it; compare it with the description at /docs"
        return "many", [{"name": place, "in": place, "message": message}]
    found = error.errors(include_input=False, include_url=False, include_context=False)
    return found[0]["type"], listed_faults(found, place)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _BY_STATUS.get(
        error.status_code, "internal" if error.status_code >= 500 else "bad_request"
    )
    if code == "not_found":
        detail = "there is nothing at this path; /docs lists what there is"
    elif code == "method_not_allowed":
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"this path answers to {allowed}"
    else:
        detail = str(error.detail)
    problem = Problem(error.status_code, code, detail, headers=error.headers)
    return await _problem(request, problem)
