# cython: boundscheck=False, wraparound=False
"""CRC-32C of any buffer, by the processor's own instruction: what guards the blocks of the journal."""

cdef extern from "workers/crc32c.h" nogil:
    void tk_crc32c_prepare()
    unsigned int tk_crc32c(unsigned int crc, const void *data, size_t bytes)
    unsigned int tk_crc32c_by_table(unsigned int crc, const unsigned char *data, size_t bytes)
    int tk_crc32c_is_native()

tk_crc32c_prepare()


def crc32c(const unsigned char[::1] data not None, unsigned int crc=0):
    """CRC-32C of `data`, going on from `crc` (the result for the bytes before). The GIL is released meanwhile."""
    cdef size_t size = data.shape[0]
    if size == 0:
        return crc
    with nogil:
        crc = tk_crc32c(crc, &data[0], size)
    return crc


def crc32c_by_table(const unsigned char[::1] data not None, unsigned int crc=0):
    """The same without the instruction, for machines that lack it and for the test that both agree."""
    cdef size_t size = data.shape[0]
    if size == 0:
        return crc
    return ~tk_crc32c_by_table(~crc, &data[0], size) & 0xFFFFFFFF


def is_native():
    """Whether this processor has the instruction."""
    return bool(tk_crc32c_is_native())
