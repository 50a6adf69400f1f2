# cython: boundscheck=False, wraparound=False
"""Shell of the CME MDP 3.0 kernel (`mdp3.h`): packets in, records out; keeps which security id is which symbol."""

from libc.stdlib cimport free, realloc
from workers.decoders._decoder cimport *


cdef extern from "workers/decoders/book.h" nogil:
    ctypedef struct tk_books "struct tk_books":
        pass

    void books_clear(tk_books *books)


cdef extern from "workers/decoders/mdp3.h" nogil:
    enum:
        MDP3_DEFINITION
        MDP3_GROUP_AT
        MDP3_GROUP_BYTES
        MDP3_HEAD_BYTES
        MDP3_OTHER
        MDP3_PACKET_BYTES
        MDP3_SCHEMA
        MDP3_SECURITY_AT
        MDP3_SYMBOL_AT
        MDP3_SYMBOL_BYTES

    ctypedef struct mdp3_state "struct mdp3":
        tk_frames frames
        tk_sink sink
        tk_symbols symbols
        tk_books books
        int book
        int orders
        int mapped
        int listed
        uint32_t *group
        size_t group_count

    int mdp3_run(mdp3_state *state)


NAMES = {
    4: "channel-reset", 12: "heartbeat", 15: "login", 16: "logout", 27: "definition-27", 29: "definition-29",
    30: "status", 32: "book-32", 33: "statistics-33", 34: "limits-34", 35: "statistics-35", 37: "volume", 38: "snapshot-38",
    39: "quote-request", 41: "definition-41", 42: "trades-42", 43: "orders-43", 44: "order-snapshot-44", 46: "book",
    47: "orders", 48: "trades", 49: "daily-statistics", 50: "limits", 51: "session-statistics", 52: "snapshot",
    53: "order-snapshot", 54: "definition-future", 55: "definition-option", 56: "definition-spread",
    57: "definition-fixed-income", 58: "definition-repo", 59: "top-orders", 60: "workup", 61: "snapshot-tcp",
    62: "collateral", 63: "definition-fx", 64: "book-long", 65: "trades-long", 66: "volume-long", 67: "statistics-long",
    68: "snapshot-tcp-long", 69: "snapshot-long", MDP3_OTHER: "template-255-or-more",
}


def is_packet(const uint8_t[::1] payload not None):
    """Is the datagram an MDP 3.0 packet: messages of its schema, whose sizes use up every byte?"""
    cdef Py_ssize_t at = MDP3_PACKET_BYTES, size = payload.shape[0], length
    if size < MDP3_PACKET_BYTES + MDP3_HEAD_BYTES:
        return False
    while at < size:
        if size - at < MDP3_HEAD_BYTES:
            return False
        length = payload[at] | payload[at + 1] << 8
        if length < MDP3_HEAD_BYTES or length > size - at or (payload[at + 6] | payload[at + 7] << 8) != MDP3_SCHEMA:
            return False
        if (payload[at + 2] | payload[at + 3] << 8) > length - MDP3_HEAD_BYTES:
            return False
        at += length
    return True


cdef class Mdp3Decoder(NativeDecoder):
    """Frames are UDP payloads with the port that they were sent to: gaps are found for each port.

    Instruments are called as their definitions call them; one that none was seen of is `id-NUMBER`, and changes its name
    when one comes. `book`: make quotes of the best prices. `orders`: level2 of single orders (source_sequence is the
    order's id) instead of price levels.
    """

    VENUE = b"GLBX"
    NAMES = {number: NAMES.get(number, f"template-{number}") for number in range(256)}
    cdef mdp3_state state
    cdef dict _defined  # security id -> symbol, market depth or 0
    cdef dict _groups  # security id -> group and asset, 6 bytes each
    cdef uint32_t _known

    def __cinit__(self, *args, **kwargs):
        self.attach(&self.state.sink, &self.state.frames)
        self._defined = {}
        self._groups = {}

    def __init__(self, intern, *, book=False, orders=False, **stamp):
        super().__init__(intern, **stamp)
        self.state.book = book
        self.state.orders = orders

    def __dealloc__(self):
        free(self.state.symbols.entry)
        free(self.state.group)
        books_clear(&self.state.books)

    cdef int run(self) noexcept nogil:
        return mdp3_run(&self.state)

    cdef int stopped(self, int stop) except -1:
        if stop == TK_MAPPING:
            return self._define()
        if stop == TK_SLOW:
            return self._list_group()
        cdef uint64_t key[4]
        cdef tk_symbol *symbol
        key[0], key[1], key[2], key[3] = self.state.symbols.missed[0], 0, 0, 0
        name, depth = self._defined.get(key[0], (f"id-{key[0]}", 0))
        if not symbols_add(&self.state.symbols, key, self._number(name, key[0])):
            raise MemoryError("symbol table of a decoder")
        symbol = symbols_find(&self.state.symbols, key)
        symbol.last[2] = <uint64_t>depth << 32 | self._known
        self._known += 1
        return 0

    cdef uint32_t _number(self, str name, uint64_t security) except? 0xFFFFFFFF:
        cdef uint32_t found = self.resolve(name)
        return self.resolve(f"id-{security}") if found == TK_REFUSED else found

    cdef int _define(self) except -1:
        """The definition at hand, whose root the kernel has measured: its security id has a symbol from now on."""
        cdef tk_frames *frames = self.frames
        cdef const uint8_t *m = frames.data + frames.frame[frames.index].offset + frames.at
        cdef bytes message = (<const char *>m)[:m[0] | m[1] << 8]
        cdef uint64_t key[4]
        cdef tk_symbol *symbol
        root = MDP3_HEAD_BYTES
        text = message[root + MDP3_SYMBOL_AT : root + MDP3_SYMBOL_AT + MDP3_SYMBOL_BYTES]
        name = text.split(b"\0", 1)[0].decode("latin-1").strip()
        security = int.from_bytes(message[root + MDP3_SECURITY_AT : root + MDP3_SECURITY_AT + 4], "little")
        self.state.mapped = 1
        self._groups[security] = message[root + MDP3_GROUP_AT : root + MDP3_GROUP_AT + 2 * MDP3_GROUP_BYTES]
        if not name:
            self.counts.malformed[TK_BAD_SYMBOL] += 1
            return 0
        found = name, market_depth(message)
        had = self._defined.get(security)
        if had == found:
            return 0
        self._defined[security] = found
        key[0], key[1], key[2], key[3] = security, 0, 0, 0
        symbol = symbols_find(&self.state.symbols, key)
        if symbol != NULL:
            symbol.id = self._number(name, security)
            symbol.last[2] = <uint64_t>found[1] << 32 | (symbol.last[2] & 0xFFFFFFFF)
            if had is not None and had[0] != name:  # the number is another instrument's now: begin a new book
                symbol.last[0] = symbol.last[1] = 0
                symbol.last[2] = <uint64_t>found[1] << 32 | self._known
                self._known += 1
        return 0

    cdef int _list_group(self) except -1:
        """The status at hand is of a group, or of one asset in it: which instruments that the kernel knows are of it."""
        cdef tk_frames *frames = self.frames
        cdef const uint8_t *m = frames.data + frames.frame[frames.index].offset + frames.at + MDP3_HEAD_BYTES + 8
        cdef bytes wanted = (<const char *>m)[:2 * MDP3_GROUP_BYTES]
        cdef uint64_t key[4]
        cdef tk_symbol *symbol
        cdef uint32_t *grown = <uint32_t *>realloc(self.state.group, (len(self._groups) + 1) * sizeof(uint32_t))
        if grown == NULL:
            raise MemoryError("instruments of a group")
        self.state.group, self.state.group_count, self.state.listed = grown, 0, 1
        if not wanted[MDP3_GROUP_BYTES:].strip(b"\0 "):
            wanted = wanted[:MDP3_GROUP_BYTES]
        for security, found in self._groups.items():
            if not found.startswith(wanted):
                continue
            key[0], key[1], key[2], key[3] = security, 0, 0, 0
            symbol = symbols_find(&self.state.symbols, key)
            if symbol != NULL and symbol.id != TK_REFUSED:
                grown[self.state.group_count] = symbol.id
                self.state.group_count += 1
        return 0


def market_depth(bytes message):
    """Levels of the real book that a definition names: feed type GBX of its second group; 0 = it names none."""
    at = MDP3_HEAD_BYTES + int.from_bytes(message[2:4], "little")
    for group in range(2):
        if at + 3 > len(message):
            return 0
        length, count = int.from_bytes(message[at : at + 2], "little"), message[at + 2]
        at += 3
        if at + length * count > len(message):
            return 0
        if group and length >= 4:
            for entry in range(at, at + length * count, length):
                if message[entry : entry + 3] == b"GBX" and 0 < message[entry + 3] < 128:
                    return message[entry + 3]
        at += length * count
    return 0
