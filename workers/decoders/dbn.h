/* Databento Binary Encoding records (DBN versions 1, 2, 3) -> records.
 *
 * Layouts: the dbn crate, `record.rs` and `v1`..`v3` (little-endian, C layout; header of 16 bytes whose first is the length
 * in 4-byte words; prices i64 in 1e-9, INT64_MAX = undefined; times u64 ns, UINT64_MAX = undefined). The market records
 * are the same in all three versions; longer ones (ts_out appended) are read by their first bytes.
 *
 *   mbp-0 trades                -> trade
 *   mbp-1, tbbo, cmbp-1, tcbbo  -> quote; and a trade after it when the action is T
 *   bbo-1s/1m, cbbo-1s/1m       -> quote
 *   mbp-10                      -> quote when the top changed, level2 for each price that changed; trade for T
 *   mbo                         -> level2 (order reference in source_sequence), trade for T; F (fill) is counted: the cancel
 *                                  that follows it changes the book
 *   ohlcv-1s/1m/1h/1d/eod       -> bar; ts_receive = its end, the earliest that anyone could have known it
 *   status                      -> status of trading; actions without a change, and of short sales, are counted
 *   everything else             -> counted; a symbol mapping goes to the shell
 */
#ifndef TK_DECODERS_DBN_H
#define TK_DECODERS_DBN_H

#include "workers/decoders/frames.h"
#include "workers/decoders/orders.h"
#include "workers/decoders/sink.h"
#include "workers/decoders/symbols.h"
#include "workers/decoders/trading_status.h"

enum { DBN_HEADER_BYTES = 16, DBN_LEVELS = 10 };
enum {
    DBN_MBP_0 = 0x00, DBN_MBP_1 = 0x01, DBN_MBP_10 = 0x0A, DBN_OHLCV_OLD = 0x11, DBN_STATUS = 0x12, DBN_DEFINITION = 0x13,
    DBN_IMBALANCE = 0x14, DBN_ERROR = 0x15, DBN_MAPPING = 0x16, DBN_SYSTEM = 0x17, DBN_STATISTICS = 0x18,
    DBN_OHLCV_1S = 0x20, DBN_OHLCV_1M = 0x21, DBN_OHLCV_1H = 0x22, DBN_OHLCV_1D = 0x23, DBN_OHLCV_EOD = 0x24,
    DBN_MBO = 0xA0, DBN_CMBP_1 = 0xB1, DBN_CBBO_1S = 0xC0, DBN_CBBO_1M = 0xC1, DBN_TCBBO = 0xC2, DBN_BBO_1S = 0xC3,
    DBN_BBO_1M = 0xC4
};
enum { DBN_F_LAST = 1 << 7, DBN_F_SNAPSHOT = 1 << 5, DBN_F_MAYBE_BAD_BOOK = 1 << 2 };

struct dbn_level { int64_t bid, ask; uint32_t bid_size, ask_size, bid_count, ask_count; };
_Static_assert(sizeof(struct dbn_level) == 32, "BidAskPair");

/* What the decoder knows of one DBN instrument. An id may stand for another symbol on another day. */
struct dbn_instrument {
    uint32_t number;          /* DBN instrument_id */
    uint32_t id;              /* ours */
    int64_t from_ns, last_ns; /* while `id` is right, by the record's index time; both included */
    struct dbn_level *levels; /* the last mbp-10 state; NULL = none yet */
    uint32_t used;
};

struct dbn {
    struct tk_frames frames;
    struct tk_sink sink;
    struct tk_orders orders;
    struct dbn_instrument *instrument;  /* open addressing */
    size_t mask, count;
    uint32_t missed;                    /* instrument_id of the last miss */
    int64_t missed_ns;
    char venue[256][8];                 /* by publisher_id, as far as known */
};

static inline double dbn_price(int64_t price) { return price == INT64_MAX ? NAN : (double)price / 1e9; }

static inline struct dbn_instrument *dbn_find(struct dbn *s, uint32_t number) {
    if (s->instrument)
        for (size_t i = number * 0x9E3779B1u & s->mask; s->instrument[i].used; i = (i + 1) & s->mask)
            if (s->instrument[i].number == number) return &s->instrument[i];
    return NULL;
}

/* Sets the id of an instrument for index times from..last. Returns 0 without memory. */
static int dbn_set(struct dbn *s, uint32_t number, uint32_t id, int64_t from_ns, int64_t last_ns) {
    struct dbn_instrument *found = dbn_find(s, number);
    if (!found) {
        if (!s->instrument || (s->count + 1) * 2 > s->mask + 1) {
            size_t capacity = s->instrument ? (s->mask + 1) * 2 : 256;
            struct dbn_instrument *grown = calloc(capacity, sizeof *grown);
            if (!grown) return 0;
            for (size_t i = 0; s->instrument && i <= s->mask; i++) {
                if (!s->instrument[i].used) continue;
                size_t j = s->instrument[i].number * 0x9E3779B1u & (capacity - 1);
                while (grown[j].used) j = (j + 1) & (capacity - 1);
                grown[j] = s->instrument[i];
            }
            free(s->instrument);
            s->instrument = grown;
            s->mask = capacity - 1;
        }
        size_t i = number * 0x9E3779B1u & s->mask;
        while (s->instrument[i].used) i = (i + 1) & s->mask;
        found = &s->instrument[i];
        s->count++;
    }
    if (found->id != id) {  /* another symbol: its book starts afresh */
        free(found->levels);
        found->levels = NULL;
    }
    found->number = number;
    found->id = id;
    found->from_ns = from_ns;
    found->last_ns = last_ns;
    found->used = 1;
    return 1;
}

static void dbn_free(struct dbn *s) {
    for (size_t i = 0; s->instrument && i <= s->mask; i++) free(s->instrument[i].levels);
    free(s->instrument);
}

/* Shortest length of each record type that makes a market record, 0 = makes none. */
static inline unsigned dbn_length(uint8_t rtype) {
    switch (rtype) {
    case DBN_MBP_0: return 48;
    case DBN_MBP_1: case DBN_CMBP_1: case DBN_TCBBO: case DBN_CBBO_1S: case DBN_CBBO_1M: case DBN_BBO_1S: case DBN_BBO_1M:
        return 80;
    case DBN_MBP_10: return 368;
    case DBN_STATUS: return 40;
    case DBN_MBO: case DBN_OHLCV_1S: case DBN_OHLCV_1M: case DBN_OHLCV_1H: case DBN_OHLCV_1D: case DBN_OHLCV_EOD: return 56;
    default: return 0;
    }
}

static inline unsigned dbn_side(uint8_t side) {
    return side == 'B' ? TK_SIDE_BUY : side == 'A' ? TK_SIDE_SELL : TK_SIDE_NONE;
}

static inline uint16_t dbn_flags(uint8_t flags) {
    return (uint16_t)((flags & DBN_F_SNAPSHOT ? TK_FLAG_SNAPSHOT : 0) | (flags & DBN_F_MAYBE_BAD_BOOK ? TK_FLAG_INCOMPLETE : 0));
}

/* The fields that every record but mbo and ohlcv has at the same place. */
struct dbn_event { uint32_t id, sequence; int64_t ts_event, ts_receive; uint16_t flags; const char *venue; };

static inline struct tk_record *dbn_next(struct dbn *s, unsigned type, const struct dbn_event *event) {
    struct tk_record *record = sink_next(&s->sink, type, event->id, event->ts_event, event->ts_receive);
    record->source_sequence = event->sequence;
    record->flags |= event->flags;
    if (event->venue[0]) memcpy(record->venue, event->venue, 8);
    return record;
}

static inline void dbn_trade(struct dbn *s, const struct dbn_event *event, int64_t price, uint32_t size, unsigned side) {
    struct tk_record *record = dbn_next(s, TK_TYPE_TRADE, event);
    set_trade(record, dbn_price(price), size, 0, side);
    record->source_sequence = event->sequence;
}

static inline void dbn_quote(struct dbn *s, const struct dbn_event *event, const struct dbn_level *level, int counts) {
    struct tk_record *record = dbn_next(s, TK_TYPE_QUOTE, event);
    set_quote(record, dbn_price(level->bid), level->bid_size, dbn_price(level->ask), level->ask_size);
    if (counts) {  /* consolidated levels hold the publisher there */
        record->quote.bid_count = level->bid_count;
        record->quote.ask_count = level->ask_count;
    }
}

static void dbn_level2(struct dbn *s, const struct dbn_event *event, const struct dbn_level *now, unsigned side, unsigned rank,
                       int64_t price, uint32_t size, uint32_t orders, unsigned action) {
    struct tk_record *record = dbn_next(s, TK_TYPE_LEVEL2, event);
    set_level2(record, side, dbn_price(price), size, action);
    record->level2.order_count = orders;
    record->level2.level = (uint16_t)rank;
    record->level2.depth = DBN_LEVELS;
    record->level2.best_bid = dbn_price(now[0].bid);
    record->level2.best_ask = dbn_price(now[0].ask);
}

/* One side of two mbp-10 states, both sorted best first: what left is deleted, what came is added, what differs is
 * modified. A price that only fell out of the ten levels is deleted too: `depth` says that only ten are kept. */
static void dbn_diff(struct dbn *s, const struct dbn_event *event, const struct dbn_level *was, const struct dbn_level *now,
                     unsigned side) {
#define PRICE(level) (side == TK_SIDE_BUY ? (level).bid : (level).ask)
#define SIZE(level) (side == TK_SIDE_BUY ? (level).bid_size : (level).ask_size)
#define ORDERS(level) (side == TK_SIDE_BUY ? (level).bid_count : (level).ask_count)
    for (unsigned i = 0; i < DBN_LEVELS; i++) {
        int64_t price = PRICE(was[i]);
        int kept = price == INT64_MAX;
        for (unsigned j = 0; j < DBN_LEVELS && !kept; j++) kept = PRICE(now[j]) == price;
        if (!kept) dbn_level2(s, event, now, side, i, price, 0, 0, TK_ACTION_DELETE);
    }
    for (unsigned i = 0; i < DBN_LEVELS; i++) {
        int64_t price = PRICE(now[i]);
        if (price == INT64_MAX) continue;
        unsigned action = TK_ACTION_ADD;
        for (unsigned j = 0; j < DBN_LEVELS && action == TK_ACTION_ADD; j++) {
            if (PRICE(was[j]) != price) continue;
            action = SIZE(was[j]) == SIZE(now[i]) && ORDERS(was[j]) == ORDERS(now[i]) ? TK_ACTION_NONE : TK_ACTION_MODIFY;
        }
        if (action != TK_ACTION_NONE)
            dbn_level2(s, event, now, side, i, price, SIZE(now[i]), ORDERS(now[i]), action);
    }
#undef PRICE
#undef SIZE
#undef ORDERS
}

static void dbn_mbp10(struct dbn *s, struct dbn_event *event, struct dbn_instrument *instrument, const uint8_t *m) {
    struct dbn_level now[DBN_LEVELS];
    memcpy(now, m + 48, sizeof now);
    struct dbn_level *was = instrument->levels;
    if (!was) {
        was = malloc(sizeof now);
        if (!was) { sink_refuse(&s->sink, TK_NO_MEMORY); return; }
        for (unsigned i = 0; i < DBN_LEVELS; i++) was[i] = (struct dbn_level){INT64_MAX, INT64_MAX, 0, 0, 0, 0};
        instrument->levels = was;
        event->flags |= TK_FLAG_SNAPSHOT;
    }
    if (memcmp(&was[0], &now[0], sizeof now[0])) dbn_quote(s, event, now, 1);
    size_t before = s->sink.counts->records[TK_TYPE_LEVEL2];
    dbn_diff(s, event, was, now, TK_SIDE_BUY);
    dbn_diff(s, event, was, now, TK_SIDE_SELL);
    memcpy(was, now, sizeof now);
    if (s->sink.counts->records[TK_TYPE_LEVEL2] != before) sink_last(&s->sink)->flags |= TK_FLAG_LAST_OF_BATCH;
}

static void dbn_mbo(struct dbn *s, struct dbn_event *event, const uint8_t *m) {
    uint64_t reference = le64(m + 16);
    int64_t price = (int64_t)le64(m + 24);
    uint32_t size = le32(m + 32), left = size;
    unsigned side = dbn_side(m[39]), action = TK_ACTION_MODIFY;
    double after;
    struct tk_order *order = orders_find(&s->orders, reference);
    switch (m[38]) {
    case 'T': dbn_trade(s, event, price, size, side); return;
    case 'A': action = TK_ACTION_ADD; /* fall through */
    case 'M':
        if (side && !orders_put(&s->orders, reference, event->id, side, price, size)) sink_refuse(&s->sink, TK_NO_MEMORY);
        after = size;
        break;
    case 'C':
        if (order) {
            left = size < order->shares ? order->shares - size : 0;
            if (left) order->shares = left;
            else orders_remove(&s->orders, order);
            after = left;
        } else {  /* placed before the capture began: what is left of it is not known */
            sink_refuse(&s->sink, TK_UNKNOWN_ORDER);
            event->flags |= TK_FLAG_INCOMPLETE;
            left = 0;
            after = NAN;
        }
        if (!left) action = TK_ACTION_DELETE;
        break;
    case 'R':
        action = TK_ACTION_CLEAR;
        after = 0;
        break;
    default: return;  /* F and N leave the book as it is */
    }
    struct tk_record *record = dbn_next(s, TK_TYPE_LEVEL2, event);
    set_level2(record, side, dbn_price(price), after, action);
    record->source_sequence = reference;
    if (m[36] & DBN_F_LAST) record->flags |= TK_FLAG_LAST_OF_BATCH;
}

static void dbn_bar(struct dbn *s, struct dbn_event *event, const uint8_t *m) {
    uint32_t interval_s = m[1] == DBN_OHLCV_1S ? 1 : m[1] == DBN_OHLCV_1M ? 60 : m[1] == DBN_OHLCV_1H ? 3600 : 86400;
    event->ts_receive = event->ts_event + (int64_t)interval_s * 1000000000;
    struct tk_record *record = dbn_next(s, TK_TYPE_BAR, event);
    set_bar(record, dbn_price((int64_t)le64(m + 16)), dbn_price((int64_t)le64(m + 24)), dbn_price((int64_t)le64(m + 32)),
            dbn_price((int64_t)le64(m + 40)), (double)le64(m + 48), interval_s, 0);
}

/* StatusMsg: action, reason and event (u16) at 24; is_trading and is_quoting (Y, N, ~) at 30. */
static void dbn_status(struct dbn *s, const struct dbn_event *event, const uint8_t *m) {
    static const uint8_t states[16] = {
        TK_NO_CHANGE, TK_AUCTION, TK_AUCTION, TK_QUOTE_ONLY, TK_AUCTION, TK_AUCTION, TK_AUCTION, TK_TRADING, TK_HALTED, TK_PAUSED,
        TK_HALTED, TK_AUCTION, TK_CLOSED, TK_CLOSED, TK_NO_CHANGE, TK_CLOSED};
    unsigned action = le16(m + 24);
    enum tk_state state = action < 16 ? (enum tk_state)states[action] : TK_UNKNOWN;
    if (state == TK_NO_CHANGE) return;
    if (state == TK_AUCTION && m[30] == 'Y') state = TK_TRADING;  /* a price indication, before the close */
    struct tk_said text;
    struct tk_record *record = sink_trading_status(&s->sink, &text, state, "DBN ", event->id, event->ts_event,
                                                   event->ts_receive);
    if (event->venue[0]) memcpy(record->venue, event->venue, 8);
    said_number(&text, "", action);
    said_number(&text, ", reason ", le16(m + 26));
    if (le16(m + 28)) said_number(&text, ", event ", le16(m + 28));
}

/* One record of `size` bytes. TK_MISS asks for its symbol and changes nothing; anything else consumes it. */
static inline enum tk_stop dbn_message(struct dbn *s, const uint8_t *m, size_t size) {
    struct tk_sink *sink = &s->sink;
    uint8_t rtype = m[1];
    unsigned wanted = dbn_length(rtype);
    if (!wanted || size < wanted) {
        sink->counts->messages[rtype]++;
        if (wanted) sink_refuse(sink, TK_BAD_LENGTH);
        else if (rtype < DBN_OHLCV_OLD || rtype > DBN_STATISTICS) sink_refuse(sink, TK_UNKNOWN_TYPE);
        return TK_DONE;
    }
    int mbo = rtype == DBN_MBO, bar = wanted == 56 && !mbo, status = rtype == DBN_STATUS;
    struct dbn_event event = {0, 0, (int64_t)le64(m + 8), 0, 0, ""};
    uint8_t flags = 0;
    if (!bar) {
        event.ts_receive = (int64_t)le64(m + (mbo ? 40 : status ? 16 : 32));
        event.sequence = status ? 0 : le32(m + (mbo ? 52 : 44));
        flags = status ? 0 : m[mbo ? 36 : 30];
        event.flags = dbn_flags(flags);
        if (event.ts_event == -1) event.ts_event = event.ts_receive;  /* a bbo before the first trade has none */
        if (event.ts_receive == -1) event.ts_receive = event.ts_event;
    }
    struct dbn_instrument *instrument = dbn_find(s, le32(m + 4));
    int64_t index_ns = bar ? event.ts_event : event.ts_receive;
    if (!instrument || index_ns < instrument->from_ns || index_ns > instrument->last_ns) {
        s->missed = le32(m + 4);
        s->missed_ns = index_ns;
        return TK_MISS;
    }
    sink->counts->messages[rtype]++;
    event.id = instrument->id;
    if (event.id == TK_REFUSED) return sink_refuse(sink, TK_BAD_SYMBOL), TK_DONE;
    uint16_t publisher = le16(m + 2);
    if (publisher < 256) event.venue = s->venue[publisher];
    if (bar) { dbn_bar(s, &event, m); return TK_DONE; }
    if (status) { dbn_status(s, &event, m); return TK_DONE; }
    if (mbo) { dbn_mbo(s, &event, m); return TK_DONE; }
    struct dbn_level level;
    switch (rtype) {
    case DBN_MBP_10: dbn_mbp10(s, &event, instrument, m); break;
    case DBN_MBP_0: break;
    case DBN_CMBP_1: case DBN_TCBBO: case DBN_CBBO_1S: case DBN_CBBO_1M:
        event.sequence = 0; /* fall through */
    default:
        memcpy(&level, m + 48, sizeof level);
        dbn_quote(s, &event, &level, rtype == DBN_MBP_1 || rtype == DBN_BBO_1S || rtype == DBN_BBO_1M);
    }
    int acts = rtype == DBN_MBP_0 || rtype == DBN_MBP_1 || rtype == DBN_MBP_10 || rtype == DBN_CMBP_1 || rtype == DBN_TCBBO;
    if (acts && m[28] == 'T') dbn_trade(s, &event, (int64_t)le64(m + 16), le32(m + 24), dbn_side(m[29]));
    return TK_DONE;
}

static enum tk_stop dbn_run(struct dbn *s) {
    struct tk_frames *frames = &s->frames;
    for (; frames->index < frames->count; frames->index++, frames->at = 0, frames->begun = 0) {
        const uint8_t *p = frame_bytes(frames);
        size_t end = frames->frame[frames->index].size;
        if (!frames->begun) frame_count(frames, s->sink.counts);
        if (!p) { sink_refuse(&s->sink, TK_TRUNCATED); continue; }
        while (frames->at < end) {
            if (sink_full(&s->sink)) return TK_FULL;
            size_t left = end - frames->at, size = (size_t)p[frames->at] * 4;
            if (size < DBN_HEADER_BYTES || size > left) { sink_refuse(&s->sink, TK_BAD_LENGTH); break; }
            if (p[frames->at + 1] == DBN_MAPPING) {  /* the shell reads it and steps over it */
                s->sink.counts->messages[DBN_MAPPING]++;
                return TK_MAPPING;
            }
            if (dbn_message(s, p + frames->at, size) == TK_MISS) return TK_MISS;
            frames->at += size;
        }
    }
    return TK_DONE;
}

#endif
