"""What the OpenAPI document says beyond what Litestar finds in the routes: problem details, limits, other formats.

Called once by engine/http.py when the application is made; tests/system/test_http.py holds the engine to it.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from litestar import Litestar
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, OpenAPIType, Operation, RequestBody, Schema
from litestar.openapi.spec import Parameter as OpenAPIParameter

from engine.access import changes_state
from engine.delivery_settings import HttpSection
from engine.feed_bodies import ChangeFeed, CreateFeed
from engine.http_data import MEDIA_TYPES
from engine.http_ingest import JSON, LINES, MSGPACK
from engine.http_subscriptions import MAX_BATCH
from engine.problems import MEDIA_TYPE
from engine.subscription_bodies import ChangeSubscription, CreateSubscription
from workers.points import Point

_BODIES: Final = (ChangeFeed, ChangeSubscription, CreateFeed, CreateSubscription)
_ALWAYS: Final = {401: "a bearer token is needed", 429: "too many requests", 500: "a fault of the engine"}
_WITH_PARAMETERS: Final = {404: "not known", 422: "an unusable value", 503: "can not be had now"}
_WRITING: Final = {400: "not what its content-type says", 403: "not with this token", 413: "too large"}
_CONFLICTING: Final = ("/feeds", "/subscriptions")
_CONFLICT: Final = {409: "not as things are"}
_WITH_BODY: Final = {415: "content-type not taken", 422: "an unusable value", 503: "can not be done now"}


def complete_schema(app: Litestar, limits: HttpSection) -> None:
    """Say in the application's schema what routes alone can't."""
    schema = app.openapi_schema
    known = schema.components.schemas if schema.components is not None else {}
    for name, found in _bodies().items():
        if name in known:
            known[name] = found
    text = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING))
    for path, item in (schema.paths or {}).items():
        for method in ("get", "post", "patch", "delete"):
            operation: Operation | None = getattr(item, method)
            if operation is None or operation.responses is None:
                continue
            operation.responses.pop("400", None)
            for parameter in operation.parameters or ():
                if isinstance(parameter, OpenAPIParameter) and parameter.name == "limit" and parameter.schema:
                    parameter.schema.maximum = limits.max_data_records  # type: ignore[union-attr]  # it is no reference
            if path == "/data/{symbol}":
                _add_files(operation)
            if path == "/subscriptions/batch" and isinstance(operation.request_body, RequestBody):
                batch = operation.request_body.content[JSON].schema
                assert isinstance(batch, Schema)
                batch.min_items, batch.max_items = 1, MAX_BATCH
            if path == "/data/ingest":
                operation.request_body = _ingest_body(limits)
            conflicts = path.startswith(_CONFLICTING)
            _add_problems(operation, writing=changes_state(method.upper(), path), conflicts=conflicts)
            success = operation.responses.get("200")
            if path.startswith("/metrics") and isinstance(success, OpenAPIResponse) and success.content is not None:
                success.content["text/plain"] = text
                success.content["application/openmetrics-text"] = text


def _bodies() -> dict[str, Schema]:
    """What requests may hold, as msgspec checks it: Litestar leaves out what holds for the items of a list."""
    _, parts = msgspec.json.schema_components(_BODIES, ref_template="#/components/schemas/{name}")
    return {name: _schema_of(part) for name, part in parts.items()}


def _schema_of(part: dict[str, Any]) -> Schema:
    """A JSON Schema as Litestar's object."""
    values: dict[str, Any] = {}
    for key, value in part.items():
        word = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", key)
        if key == "properties":
            values[word] = {name: _schema_of(one) for name, one in value.items()}
        elif key == "items":
            values[word] = _schema_of(value)
        elif key == "anyOf":
            values[word] = [_schema_of(one) for one in value]
        else:
            values[word] = OpenAPIType(value) if key == "type" else value
    return Schema(**values)


def _add_problems(operation: Operation, *, writing: bool, conflicts: bool) -> None:
    assert operation.responses is not None
    problems = dict(_ALWAYS)
    if operation.parameters:
        problems |= _WITH_PARAMETERS
    if writing:
        problems |= _WRITING
        if conflicts:
            problems |= _CONFLICT
    if operation.request_body is not None:
        problems |= _WITH_BODY
    for status, words in problems.items():
        content = {MEDIA_TYPE: OpenAPIMediaType(schema=_problem_schema())}
        operation.responses.setdefault(str(status), OpenAPIResponse(description=words, content=content))


def _add_files(operation: Operation) -> None:
    success = (operation.responses or {}).get("200")
    if isinstance(success, OpenAPIResponse) and success.content is not None:
        file = Schema(type=OpenAPIType.STRING, content_media_type="application/octet-stream")
        success.content |= {media_type: OpenAPIMediaType(schema=file) for media_type in MEDIA_TYPES.values()}


def _ingest_body(limits: HttpSection) -> RequestBody:
    """Each item may be anything, because an unusable one is rejected by itself; its description says what is usable."""
    (_, parts) = msgspec.json.schema_components([Point], ref_template="#/components/schemas/{name}")
    fields = msgspec.json.encode({name: part["properties"] for name, part in parts.items()}).decode()
    points = Schema(
        type=OpenAPIType.OBJECT,
        properties={
            "data": Schema(
                type=OpenAPIType.ARRAY,
                max_items=limits.max_ingest_points,
                items=Schema(description=f"a point; one that is not like this is rejected with its index: {fields}"),
            )
        },
        required=["data"],
        examples=[{"data": [_EXAMPLE]}],
    )
    lines = Schema(type=OpenAPIType.STRING, description="a point as JSON on each line")
    media: dict[str, OpenAPIMediaType] = {
        JSON: OpenAPIMediaType(schema=points),
        MSGPACK: OpenAPIMediaType(schema=points),
    }
    media[LINES] = OpenAPIMediaType(schema=lines)
    return RequestBody(content=media, required=True)


_EXAMPLE: Final[dict[str, Any]] = {
    "symbol": "TSLA",
    "data_type": "trade",
    "source": "internal",
    "timestamp": "2026-01-02T14:30:00.000123Z",
    "data": {"price": 251.5, "size": 100, "exchange": "XNAS", "side": "buy"},
    "latency_ms": 0.8,
}


def _problem_schema() -> Schema:
    string = Schema(type=OpenAPIType.STRING)
    field_error = Schema(
        type=OpenAPIType.OBJECT, properties={"field": string, "why": string}, required=["field", "why"]
    )
    return Schema(
        type=OpenAPIType.OBJECT,
        description="RFC 9457 problem details",
        properties={
            "type": string,
            "title": string,
            "status": Schema(type=OpenAPIType.INTEGER),
            "detail": string,
            "errors": Schema(type=OpenAPIType.ARRAY, items=field_error),
        },
        required=["title", "status", "detail"],
    )
