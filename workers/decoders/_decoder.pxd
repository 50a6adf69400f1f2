# What every native decoder shares; see _decoder.pyx.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "workers/decoders/frames.h" nogil:
    ctypedef struct tk_frame "struct tk_frame":
        uint64_t offset
        uint32_t size
        uint16_t port
        int64_t ts_receive

    ctypedef struct tk_frames "struct tk_frames":
        const uint8_t *data
        size_t size
        const tk_frame *frame
        size_t count
        size_t index
        size_t at
        int begun

    const uint8_t *frame_bytes(const tk_frames *frames)

    enum:
        TK_DONE
        TK_FULL
        TK_MISS
        TK_NEW_DAY
        TK_SLOW
        TK_MAPPING


cdef extern from "workers/decoders/sink.h" nogil:
    enum:
        TK_TRUNCATED
        TK_BAD_SYMBOL
        TK_BAD_VALUE
        TK_BAD_JSON
        TK_NO_SYMBOL
        TK_NO_MEMORY
        TK_REASONS
        TK_GAPS_KEPT
        TK_TYPE_TICK
        TK_TYPE_QUOTE
        TK_TYPE_BAR
        TK_TYPE_TRADE
        TK_TYPE_LEVEL2
        TK_TYPE_STATUS
        TK_SIDE_NONE
        TK_SIDE_BUY
        TK_SIDE_SELL
        TK_ACTION_CLEAR
        TK_FLAG_SNAPSHOT
        TK_FLAG_LAST_OF_BATCH

    const char *tk_reason_names[]

    ctypedef struct tk_record "struct tk_record":
        int64_t ts_event
        uint32_t instrument_id
        uint16_t flags
        uint64_t source_sequence
        uint32_t conditions

    ctypedef struct tk_gap "struct tk_gap":
        uint64_t stream
        uint64_t first "from"
        uint64_t last "to"

    ctypedef struct tk_counts "struct tk_counts":
        uint64_t messages[256]
        uint64_t malformed[32]
        uint64_t records[8]
        uint64_t frames
        uint64_t bytes
        uint64_t duplicates
        uint64_t heartbeats
        uint64_t gaps
        uint64_t missing
        int64_t first_ns
        int64_t last_ns
        tk_gap gap[1024]

    ctypedef struct tk_sink "struct tk_sink":
        tk_record *out
        size_t count
        size_t capacity
        tk_record *spare
        size_t spare_count
        uint16_t flags
        uint16_t feed_id
        uint8_t source
        char venue[8]
        tk_counts *counts

    bint sink_full(const tk_sink *sink)
    void sink_refuse(tk_sink *sink, int reason)
    void sink_drain(tk_sink *sink)
    tk_record *sink_next(tk_sink *sink, unsigned type, uint32_t instrument_id, int64_t ts_event, int64_t ts_receive)
    tk_record *sink_last(tk_sink *sink)
    void sink_gap(tk_sink *sink, uint64_t stream, uint64_t first, uint64_t last, uint32_t instrument_id, int64_t ts_event,
                  int64_t ts_receive)
    void set_trade(tk_record *record, double price, double size, uint64_t trade_id, unsigned side)
    void set_quote(tk_record *record, double bid, double bid_size, double ask, double ask_size)
    void set_level2(tk_record *record, unsigned side, double price, double size, unsigned action)


cdef extern from "workers/decoders/symbols.h" nogil:
    enum:
        TK_REFUSED

    ctypedef struct tk_symbol "struct tk_symbol":
        uint64_t key[4]
        uint32_t id
        uint64_t last[3]

    ctypedef struct tk_symbols "struct tk_symbols":
        tk_symbol *entry
        tk_symbol *recent
        uint64_t missed[4]

    bint symbols_key(uint64_t *key, const uint8_t *text, size_t size)
    tk_symbol *symbols_find(tk_symbols *table, const uint64_t *key)
    bint symbols_add(tk_symbols *table, const uint64_t *key, uint32_t id)


cdef class NativeDecoder:
    cdef tk_counts counts
    cdef tk_sink *sink        # of the subclass's state; set once by it, with `frames`
    cdef tk_frames *frames
    cdef const uint8_t[::1] _data, _spans  # hold the batch that is being decoded
    cdef tk_frame _one        # the frame of feed_message
    cdef object _intern

    cdef void attach(self, tk_sink *sink, tk_frames *frames)
    cdef int _idle(self) except -1
    cdef int run(self) noexcept nogil
    cdef int stopped(self, int stop) except -1
    cdef uint32_t resolve(self, str symbol) except? 0xFFFFFFFF
    cdef int learn(self, tk_symbols *symbols) except -1
    cdef void skip_frame(self) noexcept


cdef tk_symbol *find_symbol(NativeDecoder decoder, tk_symbols *symbols, str name) except? NULL
