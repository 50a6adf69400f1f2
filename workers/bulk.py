"""Records of one symbol as a file: an Arrow IPC stream or Parquet, what `GET /data?format=` answers with.

Called by the historian. Needs pyarrow (the extra `storage`), imported with the first call. Columns are those of
workers/parquet.py for the record type; `ring` and `stream` are null, because not every tier knows them. Of all types
together: the columns of all of them, null where a type has none of that name, and `data_type` behind `symbol`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from shm.layout import RECORD_SIZE_BYTES, TYPE_NAMES, RecordType

if TYPE_CHECKING:
    import pyarrow as pa


class NoLibrary(Exception):
    """pyarrow is not installed."""


def to_file(records: np.ndarray, symbol: str, kind: RecordType | None, form: Literal["arrow", "parquet"]) -> bytes:
    """The file, rows in the order of `records`.

    Args:
        kind: the one type that they all have; None = any.

    Raises:
        NoLibrary: see above.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise NoLibrary("needs pyarrow in the engine's environment: pip install 'tickengine[storage]'") from None
    try:
        return _written(_of_type(records, symbol, kind) if kind is not None else _of_all(records, symbol), form)
    finally:
        pa.default_memory_pool().release_unused()  # the next one may be a long time off


def _written(table: pa.Table, form: Literal["arrow", "parquet"]) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    if form == "arrow":
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    else:
        import pyarrow.parquet as pq

        pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _of_type(records: np.ndarray, symbol: str, kind: RecordType) -> pa.Table:
    import pyarrow as pa

    from workers.parquet import Rows, to_table

    count = len(records)
    rows = Rows(records, np.zeros(count, np.uint32), np.zeros(count, np.uint8), np.zeros(count, np.int64), [symbol])
    table = to_table(rows, kind)
    for name in ("ring", "stream"):
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(index), pa.nulls(count, table.schema.field(index).type))
    return table


def _of_all(records: np.ndarray, symbol: str) -> pa.Table:
    import pyarrow as pa

    pieces: list[Any] = []
    places = []
    for kind in RecordType:
        mine = np.flatnonzero(records["record_type"] == kind)
        words = records.view(np.uint64).reshape(len(records), RECORD_SIZE_BYTES // 8)
        table = _of_type(words.take(mine, axis=0).reshape(-1).view(records.dtype), symbol, kind)
        names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(mine), np.int32)), [TYPE_NAMES[kind]])
        pieces.append(table.add_column(1, "data_type", names))
        places.append(mine)
    table = pa.concat_tables(pieces, promote_options="default").unify_dictionaries()
    order = np.argsort(np.concatenate(places), kind="stable")
    return table.take(pa.array(order))
