/* Order map: the venue's order reference -> what is left of the order. One per decoder of an order-by-order feed.
 *
 * Open addressing, linear probing, removal by shifting back (no tombstones: a day adds and removes hundreds of millions).
 * An entry is 32 bytes, two to a cache line; `side` 0 marks a free one. Grows by doubling at 1/2 full; beyond
 * `limit` live orders an add is refused and counted, so that damaged input cannot eat the machine.
 * A book builder walks the same entries: price, side and shares are all it needs. */
#ifndef TK_DECODERS_ORDERS_H
#define TK_DECODERS_ORDERS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct tk_order {
    uint64_t reference;
    int64_t price;        /* in the venue's own scale: 1e-4 for ITCH, 1e-9 for DBN */
    uint32_t shares;      /* left */
    uint32_t instrument_id;
    uint8_t side;         /* enum tk_side; 0 = free entry */
    uint8_t pad;
    uint16_t group;       /* the decoder's own: PITCH's unit; 0 when put */
    uint32_t unused;
};
_Static_assert(sizeof(struct tk_order) == 32, "two orders to a cache line");

struct tk_orders {
    struct tk_order *entry;
    size_t mask, count, limit;
};

static inline size_t orders_slot(const struct tk_orders *map, uint64_t reference) {
    return (size_t)(reference * 0x9E3779B97F4A7C15u >> 20) & map->mask;
}

static inline struct tk_order *orders_find(const struct tk_orders *map, uint64_t reference) {
    if (!map->entry) return NULL;
    for (size_t i = orders_slot(map, reference); map->entry[i].side; i = (i + 1) & map->mask)
        if (map->entry[i].reference == reference) return &map->entry[i];
    return NULL;
}

/* Starts loading the entry of a reference that will be looked up soon: a live map is far larger than the caches. */
static inline void orders_prefetch(const struct tk_orders *map, uint64_t reference) {
    if (map->entry) __builtin_prefetch(&map->entry[orders_slot(map, reference)]);
}

static int orders_grow(struct tk_orders *map) {
    struct tk_orders grown = {NULL, map->entry ? map->mask * 2 + 1 : 4095, map->count, map->limit};
    grown.entry = calloc(grown.mask + 1, sizeof *grown.entry);
    if (!grown.entry) return 0;
    for (size_t i = 0; map->entry && i <= map->mask; i++) {
        if (!map->entry[i].side) continue;
        size_t j = orders_slot(&grown, map->entry[i].reference);
        while (grown.entry[j].side) j = (j + 1) & grown.mask;
        grown.entry[j] = map->entry[i];
    }
    free(map->entry);
    *map = grown;
    return 1;
}

/* Adds, or replaces an order of the same reference. NULL at the limit or without memory. */
static inline struct tk_order *orders_put(struct tk_orders *map, uint64_t reference, uint32_t instrument_id,
                                          unsigned side, int64_t price, uint32_t shares) {
    struct tk_order *order = orders_find(map, reference);
    if (!order) {
        if (map->count >= map->limit) return NULL;
        if ((!map->entry || (map->count + 1) * 2 > map->mask + 1) && !orders_grow(map)) return NULL;
        size_t i = orders_slot(map, reference);
        while (map->entry[i].side) i = (i + 1) & map->mask;
        order = &map->entry[i];
        map->count++;
    }
    *order = (struct tk_order){reference, price, shares, instrument_id, (uint8_t)side, 0, 0, 0};
    return order;
}

static inline void orders_remove(struct tk_orders *map, struct tk_order *order) {
    size_t hole = (size_t)(order - map->entry);
    for (size_t i = (hole + 1) & map->mask; map->entry[i].side; i = (i + 1) & map->mask) {
        size_t home = orders_slot(map, map->entry[i].reference);
        if (((i - home) & map->mask) >= ((i - hole) & map->mask)) {  /* its probe path crosses the hole */
            map->entry[hole] = map->entry[i];
            hole = i;
        }
    }
    map->entry[hole].side = 0;
    map->count--;
}

static inline void orders_clear(struct tk_orders *map) {
    if (map->entry) memset(map->entry, 0, (map->mask + 1) * sizeof *map->entry);
    map->count = 0;
}

#endif
