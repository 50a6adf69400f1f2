# cython: boundscheck=False, wraparound=False
"""Records to rows of binary COPY, the loop around workers/copy_rows.h. Called by workers/postgres_rows.py alone."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from workers.record cimport tk_record


cdef extern from "workers/copy_rows.h" nogil:
    enum:
        TK_ROW_MAX
        TK_ROW_TEXT_MAX
    char *tk_put_row(char *at, const tk_record *record, const char *symbol, size_t symbol_bytes, const char *type_,
                     size_t type_bytes, const char *source, size_t source_bytes, const char *opening,
                     size_t opening_bytes)


ROW_MAX_BYTES = TK_ROW_MAX
TEXT_MAX_BYTES = TK_ROW_TEXT_MAX


def put_rows(
    unsigned char[::1] out not None,
    const unsigned char[::1] records not None,
    const int64_t[::1] order not None,
    const unsigned char[::1] symbols not None,
    const int32_t[::1] symbol_ends not None,
    const unsigned char[::1] types not None,
    const int32_t[::1] type_ends not None,
    const unsigned char[::1] sources not None,
    const int32_t[::1] source_ends not None,
    const unsigned char[::1] opening not None,
):
    """Write the rows of `records` (128 bytes each) in this order to the start of `out`; returns their bytes.

    Texts stand one behind the other, `*_ends[i]` is where the one number i ends: symbols by instrument id (an id beyond
    them has the symbol ""), types and sources by their codes, which must all be there.

    Raises:
        ValueError: `out` may be too small: it takes ROW_MAX_BYTES a row; or the opening is longer than 128 bytes.
    """
    cdef size_t rows = order.shape[0], count = records.shape[0] // 128, index
    if <size_t>out.shape[0] < rows * TK_ROW_MAX:
        raise ValueError(f"{rows} rows take up to {rows * TK_ROW_MAX} bytes, there are {out.shape[0]}")
    if opening.shape[0] > 128 or type_ends.shape[0] < 256 or source_ends.shape[0] < 256:
        raise ValueError("opening of more than 128 bytes, or fewer than 256 types or sources")
    if rows == 0:
        return 0
    cdef char *start = <char *>&out[0]
    cdef char *at = start
    cdef const tk_record *record
    cdef const char *symbol_text = NULL
    cdef const char *type_text = <const char *>&types[0]
    cdef const char *source_text = <const char *>&sources[0]
    cdef const char *opening_text = <const char *>&opening[0]
    cdef size_t opening_bytes = opening.shape[0]
    cdef uint32_t known = symbol_ends.shape[0]
    cdef int32_t s0, s1, t0, t1, u0, u1
    if symbols.shape[0]:
        symbol_text = <const char *>&symbols[0]
    else:
        known = 0
    with nogil:
        for index in range(rows):
            if <size_t>order[index] >= count:
                continue
            record = <const tk_record *>&records[order[index] * 128]
            s0 = s1 = 0
            if record.instrument_id < known:
                s0 = symbol_ends[record.instrument_id - 1] if record.instrument_id else 0
                s1 = symbol_ends[record.instrument_id]
            t0 = type_ends[record.record_type - 1] if record.record_type else 0
            t1 = type_ends[record.record_type]
            u0 = source_ends[record.source - 1] if record.source else 0
            u1 = source_ends[record.source]
            at = tk_put_row(at, record, symbol_text + s0 if known else type_text, s1 - s0, type_text + t0, t1 - t0, source_text + u0, u1 - u0,
                            opening_text, opening_bytes)
    return at - start
