"""POST /data/ingest: reads the body, bounded, and hands its points to the intake.

A body of JSON or msgpack is read whole; newline-delimited JSON is taken as it comes, a piece at a time, for as long as
the client sends, so that a stream is bounded in memory and not in length. Called by engine/http.py; it decides only on
sizes and on what to answer.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from litestar import Request, post

from engine import data_bodies
from engine.audit import note
from engine.byte_size import parse_bytes
from engine.intake import Intake, Taken
from engine.observer import Observer
from engine.problems import Refusal
from workers.points import decode_body, decode_lines, reason

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
LINES: Final = "application/x-ndjson"
_FORMS: Final[dict[str, Literal["json", "msgpack"]]] = {
    JSON: "json",
    MSGPACK: "msgpack",
    "application/x-msgpack": "msgpack",
}

PIECE_BYTES: Final = 256 * 1024  # of a stream, decoded at a time
MAX_LINE_BYTES: Final = 64 * 1024
MAX_REJECTED: Final = 10_000  # a stream with more is not what it says


@post(
    "/data/ingest",
    tags=["data"],
    summary="Store points: JSON, msgpack, or a stream of JSON lines",
    status_code=200,
    request_max_body_size=None,
)
async def ingest(request: Request[Any, Any, Any], observer: Observer, intake: Intake) -> data_bodies.IngestAnswer:
    """What can't be stored is in `rejected`, with its index and the field that is wrong; all the others are stored."""
    form = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if form == LINES:
        taken = await _stream(request, intake)
    elif form in _FORMS:
        taken = await _whole(request, observer, intake, _FORMS[form])
    else:
        raise Refusal(415, f"content-type is {form[:80]!r}; {JSON}, {MSGPACK} and {LINES} are taken")
    note(request.scope, stored=taken.count, rejected=len(taken.rejected))
    if taken.overload and not taken.count:
        raise Refusal(503, taken.rejected[-1][1], {"Retry-After": "1"})
    return data_bodies.IngestAnswer(
        count=taken.count,
        total_stored=intake.total_stored,
        rejected=[data_bodies.RejectedPoint(index=index, error=error) for index, error in taken.rejected],
    )


async def _whole(
    request: Request[Any, Any, Any], observer: Observer, intake: Intake, form: Literal["json", "msgpack"]
) -> Taken:
    limits = observer.config.http
    body = await _read(request, parse_bytes(limits.max_body))
    try:
        points, rejected = decode_body(body, form)
    except msgspec.ValidationError as error:
        raise Refusal(422, f"{reason(error)}; the body must be {{'data': [point, ...]}}") from error
    except msgspec.DecodeError as error:
        raise Refusal(400, f"the body is not {form}: {error}") from error
    if len(points) > limits.max_ingest_points:
        raise Refusal(
            422,
            f"data: {len(points)} points, at most {limits.max_ingest_points} are taken at a time; see [http] "
            f"max_ingest_points, or send them as {LINES}",
        )
    return await intake.take(points, rejected)


async def _read(request: Request[Any, Any, Any], limit_bytes: int) -> bytes:
    too_large = f"the body has more than {limit_bytes} bytes; see [http] max_body, or send points as {LINES}"
    if int(request.headers.get("content-length", "0")) > limit_bytes:
        raise Refusal(413, too_large)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit_bytes:
            raise Refusal(413, too_large)
    return bytes(body)


async def _stream(request: Request[Any, Any, Any], intake: Intake) -> Taken:
    total, waiting, seen = Taken(), bytearray(), 0

    async def take(text: bytes) -> None:
        nonlocal seen
        points, rejected = decode_lines(text)
        taken = await intake.take(points, rejected)
        total.count += taken.count
        total.overload |= taken.overload
        total.rejected += [(seen + index, error) for index, error in taken.rejected]
        seen += len(points)

    async for piece in request.stream():
        waiting += piece
        end = waiting.rfind(b"\n") + 1
        if len(waiting) - end > MAX_LINE_BYTES:
            raise Refusal(
                413, f"a line has more than {MAX_LINE_BYTES} bytes; {total.count} points were stored before it"
            )
        if end >= PIECE_BYTES or (end and len(piece) < PIECE_BYTES // 8):  # full, or the client sends little at a time
            await take(bytes(waiting[:end]))
            del waiting[:end]
        if total.overload:
            break
        if len(total.rejected) > MAX_REJECTED:
            raise Refusal(
                422,
                f"more than {MAX_REJECTED} points were rejected, the first because: {total.rejected[0][1]}; "
                f"{total.count} were stored",
            )
    if waiting and not total.overload:
        await take(bytes(waiting))
    return total
