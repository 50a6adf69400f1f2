/* Order books by price level: what is best on each side of each instrument, kept by the decoders of order-by-order (ITCH)
 * and level-by-level (IEX DEEP) feeds.
 *
 * One side is an array of levels, worst price first: what is best stands at the end, where nearly everything happens, so that most
 * changes move a few levels. A level is found from the end, by steps first, then by halves. Prices are the venue's
 * integers. Books are found by instrument id, which the instrument table hands out densely from 0.
 *
 * `books_touch` remembers which book an event changed, `books_quote` says whether its best prices, sizes or counts are
 * others than those said last. An instrument id beyond `limit`, or no memory: the change is left out and refused. */
#ifndef TK_DECODERS_BOOK_H
#define TK_DECODERS_BOOK_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "workers/decoders/sink.h"

enum { BOOK_MAX_INSTRUMENTS = 1 << 22, BOOK_MAX_LEVELS = 1 << 20, BOOK_STEPS = 8 };

struct book_level { int64_t price; uint64_t size; uint32_t orders, pad; };
struct book_side { struct book_level *level; uint32_t count, capacity; };
struct book {
    struct book_side bid, ask;
    struct book_level said_bid, said_ask;  /* of the last quote; size 0 = there was none */
};
struct tk_books { struct book **book; size_t count; };

static void books_clear(struct tk_books *books) {
    for (size_t i = 0; i < books->count; i++) {
        struct book *book = books->book[i];
        if (!book) continue;
        free(book->bid.level);
        free(book->ask.level);
        free(book);
    }
    free(books->book);
    *books = (struct tk_books){0};
}

/* NULL: no such instrument can be kept. */
static struct book *books_make(struct tk_books *books, uint32_t id) {
    if (id >= BOOK_MAX_INSTRUMENTS) return NULL;
    if (id >= books->count) {
        size_t count = books->count ? books->count : 1024;
        while (count <= id) count *= 2;
        struct book **grown = realloc(books->book, count * sizeof *grown);
        if (!grown) return NULL;
        memset(grown + books->count, 0, (count - books->count) * sizeof *grown);
        books->book = grown;
        books->count = count;
    }
    return books->book[id] = calloc(1, sizeof(struct book));
}

static inline struct book *books_find(struct tk_books *books, uint32_t id) {
    return id < books->count && books->book[id] ? books->book[id] : books_make(books, id);
}

/* Is price a worse than b on that side? */
static inline int book_worse(int bid, int64_t a, int64_t b) { return bid ? a < b : a > b; }

/* Index of the first level that is not worse than `price`: the level itself, or where it would go. */
static inline uint32_t book_seek(const struct book_side *side, int bid, int64_t price) {
    uint32_t at = side->count;
    for (int step = 0; step < BOOK_STEPS; step++) {
        if (!at || book_worse(bid, side->level[at - 1].price, price)) return at;
        at--;
    }
    uint32_t low = 0, high = at;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (book_worse(bid, side->level[middle].price, price)) low = middle + 1;
        else high = middle;
    }
    return low;
}

static int book_insert(struct book_side *side, uint32_t at, int64_t price) {
    if (side->count == side->capacity) {
        if (side->capacity >= BOOK_MAX_LEVELS) return 0;
        uint32_t capacity = side->capacity ? side->capacity * 2 : 8;
        struct book_level *grown = realloc(side->level, capacity * sizeof *grown);
        if (!grown) return 0;
        side->level = grown;
        side->capacity = capacity;
    }
    memmove(&side->level[at + 1], &side->level[at], (side->count - at) * sizeof *side->level);
    side->level[at] = (struct book_level){price, 0, 0, 0};
    side->count++;
    return 1;
}

static inline void book_erase(struct book_side *side, uint32_t at) {
    side->count--;
    memmove(&side->level[at], &side->level[at + 1], (side->count - at) * sizeof *side->level);
}

/* `size` more at a price, `orders` orders more. 0 = no memory. */
static inline int book_add(struct book *book, unsigned side, int64_t price, uint64_t size, uint32_t orders) {
    int bid = side == TK_SIDE_BUY;
    struct book_side *s = bid ? &book->bid : &book->ask;
    uint32_t at = book_seek(s, bid, price);
    if ((at == s->count || s->level[at].price != price) && !book_insert(s, at, price)) return 0;
    s->level[at].size += size;
    s->level[at].orders += orders;
    return 1;
}

/* `size` less at a price, `orders` orders less; a level without size is gone. */
static inline void book_take(struct book *book, unsigned side, int64_t price, uint64_t size, uint32_t orders) {
    int bid = side == TK_SIDE_BUY;
    struct book_side *s = bid ? &book->bid : &book->ask;
    uint32_t at = book_seek(s, bid, price);
    if (at == s->count || s->level[at].price != price) return;
    struct book_level *level = &s->level[at];
    level->orders -= level->orders < orders ? level->orders : orders;
    if (level->size <= size) book_erase(s, at);
    else level->size -= size;
}

/* A price now has that size, 0 = none. 0 = no memory. */
static inline int book_set(struct book *book, unsigned side, int64_t price, uint64_t size) {
    int bid = side == TK_SIDE_BUY;
    struct book_side *s = bid ? &book->bid : &book->ask;
    uint32_t at = book_seek(s, bid, price);
    int there = at < s->count && s->level[at].price == price;
    if (!size) {
        if (there) book_erase(s, at);
        return 1;
    }
    if (!there && !book_insert(s, at, price)) return 0;
    s->level[at].size = size;
    return 1;
}

static inline struct book_level book_best(const struct book_side *side) {
    return side->count ? side->level[side->count - 1] : (struct book_level){0};
}

static inline int book_same(const struct book_level *a, const struct book_level *b) {
    return a->size == b->size && a->price == b->price && a->orders == b->orders;
}

/* Are the best levels others than those of the last quote? Then they count as said. */
static inline int book_changed(struct book *book) {
    struct book_level bid = book_best(&book->bid), ask = book_best(&book->ask);
    if (book_same(&bid, &book->said_bid) && book_same(&ask, &book->said_ask)) return 0;
    book->said_bid = bid;
    book->said_ask = ask;
    return 1;
}

/* A quote of the levels said last: the last record of its event, which the one before it then is not. */
static inline void book_quote(struct tk_sink *sink, const struct book *book, uint32_t id, int64_t ts_event,
                              int64_t ts_receive, uint64_t source_sequence, double scale) {
    const struct book_level *bid = &book->said_bid, *ask = &book->said_ask;
    if (sink->spare_count || sink->count) sink_last(sink)->flags &= (uint16_t)~TK_FLAG_LAST_OF_BATCH;
    struct tk_record *record = sink_next(sink, TK_TYPE_QUOTE, id, ts_event, ts_receive);
    set_quote(record, bid->size ? (double)bid->price / scale : NAN, (double)bid->size,
              ask->size ? (double)ask->price / scale : NAN, (double)ask->size);
    record->quote.bid_count = bid->orders;
    record->quote.ask_count = ask->orders;
    record->source_sequence = source_sequence;
    record->flags |= TK_FLAG_LAST_OF_BATCH;
}

/* The best prices after a level2 record, into it. */
static inline void book_stamp(struct tk_record *record, const struct book *book, double scale) {
    struct book_level bid = book_best(&book->bid), ask = book_best(&book->ask);
    record->level2.best_bid = bid.size ? (double)bid.price / scale : NAN;
    record->level2.best_ask = ask.size ? (double)ask.price / scale : NAN;
}

#endif
