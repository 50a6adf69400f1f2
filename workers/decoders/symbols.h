/* Symbol table of one decoder: the symbol's bytes on the wire -> instrument id, in native code.
 *
 * Open addressing with linear probing; keys are up to 32 bytes, zero padded, compared whole. Nothing is ever removed. The
 * kernel only looks up; on a miss it stops with TK_MISS and the Cython shell asks Python's `intern` once per symbol. An
 * entry whose id is TK_REFUSED is a name that intern() turned down: its messages are counted and skipped. */
#ifndef TK_DECODERS_SYMBOLS_H
#define TK_DECODERS_SYMBOLS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TK_REFUSED 0xFFFFFFFFu

struct tk_symbol {
    uint64_t key[4];
    uint32_t id;
    uint32_t used;
    uint64_t last[3];  /* the venue's last sequence per stream of this symbol; 0 = none yet. Meaning is the decoder's */
};

struct tk_symbols {
    struct tk_symbol *entry;
    size_t mask, count;       /* capacity - 1; entries used */
    struct tk_symbol *recent; /* feeds repeat symbols: one compare before the probe */
    uint64_t missed[4];       /* the key of the last miss */
};

static inline uint64_t symbols_hash(const uint64_t key[4]) {
    uint64_t h = key[0] * 0x9E3779B97F4A7C15u ^ key[1] * 0xC2B2AE3D27D4EB4Fu;
    h ^= key[2] * 0x165667B19E3779F9u ^ key[3] * 0xD6E8FEB86659FD93u;
    return h ^ h >> 29;
}

static inline int symbols_same(const uint64_t a[4], const uint64_t b[4]) {
    return ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3])) == 0;
}

static inline int symbols_key(uint64_t key[4], const uint8_t *text, size_t size) {
    if (size == 0 || size > 32) return 0;
    memset(key, 0, 32);
    memcpy(key, text, size);
    return 1;
}

/* NULL on a miss, with the key kept in `missed`. */
static inline struct tk_symbol *symbols_find(struct tk_symbols *table, const uint64_t key[4]) {
    if (table->recent && symbols_same(table->recent->key, key)) return table->recent;
    if (table->entry)
        for (size_t i = symbols_hash(key) & table->mask; table->entry[i].used; i = (i + 1) & table->mask)
            if (symbols_same(table->entry[i].key, key)) return table->recent = &table->entry[i];
    memcpy(table->missed, key, 32);
    return NULL;
}

/* Adds a key that is not there. Returns 0 when there is no memory. */
static int symbols_add(struct tk_symbols *table, const uint64_t key[4], uint32_t id) {
    if (!table->entry || (table->count + 1) * 2 > table->mask + 1) {
        size_t capacity = table->entry ? (table->mask + 1) * 2 : 256;
        struct tk_symbol *grown = calloc(capacity, sizeof *grown);
        if (!grown) return 0;
        for (size_t i = 0; table->entry && i <= table->mask; i++) {
            if (!table->entry[i].used) continue;
            size_t j = symbols_hash(table->entry[i].key) & (capacity - 1);
            while (grown[j].used) j = (j + 1) & (capacity - 1);
            grown[j] = table->entry[i];
        }
        free(table->entry);
        table->entry = grown;
        table->mask = capacity - 1;
        table->recent = NULL;
    }
    size_t i = symbols_hash(key) & table->mask;
    while (table->entry[i].used) i = (i + 1) & table->mask;
    struct tk_symbol *entry = &table->entry[i];
    memcpy(entry->key, key, 32);
    entry->id = id;
    entry->used = 1;
    table->count++;
    return 1;
}

#endif
