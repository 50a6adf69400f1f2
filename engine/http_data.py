"""GET /data/{symbol}: checks what is asked, has the tiers answer, and words it as JSON, Arrow or Parquet.

The route of engine/http.py for all of it; engine/front.py answers the plainest questions before the application sees
them, with the same words (`json_body`, `data_headers`). It decides on limits and statuses only: what is in an answer is
engine/tiers.py's. Limits count records: a long news item is several, one point if its records are on one page.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from litestar import Response, get
from litestar.datastructures import ResponseHeader
from litestar.params import Parameter

from engine import data_bodies, replies
from engine.archive_client import ArchiveRefused, ArchiveUnavailable
from engine.l1 import Wanted
from engine.observer import Observer
from engine.problems import Refusal
from engine.tiers import CURSOR_CHARS, CURSOR_PATTERN, Answer, decode_cursor
from shm.errors import ShmError
from shm.layout import TYPE_NAMES, RecordType
from shm.source_names import SourceNames

DataType = Literal["all", "tick", "quote", "bar", "trade", "level2", "news"]
Symbol = Annotated[str, Parameter(max_length=32, min_length=1, description="symbol, as in GET /symbols")]

JSON: Final = "application/json"
MEDIA_TYPES: Final = {
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}
_SLICE_RECORDS: Final = 500  # worded at a time, so that a long answer does not hold up short ones
_MAX_HEADER_CHARS: Final = 400
_encode: Final = msgspec.json.Encoder().encode


@get(
    "/data/{symbol:str}",
    tags=["data"],
    summary="The newest records of a symbol, from L1, L2 and L3",
    response_headers=[
        ResponseHeader(
            name="X-Cache",
            description="tiers that the records came from, or NONE",
            value="L1, L2",
            documentation_only=True,
        ),
        ResponseHeader(
            name="X-Cache-Missing", description="stores that could not be asked, and why", documentation_only=True
        ),
        ResponseHeader(name="X-Cursor", description="the cursor of Arrow and Parquet", documentation_only=True),
    ],
)
async def data(
    observer: Observer,
    symbol: Symbol,
    *,
    data_type: Annotated[DataType, Parameter(description="which records")] = "all",
    limit: Annotated[
        int, Parameter(ge=1, le=10_000_000, description="at most so many, the newest; Arrow and Parquet take more")
    ] = 100,
    start: Annotated[datetime | None, Parameter(description="venue's time, from; UTC if it names no zone")] = None,
    end: Annotated[datetime | None, Parameter(description="venue's time, before; UTC if it names no zone")] = None,
    cursor: Annotated[
        str | None,
        Parameter(
            pattern=CURSOR_PATTERN,
            min_length=CURSOR_CHARS,
            max_length=CURSOR_CHARS,
            description="of the answer before: go on with what comes before that",
        ),
    ] = None,
    format: Annotated[  # noqa: A002  the interface's name
        Literal["json", "arrow", "parquet"], Parameter(description="arrow: an IPC stream; columns as in the archive")
    ] = "json",
) -> Response[data_bodies.DataAnswer]:
    """Oldest first. 404 for a symbol that no tier knows."""
    http = observer.config.http
    most = http.max_data_records if format == "json" else http.max_bulk_records
    if limit > most:
        key = "max_data_records" if format == "json" else "max_bulk_records"
        raise Refusal(422, f"limit: {limit} is more than this engine allows, {most}; see [http] {key}")
    if format != "json" and not observer.tiers.has_archive:
        raise Refusal(422, f"format: {format} is made by the historian, which [storage] enabled = false leaves out")
    try:
        before = decode_cursor(cursor) if cursor is not None else None
    except ValueError as error:
        raise Refusal(422, f"cursor: {error}") from error
    wanted = Wanted(
        kind_of(data_type),
        replies.time_ns(start) if start is not None else None,
        replies.time_ns(end) if end is not None else None,
        before,
        limit,
    )
    try:
        answer = await observer.tiers.ask(symbol, wanted, "records" if format == "json" else format)
    except ShmError as error:
        raise Refusal(503, f"L1 can not be read now: {error}", {"Retry-After": "1"}) from error
    except ArchiveUnavailable as error:
        raise Refusal(503, f"L2 and L3 can not be asked now: {error}", {"Retry-After": "1"}) from error
    except ArchiveRefused as error:
        raise Refusal(422, str(error)) from error
    if not answer.known:
        raise Refusal(404, f"symbol {symbol!r} is in no tier; GET /symbols lists those of this run")
    body: Any = answer.file
    if format == "json":
        body = await _worded(symbol, data_type, answer, observer.source_names)
    elif answer.cursor is not None:
        return _respond(body, MEDIA_TYPES[format], {**data_headers(answer), "X-Cursor": answer.cursor})
    return _respond(body, MEDIA_TYPES.get(format, JSON), data_headers(answer))


def kind_of(data_type: str) -> RecordType | None:
    """The record type of a name; None = all."""
    return None if data_type == "all" else RecordType(TYPE_NAMES.index(data_type))


def json_body(symbol: str, data_type: str, answer: Answer, source_names: SourceNames) -> bytes:
    """An answer as JSON, at once: for few records."""
    return _body(symbol, data_type, answer, replies.points(answer.records.tobytes(), symbol, source_names))


def data_headers(answer: Answer) -> dict[str, str]:
    """X-Cache and, where something is missing, X-Cache-Missing."""
    headers = {"X-Cache": ", ".join(answer.tiers) or "NONE"}
    if answer.missing:
        text = "; ".join(answer.missing).encode("ascii", "replace").decode()
        headers["X-Cache-Missing"] = "".join(c if c.isprintable() else " " for c in text)[:_MAX_HEADER_CHARS]
    return headers


async def _worded(symbol: str, data_type: str, answer: Answer, source_names: SourceNames) -> bytes:
    points: list[data_bodies.DataPoint] = []
    for records in _slices(answer.records):
        points += replies.points(records.tobytes(), symbol, source_names)
        if len(records) < len(answer.records):
            await asyncio.sleep(0)
    return _body(symbol, data_type, answer, points)


def _slices(records: np.ndarray) -> list[np.ndarray]:
    """Pieces to be worded one by one; cut between records that do not belong together, pieces of news do."""
    cuts = [0]
    at = _SLICE_RECORDS
    while at < len(records):
        while at < len(records) and records["record_type"][at] == RecordType.NEWS:
            at += 1
        cuts.append(at)
        at += _SLICE_RECORDS
    return [records[start:end] for start, end in zip(cuts, [*cuts[1:], len(records)], strict=True) if end > start]


def _body(symbol: str, data_type: str, answer: Answer, points: list[data_bodies.DataPoint]) -> bytes:
    return _encode(
        data_bodies.DataAnswer(
            symbol=symbol,
            data_type=data_type,
            data=points,
            count=len(points),
            cursor=answer.cursor,
            incomplete=list(answer.missing),
        )
    )


def _respond(body: Any, media_type: str, headers: dict[str, str]) -> Response[data_bodies.DataAnswer]:
    return Response(body, media_type=media_type, headers=headers)
