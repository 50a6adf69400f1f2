# cython: boundscheck=False, wraparound=False
"""Shell of the DBN kernel (`dbn.h`), and the container that reads the header and cuts at record boundaries.

`databento_dbn` decodes the metadata (once a file); the records are read by the kernel from the raw bytes.
"""

from datetime import datetime, timezone

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy
from workers.decoders._decoder cimport *

import numpy as np

from workers.decoders.protocol import FRAME, Batch, FramingError
from workers.decoders.publishers import venue_of


cdef extern from "workers/decoders/orders.h" nogil:
    ctypedef struct tk_order "struct tk_order":
        pass

    ctypedef struct tk_orders "struct tk_orders":
        tk_order *entry
        size_t count
        size_t limit


cdef extern from "workers/decoders/dbn.h" nogil:
    enum:
        DBN_HEADER_BYTES
        DBN_MAPPING

    ctypedef struct dbn_state "struct dbn":
        tk_frames frames
        tk_sink sink
        tk_orders orders
        uint32_t missed
        int64_t missed_ns
        char venue[256][8]

    int dbn_run(dbn_state *state)
    bint dbn_set(dbn_state *state, uint32_t number, uint32_t id, int64_t from_ns, int64_t last_ns)
    void dbn_free(dbn_state *state)
    uint32_t le32(const uint8_t *p)


RTYPES = {
    0x00: "trades", 0x01: "mbp-1", 0x0A: "mbp-10", 0x11: "ohlcv", 0x12: "status", 0x13: "definition", 0x14: "imbalance",
    0x15: "error", 0x16: "symbol-mapping", 0x17: "system", 0x18: "statistics", 0x20: "ohlcv-1s", 0x21: "ohlcv-1m",
    0x22: "ohlcv-1h", 0x23: "ohlcv-1d", 0x24: "ohlcv-eod", 0xA0: "mbo", 0xB1: "cmbp-1", 0xC0: "cbbo-1s", 0xC1: "cbbo-1m",
    0xC2: "tcbbo", 0xC3: "bbo-1s", 0xC4: "bbo-1m",
}
METADATA_MAX_BYTES = 1 << 28
FIRST_NS = -0x7FFFFFFFFFFFFFFF - 1
LAST_NS = 0x7FFFFFFFFFFFFFFF
ALWAYS = (FIRST_NS, LAST_NS)


class DbnSymbols:
    """DBN instrument number -> symbol, as a function of time: what the metadata and the mapping records say."""

    def __init__(self):
        self._intervals = {}
        self.dataset = ""

    def load(self, metadata):
        """Takes the mappings of a file's metadata (`databento_dbn.Metadata`)."""
        self.dataset = metadata.dataset
        numbers_out = str(metadata.stype_out) == "instrument_id" or "instrument" in str(metadata.stype_out).lower()
        for symbol, intervals in metadata.mappings.items():
            for interval in intervals:
                name, number = (symbol, interval["symbol"]) if numbers_out else (interval["symbol"], symbol)
                if not str(number).isdigit() or not name:
                    continue
                self._intervals.setdefault(int(number), []).append(
                    (_midnight_ns(interval["start_date"]), _midnight_ns(interval["end_date"]) - 1, name)
                )

    def set(self, number, symbol):
        """A live mapping: from now on."""
        self._intervals[number] = [(*ALWAYS, symbol)]

    def find(self, number, at_ns):
        """(symbol, first_ns, last_ns) that holds at that time; a number that nobody mapped is called `id-NUMBER`."""
        intervals = self._intervals.get(number, ())
        for from_ns, last_ns, symbol in intervals:
            if from_ns <= at_ns <= last_ns:
                return symbol, from_ns, last_ns
        if intervals:  # outside every interval: the nearest is right far more often than none
            _, _, symbol = min(intervals, key=lambda one: min(abs(one[0] - at_ns), abs(one[1] - at_ns)))
            return symbol, at_ns, at_ns
        return f"id-{number}", *ALWAYS


def _midnight_ns(day):
    """Of a date in UTC, kept within what int64 ns can say."""
    seconds = int(datetime(day.year, day.month, day.day, tzinfo=timezone.utc).timestamp())
    return max(FIRST_NS + 1, min(LAST_NS, seconds * 1_000_000_000))


cdef class DbnReader:
    """DBN stream -> one frame a call, over all records that are whole. `fragment`: there is no header, records start at once.

    `symbols` is filled from the metadata as soon as it is whole; hand the same object to the decoder. `version` and
    `schema` are 0 and "" until then.
    """

    cdef bytes _rest
    cdef uint64_t _offset
    cdef object _error
    cdef bint _begun
    cdef readonly object symbols, metadata, version, schema

    def __init__(self, symbols=None, *, fragment=False, version=0):
        self._rest = b""
        self._begun = fragment
        self.symbols = DbnSymbols() if symbols is None else symbols
        self.version = version
        self.schema = ""

    @property
    def error(self):
        """FramingError once the framing is damaged; nothing after it is read."""
        return self._error

    def finish(self):
        """How many bytes of an unfinished record are left over at the end of the stream."""
        return 0 if self._error is not None else len(self._rest)

    def counts(self):
        """Nothing is passed over."""
        return {}

    def _begin(self, bytes buffer):
        """Reads the header if it is whole; returns the bytes it takes, 0 = not whole yet."""
        import databento_dbn

        if len(buffer) < 8:
            return 0
        if buffer[:3] != b"DBN" or not 1 <= buffer[3] <= 3:
            self._error = FramingError("dbn", self._offset, "no DBN header of version 1 to 3")
            return 0
        length = int.from_bytes(buffer[4:8], "little")
        if length > METADATA_MAX_BYTES:
            self._error = FramingError("dbn", self._offset + 4, f"metadata of {length} bytes")
            return 0
        if len(buffer) < 8 + length:
            return 0
        try:
            self.metadata = databento_dbn.Metadata.decode(buffer[: 8 + length])
            self.symbols.load(self.metadata)
        except (databento_dbn.DBNError, ValueError, OverflowError) as problem:
            self._error = FramingError("dbn", self._offset + 8, f"metadata: {problem}")
            return 0
        self.version = buffer[3]
        self.schema = str(self.metadata.schema) if self.metadata.schema is not None else "mixed"
        self._begun = True
        return 8 + length

    def feed(self, data):
        """One frame over the whole records; none before the first is whole."""
        none = Batch(b"", np.zeros(0, FRAME))
        if self._error is not None:
            return none
        cdef bytes buffer = self._rest + data if self._rest else bytes(data)
        cdef size_t first = 0, at, size = len(buffer), length
        if not self._begun:
            first = self._begin(buffer)
            if not first:
                self._rest = buffer if self._error is None else b""
                return none
        cdef const uint8_t *p = <const uint8_t *><const char *>buffer
        at = first
        cdef bint damaged = False
        with nogil:
            while at < size:
                length = <size_t>p[at] * 4
                if length < DBN_HEADER_BYTES:
                    damaged = True
                    break
                if length > size - at:
                    break
                at += length
        if damaged:
            self._error = FramingError("dbn", self._offset + at, f"record length {length}")
        self._rest = buffer[at:] if self._error is None else b""
        self._offset += at
        if at == first:
            return none
        frames = np.zeros(1, FRAME)
        frames["offset"] = first
        frames["size"] = at - first
        return Batch(buffer, frames)


cdef class DbnDecoder(NativeDecoder):
    """Frames are runs of whole DBN records, any mix of schemas. `symbols` names the instruments (`DbnSymbols`)."""

    NAMES = RTYPES
    cdef dbn_state state
    cdef readonly object symbols

    def __cinit__(self, *args, **kwargs):
        self.attach(&self.state.sink, &self.state.frames)

    def __init__(self, intern, symbols=None, *, max_orders=1 << 27, **stamp):
        cdef int i
        cdef bytes code
        super().__init__(intern, **stamp)
        self.symbols = DbnSymbols() if symbols is None else symbols
        self.state.orders.limit = max_orders
        for i in range(256):
            code = venue_of(i)
            memcpy(self.state.venue[i], <const char *>code, len(code))

    def __dealloc__(self):
        dbn_free(&self.state)
        free(self.state.orders.entry)

    cdef int run(self) noexcept nogil:
        return dbn_run(&self.state)

    cdef int stopped(self, int stop) except -1:
        if stop == TK_MAPPING:
            return self._mapping()
        number = self.state.missed
        symbol, from_ns, last_ns = self.symbols.find(number, self.state.missed_ns)
        cdef uint32_t found = self.resolve(symbol)
        if found == TK_REFUSED:  # longer than a symbol may be, or with signs it may not have
            found = self.resolve(f"id-{number}")
        if not dbn_set(&self.state, number, found, from_ns, last_ns):
            raise MemoryError("instrument table of a DBN decoder")
        return 0

    cdef int _mapping(self) except -1:
        """SymbolMappingMsg: v1 has two 22-byte symbols at 16, later ones 71-byte symbols each after its type byte."""
        cdef tk_frames *frames = self.frames
        cdef const uint8_t *m = frames.data + frames.frame[frames.index].offset + frames.at
        cdef size_t size = <size_t>m[0] * 4
        cdef bytes record = (<const char *>m)[:size]
        frames.at += size
        if size >= 176:
            given, out = record[17:88], record[89:160]
        elif size >= 80:
            given, out = record[16:38], record[38:60]
        else:
            self.counts.malformed[TK_TRUNCATED] += 1
            return 0
        given, out = (text.split(b"\0", 1)[0].decode("latin-1") for text in (given, out))
        number = le32(m + 4)
        symbol = out if out and not out.isdigit() else given
        if not symbol:
            return 0
        self.symbols.set(number, symbol)
        cdef uint32_t found = self.resolve(symbol)
        if found == TK_REFUSED:
            found = self.resolve(f"id-{number}")
        if not dbn_set(&self.state, number, found, FIRST_NS, LAST_NS):
            raise MemoryError("instrument table of a DBN decoder")
        return 0
