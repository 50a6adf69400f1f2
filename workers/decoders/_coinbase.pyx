# cython: boundscheck=False, wraparound=False
"""Coinbase Advanced Trade WebSocket messages -> records: msgspec reads, the sink's functions write.

    market_trades -> trade (the venue states the maker's side; ours is the aggressor's); snapshots flagged SNAPSHOT
    ticker        -> quote, at the message's time
    l2_data       -> level2; a snapshot begins with CLEAR; the last of an event LAST_OF_BATCH
    the rest      -> counted (heartbeats, subscriptions, candles, status)

`sequence_num` counts by one over a connection: a jump is a gap of the feed, and 0 a new connection. Trade ids count by
one for each product: a jump is a gap of that product, and what was had before is dropped and counted. A frame's `port`
tells connections apart.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from workers.decoders._decoder cimport *
from workers.decoders._messages cimport MessageDecoder

import msgspec

from workers.decoders._decimal import parse_decimal
from workers.decoders.coinbase_messages import BookEvent, Envelope, TickerEvent, TradesEvent


cdef extern from "shm/include/tickengine.h" nogil:
    enum:
        TK_NO_INSTRUMENT
        TK_ACTION_ADD
        TK_ACTION_MODIFY
        TK_ACTION_DELETE


CHANNELS = ("other", "market_trades", "ticker", "ticker_batch", "l2_data", "heartbeats", "subscriptions", "candles",
            "status", "error")
_NUMBER = {name: number for number, name in enumerate(CHANNELS)}

_envelope = msgspec.json.Decoder(Envelope)
_trades = msgspec.json.Decoder(list[TradesEvent])
_tickers = msgspec.json.Decoder(list[TickerEvent])
_books = msgspec.json.Decoder(list[BookEvent])
cdef double NAN = float("nan")


cdef inline int64_t _digits(const uint8_t *p, int count) except -1:
    cdef int64_t value = 0
    cdef int i
    for i in range(count):
        if not 48 <= p[i] <= 57:
            raise ValueError("not a time")
        value = value * 10 + p[i] - 48
    return value


def parse_time(str text not None):
    """ns since the epoch of `YYYY-MM-DDTHH:MM:SS[.fraction]Z`; digits beyond the ninth are cut off. ValueError if it is none."""
    cdef bytes raw = text.encode()
    cdef const uint8_t *p = <const uint8_t *><const char *>raw
    cdef Py_ssize_t size = len(raw), i
    if size < 20 or p[4] != 45 or p[7] != 45 or p[10] != 84 or p[13] != 58 or p[16] != 58 or p[size - 1] != 90:
        raise ValueError("not a time")
    cdef int64_t year = _digits(p, 4), month = _digits(p + 5, 2), day = _digits(p + 8, 2)
    cdef int64_t hour = _digits(p + 11, 2), minute = _digits(p + 14, 2), second = _digits(p + 17, 2)
    if not (1970 <= year < 2262 and 1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 60):
        raise ValueError("not a time")
    cdef int64_t fraction = 0, scale = 100_000_000
    if size > 20:
        if p[19] != 46 or size == 21:
            raise ValueError("not a time")
        for i in range(20, size - 1):
            fraction += _digits(p + i, 1) * scale
            scale //= 10
    # days since 1970-03-01 of years that begin in March, so that the leap day comes last
    cdef int64_t shifted = year - (1 if month <= 2 else 0), leap = shifted // 4 - shifted // 100 + shifted // 400
    cdef int64_t days = 365 * shifted + leap + (153 * ((month + 9) % 12) + 2) // 5 + day - 1 - 719468
    return (((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000_000 + fraction


cdef class CoinbaseDecoder(MessageDecoder):
    """Frames are the WebSocket's text messages."""

    NAMES = dict(enumerate(CHANNELS))
    VENUE = b"COINBASE"
    cdef tk_symbols _symbols
    cdef dict _expected  # connection -> sequence_num of the next message

    def __cinit__(self, *args, **kwargs):
        self._expected = {}

    def __dealloc__(self):
        free(self._symbols.entry)

    cdef int take(self, bytes text, int64_t ts_receive, int connection) except -1:
        envelope = _envelope.decode(text)
        number = _NUMBER.get(envelope.channel, 0)
        self.counts.messages[<int>number] += 1
        sequence = envelope.sequence_num
        if sequence is not None:
            expected = self._expected.get(connection, sequence)
            if sequence < expected and sequence:
                self.counts.duplicates += 1
                return 0
            if sequence > expected:
                sink_gap(&self._sink, connection, expected, sequence, TK_NO_INSTRUMENT, ts_receive, ts_receive)
            self._expected[connection] = sequence + 1
        if not bytes(envelope.events):
            return 0
        if envelope.channel == "market_trades":
            for event in _trades.decode(envelope.events):
                self._trades(event, ts_receive)
        elif number in (2, 3):
            ts_event = parse_time(envelope.timestamp)
            for event in _tickers.decode(envelope.events):
                for ticker in event.tickers:
                    self._ticker(ticker, ts_event, ts_receive, sequence or 0, event.type == "snapshot")
        elif envelope.channel == "l2_data":
            for event in _books.decode(envelope.events):
                self._book(event, ts_receive, sequence or 0)
        return 0

    cdef int _trades(self, event, int64_t ts_receive) except -1:
        cdef tk_symbol *symbol
        cdef tk_record *record
        cdef uint64_t number
        cdef int64_t ts_event
        cdef double price, size
        cdef uint64_t *last
        for trade in reversed(event.trades):  # oldest first
            if not trade.trade_id.isdecimal() or len(trade.trade_id) > 18:
                raise ValueError("not a trade id")
            number, ts_event = int(trade.trade_id), parse_time(trade.time)
            price, size = parse_decimal(trade.price), parse_decimal(trade.size)
            symbol = find_symbol(self, &self._symbols, trade.product_id)
            if symbol == NULL:
                continue
            last = &symbol.last[0]
            if last[0] and number <= last[0]:
                self.counts.duplicates += 1
                continue
            if last[0] and number > last[0] + 1:
                sink_gap(&self._sink, symbol.id, last[0] + 1, number, symbol.id, ts_event, ts_receive)
            last[0] = number
            record = sink_next(&self._sink, TK_TYPE_TRADE, symbol.id, ts_event, ts_receive)
            set_trade(record, price, size, number,
                      TK_SIDE_SELL if trade.side == "BUY" else TK_SIDE_BUY if trade.side == "SELL" else TK_SIDE_NONE)
            if event.type == "snapshot":
                record.flags |= TK_FLAG_SNAPSHOT
        return 0

    cdef int _ticker(self, ticker, int64_t ts_event, int64_t ts_receive, uint64_t sequence, bint snapshot) except -1:
        cdef double bid = _optional(ticker.best_bid), ask = _optional(ticker.best_ask)
        cdef double bid_size = _optional(ticker.best_bid_quantity), ask_size = _optional(ticker.best_ask_quantity)
        cdef tk_symbol *symbol = find_symbol(self, &self._symbols, ticker.product_id)
        if symbol == NULL:
            return 0
        cdef tk_record *record = sink_next(&self._sink, TK_TYPE_QUOTE, symbol.id, ts_event, ts_receive)
        set_quote(record, bid, bid_size, ask, ask_size)
        record.source_sequence = sequence
        if snapshot:
            record.flags |= TK_FLAG_SNAPSHOT
        return 0

    cdef int _book(self, event, int64_t ts_receive, uint64_t sequence) except -1:
        cdef bint snapshot = event.type == "snapshot"
        cdef double price, size
        cdef int64_t ts_event = ts_receive
        cdef unsigned side, action
        cdef tk_record *record
        levels = [
            (parse_time(level.event_time), _side(level.side), parse_decimal(level.price_level), parse_decimal(level.new_quantity))
            for level in event.updates
        ]
        cdef tk_symbol *symbol = find_symbol(self, &self._symbols, event.product_id)
        if symbol == NULL or not (levels or snapshot):
            return 0
        if snapshot:
            ts_event = max([level[0] for level in levels], default=ts_receive)
            record = sink_next(&self._sink, TK_TYPE_LEVEL2, symbol.id, ts_event, ts_receive)
            set_level2(record, TK_SIDE_NONE, NAN, 0.0, TK_ACTION_CLEAR)
            record.source_sequence = sequence
            record.flags |= TK_FLAG_SNAPSHOT
        for ts_event, side, price, size in levels:
            action = TK_ACTION_DELETE if size == 0.0 else TK_ACTION_ADD if snapshot else TK_ACTION_MODIFY
            record = sink_next(&self._sink, TK_TYPE_LEVEL2, symbol.id, ts_event, ts_receive)
            set_level2(record, side, price, size, action)
            record.source_sequence = sequence
            if snapshot:
                record.flags |= TK_FLAG_SNAPSHOT
        sink_last(&self._sink).flags |= TK_FLAG_LAST_OF_BATCH
        return 0


cdef double _optional(str text) except? -1.0:
    return parse_decimal(text) if text else NAN


cdef unsigned _side(str text) except? 99:
    if text == "bid":
        return TK_SIDE_BUY
    if text == "offer" or text == "ask":
        return TK_SIDE_SELL
    raise ValueError("not a side")
