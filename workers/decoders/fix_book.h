/* Books of a FIX feed: levels by price of each instrument, and the entries that a venue names by an id.
 *
 * A venue changes a book by price, by position, or by the id of an entry; entries with ids may share a price, so a level has a
 * sum and a count. Sums are kept in units of 1e-8, which adding and taking away leaves exact. A side is an array of levels,
 * worst price first. Books are found by instrument id, dense from 0; entries by a hash of id and instrument, in one table
 * of all books. A book begun anew has another `life`, which makes its old entries void without a search. */
#ifndef TK_DECODERS_FIX_BOOK_H
#define TK_DECODERS_FIX_BOOK_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { FIX_MAX_BOOKS = 1 << 20, FIX_MAX_LEVELS = 1 << 16, FIX_MAX_ENTRIES = 1 << 22 };
#define FIX_UNITS 1e8

typedef __int128 fix_units;

struct fix_level { double price; fix_units size; uint32_t count, pad; };
struct fix_side { struct fix_level *level; uint32_t count, capacity; };
struct fix_book {
    struct fix_side side[2];       /* bids, asks */
    struct fix_level said[2];      /* the best ones of the last quote; count 0 = none */
    uint32_t life;
    uint8_t known;                 /* it began with a snapshot, and nothing was missed since */
    uint8_t touched;               /* by the message in hand */
    double volume, vwap;           /* of the session, as far as the venue says */
    int64_t ts_event;              /* newest of the message in hand */
    char venue[8];                 /* of what changed last */
};
struct fix_order { uint64_t key; uint32_t book, life; double price; fix_units size; uint8_t side, used; };

struct fix_books {
    struct fix_book **book;
    size_t books;
    struct fix_order *order;
    size_t mask, orders;
};

static inline fix_units fix_units_of(double size) { return (fix_units)llrint(size < 9e10 ? size * FIX_UNITS : 0) +
                                                    (size < 9e10 ? 0 : (fix_units)size * (fix_units)FIX_UNITS); }
static inline double fix_size(fix_units units) { return (double)units / FIX_UNITS; }

static void fix_books_clear(struct fix_books *books) {
    for (size_t i = 0; i < books->books; i++)
        if (books->book[i]) {
            free(books->book[i]->side[0].level);
            free(books->book[i]->side[1].level);
            free(books->book[i]);
        }
    free(books->book);
    free(books->order);
    *books = (struct fix_books){0};
}

/* NULL: no such instrument can be kept. */
static struct fix_book *fix_book_of(struct fix_books *books, uint32_t id) {
    if (id < books->books && books->book[id]) return books->book[id];
    if (id >= FIX_MAX_BOOKS) return NULL;
    if (id >= books->books) {
        size_t count = books->books ? books->books : 256;
        while (count <= id) count *= 2;
        struct fix_book **grown = realloc(books->book, count * sizeof *grown);
        if (!grown) return NULL;
        memset(grown + books->books, 0, (count - books->books) * sizeof *grown);
        books->book = grown;
        books->books = count;
    }
    struct fix_book *book = calloc(1, sizeof *book);
    if (book) book->life = 1, book->volume = book->vwap = NAN;
    return books->book[id] = book;
}

/* Index of the first level that is not worse than `price`. From the end: what changes stands near the best. */
static inline uint32_t fix_seek(const struct fix_side *side, int bid, double price) {
    uint32_t at = side->count;
    for (int step = 0; step < 8; step++) {
        if (!at || (bid ? side->level[at - 1].price < price : side->level[at - 1].price > price)) return at;
        at--;
    }
    uint32_t low = 0, high = at;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (bid ? side->level[middle].price < price : side->level[middle].price > price) low = middle + 1;
        else high = middle;
    }
    return low;
}

static inline int fix_there(const struct fix_side *side, uint32_t at, double price) {
    return at < side->count && side->level[at].price == price;
}

/* 0 = no memory, or too many levels. */
static int fix_insert(struct fix_side *side, uint32_t at, double price) {
    if (side->count == side->capacity) {
        uint32_t capacity = side->capacity ? side->capacity * 2 : 8;
        if (capacity > FIX_MAX_LEVELS) return 0;
        struct fix_level *grown = realloc(side->level, capacity * sizeof *grown);
        if (!grown) return 0;
        side->level = grown;
        side->capacity = capacity;
    }
    memmove(&side->level[at + 1], &side->level[at], (side->count - at) * sizeof *side->level);
    side->level[at] = (struct fix_level){.price = price};
    side->count++;
    return 1;
}

static inline void fix_erase(struct fix_side *side, uint32_t at) {
    side->count--;
    memmove(&side->level[at], &side->level[at + 1], (side->count - at) * sizeof *side->level);
}

/* FNV-1a of an entry's id, with its instrument; never 0. */
static inline uint64_t fix_key(const uint8_t *id, size_t size, uint64_t seed) {
    uint64_t h = 0xCBF29CE484222325u ^ seed * 0x9E3779B97F4A7C15u;
    for (size_t i = 0; i < size; i++) h = (h ^ id[i]) * 0x100000001B3u;
    h ^= h >> 29;
    return h ? h : 1;
}

static struct fix_order *fix_order_find(struct fix_books *books, uint64_t key) {
    if (!books->order) return NULL;
    for (size_t i = key & books->mask; books->order[i].used; i = (i + 1) & books->mask)
        if (books->order[i].key == key) return &books->order[i];
    return NULL;
}

/* The table again in `capacity` places, without what is void. 0 = no memory. */
static int fix_orders_again(struct fix_books *books, size_t capacity) {
    struct fix_order *grown = calloc(capacity, sizeof *grown);
    if (!grown) return 0;
    size_t kept = 0;
    for (size_t i = 0; books->order && i <= books->mask; i++) {
        struct fix_order *order = &books->order[i];
        if (!order->used || books->book[order->book]->life != order->life) continue;
        size_t j = order->key & (capacity - 1);
        while (grown[j].used) j = (j + 1) & (capacity - 1);
        grown[j] = *order;
        kept++;
    }
    free(books->order);
    books->order = grown;
    books->mask = capacity - 1;
    books->orders = kept;
    return 1;
}

/* A place for a key that is not there; NULL = no memory, or more entries than any venue has. */
static struct fix_order *fix_order_add(struct fix_books *books, uint64_t key) {
    if (!books->order || (books->orders + 1) * 2 > books->mask + 1) {
        size_t capacity = books->order ? books->mask + 1 : 1024;
        if (!fix_orders_again(books, capacity)) return NULL;
        if ((books->orders + 1) * 3 > capacity) {  /* void ones were not what filled it */
            if (capacity >= FIX_MAX_ENTRIES || !fix_orders_again(books, capacity * 2)) return NULL;
        }
    }
    size_t i = key & books->mask;
    while (books->order[i].used) i = (i + 1) & books->mask;
    books->orders++;
    books->order[i].key = key;
    books->order[i].used = 1;
    return &books->order[i];
}

/* Takes an entry out and closes the hole that it leaves in its run. */
static void fix_order_drop(struct fix_books *books, struct fix_order *order) {
    size_t hole = (size_t)(order - books->order), i = hole;
    for (;;) {
        i = (i + 1) & books->mask;
        if (!books->order[i].used) break;
        size_t home = books->order[i].key & books->mask;
        if (((i - home) & books->mask) >= ((i - hole) & books->mask)) {
            books->order[hole] = books->order[i];
            hole = i;
        }
    }
    books->order[hole].used = 0;
    books->orders--;
}

static inline struct fix_level fix_best(const struct fix_side *side) {
    return side->count ? side->level[side->count - 1] : (struct fix_level){0};
}

static inline int fix_same(const struct fix_level *a, const struct fix_level *b) {
    return a->count == b->count && a->price == b->price && a->size == b->size;
}

#endif
