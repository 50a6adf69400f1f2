# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, freethreading_compatible=True
"""The simulated market's inner loop: which instrument moves next, by how much, and the record that tells of it.

Called by workers/sources/simulated.py alone. Everything random comes from one xoshiro256++ stream (Blackman and Vigna,
public domain algorithm), so the records follow from the seed and from the order of calls. No method reads a clock;
`fill` and `fill_until` allocate nothing. Measured cost is in workers/FEEDS.md.

The model, in log prices: log price = log base + beta_m * M + beta_s * S[sector] + x. M, each S and each x are random walks
that are pulled back to 0 (so that prices stay in range for ever at any rate). Steps are per record and not per second:
a faster feed is a livelier market.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport exp, sqrt
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset



from workers.record cimport *


cdef struct Instrument:
    double base_ticks     # price that the walk returns to, in ticks
    double ticks_per_unit
    double x              # its own log deviation
    double step           # of x, per quote
    double beta_market
    double beta_sector
    double lot
    double bid_size
    double ask_size
    double volume         # of the session
    double notional
    int64_t bid           # in ticks; 0 < bid < ask always
    int64_t ask
    int64_t spread        # the usual one, in ticks
    uint64_t trade_id
    uint32_t id
    uint32_t sector
    uint32_t keep         # alias method: keep this one if the draw is below, else take `alias`
    uint32_t alias
    char symbol[32]
    uint32_t symbol_bytes

cdef enum:
    SLICES = 64           # of a window; each calm or in a burst
    SECTORS_MAX = 32
    FACTOR_EVERY = 16     # records between two steps of the market and one sector
    BURST_EVERY = 512     # records between two looks at the burst state, where there is no schedule
    BOOK_LEVELS = 5
    TEMPLATE_BYTES = 64

cdef double MARKET_RANGE = 0.03   # standard deviation that M, S and x settle at, as a fraction of the price
cdef double SECTOR_RANGE = 0.015
cdef double OWN_RANGE = 0.02


cdef inline uint64_t rotate(uint64_t x, int by) noexcept nogil:
    return (x << by) | (x >> (64 - by))


cdef class Market:
    """A seeded market of correlated instruments. One per feed.

    Args (arrays of one length, one entry an instrument):
        ids: uint32 instrument ids.       symbols: bytes, at most 32 each (a list).
        base_ticks, ticks_per_unit: float64; price = ticks / ticks_per_unit.
        sectors: uint32, below 32.        weights: float64 > 0, how much of the records each gets.
        betas: float64, strength of the market factor.
        kinds: dict RecordType -> share of the records (news apart), at least one.
        templates: list of bytes: what a headline says after the symbol.
        news_every: mean number of records between headlines; 0 = none.
    """

    cdef Instrument *_instruments
    cdef uint32_t _count
    cdef uint64_t _rng[4]
    cdef double _market
    cdef double _sectors[SECTORS_MAX]
    cdef double _market_step, _sector_step
    cdef uint32_t _sector_count, _next_sector
    cdef uint16_t _kind_below[4]      # thresholds of 16 random bits, in the order of _kind_type
    cdef uint8_t _kind_type[4]
    cdef int _kind_count
    cdef bint _quotes_wanted
    cdef uint32_t _news_below
    cdef char *_templates
    cdef uint32_t _template_count
    cdef uint16_t _feed_id
    cdef uint64_t _made               # records so far
    cdef uint64_t _sequence_base
    cdef uint16_t _session_flags
    # bursts
    cdef bint _bursting
    cdef uint32_t _hot
    cdef double _burst_factor
    # schedule of the window in hand
    cdef int64_t _window_start_ns, _window_ns
    cdef int64_t _window_count, _window_done
    cdef double _shares[SLICES + 1]   # share of the window's records before each slice; ends with 1
    cdef bint _slice_bursting[SLICES]
    cdef uint32_t _slice_hot[SLICES]
    cdef int _slice

    def __cinit__(self, *, uint64_t seed, uint16_t feed_id, ids, symbols, base_ticks, ticks_per_unit, sectors, weights,
                  betas, kinds, templates, uint64_t news_every, double burst_factor, uint64_t sequence_base):
        cdef uint32_t i
        cdef uint64_t word = seed
        self._count = <uint32_t>len(ids)
        if not (self._count == len(symbols) == len(base_ticks) == len(ticks_per_unit) == len(sectors) == len(weights)
                == len(betas)) or self._count == 0:
            raise ValueError("ids, symbols, base_ticks, ticks_per_unit, sectors, weights and betas must have one length, not 0")
        if not 1 <= len(kinds) <= 4 or min(kinds.values()) <= 0:
            raise ValueError(f"kinds is {kinds}, must be 1 to 4 record types with shares above 0")
        if max(sectors) >= SECTORS_MAX or min(weights) <= 0 or (news_every and not templates):
            raise ValueError("sectors must be below 32, weights above 0, and news needs templates")
        self._instruments = <Instrument *>calloc(self._count, sizeof(Instrument))
        self._templates = <char *>calloc(max(1, len(templates)), TEMPLATE_BYTES)
        if self._instruments == NULL or self._templates == NULL:
            raise MemoryError()
        for i in range(4):  # splitmix64 spreads the seed, as the authors of xoshiro advise
            word += 0x9E3779B97F4A7C15ULL
            self._rng[i] = word
            self._rng[i] = (self._rng[i] ^ (self._rng[i] >> 30)) * 0xBF58476D1CE4E5B9ULL
            self._rng[i] = (self._rng[i] ^ (self._rng[i] >> 27)) * 0x94D049BB133111EBULL
            self._rng[i] ^= self._rng[i] >> 31
        self._feed_id = feed_id
        self._sequence_base = sequence_base
        self._burst_factor = burst_factor
        self._set_kinds(kinds)
        self._set_news(templates, news_every)
        self._sector_count = max(sectors) + 1
        for i in range(self._count):
            self._set_instrument(i, ids[i], symbols[i], base_ticks[i], ticks_per_unit[i], sectors[i], betas[i])
        self._set_alias(weights)
        # An instrument hears of the factors each time it is quoted, about once in `count` records: over that time a
        # factor must move about as far as the instrument by itself, or nothing would be seen of the correlation.
        self._market_step = 1e-4 * sqrt(FACTOR_EVERY / <double>self._count)
        self._sector_step = 0.7e-4 * sqrt(FACTOR_EVERY * self._sector_count / <double>self._count)
        for i in range(self._count):
            self._quote(&self._instruments[i])

    def __dealloc__(self):
        free(self._instruments)
        free(self._templates)

    def _set_kinds(self, kinds):
        total = sum(kinds.values())
        below = 0.0
        for index, (kind, share) in enumerate(sorted(kinds.items())):
            below += share / total
            self._kind_type[index] = kind
            self._kind_below[index] = <uint16_t>min(65535, round(below * 65536))
        self._kind_count = len(kinds)
        self._quotes_wanted = TK_TYPE_QUOTE in kinds

    def _set_news(self, templates, news_every):
        for index, text in enumerate(templates):
            if len(text) > TEMPLATE_BYTES:
                raise ValueError(f"template {text!r} is longer than {TEMPLATE_BYTES} bytes")
            memcpy(self._templates + <Py_ssize_t>index * TEMPLATE_BYTES, <const char *>text, len(text))
        self._template_count = len(templates)
        self._news_below = <uint32_t>(4294967296.0 / news_every) if news_every > 1 else 0

    def _set_instrument(self, index, instrument_id, symbol, base_ticks, ticks_per_unit, sector, beta):
        cdef Instrument *one = &self._instruments[<uint32_t>index]
        if not 1 <= len(symbol) <= 32 or base_ticks < 50 or ticks_per_unit <= 0:
            raise ValueError(f"instrument {symbol!r}: 1 to 32 bytes of symbol, base_ticks >= 50, ticks_per_unit > 0")
        one.id = instrument_id
        one.base_ticks = base_ticks
        one.ticks_per_unit = ticks_per_unit
        one.sector = sector
        one.beta_market = beta
        one.beta_sector = 1.0
        one.step = 0.6e-4 + 0.8e-4 * self._uniform()
        one.x = (self._uniform() - 0.5) * 0.02
        one.spread = 1 + <int64_t>(base_ticks / 20000) + <int64_t>(2 * self._uniform())
        one.lot = 100 if base_ticks / ticks_per_unit < 1000 else 1
        one.trade_id = self._sequence_base
        one.symbol_bytes = <uint32_t>len(symbol)
        memcpy(one.symbol, <const char *>symbol, len(symbol))

    def _set_alias(self, weights):
        """Walker's alias method: one multiplication and one comparison choose an instrument by weight."""
        scaled = [weight * self._count / sum(weights) for weight in weights]
        small = [index for index, value in enumerate(scaled) if value < 1]
        large = [index for index, value in enumerate(scaled) if value >= 1]
        for index in range(self._count):
            self._instruments[<uint32_t>index].keep = 0xFFFFFFFF
            self._instruments[<uint32_t>index].alias = index
        while small and large:
            poor, rich = small.pop(), large[len(large) - 1]
            self._instruments[<uint32_t>poor].keep = <uint32_t>(scaled[poor] * 4294967295.0)
            self._instruments[<uint32_t>poor].alias = rich
            scaled[rich] -= 1 - scaled[poor]
            if scaled[rich] < 1:
                small.append(large.pop())

    # -- random numbers

    cdef inline uint64_t _next(self) noexcept nogil:
        cdef uint64_t *s = self._rng
        cdef uint64_t result = rotate(s[0] + s[3], 23) + s[0]
        cdef uint64_t t = s[1] << 17
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = rotate(s[3], 45)
        return result

    cdef inline double _uniform(self) noexcept nogil:
        return <double>(self._next() >> 11) * (1.0 / 9007199254740992.0)

    cdef inline double _normal(self) noexcept nogil:
        # Sum of four 16-bit uniforms: bell-shaped, mean 0, variance 1, no tail beyond 3.5; one draw and no logarithm.
        cdef uint64_t r = self._next()
        cdef int64_t total = (r & 0xFFFF) + ((r >> 16) & 0xFFFF) + ((r >> 32) & 0xFFFF) + (r >> 48)
        return <double>(total - 131070) * (1.7320508075688772 / 65536.0)

    # -- the market moves

    cdef inline double _walk(self, double value, double step, double settle) noexcept nogil:
        # Pull chosen so that the walk's standard deviation settles at `settle`.
        return value * (1.0 - step * step / (2.0 * settle * settle)) + step * self._normal()

    cdef inline void _step_factors(self) noexcept nogil:
        self._market = self._walk(self._market, self._market_step, MARKET_RANGE)
        self._sectors[self._next_sector] = self._walk(self._sectors[self._next_sector], self._sector_step, SECTOR_RANGE)
        self._next_sector += 1
        if self._next_sector == self._sector_count:
            self._next_sector = 0

    cdef inline void _quote(self, Instrument *one) noexcept nogil:
        """Move one instrument and set its best bid and ask around the new price."""
        cdef uint64_t r
        cdef double middle
        cdef int64_t spread = one.spread
        one.x = self._walk(one.x, one.step, OWN_RANGE)
        middle = one.base_ticks * exp(one.x + one.beta_market * self._market + one.beta_sector * self._sectors[one.sector])
        r = self._next()
        if (r & 31) == 0:
            spread += 1 + ((r >> 5) & 3)
        one.bid = <int64_t>(middle - 0.5 * <double>spread + 0.5)
        if one.bid < BOOK_LEVELS:
            one.bid = BOOK_LEVELS  # room for the levels below it
        one.ask = one.bid + spread
        one.bid_size = one.lot * <double>(1 + ((r >> 8) & 15))
        one.ask_size = one.lot * <double>(1 + ((r >> 12) & 15))

    cdef inline void _next_burst_state(self) noexcept nogil:
        # Markov-modulated: calm spells of 50 steps, bursts of 4, each about one instrument in particular.
        cdef uint64_t r = self._next()
        if self._bursting:
            if (r & 3) == 0:
                self._bursting = False
        elif (r & 0xFFFF) < 1311:
            self._bursting = True
            self._hot = self._pick(self._next())

    cdef inline uint32_t _pick(self, uint64_t r) noexcept nogil:
        cdef uint32_t index = <uint32_t>((<uint64_t><uint32_t>r * self._count) >> 32)
        if <uint32_t>(r >> 32) > self._instruments[index].keep:
            index = self._instruments[index].alias
        return index

    cdef inline void _make(self, tk_record *out, int64_t ts_event, int64_t ts_receive) noexcept nogil:
        """The next record, at `out`."""
        cdef uint64_t r = self._next()
        cdef uint64_t choice = self._next()
        cdef Instrument *one
        cdef int kind = 0
        if self._made % FACTOR_EVERY == 0:
            self._step_factors()
        one = &self._instruments[self._hot if self._bursting and (choice >> 63) else self._pick(r)]
        self._made += 1
        memset(out, 0, sizeof(tk_record))
        out.ts_event = ts_event
        out.ts_receive = ts_receive
        out.instrument_id = one.id
        out.source = TK_SOURCE_MOCK
        out.flags = TK_FLAG_SYNTHETIC | self._session_flags
        out.source_sequence = self._sequence_base + self._made
        out.feed_id = self._feed_id
        out.priority = 1
        memcpy(out.venue, b"XSIM", 4)
        if <uint32_t>(choice >> 16) < self._news_below:
            self._news(out, one, choice)
            return
        while kind < self._kind_count - 1 and <uint16_t>(choice & 0xFFFF) >= self._kind_below[kind]:
            kind += 1
        out.record_type = self._kind_type[kind]
        if out.record_type == TK_TYPE_QUOTE:
            self._quote(one)
            out.quote.bid = <double>one.bid / one.ticks_per_unit
            out.quote.ask = <double>one.ask / one.ticks_per_unit
            out.quote.bid_size = one.bid_size
            out.quote.ask_size = one.ask_size
            out.quote.mid = <double>(one.bid + one.ask) / (2.0 * one.ticks_per_unit)
            out.quote.spread = <double>(one.ask - one.bid) / one.ticks_per_unit
            out.quote.bid_count = 1 + <uint32_t>(one.bid_size / one.lot) // 2
            out.quote.ask_count = 1 + <uint32_t>(one.ask_size / one.lot) // 2
        elif out.record_type == TK_TYPE_LEVEL2:
            self._level(out, one)
        else:
            self._print(out, one)

    cdef inline void _print(self, tk_record *out, Instrument *one) noexcept nogil:
        """A trade at the bid (a seller was the aggressor) or at the ask."""
        cdef uint64_t r = self._next()
        cdef bint buy = r & 1
        cdef double size = one.lot * <double>((1 + ((r >> 1) & 7)) << (2 if (r >> 4) & 15 == 0 else 0))
        cdef double price
        if not self._quotes_wanted:
            self._quote(one)  # prices move all the same
        price = <double>(one.ask if buy else one.bid) / one.ticks_per_unit
        one.trade_id += 1
        one.volume += size
        one.notional += size * price
        out.side = TK_SIDE_BUY if buy else TK_SIDE_SELL
        out.tick.price = price
        out.tick.size = size
        out.tick.trade_id = one.trade_id
        out.tick.volume = one.volume
        out.tick.vwap = one.notional / one.volume

    cdef inline void _level(self, tk_record *out, Instrument *one) noexcept nogil:
        """One level of the book by position: level n stands n ticks behind the best price of its side."""
        cdef uint64_t r = self._next()
        cdef bint bid = r & 1
        cdef uint32_t level = <uint32_t>(((r >> 32) * BOOK_LEVELS) >> 32)
        cdef double size = one.lot * <double>(1 + ((r >> 1) & 31))
        if not self._quotes_wanted:
            self._quote(one)
        if level == 0:
            if bid:
                one.bid_size = size
            else:
                one.ask_size = size
        out.side = TK_SIDE_BUY if bid else TK_SIDE_SELL
        out.level2.price = <double>(one.bid - level if bid else one.ask + level) / one.ticks_per_unit
        out.level2.size = size
        out.level2.order_count = 1 + <uint32_t>((r >> 1) & 31) // 2
        out.level2.level = <uint16_t>level
        out.level2.action = TK_ACTION_MODIFY
        out.level2.depth = BOOK_LEVELS
        out.level2.best_bid = <double>one.bid / one.ticks_per_unit
        out.level2.best_ask = <double>one.ask / one.ticks_per_unit

    cdef inline void _news(self, tk_record *out, Instrument *one, uint64_t choice) noexcept nogil:
        """A headline; the instrument then moves a little."""
        cdef uint32_t used = one.symbol_bytes
        cdef char *text = out.news.headline
        memcpy(text, one.symbol, used)
        memcpy(text + used, self._templates + (choice & 0xFFFF) % self._template_count * TEMPLATE_BYTES, TEMPLATE_BYTES - used)
        out.record_type = TK_TYPE_NEWS
        one.x += 0.002 * self._normal()

    # -- called by Python

    def reset_session(self):
        """Session volume and VWAP start again: a new trading day."""
        cdef uint32_t i
        for i in range(self._count):
            self._instruments[i].volume = 0.0
            self._instruments[i].notional = 0.0

    def set_session_flags(self, uint16_t flags):
        """Flags that every record gets from now on, beside SYNTHETIC."""
        self._session_flags = flags

    @property
    def made(self):
        """Records made so far."""
        return self._made

    def open_window(self, int64_t start_ns, int64_t length_ns, int64_t count):
        """Plan `count` records over [start_ns, start_ns + length_ns): calm slices and bursts; for `fill_until`."""
        cdef int i
        cdef double total = 0.0
        self._window_start_ns = start_ns
        self._window_ns = length_ns
        self._window_count = count
        self._window_done = 0
        self._slice = 0
        for i in range(SLICES):
            self._next_burst_state()
            self._slice_bursting[i] = self._bursting
            self._slice_hot[i] = self._hot
            self._shares[i] = total
            total += self._burst_factor if self._bursting else 1.0
        for i in range(SLICES):
            self._shares[i] /= total
        self._shares[SLICES] = 1.0

    def postpone(self, int64_t by_ns):
        """Move what is left of the window in hand."""
        self._window_start_ns += by_ns

    cdef inline int64_t _due_ns(self) noexcept nogil:
        cdef double share = (<double>self._window_done + 0.5) / <double>self._window_count
        cdef double width, within
        while self._slice < SLICES - 1 and share >= self._shares[self._slice + 1]:
            self._slice += 1
        width = self._shares[self._slice + 1] - self._shares[self._slice]
        within = (share - self._shares[self._slice]) / width
        return self._window_start_ns + <int64_t>((<double>self._slice + within) * <double>self._window_ns / SLICES)

    @property
    def next_due_ns(self):
        """When the next record of the window is due; None if the window has none left."""
        return self._due_ns() if self._window_done < self._window_count else None

    def fill_until(self, out, Py_ssize_t offset, int64_t now_ns):
        """Records of the window that are due by `now_ns`, into out[offset:]; returns how many."""
        cdef Py_buffer view
        cdef Py_ssize_t room, made = 0
        cdef int64_t due
        cdef tk_record *records
        PyObject_GetBuffer(out, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        room = view.len // <Py_ssize_t>sizeof(tk_record) - offset
        records = <tk_record *>view.buf + offset
        with nogil:
            while made < room and self._window_done < self._window_count:
                due = self._due_ns()
                if due > now_ns:
                    break
                self._bursting = self._slice_bursting[self._slice]
                self._hot = self._slice_hot[self._slice]
                self._make(&records[made], due, now_ns)
                self._window_done += 1
                made += 1
            # The state that the plan ended with, and not that of the slice in hand, leads into the next window.
            self._bursting = self._slice_bursting[SLICES - 1]
            self._hot = self._slice_hot[SLICES - 1]
        PyBuffer_Release(&view)
        return made

    def fill(self, out, int64_t from_ns, int64_t now_ns):
        """As many records as `out` takes, their event times evenly over (from_ns, now_ns]; returns how many."""
        cdef Py_buffer view
        cdef Py_ssize_t room, i
        cdef double step
        cdef tk_record *records
        PyObject_GetBuffer(out, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        room = view.len // <Py_ssize_t>sizeof(tk_record)
        records = <tk_record *>view.buf
        with nogil:
            step = <double>(now_ns - from_ns) / <double>room if room else 0.0
            for i in range(room):
                if self._made % BURST_EVERY == 0:
                    self._next_burst_state()
                self._make(&records[i], from_ns + <int64_t>(step * <double>(i + 1)), now_ns)
        PyBuffer_Release(&view)
        return room
