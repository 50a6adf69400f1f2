/* The book of one instrument as one feed of a redundancy group tells it, so that it can be published whole when that feed
 * takes over. Kept from its level2 records, published or not, whatever the source. Called by workers/_redundancy.pyx alone.
 *
 *     CLEAR                  the book begins anew, empty
 *     by price (depth 0)     ADD, MODIFY, EXECUTE: so much stands at that price and side;  DELETE or size 0: nothing
 *     by row (depth n)       ADD inserts at row `level`, MODIFY replaces it, DELETE takes it out, at most n rows a side
 *     by order               the same as by price, of the order that `source_sequence` names (feeds that say so)
 *
 * One open-addressed table for all three: an entry is 32 bytes, at most 3/4 of the slots are taken, removal shifts back.
 * `slots` counts those of all books of a feed; where `limit` forbids a larger table, what has no room is refused and the
 * book is not whole until its next CLEAR. Plain C11: no clock, no system call but for memory. */
#ifndef TK_GROUP_BOOK_H
#define TK_GROUP_BOOK_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "shm/include/tickengine.h"

enum { GROUP_BOOK_HEAD = 64, GROUP_BOOK_FIRST_SLOTS = 32, GROUP_BOOK_ANY_LEVEL = 0xFFFF };
enum { GROUP_BOOK_BY_PRICE, GROUP_BOOK_BY_ROW, GROUP_BOOK_BY_ORDER };

struct group_level {
    uint64_t key;    /* bits of the price, row, or number of the order */
    double price, size;
    uint32_t orders; /* at the level; 0 = unknown */
    uint8_t side;    /* enum tk_side; 0 = free slot */
    uint8_t spare[3];
};
_Static_assert(sizeof(struct group_level) == 32, "two levels to a cache line");

struct group_book {
    struct group_level *level;
    uint32_t room, count;          /* slots, a power of two or 0; levels */
    uint8_t form, depth;
    uint8_t ranked;                /* the feed states the rank of a price */
    uint8_t whole;                 /* nothing is known to be missing */
    uint8_t told;                  /* anything at all */
    int64_t ts_event;              /* newest of its records */
    uint8_t head[GROUP_BOOK_HEAD]; /* of its last record */
};

static inline uint32_t group_book_slot(const struct group_book *book, uint64_t key, unsigned side) {
    uint64_t mixed = (key ^ side) * UINT64_C(0x9E3779B97F4A7C15);
    return (uint32_t)((mixed ^ mixed >> 29) * UINT64_C(0xBF58476D1CE4E5B9) >> 32) & (book->room - 1);
}

static inline struct group_level *group_book_find(const struct group_book *book, uint64_t key, unsigned side) {
    if (!book->count) return NULL;
    for (uint32_t i = group_book_slot(book, key, side); book->level[i].side; i = (i + 1) & (book->room - 1))
        if (book->level[i].key == key && book->level[i].side == side) return &book->level[i];
    return NULL;
}

static inline void group_book_insert(struct group_book *book, const struct group_level *level) {
    uint32_t i = group_book_slot(book, level->key, level->side);
    while (book->level[i].side) i = (i + 1) & (book->room - 1);
    book->level[i] = *level;
}

static int group_book_grow(struct group_book *book, uint64_t *slots, uint64_t limit) {
    uint32_t room = book->room ? book->room * 2 : GROUP_BOOK_FIRST_SLOTS;
    if (!room || *slots + room - book->room > limit) return 0;
    struct group_level *old = book->level, *grown = (struct group_level *)calloc(room, sizeof *grown);
    uint32_t had = book->room;
    if (!grown) return 0;
    *slots += room - had;
    book->level = grown;
    book->room = room;
    for (uint32_t i = 0; i < had; i++)
        if (old[i].side) group_book_insert(book, &old[i]);
    free(old);
    return 1;
}

/* 0 = there is no room for another level. */
static inline int group_book_put(struct group_book *book, const struct group_level *level, uint64_t *slots, uint64_t limit) {
    struct group_level *there = group_book_find(book, level->key, level->side);
    if (there) {
        *there = *level;
        return 1;
    }
    if ((uint64_t)(book->count + 1) * 4 > (uint64_t)book->room * 3 && !group_book_grow(book, slots, limit)) return 0;
    group_book_insert(book, level);
    book->count++;
    return 1;
}

static inline void group_book_remove(struct group_book *book, struct group_level *level) {
    uint32_t mask = book->room - 1, hole = (uint32_t)(level - book->level), i = hole;
    for (;;) {
        i = (i + 1) & mask;
        if (!book->level[i].side) break;
        uint32_t home = group_book_slot(book, book->level[i].key, book->level[i].side);
        if (((i - home) & mask) < ((i - hole) & mask)) continue; /* it may not stand before its home */
        book->level[hole] = book->level[i];
        hole = i;
    }
    book->level[hole].side = 0;
    book->count--;
}

/* Empty; a table that is far larger than what stood in it is given back. */
static inline void group_book_clear(struct group_book *book, uint64_t *slots) {
    if (book->room > GROUP_BOOK_FIRST_SLOTS && (uint64_t)book->count * 16 < book->room) {
        free(book->level);
        book->level = NULL;
        *slots -= book->room;
        book->room = 0;
    } else if (book->count) {
        memset(book->level, 0, book->room * sizeof *book->level);
    }
    book->count = 0;
}

/* The feed's connection is lost: what it tells next begins a book that lacks what was before, unless with a CLEAR. */
static inline void group_book_void(struct group_book *book, uint64_t *slots) {
    free(book->level);
    book->level = NULL;
    *slots -= book->room;
    book->room = book->count = 0;
    book->whole = 0;
}

static inline void group_book_close(struct group_book *book, uint64_t *slots) {
    free(book->level);
    *slots -= book->room;
    memset(book, 0, sizeof *book);
}

/* Rows [row, depth) of a side move by one, down (`by` 1) or up (-1); a row that moves behind the last one is let go of. */
static void group_book_shift(struct group_book *book, unsigned side, unsigned row, int by, uint64_t *slots, uint64_t limit) {
    unsigned rows = book->depth > row ? book->depth - row : 0;
    for (unsigned n = 0; n < rows; n++) {
        unsigned from = by > 0 ? book->depth - 1 - n : row + n;
        struct group_level *there = group_book_find(book, from, side);
        if (!there) continue;
        struct group_level moved = *there;
        group_book_remove(book, there);
        moved.key = (uint64_t)from + (uint64_t)(int64_t)by;
        if (moved.key < book->depth) group_book_put(book, &moved, slots, limit); /* there is room: one was taken out */
    }
}

/* One level2 record of the feed. `orders`: its records are single orders. 0 = a level found no room. */
static inline int group_book_tell(struct group_book *book, const struct tk_record *record, int orders, uint64_t *slots,
                                  uint64_t limit) {
    const int row = record->level2.depth != 0 && record->level2.level != GROUP_BOOK_ANY_LEVEL;
    const uint8_t form = orders ? GROUP_BOOK_BY_ORDER : row ? GROUP_BOOK_BY_ROW : GROUP_BOOK_BY_PRICE;
    if (!book->told) book->whole = book->told = 1;
    if (record->level2.action == TK_ACTION_CLEAR) {
        group_book_clear(book, slots);
        book->whole = 1;
        book->ranked = 0;
        book->depth = record->level2.depth;
        book->ts_event = 0;
    } else if (!isfinite(record->level2.price) || (record->side != TK_SIDE_BUY && record->side != TK_SIDE_SELL)) {
        return 1; /* says nothing of any level */
    } else if (form != book->form && book->count) {
        group_book_void(book, slots); /* rows among prices: what was before can't be what is meant */
    }
    memcpy(book->head, record, GROUP_BOOK_HEAD);
    const int64_t ts_event = record->ts_event ? record->ts_event : record->ts_receive;
    if (ts_event > book->ts_event) book->ts_event = ts_event;
    if (record->level2.action == TK_ACTION_CLEAR) return 1;
    if (record->flags & TK_FLAG_GAP_BEFORE && !(record->flags & TK_FLAG_SNAPSHOT)) book->whole = 0;
    book->form = form;
    book->depth = record->level2.depth;
    if (record->level2.level != GROUP_BOOK_ANY_LEVEL) book->ranked = 1;
    struct group_level level = {0, record->level2.price, record->level2.size, record->level2.order_count, record->side, {0}};
    const double price = record->level2.price + 0.0; /* -0.0 is 0.0 */
    if (form == GROUP_BOOK_BY_PRICE) memcpy(&level.key, &price, 8);
    else level.key = form == GROUP_BOOK_BY_ORDER ? record->source_sequence : record->level2.level;
    const int gone = record->level2.action == TK_ACTION_DELETE || (form != GROUP_BOOK_BY_ROW && level.size == 0);
    if (form == GROUP_BOOK_BY_ROW && level.key >= book->depth) return 1; /* beyond what the feed itself says there is */
    if (gone) {
        struct group_level *there = group_book_find(book, level.key, level.side);
        if (there) group_book_remove(book, there);
        if (form == GROUP_BOOK_BY_ROW) group_book_shift(book, level.side, (unsigned)level.key + 1, -1, slots, limit);
        return 1;
    }
    if (form == GROUP_BOOK_BY_ROW && record->level2.action == TK_ACTION_ADD)
        group_book_shift(book, level.side, (unsigned)level.key, 1, slots, limit);
    if (group_book_put(book, &level, slots, limit)) return 1;
    book->whole = 0;
    return 0;
}

/* ---- the picture ---------------------------------------------------------------------------------------------------- */

static int group_book_by_row(const void *a, const void *b) {
    const struct group_level *one = (const struct group_level *)a, *other = (const struct group_level *)b;
    if (one->side != other->side) return one->side < other->side ? -1 : 1;
    return (one->key > other->key) - (one->key < other->key);
}

static int group_book_best_first(const void *a, const void *b) {
    const struct group_level *one = (const struct group_level *)a, *other = (const struct group_level *)b;
    if (one->side != other->side) return one->side < other->side ? -1 : 1;
    int rises = (one->price > other->price) - (one->price < other->price);
    if (rises) return one->side == TK_SIDE_BUY ? -rises : rises;
    return (one->key > other->key) - (one->key < other->key);
}

/* Records of a picture: CLEAR and each level. */
static inline uint64_t group_book_records(const struct group_book *book) { return (uint64_t)book->count + 1; }

/* The book as SNAPSHOT records, bids from the best one, then asks: `group_book_records` of them into `out`. `before`: what
 * was published of the instrument is to be replaced. `now_ns`: of a book that was told nothing. 0 = no memory. */
static int group_book_picture(const struct group_book *book, struct tk_record *out, int before, int64_t now_ns) {
    struct group_level *sorted = NULL;
    if (book->count) {
        uint32_t found = 0;
        sorted = (struct group_level *)malloc(book->count * sizeof *sorted);
        if (!sorted) return 0;
        for (uint32_t i = 0; i < book->room; i++)
            if (book->level[i].side) sorted[found++] = book->level[i];
        qsort(sorted, book->count, sizeof *sorted,
              book->form == GROUP_BOOK_BY_ROW ? group_book_by_row : group_book_best_first);
    }
    struct tk_record one;
    memset(&one, 0, sizeof one);
    memcpy(&one, book->head, GROUP_BOOK_HEAD);
    one.sequence = 0;
    one.ts_publish = 0;
    one.conditions = 0;
    one.record_type = TK_TYPE_LEVEL2;
    if (!book->count && !book->whole) one.ts_event = one.ts_receive = now_ns;
    else one.ts_event = book->ts_event;
    one.flags &= TK_FLAG_INCOMPLETE | TK_FLAG_REPLAYED | TK_FLAG_SYNTHETIC;
    one.flags |= TK_FLAG_SNAPSHOT;
    if (!book->whole) one.flags |= TK_FLAG_INCOMPLETE;
    one.side = TK_SIDE_NONE;
    one.level2.price = one.level2.best_bid = one.level2.best_ask = NAN;
    one.level2.level = GROUP_BOOK_ANY_LEVEL;
    one.level2.action = TK_ACTION_CLEAR;
    one.level2.depth = book->depth;
    *out = one;
    if (before) out->flags |= TK_FLAG_GAP_BEFORE;
    unsigned side = TK_SIDE_NONE;
    uint64_t rank = 0;
    for (uint32_t i = 0; i < book->count; i++) {
        const struct group_level *level = &sorted[i];
        if (level->side != side) rank = 0;
        side = one.side = level->side;
        if (!rank && side == TK_SIDE_BUY) one.level2.best_bid = level->price;
        if (!rank && side == TK_SIDE_SELL) one.level2.best_ask = level->price;
        one.level2.action = TK_ACTION_ADD;
        if (book->form == GROUP_BOOK_BY_ROW) {
            one.level2.level = (uint16_t)level->key;
            if (level->key != rank) one.level2.action = TK_ACTION_MODIFY; /* rows before it were never told */
        } else if (book->ranked && rank < GROUP_BOOK_ANY_LEVEL) {
            one.level2.level = (uint16_t)rank;
        }
        if (book->form == GROUP_BOOK_BY_ORDER) one.source_sequence = level->key;
        one.level2.price = level->price;
        one.level2.size = level->size;
        one.level2.order_count = level->orders;
        out[i + 1] = one;
        rank++;
    }
    out[book->count].flags |= TK_FLAG_LAST_OF_BATCH;
    free(sorted);
    return 1;
}

#endif
