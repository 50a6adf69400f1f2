/* Readers of the tick engine in C, C++ and whatever can include C: records, and attaching to a ring. This file is all
 * that such a reader includes. Printed from shm/layout.py by `python -m shm.header --write`; edit that.
 *
 *     struct tk_ring ring;
 *     struct tk_record records[256];
 *     int problem = tk_attach("/tk.main.r2", &ring);                  // engine "main", ring 2
 *     if (problem) { fprintf(stderr, "%s\n", tk_attach_text(problem)); return 1; }
 *
 *     uint64_t next = tk_newest(&ring), lost;                         // or 1, or where you left off
 *     for (;;) {
 *         uint64_t count = tk_read_next(&ring, &next, records, 256, &lost);
 *         if (lost) { ... }          // records [records[0].sequence - lost, records[0].sequence) were overrun
 *         for (uint64_t i = 0; i < count; i++)
 *             if (records[i].record_type == TK_TYPE_TRADE) use(records[i].instrument_id, records[i].tick.price);
 *         if (count == 0) tk_pause();                                 // nothing new: spin, or do something else
 *     }
 *
 * The mapping is read-only: such a reader can harm nobody, and nobody knows of it (it is in no reader table and can't
 * be waited for). Being overrun is a result and not an error: `lost` is exact, and reading has gone on half a ring
 * behind the writer. The ring survives its writer; `ring.header->epoch` tells that another one has taken over.
 *
 * C11 or C++11, GCC or Clang, little-endian machines. Link with -lrt where shm_open still lives there (glibc < 2.34).
 */
#ifndef TICKENGINE_H
#define TICKENGINE_H

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../ring.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "records are little-endian"
#endif

/* ---- records ------------------------------------------------------------------------------------------------------ */

#define TK_LAYOUT_VERSION 1
#define TK_SCHEMA_HASH UINT64_C(0xc2194a461b203cd1) /* digest of the table of fields */
#define TK_SYMBOL_BYTES 32
#define TK_MAX_RINGS 16
#define TK_NO_INSTRUMENT UINT32_C(0xffffffff) /* the record concerns no single instrument */

/* What a record is; decides how its body is read (offset 36, u8). */
enum tk_record_type {
    TK_TYPE_TICK = 1,
    TK_TYPE_QUOTE = 2,
    TK_TYPE_BAR = 3,
    TK_TYPE_TRADE = 4,
    TK_TYPE_LEVEL2 = 5,
    TK_TYPE_NEWS = 6,
    TK_TYPE_STATUS = 7
};

/* Where a record came from (offset 37, u8); the lower-case names are the DataSource values of the HTTP API. */
enum tk_source {
    TK_SOURCE_UNKNOWN = 0,
    TK_SOURCE_IBKR = 1,
    TK_SOURCE_ALPHA_VANTAGE = 2,
    TK_SOURCE_FRED = 3,
    TK_SOURCE_YAHOO = 4,
    TK_SOURCE_INTERNAL = 5,
    TK_SOURCE_MOCK = 6,
    TK_SOURCE_WEBSOCKET = 7,
    TK_SOURCE_FIX = 8,
    TK_SOURCE_MULTICAST = 9,
    TK_SOURCE_REPLAY = 10,
    TK_SOURCE_PLUGIN = 64
};

/* Verdict and provenance bits (offset 38, u16). */
enum tk_flag {
    TK_FLAG_OUTLIER = 0x0001,
    TK_FLAG_VOLUME_SPIKE = 0x0002,
    TK_FLAG_OUT_OF_ORDER = 0x0004,
    TK_FLAG_LATE = 0x0008,
    TK_FLAG_CROSSED = 0x0010,
    TK_FLAG_CROSS_SOURCE_MISMATCH = 0x0020,
    TK_FLAG_OUT_OF_SESSION = 0x0040,
    TK_FLAG_INCOMPLETE = 0x0080,
    TK_FLAG_CORRECTED = 0x0100,
    TK_FLAG_BACKFILLED = 0x0200,
    TK_FLAG_REPLAYED = 0x0400,
    TK_FLAG_SYNTHETIC = 0x0800,
    TK_FLAG_SNAPSHOT = 0x1000,
    TK_FLAG_GAP_BEFORE = 0x2000,
    TK_FLAG_CONTINUES = 0x4000,
    TK_FLAG_LAST_OF_BATCH = 0x8000
};

/* Shedding order under overload (offset 50, u8). */
enum tk_priority {
    TK_PRIORITY_HIGH = 0,
    TK_PRIORITY_NORMAL = 1,
    TK_PRIORITY_LOW = 2
};

/* Aggressor side of a trade, or book side of a level (offset 51, u8). */
enum tk_side {
    TK_SIDE_NONE = 0,
    TK_SIDE_BUY = 1,
    TK_SIDE_SELL = 2
};

/* What a level2 record does to its book (offset 86, u8). */
enum tk_action {
    TK_ACTION_NONE = 0,
    TK_ACTION_ADD = 1,
    TK_ACTION_MODIFY = 2,
    TK_ACTION_DELETE = 3,
    TK_ACTION_CLEAR = 4,
    TK_ACTION_EXECUTE = 5
};

/* `code` of a status record (offset 64, u32). */
enum tk_status_code {
    TK_STATUS_FEED_UP = 1,
    TK_STATUS_FEED_DOWN = 2,
    TK_STATUS_FEED_SWITCHED = 3,
    TK_STATUS_GAP = 4,
    TK_STATUS_OVERLOAD = 5,
    TK_STATUS_LATENCY_ALERT = 6,
    TK_STATUS_END_OF_REPLAY = 7,
    TK_STATUS_WRITER_RESTARTED = 8,
    TK_STATUS_REJECTED = 9,
    TK_STATUS_FEED_DEGRADED = 10,
    TK_STATUS_FEED_STALE = 11,
    TK_STATUS_FEED_RECOVERED = 12,
    TK_STATUS_TRADING_STATUS = 13
};

/* What the text of a TK_STATUS_TRADING_STATUS begins with, up to its colon. Their first letters differ. */
#define TK_STATE_TRADING    "trading"    /* orders are matched as they come */
#define TK_STATE_HALTED     "halted"     /* nothing is traded, by decision of a regulator, the venue or its operators */
#define TK_STATE_PAUSED     "paused"     /* nothing is traded for a few minutes, after a price moved too fast */
#define TK_STATE_QUOTE_ONLY "quote only" /* quotes are taken and shown, and not matched yet */
#define TK_STATE_AUCTION    "auction"    /* orders are collected and matched all at once: before the opening, after a halt, in a cross */
#define TK_STATE_CLOSED     "closed"     /* there is no session */
#define TK_STATE_UNKNOWN    "unknown"    /* the venue says something that is none of these, or does not say which */

struct tk_tick {
    double price;                /*  64  price */
    double size;                 /*  72  size */
    uint64_t trade_id;           /*  80  the venue's trade id; 0 = none */
    char condition[8];           /*  88  sale condition as the venue writes it */
    double volume;               /*  96  session volume after this trade */
    double vwap;                 /* 104  session volume-weighted average price */
    uint8_t spare0[16];
};

struct tk_quote {
    double bid;                  /*  64  best bid price */
    double ask;                  /*  72  best ask price */
    double bid_size;             /*  80  size at the best bid */
    double ask_size;             /*  88  size at the best ask */
    double mid;                  /*  96  (bid + ask) / 2 */
    double spread;               /* 104  ask - bid */
    uint32_t bid_count;          /* 112  orders at the best bid; 0 = unknown */
    uint32_t ask_count;          /* 116  orders at the best ask; 0 = unknown */
    uint8_t spare0[8];
};

struct tk_bar {
    double open;                 /*  64  first price */
    double high;                 /*  72  highest price */
    double low;                  /*  80  lowest price */
    double close;                /*  88  last price */
    double volume;               /*  96  sum of sizes */
    double vwap;                 /* 104  volume-weighted average price */
    uint32_t interval_s;         /* 112  length in seconds; ts_event is the start */
    uint32_t trade_count;        /* 116  number of trades */
    uint8_t spare0[8];
};

struct tk_level2 {
    double price;                /*  64  price of the level or order */
    double size;                 /*  72  size after the change; 0 = removed */
    uint32_t order_count;        /*  80  orders at the level; 0 = unknown */
    uint16_t level;              /*  84  0 = best */
    uint8_t action;              /*  86  Action */
    uint8_t depth;               /*  87  levels the venue sends; 0 = full book */
    double best_bid;             /*  88  best bid after the change */
    double best_ask;             /*  96  best ask after the change */
    uint8_t spare0[24];
};

struct tk_news {
    char headline[64];           /*  64  UTF-8; longer text goes on in following records (Flag.CONTINUES) */
};

struct tk_status {
    uint32_t code;               /*  64  StatusCode */
    uint8_t spare0[4];
    uint64_t from_sequence;      /*  72  first sequence concerned */
    uint64_t to_sequence;        /*  80  one past the last sequence concerned */
    char text[40];               /*  88  UTF-8, for people */
};

struct tk_record {
    uint64_t sequence;           /*   0  ring sequence from 1; also the slot's commit stamp */
    int64_t ts_event;            /*   8  the venue's own time, ns */
    int64_t ts_receive;          /*  16  bytes arrived in this host, ns */
    int64_t ts_publish;          /*  24  record committed to the ring, ns */
    uint32_t instrument_id;      /*  32  index into the instrument table */
    uint8_t record_type;         /*  36  RecordType */
    uint8_t source;              /*  37  Source */
    uint16_t flags;              /*  38  Flag bits */
    uint64_t source_sequence;    /*  40  the venue's sequence number or trade id; 0 = none */
    uint16_t feed_id;            /*  48  index of the feed within its engine */
    uint8_t priority;            /*  50  Priority */
    uint8_t side;                /*  51  Side */
    uint32_t conditions;         /*  52  venue conditions, mapped bits */
    char venue[8];               /*  56  MIC or venue code, NUL padded */
    union { /* by record_type */
        struct tk_tick tick;
        struct tk_quote quote;
        struct tk_bar bar;
        struct tk_level2 level2;
        struct tk_news news;
        struct tk_status status;
        struct tk_tick trade; /* the same fields as tick */
    };
};

TK_ASSERT(sizeof(struct tk_record) == 128, "a record fills a slot");
TK_ASSERT(offsetof(struct tk_record, sequence) == 0, "sequence");
TK_ASSERT(offsetof(struct tk_record, ts_event) == 8, "ts_event");
TK_ASSERT(offsetof(struct tk_record, ts_receive) == 16, "ts_receive");
TK_ASSERT(offsetof(struct tk_record, ts_publish) == 24, "ts_publish");
TK_ASSERT(offsetof(struct tk_record, instrument_id) == 32, "instrument_id");
TK_ASSERT(offsetof(struct tk_record, record_type) == 36, "record_type");
TK_ASSERT(offsetof(struct tk_record, source) == 37, "source");
TK_ASSERT(offsetof(struct tk_record, flags) == 38, "flags");
TK_ASSERT(offsetof(struct tk_record, source_sequence) == 40, "source_sequence");
TK_ASSERT(offsetof(struct tk_record, feed_id) == 48, "feed_id");
TK_ASSERT(offsetof(struct tk_record, priority) == 50, "priority");
TK_ASSERT(offsetof(struct tk_record, side) == 51, "side");
TK_ASSERT(offsetof(struct tk_record, conditions) == 52, "conditions");
TK_ASSERT(offsetof(struct tk_record, venue) == 56, "venue");
TK_ASSERT(offsetof(struct tk_record, tick.price) == 64, "tick.price");
TK_ASSERT(offsetof(struct tk_record, tick.size) == 72, "tick.size");
TK_ASSERT(offsetof(struct tk_record, tick.trade_id) == 80, "tick.trade_id");
TK_ASSERT(offsetof(struct tk_record, tick.condition) == 88, "tick.condition");
TK_ASSERT(offsetof(struct tk_record, tick.volume) == 96, "tick.volume");
TK_ASSERT(offsetof(struct tk_record, tick.vwap) == 104, "tick.vwap");
TK_ASSERT(offsetof(struct tk_record, quote.bid) == 64, "quote.bid");
TK_ASSERT(offsetof(struct tk_record, quote.ask) == 72, "quote.ask");
TK_ASSERT(offsetof(struct tk_record, quote.bid_size) == 80, "quote.bid_size");
TK_ASSERT(offsetof(struct tk_record, quote.ask_size) == 88, "quote.ask_size");
TK_ASSERT(offsetof(struct tk_record, quote.mid) == 96, "quote.mid");
TK_ASSERT(offsetof(struct tk_record, quote.spread) == 104, "quote.spread");
TK_ASSERT(offsetof(struct tk_record, quote.bid_count) == 112, "quote.bid_count");
TK_ASSERT(offsetof(struct tk_record, quote.ask_count) == 116, "quote.ask_count");
TK_ASSERT(offsetof(struct tk_record, bar.open) == 64, "bar.open");
TK_ASSERT(offsetof(struct tk_record, bar.high) == 72, "bar.high");
TK_ASSERT(offsetof(struct tk_record, bar.low) == 80, "bar.low");
TK_ASSERT(offsetof(struct tk_record, bar.close) == 88, "bar.close");
TK_ASSERT(offsetof(struct tk_record, bar.volume) == 96, "bar.volume");
TK_ASSERT(offsetof(struct tk_record, bar.vwap) == 104, "bar.vwap");
TK_ASSERT(offsetof(struct tk_record, bar.interval_s) == 112, "bar.interval_s");
TK_ASSERT(offsetof(struct tk_record, bar.trade_count) == 116, "bar.trade_count");
TK_ASSERT(offsetof(struct tk_record, level2.price) == 64, "level2.price");
TK_ASSERT(offsetof(struct tk_record, level2.size) == 72, "level2.size");
TK_ASSERT(offsetof(struct tk_record, level2.order_count) == 80, "level2.order_count");
TK_ASSERT(offsetof(struct tk_record, level2.level) == 84, "level2.level");
TK_ASSERT(offsetof(struct tk_record, level2.action) == 86, "level2.action");
TK_ASSERT(offsetof(struct tk_record, level2.depth) == 87, "level2.depth");
TK_ASSERT(offsetof(struct tk_record, level2.best_bid) == 88, "level2.best_bid");
TK_ASSERT(offsetof(struct tk_record, level2.best_ask) == 96, "level2.best_ask");
TK_ASSERT(offsetof(struct tk_record, news.headline) == 64, "news.headline");
TK_ASSERT(offsetof(struct tk_record, status.code) == 64, "status.code");
TK_ASSERT(offsetof(struct tk_record, status.from_sequence) == 72, "status.from_sequence");
TK_ASSERT(offsetof(struct tk_record, status.to_sequence) == 80, "status.to_sequence");
TK_ASSERT(offsetof(struct tk_record, status.text) == 88, "status.text");

/* ---- attaching --------------------------------------------------------------------------------------------------- */

enum tk_attach_problem {
    TK_ATTACHED = 0,
    TK_MISSING = 1,         /* no segment of that name: is the engine running under this name? */
    TK_NOT_ALLOWED = 2,     /* its mode keeps this user out */
    TK_NOT_READY = 3,       /* it is being created: try again */
    TK_NOT_A_RING = 4,      /* its magic is wrong */
    TK_OTHER_VERSION = 5,   /* ring version or record size differ from this header's */
    TK_OTHER_SCHEMA = 6,    /* same size, other fields: the schema hash differs */
    TK_TOO_SMALL = 7,       /* the segment ends before its last slot */
    TK_NOT_MAPPED = 8       /* mmap failed: errno says why */
};

static inline const char *tk_attach_text(int problem) {
    switch (problem) {
        case TK_ATTACHED: return "attached";
        case TK_MISSING: return "no such ring: is the engine running under this name?";
        case TK_NOT_ALLOWED: return "the ring's mode does not let this user read it";
        case TK_NOT_READY: return "the ring is being created";
        case TK_NOT_A_RING: return "the segment is not a ring";
        case TK_OTHER_VERSION: return "the ring was made by another version of the engine";
        case TK_OTHER_SCHEMA: return "the ring's records have other fields than this program was built for";
        case TK_TOO_SMALL: return "the segment is smaller than its header says";
        default: return "the ring could not be mapped";
    }
}

/* Map a ring read-only. `name` is the segment's, "/tk.ENGINE.rN". Returns TK_ATTACHED or another tk_attach_problem. */
static inline int tk_attach(const char *name, struct tk_ring *ring) {
    struct stat status;
    int problem = TK_ATTACHED;
    int fd = shm_open(name, O_RDONLY, 0);
    if (fd < 0) return errno == ENOENT ? TK_MISSING : errno == EACCES ? TK_NOT_ALLOWED : TK_NOT_MAPPED;
    if (fstat(fd, &status) != 0) problem = TK_NOT_MAPPED;
    else if (status.st_size == 0) problem = TK_NOT_READY;
    else if (status.st_size < TK_RING_SLOTS_OFFSET) problem = TK_TOO_SMALL;
    if (problem != TK_ATTACHED) {
        close(fd);
        return problem;
    }
    void *memory = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED) return TK_NOT_MAPPED;

    struct tk_ring_header *h = (struct tk_ring_header *)memory;
    uint64_t magic = tk_load_acquire(&h->magic); /* stored last by the creator: line 0 is constant after it */
    uint64_t room = ((uint64_t)status.st_size - TK_RING_SLOTS_OFFSET) / TK_RECORD_BYTES;
    if (magic == 0) problem = TK_NOT_READY;
    else if (magic != TK_RING_MAGIC) problem = TK_NOT_A_RING;
    else if (h->version != TK_RING_VERSION || h->record_bytes != TK_RECORD_BYTES) problem = TK_OTHER_VERSION;
    else if (h->schema_hash != TK_SCHEMA_HASH) problem = TK_OTHER_SCHEMA;
    else if (h->depth == 0 || (h->depth & (h->depth - 1)) != 0 || h->depth > room) problem = TK_TOO_SMALL;
    if (problem != TK_ATTACHED) {
        munmap(memory, (size_t)status.st_size);
        return problem;
    }
    ring->header = h;
    ring->readers = NULL;
    ring->slots = (tk_word *)(void *)((char *)memory + TK_RING_SLOTS_OFFSET);
    ring->depth = h->depth;
    ring->mask = h->depth - 1;
    return TK_ATTACHED;
}

/* Unmap a ring; its pointers are dead afterwards. Safe to call twice. */
static inline void tk_detach(struct tk_ring *ring) {
    if (ring->header != NULL) munmap((void *)ring->header, TK_RING_SLOTS_OFFSET + ring->depth * TK_RECORD_BYTES);
    ring->header = NULL;
    ring->slots = NULL;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* Where to start for what comes from now on. */
static inline uint64_t tk_newest(const struct tk_ring *ring) { return tk_load_acquire(&ring->header->published) + 1; }

/* Where to start for as much of the past as is safe: a quarter of a full ring is the writer's head start. */
static inline uint64_t tk_oldest(const struct tk_ring *ring) {
    uint64_t next = tk_newest(ring), back = ring->depth / 4 * 3;
    return next > back ? next - back : 1;
}

/* Copy up to `limit` records from *next on into `records` and move *next past them. Returns how many, 0 for none yet.
 * Never waits. `*lost` is how many records were overrun just before records[0], which then has TK_FLAG_GAP_BEFORE. */
static inline uint64_t tk_read_next(const struct tk_ring *ring, uint64_t *next, struct tk_record *records,
                                    uint64_t limit, uint64_t *lost) {
    uint64_t wanted = *next;
    if (limit > ring->depth) limit = ring->depth;
    for (;;) {
        int64_t count = limit == 0 ? 0 : tk_read_batch(ring, *next, (char *)records, limit);
        if (count >= 0) {
            *lost = count > 0 ? *next - wanted : 0;
            if (count == 0) *next = wanted;
            if (*lost > 0) records[0].flags = (uint16_t)(records[0].flags | TK_FLAG_GAP_BEFORE);
            *next += (uint64_t)count;
            return (uint64_t)count;
        }
        *next = tk_resume(ring, *next);
    }
}

#endif
