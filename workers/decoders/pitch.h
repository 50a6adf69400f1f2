/* Cboe Multicast PITCH 2.x (equities, and options with their symbol mappings) -> records.
 *
 * Layouts: "US Equities/Options Multicast Depth of Book (PITCH) Specification" 2.41: sequenced unit header of 8 bytes
 * (length u16, count u8, unit u8, sequence u32), then messages of length u8, type u8. Little-endian; prices i64 in 1e-4, those of
 * short messages u16 in 1e-2; time is the unit's last whole second and a u32 of ns. Versions may lengthen a message:
 * a length is checked for being enough.
 *
 *   21 22 2F add order          -> level2 ADD
 *   23 24 executed              -> level2 EXECUTE (size = shares left), and a trade, aggressor = other side than the order's
 *   25 26 reduce, 29 delete     -> level2 MODIFY / DELETE (size = shares left)
 *   27 28 modify                -> level2 MODIFY at the same price; else DELETE of the old one, ADD of the new one
 *   2A 2B 30 trade              -> trade with a hidden order; its side says nothing (always B)
 *   97 unit clear               -> level2 CLEAR of each instrument of the unit
 *   20 time, 2E symbol mapping  -> no record: they teach the unit's second, and the instrument of an option's feed symbol
 *   31 trading status           -> status: H S halted (by all, by this exchange), Q quote only, A R auction, T trading;
 *                                  source_sequence is the number of its message in the unit
 *   2C 2D 95 96 98              -> counted: the record has no body for them; a trade break names no instrument
 *
 * The whole second counts from the venue's midnight, wherever that is: midnight is the quarter of an hour next to receive time
 * less second (of option `date`, if given, New York's). A unit whose second was not told yet, or may have been missed in a
 * gap, has the second next to the receive time. Units number their packets each for itself; a unit that counts from below
 * after an hour of silence has begun a new day, without orders. With `book` as in itch.h. */
#ifndef TK_DECODERS_PITCH_H
#define TK_DECODERS_PITCH_H

#include "workers/decoders/book.h"
#include "workers/decoders/frames.h"
#include "workers/decoders/orders.h"
#include "workers/decoders/sink.h"
#include "workers/decoders/symbols.h"
#include "workers/decoders/trading_status.h"

enum { PITCH_HEADER_BYTES = 8, PITCH_UNITS = 1024, PITCH_PROBES = 32, PITCH_OSI_BYTES = 21 };
static const int64_t PITCH_SECOND_NS = 1000000000, PITCH_SILENCE_NS = 3600000000000, PITCH_QUARTER_NS = 900000000000;
static const int64_t PITCH_EARLIEST_NS = 31 * 86400000000000, PITCH_LATEST_NS = 9200000000000000000; /* clocks believed */

struct pitch_unit {
    uint32_t key;        /* 0 = free; else 1 << 24 | UDP port << 8 | unit */
    uint32_t timed, doubt; /* second_ns holds; its orders may lack some */
    uint64_t expected;   /* sequence of the next message; 0 = none seen yet */
    int64_t second_ns;   /* the last whole second that a time message told */
    int64_t last_ns;     /* receive time of its last packet */
};

struct pitch {
    struct tk_frames frames;
    struct tk_sink sink;
    struct tk_symbols symbols;  /* last[0]: 1 + index of the unit; last[1]: hash of the name that a mapping gave */
    struct tk_orders orders;    /* group: index of the unit */
    struct tk_books books;
    struct book *touched;       /* the book that this message changed */
    int book;
    int fixed_day;              /* midnight_ns was given; 0 = follows the receive time */
    int64_t midnight_ns;
    uint64_t skip, left;        /* messages of this packet: had before; not decoded yet */
    uint64_t end;               /* the number after its last message; 0 = they have no numbers */
    struct pitch_unit *current; /* of this packet */
    uint64_t mapped[4], mapped_hash;  /* TK_MAPPING: the feed symbol, and the name it shall have */
    uint8_t mapped_name[PITCH_OSI_BYTES];
    struct pitch_unit unit[PITCH_UNITS];
};

/* The least bytes of each message type, 0 = unknown. */
static inline unsigned pitch_length(uint8_t type) {
    static const uint8_t length[256] = {
        [0x20] = 6, [0x21] = 34, [0x22] = 26, [0x23] = 26, [0x24] = 38, [0x25] = 18, [0x26] = 16, [0x27] = 27,
        [0x28] = 19, [0x29] = 14, [0x2A] = 41, [0x2B] = 33, [0x2C] = 14, [0x2D] = 6, [0x2E] = 30, [0x2F] = 36,
        [0x30] = 43, [0x31] = 16, [0x95] = 15, [0x96] = 15, [0x97] = 6, [0x98] = 15};
    return length[type];
}

/* Of those, the ones that tell of orders and trades, and of no other Cboe feed in the same framing. */
static inline int pitch_telling(uint8_t type) { return type > 0x20 && type < 0x31 && type != 0x2D; }

/* Is this datagram, whole, messages of this protocol? A heartbeat, or a time alone, does not say so. */
static inline int pitch_recognise(const uint8_t *p, size_t size) {
    if (size < PITCH_HEADER_BYTES || le16(p) != size || !p[2]) return 0;
    int telling = 0;
    size_t at = PITCH_HEADER_BYTES;
    for (unsigned left = p[2]; left; left--) {
        if (at + 2 > size || p[at] < 2 || p[at] > size - at || p[at] < pitch_length(p[at + 1])) return 0;
        telling |= pitch_telling(p[at + 1]);
        at += p[at];
    }
    return telling && at == size;
}

static inline int pitch_clock(int64_t ts) { return ts >= PITCH_EARLIEST_NS && ts <= PITCH_LATEST_NS; }

static inline int64_t pitch_plus(int64_t a, int64_t b) { return (int64_t)((uint64_t)a + (uint64_t)b); }

/* Time of a message: the unit's second and the message's offset in it. */
static inline int64_t pitch_time(const struct pitch_unit *unit, uint32_t offset, int64_t ts_receive) {
    if (unit->timed) return pitch_plus(unit->second_ns, offset);
    if (!pitch_clock(ts_receive)) return ts_receive;
    int64_t second = (ts_receive - (int64_t)offset + PITCH_SECOND_NS / 2) / PITCH_SECOND_NS;
    return second * PITCH_SECOND_NS + (int64_t)offset;
}

static inline void pitch_second(const struct pitch *s, struct pitch_unit *unit, uint32_t seconds, int64_t ts_receive) {
    int64_t since = (int64_t)seconds * PITCH_SECOND_NS, midnight = s->midnight_ns;
    if (!s->fixed_day && pitch_clock(ts_receive)) {
        int64_t near = ts_receive - since + PITCH_QUARTER_NS / 2, over = near % PITCH_QUARTER_NS;
        midnight = near - (over < 0 ? over + PITCH_QUARTER_NS : over);
    }
    unit->second_ns = pitch_plus(midnight, since);
    unit->timed = 1;
}

/* A symbol of 6 or 8 bytes, padded with spaces, as a key. Options have 6 and two reserved ones where equities have 8. */
static inline uint64_t pitch_symbol(const uint8_t *p, unsigned size) {
    if (size == 8 && p[6] <= ' ' && p[7] <= ' ') size = 6;
    return size == 8 ? le64(p) : (uint64_t)le16(p + 4) << 32 | le32(p) | 0x2020000000000000u;
}

static inline void pitch_level2(struct pitch *s, uint32_t id, int64_t ts_event, int64_t ts_receive, uint64_t reference,
                                unsigned side, int64_t price, uint32_t left, unsigned action, unsigned flags) {
    struct tk_record *record = sink_next(&s->sink, TK_TYPE_LEVEL2, id, ts_event, ts_receive);
    set_level2(record, side, (double)price / 1e4, left, action);
    record->source_sequence = reference;
    record->flags |= (uint16_t)flags;
    if (s->touched) book_stamp(record, s->touched, 1e4);
}

static inline void pitch_trade(struct pitch *s, uint32_t id, int64_t ts_event, int64_t ts_receive, int64_t price,
                               uint32_t size, uint64_t execution, unsigned side) {
    struct tk_record *record = sink_next(&s->sink, TK_TYPE_TRADE, id, ts_event, ts_receive);
    set_trade(record, (double)price / 1e4, size, execution, side);
    record->flags |= TK_FLAG_LAST_OF_BATCH;
}

/* The order's price level shrinks; `orders` 1 = by a whole order. */
static inline void pitch_book_take(struct pitch *s, const struct tk_order *was, uint32_t shares, uint32_t orders) {
    if (!s->book) return;
    s->touched = books_find(&s->books, was->instrument_id);
    if (s->touched) book_take(s->touched, was->side, was->price, shares, orders);
}

/* The order lives from now on, in place of one of the same reference if there is any (after a gap). */
static inline void pitch_put(struct pitch *s, uint64_t reference, uint32_t id, unsigned side, int64_t price,
                             uint32_t shares) {
    const struct tk_order *was = s->book ? orders_find(&s->orders, reference) : NULL;
    if (was) pitch_book_take(s, was, was->shares, 1);
    struct tk_order *order = orders_put(&s->orders, reference, id, side, price, shares);
    if (!order) { sink_refuse(&s->sink, TK_NO_MEMORY); return; }
    order->group = (uint16_t)(s->current - s->unit);
    if (!s->book) return;
    s->touched = books_find(&s->books, id);
    if (!s->touched || !book_add(s->touched, side, price, shares, 1)) sink_refuse(&s->sink, TK_NO_MEMORY);
}

/* The message is done: a quote, if it changed the best prices. */
static inline void pitch_quote(struct pitch *s, uint32_t id, int64_t ts_event, int64_t ts_receive, uint64_t reference) {
    if (!s->touched || !book_changed(s->touched)) return;
    book_quote(&s->sink, s->touched, id, ts_event, ts_receive, reference, 1e4);
    if (s->current->doubt) sink_last(&s->sink)->flags |= TK_FLAG_INCOMPLETE;
}

/* The unit has no orders any more: so does each of its instruments. */
static void pitch_clear(struct pitch *s, int64_t ts_event, int64_t ts_receive) {
    size_t index = (size_t)(s->current - s->unit);
    for (size_t i = 0; s->orders.entry && i <= s->orders.mask; i++)
        while (s->orders.entry[i].side && s->orders.entry[i].group == index) {  /* removal may move the next one here */
            pitch_book_take(s, &s->orders.entry[i], s->orders.entry[i].shares, 1);
            orders_remove(&s->orders, &s->orders.entry[i]);
        }
    for (size_t i = 0; s->symbols.entry && i <= s->symbols.mask; i++) {
        const struct tk_symbol *symbol = &s->symbols.entry[i];
        if (!symbol->used || symbol->id == TK_REFUSED || symbol->last[0] != index + 1) continue;
        s->touched = s->book ? books_find(&s->books, symbol->id) : NULL;
        struct tk_record *record = sink_next(&s->sink, TK_TYPE_LEVEL2, symbol->id, ts_event, ts_receive);
        set_level2(record, TK_SIDE_NONE, NAN, 0.0, TK_ACTION_CLEAR);
        record->flags |= TK_FLAG_LAST_OF_BATCH;
        pitch_quote(s, symbol->id, ts_event, ts_receive, 0);
    }
    s->touched = NULL;
}

/* 23 to 29: they name an order and nothing else. */
static void pitch_order(struct pitch *s, const uint8_t *m, int64_t ts_event, int64_t ts_receive) {
    struct tk_order *order = orders_find(&s->orders, le64(m + 6));
    if (!order) { sink_refuse(&s->sink, TK_UNKNOWN_ORDER); return; }
    struct tk_order was = *order;
    uint32_t id = was.instrument_id, left = 0, gone = was.shares;
    unsigned side = was.side;
    if (m[1] == 0x27 || m[1] == 0x28) {
        uint32_t shares = m[1] == 0x27 ? le32(m + 14) : le16(m + 14);
        int64_t price = m[1] == 0x27 ? (int64_t)le64(m + 18) : (int64_t)le16(m + 16) * 100;
        if (shares) {
            if (price != was.price) {
                pitch_book_take(s, &was, was.shares, 1);
                pitch_level2(s, id, ts_event, ts_receive, was.reference, side, was.price, 0, TK_ACTION_DELETE, 0);
                orders_remove(&s->orders, order);
            }
            pitch_put(s, was.reference, id, side, price, shares);
            pitch_level2(s, id, ts_event, ts_receive, was.reference, side, price, shares,
                         price != was.price ? TK_ACTION_ADD : TK_ACTION_MODIFY, TK_FLAG_LAST_OF_BATCH);
            pitch_quote(s, id, ts_event, ts_receive, was.reference);
            return;
        }  /* none left: as if deleted */
    } else if (m[1] == 0x24) {
        left = le32(m + 18) < was.shares ? le32(m + 18) : was.shares;
        gone = was.shares - left;
    } else if (m[1] != 0x29) {
        gone = m[1] == 0x26 ? le16(m + 14) : le32(m + 14);
        if (gone > was.shares) gone = was.shares;
        left = was.shares - gone;
    }
    if (left) order->shares = left;
    else orders_remove(&s->orders, order);
    pitch_book_take(s, &was, gone, !left);
    if (m[1] == 0x23 || m[1] == 0x24) {
        int64_t price = m[1] == 0x23 ? was.price : (int64_t)le64(m + 30);
        pitch_level2(s, id, ts_event, ts_receive, was.reference, side, was.price, left, TK_ACTION_EXECUTE, 0);
        pitch_trade(s, id, ts_event, ts_receive, price, le32(m + 14), le64(m + (m[1] == 0x23 ? 18 : 22)),
                    side == TK_SIDE_BUY ? TK_SIDE_SELL : TK_SIDE_BUY);
    } else {
        pitch_level2(s, id, ts_event, ts_receive, was.reference, side, was.price, left,
                     left ? TK_ACTION_MODIFY : TK_ACTION_DELETE, TK_FLAG_LAST_OF_BATCH);
    }
    pitch_quote(s, id, ts_event, ts_receive, was.reference);
}

/* A mapping names an instrument that records of this feed symbol are of from now on. */
static enum tk_stop pitch_mapping(struct pitch *s, const uint8_t *m) {
    uint64_t key[4] = {pitch_symbol(m + 2, 6), 0, 0, 0}, hash = 0xCBF29CE484222325u;
    for (unsigned i = 0; i < PITCH_OSI_BYTES; i++) hash = (hash ^ m[8 + i]) * 0x100000001B3u;
    hash |= 1;
    const struct tk_symbol *symbol = symbols_find(&s->symbols, key);
    if (symbol && symbol->last[1] == hash) return TK_DONE;
    memcpy(s->mapped, key, sizeof key);
    memcpy(s->mapped_name, m + 8, PITCH_OSI_BYTES);
    s->mapped_hash = hash;
    return TK_MAPPING;
}

/* The shell has an instrument for the mapping. 0 = no memory. */
static int pitch_map(struct pitch *s, uint32_t id) {
    struct tk_symbol *symbol = symbols_find(&s->symbols, s->mapped);
    if (!symbol) {
        if (!symbols_add(&s->symbols, s->mapped, id)) return 0;
        symbol = symbols_find(&s->symbols, s->mapped);
    }
    symbol->id = id;
    symbol->last[1] = s->mapped_hash;
    return 1;
}

static void pitch_status(struct pitch *s, uint32_t id, uint8_t code, int64_t ts_event, int64_t ts_receive) {
    enum tk_state state = code == 'T' ? TK_TRADING : code == 'H' || code == 'S' ? TK_HALTED : code == 'Q' ? TK_QUOTE_ONLY
                          : code == 'A' || code == 'R' ? TK_AUCTION : TK_UNKNOWN;
    struct tk_said text;
    struct tk_record *record = sink_trading_status(&s->sink, &text, state, "PITCH ", id, ts_event, ts_receive);
    record->source_sequence = s->end ? s->end - s->left : 0;
    said_code(&text, "", &code, 1);
}

/* One message of `size` bytes. TK_MISS and TK_MAPPING ask for its symbol and change nothing; anything else consumes it. */
static inline enum tk_stop pitch_message(struct pitch *s, const uint8_t *m, size_t size, int64_t ts_receive) {
    struct tk_sink *sink = &s->sink;
    unsigned wanted = pitch_length(m[1]), symbol_at = 0, symbol_size = 6;
    if (!wanted || size < wanted) {
        sink->counts->messages[m[1]]++;
        sink_refuse(sink, wanted ? TK_BAD_LENGTH : TK_UNKNOWN_TYPE);
        return TK_DONE;
    }
    switch (m[1]) {
    case 0x21: case 0x2A: symbol_at = 19; break;
    case 0x22: case 0x2B: symbol_at = 17; break;
    case 0x2F: case 0x30: symbol_at = 19; symbol_size = 8; break;
    case 0x31: symbol_at = 6; symbol_size = 8; break;
    case 0x2E:
        if (pitch_mapping(s, m) == TK_MAPPING) return TK_MAPPING;
        break;
    default: break;
    }
    uint32_t id = TK_REFUSED;
    if (symbol_at) {
        uint64_t key[4] = {pitch_symbol(m + symbol_at, symbol_size), 0, 0, 0};
        struct tk_symbol *symbol = symbols_find(&s->symbols, key);
        if (!symbol) return TK_MISS;
        id = symbol->id;
        if (m[1] != 0x31) symbol->last[0] = (uint64_t)(s->current - s->unit) + 1;
    }
    sink->counts->messages[m[1]]++;
    if (symbol_at && id == TK_REFUSED) return sink_refuse(sink, TK_BAD_SYMBOL), TK_DONE;
    int64_t ts_event = pitch_time(s->current, le32(m + 2), ts_receive);
    s->touched = NULL;
    if (m[1] == 0x31) {
        pitch_status(s, id, m[14], ts_event, ts_receive);
        return TK_DONE;
    }
    if (symbol_at) {
        int is_short = symbol_at == 17;
        uint32_t shares = is_short ? le16(m + 15) : le32(m + 15);
        const uint8_t *p = m + symbol_at + symbol_size;
        int64_t price = is_short ? (int64_t)le16(p) * 100 : (int64_t)le64(p);
        if (m[1] == 0x2A || m[1] == 0x2B || m[1] == 0x30) {
            pitch_trade(s, id, ts_event, ts_receive, price, shares, le64(p + (is_short ? 2 : 8)), TK_SIDE_NONE);
            return TK_DONE;
        }
        unsigned side = m[14] == 'B' ? TK_SIDE_BUY : TK_SIDE_SELL;
        if ((m[14] != 'B' && m[14] != 'S') || !shares) return sink_refuse(sink, TK_BAD_VALUE), TK_DONE;
        pitch_put(s, le64(m + 6), id, side, price, shares);
        pitch_level2(s, id, ts_event, ts_receive, le64(m + 6), side, price, shares, TK_ACTION_ADD, TK_FLAG_LAST_OF_BATCH);
        pitch_quote(s, id, ts_event, ts_receive, le64(m + 6));
        return TK_DONE;
    }
    switch (m[1]) {
    case 0x20: pitch_second(s, s->current, le32(m + 2), ts_receive); break;
    case 0x23: case 0x24: case 0x25: case 0x26: case 0x27: case 0x28: case 0x29:
        pitch_order(s, m, ts_event, ts_receive);
        break;
    case 0x97:
        s->current->doubt = 0;
        pitch_clear(s, ts_event, ts_receive);
        break;
    default: break;
    }
    return TK_DONE;
}

static struct pitch_unit *pitch_unit_of(struct pitch *s, uint16_t port, uint8_t number) {
    uint32_t key = 1u << 24 | (uint32_t)port << 8 | number;
    uint32_t home = key * 0x9E3779B1u >> 22;
    for (unsigned i = 0; i < PITCH_PROBES; i++) {
        struct pitch_unit *unit = &s->unit[(home + i) & (PITCH_UNITS - 1)];
        if (unit->key == key) return unit;
        if (unit->key) continue;
        unit->key = key;
        return unit;
    }
    s->unit[home] = (struct pitch_unit){.key = key};  /* damaged input only */
    return &s->unit[home];
}

/* Reads the unit header. 0 = nothing to decode in it. */
static int pitch_packet(struct pitch *s, const uint8_t *p, const struct tk_frame *frame) {
    struct tk_sink *sink = &s->sink;
    s->left = s->skip = 0;
    if (frame->size < PITCH_HEADER_BYTES) return sink_refuse(sink, TK_TRUNCATED), 0;
    if (le16(p) < PITCH_HEADER_BYTES) return sink_refuse(sink, TK_BAD_HEADER), 0;
    if (le16(p) > frame->size) return sink_refuse(sink, TK_TRUNCATED), 0;
    uint64_t first = le32(p + 4), count = p[2];
    struct pitch_unit *unit = s->current = pitch_unit_of(s, frame->port, p[3]);
    if (!count) sink->counts->heartbeats++;  /* names the next sequence number */
    s->left = count;
    s->end = first ? first + count : 0;
    if (!first) return 1;  /* not of the unit's numbering */
    if (unit->expected && first < unit->expected && pitch_clock(frame->ts_receive) && pitch_clock(unit->last_ns) &&
        frame->ts_receive - unit->last_ns > PITCH_SILENCE_NS) {
        unit->expected = 0;
        unit->timed = unit->doubt = 0;
        pitch_clear(s, frame->ts_receive, frame->ts_receive);
    }
    unit->last_ns = frame->ts_receive;
    if (!unit->expected && first > 1) unit->doubt = 1;
    if (unit->expected && first > unit->expected) {
        sink_gap(sink, p[3], unit->expected, first, TK_NO_INSTRUMENT, frame->ts_receive, frame->ts_receive);
        unit->doubt = 1;
        unit->timed = 0;
    }
    if (unit->expected && first < unit->expected) {
        s->skip = unit->expected - first < count ? unit->expected - first : count;
        sink->counts->duplicates += s->skip;
    }
    if (first + count > unit->expected) unit->expected = first + count;
    return 1;
}

static enum tk_stop pitch_run(struct pitch *s) {
    struct tk_frames *frames = &s->frames;
    struct tk_sink *sink = &s->sink;
    for (; frames->index < frames->count; frames->index++, frames->at = 0, frames->begun = 0) {
        const uint8_t *p = frame_bytes(frames);
        const struct tk_frame *frame = &frames->frame[frames->index];
        if (!frames->begun) {
            if (sink_full(sink)) return TK_FULL;
            frame_count(frames, sink->counts);
            if (!p) { sink_refuse(sink, TK_TRUNCATED); continue; }
            if (!pitch_packet(s, p, frame)) continue;
            frames->at = PITCH_HEADER_BYTES;
        }
        size_t end = le16(p);
        while (s->left) {
            if (sink_full(sink)) return TK_FULL;
            if (frames->at + 2 > end) { sink_refuse(sink, TK_TRUNCATED); break; }
            const uint8_t *m = p + frames->at;
            if (m[0] < 2) { sink_refuse(sink, TK_BAD_LENGTH); break; }
            if (m[0] > end - frames->at) { sink_refuse(sink, TK_TRUNCATED); break; }
            if (end - frames->at - m[0] >= 14) orders_prefetch(&s->orders, le64(m + m[0] + 6));
            enum tk_stop stop = TK_DONE;
            if (s->skip) s->skip--;
            else stop = pitch_message(s, m, m[0], frame->ts_receive);
            if (stop != TK_DONE) return stop;
            frames->at += m[0];
            s->left--;
        }
        if (!s->left && frames->at < frame->size) sink_refuse(sink, TK_TRAILING);
    }
    return TK_DONE;
}

#endif
