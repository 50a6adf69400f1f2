# The base of decoders that take a message a call, for those that are native; see _messages.pyx.
from libc.stdint cimport int64_t, uint32_t
from workers.decoders._decoder cimport NativeDecoder, tk_frames, tk_sink


cdef class MessageDecoder(NativeDecoder):
    cdef tk_frames _frames
    cdef tk_sink _sink
    cdef dict _ids

    cdef int take(self, bytes text, int64_t ts_receive, int connection) except -1
    cdef uint32_t _id(self, str symbol) except? 0xFFFFFFFF
