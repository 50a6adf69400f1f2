# cython: boundscheck=False, wraparound=False
"""Base of decoders that take a message a call: in Python, with records by methods, or native by `take` (_messages.pxd).

A subclass defines `message(text, ts_receive, connection)` and calls `trade`, `quote`, `level` and the rest for what it finds
there. Nothing that it raises about a message's content (ValueError and its kin, msgspec's errors) goes further: the
message is counted as malformed. Use it for venues whose rates leave room for Python, some 100,000 records/s.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from workers.decoders._decoder cimport *

import msgspec


cdef extern from "shm/include/tickengine.h" nogil:
    enum:
        TK_NO_INSTRUMENT


cdef extern from "workers/decoders/sink.h" nogil:
    void set_bar(tk_record *record, double open_, double high, double low, double close, double volume, uint32_t interval_s,
                 uint32_t trade_count)
    void set_tick(tk_record *record, double price, double size, double volume, const char *venue, size_t venue_size)


cdef extern from *:
    """
    static inline void set_orders(struct tk_record *record, uint32_t orders) { record->level2.order_count = orders; }
    """
    void set_orders(tk_record *record, uint32_t orders) nogil


cdef double NAN = float("nan")
UNREADABLE = (ValueError, OverflowError, KeyError, IndexError, TypeError, RecursionError)


cdef class MessageDecoder(NativeDecoder):
    """See the module. `NAMES` of a subclass: {code: name} of the kinds of messages that `seen` counts."""

    def __cinit__(self, *args, **kwargs):
        self.attach(&self._sink, &self._frames)
        self._ids = {}

    def message(self, bytes text, ts_receive, connection):
        """Decode one message; for subclasses."""
        raise NotImplementedError

    cdef int take(self, bytes text, int64_t ts_receive, int connection) except -1:
        """`message` for subclasses that are native."""
        self.message(text, ts_receive, connection)
        return 0

    cdef int run(self) noexcept nogil:
        return TK_SLOW if self._frames.index < self._frames.count else TK_DONE

    cdef int stopped(self, int stop) except -1:
        cdef const tk_frame *frame = &self._frames.frame[self._frames.index]
        cdef const uint8_t *p = frame_bytes(&self._frames)
        cdef bytes text
        self.counts.frames += 1
        self.counts.bytes += frame.size
        if p == NULL:
            self.counts.malformed[TK_TRUNCATED] += 1
        else:
            text = (<const char *>p)[: frame.size]
            try:
                self.take(text, frame.ts_receive, frame.port)
            except msgspec.MsgspecError:
                self.counts.malformed[TK_BAD_JSON] += 1
            except UNREADABLE:
                self.counts.malformed[TK_BAD_VALUE] += 1
        self.skip_frame()
        return 0

    cdef uint32_t _id(self, str symbol) except? 0xFFFFFFFF:
        found = self._ids.get(symbol)
        if found is None:
            found = self._ids[symbol] = self.resolve(symbol)
        if found == TK_REFUSED:
            self.counts.malformed[TK_BAD_SYMBOL] += 1
        return found

    def seen(self, int kind):
        """Count a message of this kind, 0 to 255."""
        self.counts.messages[kind & 255] += 1

    def duplicate(self):
        """Count a message that was had before."""
        self.counts.duplicates += 1

    def heartbeat(self):
        """Count a sign of life."""
        self.counts.heartbeats += 1

    def trade(self, str symbol not None, int64_t ts_event, int64_t ts_receive, double price, double size, uint64_t trade_id=0,
              unsigned side=0, unsigned flags=0):
        """One trade; `side` is the aggressor's."""
        cdef uint32_t number = self._id(symbol)
        if number == TK_REFUSED:
            return
        cdef tk_record *record = sink_next(&self._sink, TK_TYPE_TRADE, number, ts_event, ts_receive)
        set_trade(record, price, size, trade_id, side)
        record.flags |= flags

    def tick(self, str symbol not None, int64_t ts_event, int64_t ts_receive, double price, double size, double volume=NAN,
             unsigned flags=0, bytes venue not None=b""):
        """A last price; `volume` is the session's so far, `venue` where it was made, if it is not the decoder's."""
        cdef uint32_t number = self._id(symbol)
        if number == TK_REFUSED:
            return
        cdef tk_record *record = sink_next(&self._sink, TK_TYPE_TICK, number, ts_event, ts_receive)
        set_tick(record, price, size, volume, venue, len(venue))
        record.flags |= flags

    def quote(self, str symbol not None, int64_t ts_event, int64_t ts_receive, double bid, double bid_size, double ask,
              double ask_size, uint64_t sequence=0, unsigned flags=0):
        """Best bid and ask; NaN = there is none."""
        cdef uint32_t number = self._id(symbol)
        if number == TK_REFUSED:
            return
        cdef tk_record *record = sink_next(&self._sink, TK_TYPE_QUOTE, number, ts_event, ts_receive)
        set_quote(record, bid, bid_size, ask, ask_size)
        record.source_sequence = sequence
        record.flags |= flags

    def level(self, str symbol not None, int64_t ts_event, int64_t ts_receive, unsigned side, double price, double size,
              unsigned action, uint64_t sequence=0, unsigned flags=0, uint32_t orders=0):
        """One price of a book, or one order; `action` as in shm.layout.Action, `orders` how many stand there (0 = unknown)."""
        cdef uint32_t number = self._id(symbol)
        if number == TK_REFUSED:
            return
        cdef tk_record *record = sink_next(&self._sink, TK_TYPE_LEVEL2, number, ts_event, ts_receive)
        set_level2(record, side, price, size, action)
        set_orders(record, orders)
        record.source_sequence = sequence
        record.flags |= flags

    def clear(self, str symbol not None, int64_t ts_event, int64_t ts_receive, uint64_t sequence=0):
        """A book begins anew: CLEAR, flagged SNAPSHOT."""
        self.level(symbol, ts_event, ts_receive, TK_SIDE_NONE, NAN, 0.0, TK_ACTION_CLEAR, sequence, TK_FLAG_SNAPSHOT)

    def bar(self, str symbol not None, int64_t ts_event, int64_t ts_receive, double first, double high, double low, double close,
            double volume, uint32_t interval_s, uint32_t trade_count=0):
        """One closed bar; `ts_event` is its start."""
        cdef uint32_t number = self._id(symbol)
        if number == TK_REFUSED:
            return
        set_bar(sink_next(&self._sink, TK_TYPE_BAR, number, ts_event, ts_receive), first, high, low, close, volume, interval_s,
                trade_count)

    def end_of_event(self):
        """What was made last is the last record of one event."""
        if self._sink.count or self._sink.spare_count:
            sink_last(&self._sink).flags |= TK_FLAG_LAST_OF_BATCH

    def gap(self, uint64_t stream, uint64_t first, uint64_t last, symbol, int64_t ts_receive):
        """Messages [first, last) never came: a status record. `symbol` None = of no single instrument."""
        cdef uint32_t number = TK_NO_INSTRUMENT if symbol is None else self._id(symbol)
        sink_gap(&self._sink, stream, first, last, number, ts_receive, ts_receive)
