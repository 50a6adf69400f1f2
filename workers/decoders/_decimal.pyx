# cython: boundscheck=False, wraparound=False
"""Decimal text to float for the decoders that work in Python: the grammar and rounding of `decimal.h`."""

from libc.stdint cimport uint8_t


cdef extern from "workers/decoders/decimal.h" nogil:
    enum:
        TK_DECIMAL_BAD
        TK_DECIMAL_EXACT

    int decimal_parse(const uint8_t *p, size_t size, double *value)


def parse_decimal(str text not None):
    """The nearest double of a decimal number that is not negative; ValueError for anything else, `inf` and `1_0` included."""
    cdef bytes raw = text.encode()
    cdef double value = 0.0
    cdef int found = decimal_parse(<const uint8_t *><const char *>raw, len(raw), &value)
    if found != TK_DECIMAL_EXACT:
        if found == TK_DECIMAL_BAD or len(raw) > 400:
            raise ValueError("not a decimal number")
        value = float(text)
    if not 0.0 <= value <= 1.7976931348623157e308:
        raise ValueError("number out of range")
    return value
