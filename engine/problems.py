"""Every error of the HTTP interface as problem details (RFC 9457), with the right status code and a reason for people.

Handlers for Litestar's exceptions; used by engine/http.py. Nothing internal leaves the process: an unexpected error is
answered with its kind only, and its traceback goes to standard error.
"""

from __future__ import annotations

import http
import sys
import traceback
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, ValidationException
from msgspec import Meta, Struct, field

MEDIA_TYPE: Final = "application/problem+json"


class Problem(Struct, kw_only=True, omit_defaults=True):
    """RFC 9457 problem details."""

    type: str = field(default="about:blank")
    title: Annotated[str, Meta(description="what kind of problem")]
    status: Annotated[int, Meta(description="the HTTP status code")]
    detail: Annotated[str, Meta(description="what went wrong here, which field and why")]
    errors: Annotated[list[FieldError], Meta(description="one entry a field")] = field(default_factory=list)


class FieldError(Struct, kw_only=True):
    """One unusable value."""

    field: str
    why: str


class Refusal(HTTPException):
    """An error that a route answers with: status, detail, optional headers."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        """`detail` says which value and why."""
        super().__init__(detail=detail, status_code=status, headers=headers)


def on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    """Whatever Litestar or a route refuses: 401, 404, 405, 422, 429, 503."""
    status, headers = error.status_code, dict(error.headers or {})
    if isinstance(error, ValidationException):
        status = 422
    detail = error.detail or http.HTTPStatus(status).phrase
    errors = _field_errors(error)
    if errors:
        detail = "; ".join(f"{item.field}: {item.why}" for item in errors)
    elif status == 404 and detail == http.HTTPStatus.NOT_FOUND.phrase:
        detail = f"there is nothing at {request.url.path}; /schema lists what there is"
    elif isinstance(error, MethodNotAllowedException):
        detail = f"{request.url.path} does not take {request.method}"
    return respond(status, detail, errors, headers)


def on_bug(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """What nobody expected: the client learns the kind, standard error the traceback."""
    traceback.print_exception(error, file=sys.stderr)
    return respond(500, f"{request.url.path} failed inside the engine ({type(error).__name__})", [], {})


def respond(status: int, detail: str, errors: list[FieldError], headers: dict[str, str]) -> Response[Problem]:
    """The answer itself."""
    problem = Problem(title=http.HTTPStatus(status).phrase, status=status, detail=detail, errors=errors)
    return Response(problem, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def problem_bytes(status: int, detail: str) -> bytes:
    """The body alone, for answers made outside of a route."""
    return msgspec.json.encode(Problem(title=http.HTTPStatus(status).phrase, status=status, detail=detail))


def _field_errors(error: HTTPException) -> list[FieldError]:
    if not isinstance(error, ValidationException) or not isinstance(error.extra, list):
        return []
    found = []
    for item in error.extra:
        if isinstance(item, dict):
            found.append(FieldError(field=str(item.get("key", "")), why=str(item.get("message", "unusable"))))
    return found
