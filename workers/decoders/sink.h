/* The sink: where kernels write records (struct tk_record of the public header) and count what they saw.
 *
 * `sink_next` gives a zeroed record with its head filled; the kernel sets the body. No I/O, no Python, no atomics: the
 * array belongs to the caller of decode(), and the ring publishes it later.
 *
 * A message may make more records than the caller's array has room for. A kernel begins a message only while there is
 * room for one record; what does not fit goes to `spare`, and the next decode() hands that out first. */
#ifndef TK_DECODERS_SINK_H
#define TK_DECODERS_SINK_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "shm/include/tickengine.h"

enum { TK_LEVEL_UNKNOWN = 0xFFFF }; /* `level` where the venue states the price and not the rank */

/* Why a message was refused. The names are what counters, metrics and replay-info show. */
enum tk_reason {
    TK_TRUNCATED, TK_BAD_LENGTH, TK_UNKNOWN_TYPE, TK_BAD_HEADER, TK_BAD_SYMBOL, TK_BAD_VALUE, TK_BAD_JSON,
    TK_NO_SYMBOL, TK_UNKNOWN_ORDER, TK_NO_MEMORY, TK_TRAILING, TK_FOREIGN, TK_FRAGMENT, TK_REASONS
};
static const char *const tk_reason_names[TK_REASONS] = {
    "truncated", "bad length", "unknown type", "bad header", "bad symbol", "bad value", "bad json",
    "no symbol", "unknown order", "no memory", "trailing bytes", "other protocol", "ip fragment"
};

enum { TK_GAPS_KEPT = 1024 };
struct tk_gap { uint64_t stream, from, to; };

/* What a decoder has seen. Single-threaded; read by the same thread that decodes. */
struct tk_counts {
    uint64_t messages[256];        /* by type byte (or the decoder's own code) */
    uint64_t malformed[TK_REASONS];
    uint64_t records[8];           /* by record type */
    uint64_t frames, bytes, duplicates, heartbeats;
    uint64_t gaps, missing;        /* gaps found, messages missing in them */
    int64_t first_ns, last_ns;     /* smallest and largest ts_event of market records */
    struct tk_gap gap[TK_GAPS_KEPT];  /* the first ones, for people */
};

struct tk_sink {
    struct tk_record *out;
    size_t count, capacity;
    struct tk_record *spare;
    size_t spare_count, spare_taken, spare_capacity;
    struct tk_record lost;            /* where a record goes when there is no memory for it; counted */
    uint16_t flags, next_flags;    /* on every record; on the next market record only */
    uint16_t feed_id;
    uint8_t source;
    char venue[8];
    struct tk_counts *counts;
};

static inline int sink_full(const struct tk_sink *sink) { return sink->count >= sink->capacity; }

static inline void sink_refuse(struct tk_sink *sink, enum tk_reason reason) { sink->counts->malformed[reason]++; }

static struct tk_record *sink_spare(struct tk_sink *sink) {
    if (sink->spare_count == sink->spare_capacity) {
        size_t wanted = sink->spare_capacity ? sink->spare_capacity * 2 : 64;
        struct tk_record *grown = realloc(sink->spare, wanted * sizeof *grown);
        if (!grown) {
            sink_refuse(sink, TK_NO_MEMORY);
            return &sink->lost;
        }
        sink->spare = grown;
        sink->spare_capacity = wanted;
    }
    return &sink->spare[sink->spare_count++];
}

/* A record with its head filled and its body zero. Never NULL. Hot: allocates only when a message overflows the array. */
static inline struct tk_record *sink_next(struct tk_sink *sink, unsigned type, uint32_t instrument_id, int64_t ts_event,
                                       int64_t ts_receive) {
    struct tk_record *record = sink->count < sink->capacity ? &sink->out[sink->count++] : sink_spare(sink);
    struct tk_counts *counts = sink->counts;
    memset(record, 0, sizeof *record);
    record->ts_event = ts_event;
    record->ts_receive = ts_receive;
    record->instrument_id = instrument_id;
    record->record_type = (uint8_t)type;
    record->source = sink->source;
    record->flags = sink->flags;
    record->feed_id = sink->feed_id;
    memcpy(record->venue, sink->venue, 8);
    counts->records[type]++;
    if (type != TK_TYPE_STATUS) {
        record->flags |= sink->next_flags;
        sink->next_flags = 0;
        if (ts_event < counts->first_ns) counts->first_ns = ts_event;
        if (ts_event > counts->last_ns) counts->last_ns = ts_event;
    }
    return record;
}

/* The record that sink_next gave last, in this run of the kernel. */
static inline struct tk_record *sink_last(struct tk_sink *sink) {
    return sink->spare_count ? &sink->spare[sink->spare_count - 1] : &sink->out[sink->count - 1];
}

/* Messages [from, to) of `stream` never came: one status record, and GAP_BEFORE on the next market record. */
static inline void sink_gap(struct tk_sink *sink, uint64_t stream, uint64_t from, uint64_t to, uint32_t instrument_id,
                            int64_t ts_event, int64_t ts_receive) {
    struct tk_counts *counts = sink->counts;
    struct tk_record *record = sink_next(sink, TK_TYPE_STATUS, instrument_id, ts_event, ts_receive);
    record->status.code = TK_STATUS_GAP;
    record->status.from_sequence = from;
    record->status.to_sequence = to;
    memcpy(record->status.text, "gap in the venue's sequence", 27);
    sink->next_flags |= TK_FLAG_GAP_BEFORE;
    if (counts->gaps < TK_GAPS_KEPT) counts->gap[counts->gaps] = (struct tk_gap){stream, from, to};
    counts->gaps++;
    counts->missing += to - from;
}

/* Hands out what did not fit before; afterwards either the spare is empty or the array is full. */
static inline void sink_drain(struct tk_sink *sink) {
    size_t wanted = sink->spare_count - sink->spare_taken, room = sink->capacity - sink->count;
    size_t taken = wanted < room ? wanted : room;
    if (taken) memcpy(sink->out + sink->count, sink->spare + sink->spare_taken, taken * sizeof *sink->spare);
    sink->count += taken;
    sink->spare_taken += taken;
    if (sink->spare_taken == sink->spare_count) sink->spare_taken = sink->spare_count = 0;
}

static inline void set_trade(struct tk_record *record, double price, double size, uint64_t trade_id, unsigned side) {
    record->tick.price = price;
    record->tick.size = size;
    record->tick.trade_id = trade_id;
    record->tick.volume = NAN;
    record->tick.vwap = NAN;
    record->source_sequence = trade_id;
    record->side = (uint8_t)side;
}

/* A last price: `volume` is the session's so far (NaN = not known); `venue`, of up to 8 bytes, is where it was made. */
static inline void set_tick(struct tk_record *record, double price, double size, double volume, const char *venue,
                            size_t venue_size) {
    set_trade(record, price, size, 0, 0);
    record->tick.volume = volume;
    if (venue_size > 0) {
        memset(record->venue, 0, sizeof record->venue);
        memcpy(record->venue, venue, venue_size < sizeof record->venue ? venue_size : sizeof record->venue);
    }
}

static inline void set_quote(struct tk_record *record, double bid, double bid_size, double ask, double ask_size) {
    record->quote.bid = bid;
    record->quote.ask = ask;
    record->quote.bid_size = bid_size;
    record->quote.ask_size = ask_size;
    record->quote.mid = (bid + ask) * 0.5;
    record->quote.spread = ask - bid;
}

static inline void set_level2(struct tk_record *record, unsigned side, double price, double size, unsigned action) {
    record->side = (uint8_t)side;
    record->level2.price = price;
    record->level2.size = size;
    record->level2.action = (uint8_t)action;
    record->level2.level = TK_LEVEL_UNKNOWN;
    record->level2.best_bid = NAN;
    record->level2.best_ask = NAN;
}

static inline void set_bar(struct tk_record *record, double open, double high, double low, double close, double volume,
                           uint32_t interval_s, uint32_t trade_count) {
    record->bar.open = open;
    record->bar.high = high;
    record->bar.low = low;
    record->bar.close = close;
    record->bar.volume = volume;
    record->bar.vwap = NAN;
    record->bar.interval_s = interval_s;
    record->bar.trade_count = trade_count;
}

#endif
