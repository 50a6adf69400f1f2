"""Questions to the historian, and what it finds: GET /data for records that L1 no longer has.

They travel as msgpack between the control process (engine/archive_client.py) and the historian (workers/historian.py);
the records themselves follow in a frame of their own. Types and their msgpack; no socket and no store is known here.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from workers.spec.settings import Positive


class Question(Struct, frozen=True, kw_only=True):
    """What the control process asks of the historian: the newest `limit` records, of its own and of `newer`, merged.

    Times are `ts_event`, ns since the Unix epoch, [from_ns, to_ns); a key is (ts_event, ts_publish, sequence).
    """

    number: int = 0
    symbol: str
    kind: Annotated[int, Meta(ge=0, le=7)] = 0  # RecordType; 0 = all
    from_ns: int | None = None
    to_ns: int | None = None
    before: tuple[int, int, int] | None = None  # only keys below it
    limit: Positive
    form: Literal["records", "arrow", "parquet"] = "records"
    newer: bytes = b""  # what L1 has of them: records of 128 bytes
    probe: bool = False  # say also whether any store has anything at all of the symbol
    left_l1_ns: int = 0  # some that were published up to here are in L1 no more: the journal must have them; 0 = none
    applied: dict[int, int] = {}  # ring -> sequence up to which L1 had read it
    deadline_ns: int  # monotonic; not worth answering after it


class Found(Struct, frozen=True, kw_only=True):
    """What the historian answers; a second frame holds the records (or the file) themselves, ascending by key."""

    number: int
    refused: str = ""  # why there is no answer; the other fields mean nothing then
    busy: bool = False  # refused because too many wait; later it may work
    count: int = 0
    oldest: tuple[int, int, int] | None = None  # key of the first record
    asked: tuple[str, ...] = ()  # levels, "L2", "L3", that were asked while records were still missing
    gave: tuple[str, ...] = ()  # levels, "L1" too, that gave a record which none before them had
    missing: tuple[str, ...] = ()  # stores that could not be asked, and why
    known: bool = True  # with `probe`: whether any store has anything of the symbol


_encoder = msgspec.msgpack.Encoder()
_question_decoder: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_found_decoder: msgspec.msgpack.Decoder[Found] = msgspec.msgpack.Decoder(Found)


def encode_question(question: Question) -> bytes:
    """A question as msgpack: one frame to the historian."""
    return _encoder.encode(question)


def decode_question(frame: bytes) -> Question:
    """A question from its frame. msgspec.ValidationError or DecodeError when it is none."""
    return _question_decoder.decode(frame)


def encode_found(found: Found) -> bytes:
    """The first frame of an answer."""
    return _encoder.encode(found)


def decode_found(frame: bytes) -> Found:
    """An answer from its first frame. msgspec.ValidationError or DecodeError when it is none."""
    return _found_decoder.decode(frame)
