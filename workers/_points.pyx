# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Points to records, the inner loop: attributes of decoded points into an array. Called by workers/points.py alone.

What a point can be wrong in beyond its types is found here, before its symbol gets a number: a rejected point leaves no
trace in the instrument table. Nothing is allocated but the text of reasons.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.datetime cimport (
    PyDateTime_Check,
    datetime_day,
    datetime_hour,
    datetime_microsecond,
    datetime_minute,
    datetime_month,
    datetime_second,
    datetime_tzinfo,
    datetime_year,
    import_datetime,
)
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from libc.math cimport NAN, isfinite
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from datetime import timezone

from shm.errors import ShmError
from shm.layout import Action, Source, TYPE_NAMES
from shm.message import news_pieces
from workers.record cimport *

import_datetime()

cdef object UTC = timezone.utc
cdef dict TYPES = {name: TYPE_NAMES.index(name) for name in ("tick", "quote", "bar", "trade", "level2", "news")}
cdef dict ACTIONS = {action.name.lower(): int(action) for action in Action}
cdef str KNOWN = ", ".join(source.name.lower() for source in Source if 0 < source < Source.PLUGIN)
cdef dict SIDES = {"buy": TK_SIDE_BUY, "bid": TK_SIDE_BUY, "sell": TK_SIDE_SELL, "ask": TK_SIDE_SELL}

cdef enum:
    NEWS_BYTES = 64

cdef int64_t SECOND_NS = 1_000_000_000
cdef int64_t EARLIEST_NS = 100_000_000 * SECOND_NS  # 1973: a smaller number was meant as seconds, ms or us
cdef int64_t LAST_YEAR = 2261                        # int64 nanoseconds end in 2262


class Unusable(Exception):
    """A point that can't become a record; the text names the field and says why."""


cdef inline double number(object value) except? -1.0:
    return NAN if value is None else <double>value


cdef int64_t day_number(int64_t year, int64_t month, int64_t day) noexcept:
    """Days since 1970-01-01 of a date of the Gregorian calendar (H. Hinnant, "chrono-compatible algorithms")."""
    cdef int64_t y = year - (month <= 2)
    cdef int64_t era = y // 400
    cdef int64_t of_era = y - era * 400
    cdef int64_t of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


cdef int64_t time_ns(object value, int64_t now_ns) except? -1:
    """ns since the epoch of a datetime (without zone: UTC) or of a whole number of ns; `now_ns` for None."""
    cdef int64_t seconds
    if value is None:
        return now_ns
    if not PyDateTime_Check(value):
        if not EARLIEST_NS <= value < (1 << 63):
            raise Unusable(f"timestamp: {value} is no time in nanoseconds since 1970, which a whole number must be")
        return value
    if not 1970 <= datetime_year(value) <= LAST_YEAR:
        raise Unusable(f"timestamp: the year {datetime_year(value)} is out of range, 1970 to {LAST_YEAR}")
    seconds = day_number(datetime_year(value), datetime_month(value), datetime_day(value)) * 86400
    seconds += datetime_hour(value) * 3600 + datetime_minute(value) * 60 + datetime_second(value)
    zone = datetime_tzinfo(value)
    if zone is not None and zone is not UTC:
        seconds -= <int64_t>value.utcoffset().total_seconds()
    if seconds < 0:
        raise Unusable("timestamp: before 1970")
    return seconds * SECOND_NS + datetime_microsecond(value) * <int64_t>1000


cdef int set_text(char *out, object text, int room, str name) except -1:
    cdef bytes raw
    if text is None:
        return 0
    raw = text.encode()
    if len(raw) > room:
        raise Unusable(f"data.{name}: {len(raw)} bytes of UTF-8, at most {room} are kept")
    memcpy(out, <const char *>raw, len(raw))
    return 0


cdef int set_side(tk_record *record, object side) except -1:
    if side is not None:
        record.side = <uint8_t>SIDES[side]
    return 0


cdef uint64_t trade_id(object value) except? 0:
    if value is None:
        return 0
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit()):
            raise Unusable(f"data.trade_id: {value[:40]!r} is no whole number, which a record's must be; leave it out")
        value = int(value[:21])
    if not 0 <= value < (1 << 64):
        raise Unusable(f"data.trade_id: {value} is out of range, 0 to 2**64 - 1")
    return value


cdef int fill_print(tk_record *record, object data) except -1:
    record.tick.price = number(data.price)
    if not isfinite(record.tick.price):
        raise Unusable("data.price: missing" if data.price is None else "data.price: not finite")
    record.tick.size = number(data.size)
    record.tick.volume = number(data.volume)
    record.tick.vwap = number(data.vwap)
    record.tick.trade_id = trade_id(data.trade_id)
    set_text(record.venue, data.exchange, 8, "exchange")
    return set_side(record, data.side)


cdef int fill_quote(tk_record *record, object data) except -1:
    cdef double bid = number(data.bid)
    cdef double ask = number(data.ask)
    if not isfinite(bid) and not isfinite(ask):
        raise Unusable("data.bid, data.ask: at least one is needed")
    record.quote.bid, record.quote.ask = bid, ask
    record.quote.bid_size, record.quote.ask_size = number(data.bid_size), number(data.ask_size)
    record.quote.mid = (bid + ask) / 2 if data.mid is None else <double>data.mid
    record.quote.spread = ask - bid if data.spread is None else <double>data.spread
    return set_text(record.venue, data.exchange, 8, "exchange")


cdef int fill_bar(tk_record *record, object data) except -1:
    record.bar.open, record.bar.high = number(data.open), number(data.high)
    record.bar.low, record.bar.close = number(data.low), number(data.close)
    if not (isfinite(record.bar.open) and isfinite(record.bar.high)
            and isfinite(record.bar.low) and isfinite(record.bar.close)):
        raise Unusable("data.open, high, low, close: each is needed, and finite")
    if record.bar.high < record.bar.low:
        raise Unusable(f"data.high: {record.bar.high:g} is below data.low, {record.bar.low:g}")
    if data.interval is None:
        raise Unusable("data.interval: missing; the bar's length in seconds")
    record.bar.volume, record.bar.vwap = number(data.volume), number(data.vwap)
    record.bar.interval_s = data.interval
    record.bar.trade_count = 0 if data.trade_count is None else <uint32_t>data.trade_count
    return 0


cdef int fill_level2(tk_record *record, object data) except -1:
    record.level2.action = 0 if data.action is None else <uint8_t>ACTIONS[data.action]
    record.level2.price = number(data.price)
    if not isfinite(record.level2.price) and record.level2.action != TK_ACTION_CLEAR:
        raise Unusable("data.price: missing, or not finite")
    record.level2.size = number(data.size)
    record.level2.level = 0 if data.level is None else <uint16_t>data.level
    record.level2.best_bid, record.level2.best_ask = NAN, NAN
    set_text(record.venue, data.exchange, 8, "exchange")
    return set_side(record, data.side)


def count_pieces(list points):
    """How many records the points can take at most: one each, but a news item as many as its text is long."""
    cdef Py_ssize_t count = len(points)
    for point in points:
        if point is not None and point.data_type == "news":
            count += len(pieces_of(point.data))
    return count


cdef list pieces_of(object data):
    if not data.headline:
        return []
    return news_pieces(data.headline, data.body or "", data.url or "")


def fill(list points, records, dict ids, intern, dict sources, dict feeds, int64_t now_ns, list rejected):
    """Make records of points; returns how many there are, at the start of `records`, in order of the points.

    Args:
        points: `workers.points.Point` each, or None for one that was rejected before.
        records: writable array of 128-byte records, at least `count_pieces(points)`. A record's `sequence` is the index
            of its point.
        ids, intern: symbol -> instrument id, and what gives a new symbol one (adding it to `ids` is done here).
        sources: name -> code.
        feeds: symbol -> feed id, where it is not 0.
        now_ns: time of arrival.
        rejected: (index, reason) of each point that was left out is appended.
    """
    cdef Py_buffer view
    cdef tk_record *record
    cdef Py_ssize_t count = 0, index, room, at
    cdef int64_t event_ns
    cdef double latency_ms
    cdef PyObject *found
    cdef bytes piece
    PyObject_GetBuffer(records, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        room = view.len // <Py_ssize_t>sizeof(tk_record)
        for index in range(len(points)):
            point = points[index]
            if point is None:
                continue
            if count >= room:
                raise ValueError(f"the array holds {room} records, too few for {len(points)} points")
            record = <tk_record *>view.buf + count
            memset(record, 0, sizeof(tk_record))
            try:
                found = PyDict_GetItem(sources, point.source)
                if found is NULL:
                    raise Unusable(f"source: {point.source[:40]!r} is not known; known are {KNOWN}")
                record.source = <object>found
                event_ns = time_ns(point.timestamp, now_ns)
                record.ts_event = event_ns
                record.ts_receive = now_ns
                if point.latency_ms is not None:
                    latency_ms = point.latency_ms
                    if not 0.0 <= latency_ms <= 1e9:
                        raise Unusable(f"latency_ms: {latency_ms:g} is out of range, 0 to 1e9")
                    record.ts_receive = event_ns + <int64_t>(latency_ms * 1e6 + 0.5)
                record.record_type = <uint8_t>TYPES[point.data_type]
                record.sequence = index
                data = point.data
                if record.record_type == TK_TYPE_QUOTE:
                    fill_quote(record, data)
                elif record.record_type == TK_TYPE_TICK or record.record_type == TK_TYPE_TRADE:
                    fill_print(record, data)
                elif record.record_type == TK_TYPE_BAR:
                    fill_bar(record, data)
                elif record.record_type == TK_TYPE_LEVEL2:
                    fill_level2(record, data)
                elif not data.headline:
                    raise Unusable("data.headline: missing")
                symbol = point.symbol
                found = PyDict_GetItem(ids, symbol)
                if found is NULL:
                    ids[symbol] = intern(symbol)
                    found = PyDict_GetItem(ids, symbol)
                record.instrument_id = <object>found
                if feeds:
                    found = PyDict_GetItem(feeds, symbol)
                    record.feed_id = 0 if found is NULL else <uint16_t><object>found
            except (Unusable, ShmError) as error:
                rejected.append((index, str(error)))
                continue
            if record.record_type != TK_TYPE_NEWS:
                count += 1
                continue
            pieces = pieces_of(data)
            if count + <Py_ssize_t>len(pieces) > room:
                raise ValueError(f"the array holds {room} records, too few for {len(points)} points")
            for at in range(len(pieces)):
                piece = pieces[at]
                if at:
                    memcpy(record + at, record, sizeof(tk_record))
                    memset(record[at].news.headline, 0, NEWS_BYTES)
            for at in range(len(pieces)):
                piece = pieces[at]
                memcpy(record[at].news.headline, <const char *>piece, len(piece))
                record[at].flags = TK_FLAG_CONTINUES if at + 1 < <Py_ssize_t>len(pieces) else 0
            count += len(pieces)
    finally:
        PyBuffer_Release(&view)
    return count
