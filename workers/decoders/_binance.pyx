# cython: boundscheck=False, wraparound=False
"""Shell of the Binance kernel (`binance.h`), with the slow path: what the kernel leaves is decoded by msgspec here.

Frames are WebSocket text messages, raw or combined, spot or futures, and REST depth snapshots as hftbacktest's collector
writes them into the same stream. Both paths emit through the functions of binance.h.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free
from workers.decoders._decoder cimport *

import msgspec

from workers.decoders.binance_messages import (
    Depth,
    DepthEvent,
    Envelope,
    Kline,
    KlineEvent,
    Ticker,
    Trade,
    AggTrade,
    interval_seconds,
)
from workers.decoders._decimal import parse_decimal


cdef extern from "workers/decoders/binance.h" nogil:
    enum:
        BINANCE_OTHER
        BINANCE_TRADE
        BINANCE_AGG_TRADE
        BINANCE_BOOK_TICKER
        BINANCE_DEPTH
        BINANCE_SNAPSHOT
        BINANCE_KLINE
        BINANCE_REPLY
        BINANCE_KINDS
        LAST_DEPTH

    const char *binance_kind_names[]

    ctypedef struct binance_level_t "struct binance_level":
        pass

    ctypedef struct binance_state "struct binance":
        tk_frames frames
        tk_sink sink
        tk_symbols symbols
        binance_level_t *level
        int native

    int binance_run(binance_state *state)
    int64_t binance_time(int64_t value)
    void binance_trade(binance_state *s, tk_symbol *symbol, int kind, int64_t ts_event, int64_t ts_receive, double price,
                       double size, uint64_t id, bint buyer_is_maker)
    void binance_quote(binance_state *s, const tk_symbol *symbol, int64_t ts_event, int64_t ts_receive, uint64_t update,
                       double bid, double bid_size, double ask, double ask_size)
    bint binance_depth_begin(binance_state *s, tk_symbol *symbol, int64_t ts_event, int64_t ts_receive, uint64_t first,
                             uint64_t final, int64_t previous)
    void binance_level(binance_state *s, const tk_symbol *symbol, int64_t ts_event, int64_t ts_receive, uint64_t update,
                       unsigned side, double price, double size, bint snapshot)
    void binance_depth_end(binance_state *s)
    void set_bar(tk_record *record, double open_, double high, double low, double close, double volume, uint32_t interval_s,
                 uint32_t trade_count)


_envelope = msgspec.json.Decoder(Envelope)
_trade = msgspec.json.Decoder(Trade)
_agg_trade = msgspec.json.Decoder(AggTrade)
_ticker = msgspec.json.Decoder(Ticker)
_depth_event = msgspec.json.Decoder(DepthEvent)
_depth = msgspec.json.Decoder(Depth)
_kline = msgspec.json.Decoder(KlineEvent)


cdef class BinanceDecoder(NativeDecoder):
    """`symbol`: whose a depth snapshot is that names none; without it, that of the last message before it.

    `native=False` sends everything through the slow path; the two make the same records.
    """

    NAMES = {i: binance_kind_names[i].decode() for i in range(BINANCE_KINDS)}
    VENUE = b"BINANCE"
    cdef binance_state state
    cdef str _symbol
    cdef bint _named

    def __cinit__(self, *args, **kwargs):
        self.attach(&self.state.sink, &self.state.frames)

    def __init__(self, intern, *, symbol=None, native=True, **stamp):
        super().__init__(intern, **stamp)
        self.state.native = native
        self._symbol = symbol.upper() if symbol else ""

    def __dealloc__(self):
        free(self.state.symbols.entry)
        free(self.state.level)

    cdef int run(self) noexcept nogil:
        return binance_run(&self.state)

    cdef int stopped(self, int stop) except -1:
        if stop == TK_MISS:
            return self.learn(&self.state.symbols)
        cdef const tk_frame *frame = &self.frames.frame[self.frames.index]
        cdef const uint8_t *p = frame_bytes(self.frames)
        cdef bytes text = (<const char *>p)[: frame.size]
        try:
            self._slow(text, frame.ts_receive)
        except msgspec.MsgspecError:
            self.counts.malformed[TK_BAD_JSON] += 1
        except (ValueError, OverflowError, RecursionError):
            self.counts.malformed[TK_BAD_VALUE] += 1
        self.skip_frame()
        return 0

    cdef int _slow(self, bytes text, int64_t ts_receive) except -1:
        envelope = _envelope.decode(text)
        stream = ""
        if envelope.stream is not None and bytes(envelope.data):
            stream, text = envelope.stream, bytes(envelope.data)
            if text[:1] != b"{":
                self.counts.messages[BINANCE_OTHER] += 1
                return 0
            envelope = _envelope.decode(text)
        event = envelope.e
        if event == "trade" or event == "aggTrade":
            return self._trade(text, event == "trade", ts_receive)
        if event == "bookTicker" or (event is None and bytes(envelope.B)):
            return self._ticker(text, ts_receive)
        if event == "depthUpdate":
            return self._depth(text, ts_receive)
        if event == "kline":
            return self._kline(text, ts_receive)
        if bytes(envelope.lastUpdateId):
            return self._snapshot(text, stream, ts_receive)
        self.counts.messages[BINANCE_REPLY if event is None and bytes(envelope.id) else BINANCE_OTHER] += 1
        return 0

    cdef int _trade(self, bytes text, bint single, int64_t ts_receive) except -1:
        message = _trade.decode(text) if single else _agg_trade.decode(text)
        cdef double price = parse_decimal(message.p), size = parse_decimal(message.q)
        cdef int64_t ts_event = _time(message.T)
        _time(message.E)
        self.counts.messages[BINANCE_TRADE if single else BINANCE_AGG_TRADE] += 1
        cdef tk_symbol *symbol = find_symbol(self, &self.state.symbols, message.s)
        if symbol != NULL:
            binance_trade(&self.state, symbol, BINANCE_TRADE if single else BINANCE_AGG_TRADE, ts_event, ts_receive, price, size,
                          message.t if single else message.a, message.m)
        return 0

    cdef int _ticker(self, bytes text, int64_t ts_receive) except -1:
        message = _ticker.decode(text)
        cdef double bid = parse_decimal(message.b), ask = parse_decimal(message.a)
        cdef double bid_size = parse_decimal(message.B), ask_size = parse_decimal(message.A)
        cdef int64_t ts_event = ts_receive, sent = _time(message.E), traded = _time(message.T)
        if traded >= 0:
            ts_event = traded
        elif sent >= 0:
            ts_event = sent
        self.counts.messages[BINANCE_BOOK_TICKER] += 1
        cdef tk_symbol *symbol = find_symbol(self, &self.state.symbols, message.s)
        if symbol != NULL:
            binance_quote(&self.state, symbol, ts_event, ts_receive, message.u, bid, bid_size, ask, ask_size)
        return 0

    cdef int _levels(self, tk_symbol *symbol, levels, unsigned side, int64_t ts_event, int64_t ts_receive, uint64_t update,
                     bint snapshot) except -1:
        cdef double price, size
        for price, size in levels:
            binance_level(&self.state, symbol, ts_event, ts_receive, update, side, price, size, snapshot)
        return 0

    cdef int _depth(self, bytes text, int64_t ts_receive) except -1:
        message = _depth_event.decode(text)
        bids, asks = _numbers(message.b), _numbers(message.a)
        cdef int64_t ts_event = _time(message.E), traded = _time(message.T)
        cdef int64_t previous = -1 if message.pu is None else message.pu
        if traded >= 0:
            ts_event = traded
        self.counts.messages[BINANCE_DEPTH] += 1
        cdef tk_symbol *symbol = find_symbol(self, &self.state.symbols, message.s)
        if symbol == NULL or not binance_depth_begin(&self.state, symbol, ts_event, ts_receive, message.U, message.u, previous):
            return 0
        self._levels(symbol, bids, TK_SIDE_BUY, ts_event, ts_receive, message.u, False)
        self._levels(symbol, asks, TK_SIDE_SELL, ts_event, ts_receive, message.u, False)
        if bids or asks:
            binance_depth_end(&self.state)
        return 0

    cdef int _snapshot(self, bytes text, str stream, int64_t ts_receive) except -1:
        """The whole book: CLEAR, then each price. A diff that ends at or before lastUpdateId is old from here on."""
        message = _depth.decode(text)
        bids, asks = _numbers(message.bids), _numbers(message.asks)
        cdef int64_t ts_event = _time(message.T)
        cdef uint64_t update = message.lastUpdateId
        cdef tk_symbol *symbol
        self.counts.messages[BINANCE_SNAPSHOT] += 1
        name = stream.split("@", 1)[0].upper() or message.s or self._symbol
        if name:
            symbol = find_symbol(self, &self.state.symbols, name)
            if symbol == NULL:
                return 0
        else:
            symbol = self.state.symbols.recent
            if symbol == NULL or symbol.id == TK_REFUSED:
                self.counts.malformed[TK_NO_SYMBOL] += 1
                return 0
        if ts_event < 0:
            ts_event = ts_receive
        cdef tk_record *record = sink_next(&self.state.sink, TK_TYPE_LEVEL2, symbol.id, ts_event, ts_receive)
        set_level2(record, TK_SIDE_NONE, NAN, 0.0, TK_ACTION_CLEAR)
        record.source_sequence = update
        record.flags |= TK_FLAG_SNAPSHOT
        self._levels(symbol, bids, TK_SIDE_BUY, ts_event, ts_receive, update, True)
        self._levels(symbol, asks, TK_SIDE_SELL, ts_event, ts_receive, update, True)
        binance_depth_end(&self.state)
        if update > symbol.last[LAST_DEPTH]:
            symbol.last[LAST_DEPTH] = update
        return 0

    cdef int _kline(self, bytes text, int64_t ts_receive) except -1:
        """A closed candle is a bar; one that still changes is counted and makes none."""
        message = _kline.decode(text)
        candle = message.k
        cdef uint32_t interval_s = interval_seconds(candle.i)
        cdef double first = parse_decimal(candle.o), high = parse_decimal(candle.h), low = parse_decimal(candle.l)
        cdef double close = parse_decimal(candle.c), volume = parse_decimal(candle.v)
        cdef int64_t ts_event = _time(candle.t)
        self.counts.messages[BINANCE_KLINE] += 1
        cdef tk_symbol *symbol = find_symbol(self, &self.state.symbols, message.s)
        if symbol != NULL and candle.x:
            set_bar(sink_next(&self.state.sink, TK_TYPE_BAR, symbol.id, ts_event, ts_receive), first, high, low, close, volume,
                    interval_s, candle.n)
        return 0


cdef double NAN = float("nan")


cdef int64_t _time(value) except? -2:
    """ns since the epoch of a venue's time; -1 = it sent none. ValueError = out of range."""
    if value is None:
        return -1
    cdef int64_t time = binance_time(value)
    if time < 0:
        raise ValueError("time out of range")
    return time


def _numbers(levels):
    return [(parse_decimal(price), parse_decimal(size)) for price, size in levels]
