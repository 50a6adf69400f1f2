/* workers/group_book.h against a plain list, on records that are no use too, and with less room than they want.
 * Run by tests/unit/test_group_book.py under the address sanitizer: groupbook SEED ROUNDS. Prints what it has done. */
#include <stdio.h>
#include <string.h>

#include "workers/group_book.h"

enum { MOST = 4096, ROWS = 12 };

static uint64_t state;
static unsigned roll(unsigned sides) {
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (unsigned)(state >> 33) % sides;
}

struct plain { struct group_level level[MOST]; int count; };

static int find(const struct plain *p, uint64_t key, unsigned side) {
    for (int i = 0; i < p->count; i++)
        if (p->level[i].key == key && p->level[i].side == side) return i;
    return -1;
}

static void take(struct plain *p, int at) { p->level[at] = p->level[--p->count]; }

static void shift(struct plain *p, unsigned side, uint64_t from, int by) {
    for (int i = p->count - 1; i >= 0; i--) {
        if (p->level[i].side != side || p->level[i].key < from) continue;
        p->level[i].key += (uint64_t)(int64_t)by;
        if (p->level[i].key >= ROWS) take(p, i);
    }
}

#define REQUIRE(what) do { if (!(what)) { printf("line %d: %s\n", __LINE__, #what); return 1; } } while (0)

static int round_of(unsigned form, uint64_t limit) {
    static struct plain plain;
    static struct tk_record out[MOST + 1];
    struct group_book book;
    uint64_t slots = 0, refused = 0;
    memset(&book, 0, sizeof book);
    plain.count = 0;
    const unsigned prices = 2 + roll(form == GROUP_BOOK_BY_ROW ? ROWS : 600), steps = 200 + roll(3000);
    for (unsigned step = 0; step < steps; step++) {
        struct tk_record record;
        memset(&record, 0, sizeof record);
        record.record_type = TK_TYPE_LEVEL2;
        record.ts_event = record.ts_receive = (int64_t)step + 1;
        record.side = roll(20) ? (uint8_t)(1 + roll(2)) : (uint8_t)roll(256);
        record.level2.price = roll(50) ? (double)roll(prices) - prices / 2 : NAN;
        if (!roll(100)) record.level2.price = -0.0;
        record.level2.size = roll(4) ? 1 + roll(9) : 0;
        record.level2.action = (uint8_t)(1 + roll(3));
        record.level2.level = form == GROUP_BOOK_BY_ROW ? (uint16_t)roll(ROWS + 1) : GROUP_BOOK_ANY_LEVEL;
        record.level2.depth = form == GROUP_BOOK_BY_ROW ? ROWS : 0;
        record.source_sequence = roll(prices);
        if (!roll(900)) record.level2.action = TK_ACTION_CLEAR;
        const int clears = record.level2.action == TK_ACTION_CLEAR;
        if (!roll(900)) { group_book_void(&book, &slots); plain.count = 0; REQUIRE(!book.told || !book.whole); }
        const uint32_t before = book.count;
        const int ok = group_book_tell(&book, &record, form == GROUP_BOOK_BY_ORDER, &slots, limit);
        REQUIRE(slots == book.room && slots <= limit);
        if (clears) { plain.count = 0; REQUIRE(book.whole); }
        else if (isfinite(record.level2.price) && (record.side == 1 || record.side == 2) &&
                 (form != GROUP_BOOK_BY_ROW || record.level2.level < ROWS)) {
            const double price = record.level2.price + 0.0;
            uint64_t key = form == GROUP_BOOK_BY_ROW ? record.level2.level : record.source_sequence;
            if (form == GROUP_BOOK_BY_PRICE) memcpy(&key, &price, 8);
            const int gone = record.level2.action == TK_ACTION_DELETE || (form != GROUP_BOOK_BY_ROW && !record.level2.size);
            int at = find(&plain, key, record.side);
            if (gone) {
                if (at >= 0) take(&plain, at);
                if (form == GROUP_BOOK_BY_ROW) shift(&plain, record.side, key + 1, -1);
            } else {
                if (form == GROUP_BOOK_BY_ROW && record.level2.action == TK_ACTION_ADD) {
                    shift(&plain, record.side, key, 1);
                    at = find(&plain, key, record.side);
                }
                if (ok) {
                    if (at < 0) at = plain.count++;
                    plain.level[at] = (struct group_level){key, record.level2.price, record.level2.size, 0, record.side, {0}};
                } else {
                    REQUIRE(at < 0 && !book.whole);
                    refused++;
                }
            }
        } else {
            REQUIRE(ok && book.count == before);
        }
        REQUIRE(book.count == (uint32_t)plain.count);
        if (roll(200)) continue;
        REQUIRE(group_book_picture(&book, out, 1, 77));
        REQUIRE(out[0].level2.action == TK_ACTION_CLEAR && out[book.count].flags & TK_FLAG_LAST_OF_BATCH);
        for (uint32_t i = 1; i <= book.count; i++) {
            uint64_t key = form == GROUP_BOOK_BY_ROW ? out[i].level2.level : out[i].source_sequence;
            const double price = out[i].level2.price + 0.0;
            if (form == GROUP_BOOK_BY_PRICE) memcpy(&key, &price, 8);
            const int at = find(&plain, key, out[i].side);
            REQUIRE(at >= 0 && plain.level[at].price == out[i].level2.price && plain.level[at].size == out[i].level2.size);
            if (i == 1 || out[i].side != out[i - 1].side || form == GROUP_BOOK_BY_ROW) continue;
            REQUIRE(out[i].side == 1 ? out[i].level2.price <= out[i - 1].level2.price : out[i].level2.price >= out[i - 1].level2.price);
        }
    }
    group_book_close(&book, &slots);
    REQUIRE(slots == 0);
    return refused && limit > 1000 ? 1 : 0;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    state = strtoull(argv[1], NULL, 10);
    const unsigned rounds = (unsigned)strtoul(argv[2], NULL, 10);
    for (unsigned n = 0; n < rounds; n++)
        if (round_of(n % 3, n % 2 ? 1 << 20 : 64)) return 1;
    printf("%u rounds\n", rounds);
    return 0;
}
