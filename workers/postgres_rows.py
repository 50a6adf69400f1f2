"""Records as rows of the table market_data: into binary COPY, and back out of their metadata.

Used by workers/postgres_store.py (writes) and workers/postgres_tier.py (reads). A row's `metadata` holds

    origin      "ENGINE/RING/STREAM": whose record it is; STREAM = when the ring was made, ns
    sequence    in that ring
    flags, side where there are any; of bars also open, high, low, vwap, interval_s, trade_count
    packed      the 128 bytes, without those that are zero, in base64 (tk_pack in copy_rows.h)

so that what is read back equals what was stored, byte by byte; the columns hold its time to the microsecond and its
numbers as decimals. Touches no database.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

import numpy as np

from shm.layout import Source, empty
from shm.message import source_name, type_name
from workers._copy_rows import ROW_MAX_BYTES, TEXT_MAX_BYTES, put_rows
from workers.journal_follower import Batch

COLUMNS: Final = ("time", "symbol", "data_type", "source", "price", "volume", "bid", "ask", "metadata")
HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)  # signature, flags, length of the extension
TRAILER: Final = b"\xff\xff"
PIECE_ROWS: Final = 2048

_KEPT_TABLES: Final = 16

_Texts = tuple[np.ndarray, np.ndarray]  # the bytes of all, and where each ends


class RowWriter:
    """Turns batches into rows, in a buffer that is used again."""

    def __init__(self, engine: str, source_names: Mapping[int, str] | None = None) -> None:
        """`source_names`: those of plug-ins, code -> name."""
        self._engine = engine
        self._buffer = bytearray(PIECE_ROWS * ROW_MAX_BYTES)
        self._types = _texts([type_name(code) for code in range(256)])
        self._source_names = {} if source_names is None else source_names  # one that is empty now may grow
        self._sources = self._name_sources()
        self._symbols: dict[tuple[str, ...], tuple[_Texts, np.ndarray]] = {}

    def _name_sources(self) -> _Texts:
        names = dict(self._source_names)  # as far as they are known now
        return _texts([source_name(code, names) for code in range(256)])

    def pieces(self, batch: Batch) -> Iterator[memoryview]:
        """The rows of a batch, by symbol, type and time, some thousand at once; each valid until the next is asked for.

        Sorted rows make neighbours in the table's index and blocks: stored about half again as fast, and read faster.
        In pieces, because the server works on one while the next is made.
        """
        records = batch.records
        newest = int(records["source"].max(initial=0))
        if newest >= Source.PLUGIN and newest not in self._source_names and self._source_names.get(newest) is not None:
            self._sources = self._name_sources()
        (text, ends), rank = self._of(batch.symbols)
        ids = np.minimum(records["instrument_id"], len(rank) - 1)
        order = np.lexsort((records["ts_event"], records["record_type"], rank[ids]))
        place = batch.place
        opening = f'{{"origin": "{self._engine}/{place.ring_id}/{place.stream}"'.encode()
        raw = np.ascontiguousarray(records).view(np.uint8)
        shared = (text, ends, *self._types, *self._sources, np.frombuffer(opening, np.uint8))
        for at in range(0, len(order), PIECE_ROWS):
            used = put_rows(self._buffer, raw, order[at : at + PIECE_ROWS], *shared)
            yield memoryview(self._buffer)[:used]

    def _of(self, symbols: tuple[str, ...]) -> tuple[_Texts, np.ndarray]:
        """Texts of a symbol table, and the place of each in alphabetical order; "" stands at the end."""
        found = self._symbols.get(symbols)
        if found is None:
            rank = np.zeros(len(symbols) + 1, np.int32)
            rank[np.argsort(np.array([*symbols, ""]), kind="stable")] = np.arange(len(symbols) + 1)
            if len(self._symbols) >= _KEPT_TABLES:
                self._symbols.clear()
            found = self._symbols[symbols] = (_texts(symbols), rank)
        return found


def records_of(packed: Iterable[str]) -> np.ndarray:
    """Records from the texts under `packed`, shape (n,), dtype RECORD, in that order."""
    pieces = [base64.b64decode(text) for text in packed]
    records = empty(len(pieces))
    bits = np.frombuffer(b"".join(piece[:16] for piece in pieces), np.uint8)
    records.view(np.uint8)[np.unpackbits(bits, bitorder="little").view(bool)] = np.frombuffer(
        b"".join(piece[16:] for piece in pieces), np.uint8
    )
    for field in ("ts_receive", "ts_publish"):
        records[field] ^= records["ts_event"]
    return records


def _texts(words: Sequence[str]) -> _Texts:
    encoded = [word.encode()[:TEXT_MAX_BYTES] for word in words]
    text = np.frombuffer(b"".join(encoded), np.uint8)
    return text, np.fromiter(accumulate(map(len, encoded)), np.int32, len(encoded))
