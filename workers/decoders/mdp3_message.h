/* One CME MDP 3.0 message: its template's layout, the groups of its entries, and what a field of an entry says.
 *
 * Called by mdp3_market.h and mdp3.h. It reads bytes that are there: whoever asks has measured them, by `mdp3_group_at` and the
 * layout. It knows no instrument and no book, and makes no record. Source: CME's published message schema (id 1), see mdp3.h. */
#ifndef TK_DECODERS_MDP3_MESSAGE_H
#define TK_DECODERS_MDP3_MESSAGE_H

#include "workers/decoders/frames.h"
#include "workers/decoders/sink.h"

enum { MDP3_HEAD_BYTES = 10, MDP3_SCHEMA = 1, MDP3_TEMPLATES = 70, MDP3_SYMBOL_AT = 35, MDP3_SYMBOL_BYTES = 20,
       MDP3_SECURITY_AT = 55, MDP3_GROUP_AT = 23, MDP3_GROUP_BYTES = 6, MDP3_STATUS_ROOT = 30 };
enum { MDP3_LAST_QUOTE = 0x04, MDP3_END = 0x80 };  /* match event indicator */
enum mdp3_kind { MDP3_UNKNOWN, MDP3_COUNTED, MDP3_HEARTBEAT, MDP3_RESET, MDP3_DEFINITION, MDP3_STATUS, MDP3_STATISTICS, MDP3_BOOK,
                 MDP3_TRADE, MDP3_ORDERS, MDP3_SNAPSHOT, MDP3_ORDER_SNAPSHOT };

/* Bytes of root and entry that must be there, and where in an entry things stand. */
struct mdp3_layout {
    uint8_t kind, root, entry, price, size, wide /* size is u64 */, security, report, orders, level, action, type;
};

/* Columns: kind, root, entry, price, size, wide, security, report, orders, level (or trade id), action, type (or aggressor). */
static const struct mdp3_layout mdp3_layouts[MDP3_TEMPLATES] = {
    [4] = {MDP3_RESET, 9}, [12] = {MDP3_HEARTBEAT}, [15] = {MDP3_COUNTED}, [16] = {MDP3_COUNTED},
    [30] = {MDP3_STATUS, MDP3_STATUS_ROOT},
    [39] = {MDP3_COUNTED}, [59] = {MDP3_COUNTED}, [60] = {MDP3_COUNTED}, [61] = {MDP3_COUNTED}, [62] = {MDP3_COUNTED},
    [68] = {MDP3_COUNTED},
    [27] = {MDP3_DEFINITION, 59}, [29] = {MDP3_DEFINITION, 59}, [41] = {MDP3_DEFINITION, 59}, [54] = {MDP3_DEFINITION, 59},
    [55] = {MDP3_DEFINITION, 59}, [56] = {MDP3_DEFINITION, 59}, [57] = {MDP3_DEFINITION, 59}, [58] = {MDP3_DEFINITION, 59},
    [63] = {MDP3_DEFINITION, 59},
    [33] = {MDP3_STATISTICS, 11, 20, 0, 8, 0, 12, 16}, [49] = {MDP3_STATISTICS, 11, 20, 0, 8, 0, 12, 16},
    [34] = {MDP3_STATISTICS, 11, 32, 0, 0, 0, 24, 28}, [50] = {MDP3_STATISTICS, 11, 32, 0, 0, 0, 24, 28},
    [35] = {MDP3_STATISTICS, 11, 16, 0, 0, 0, 8, 12}, [51] = {MDP3_STATISTICS, 11, 16, 0, 0, 0, 8, 12},
    [37] = {MDP3_STATISTICS, 11, 12, 0, 0, 0, 4, 8}, [66] = {MDP3_STATISTICS, 11, 16, 0, 0, 1, 8, 12},
    [67] = {MDP3_STATISTICS, 11, 24, 0, 8, 1, 16, 20},
    [32] = {MDP3_BOOK, 11, 27, 0, 8, 0, 12, 16, 20, 24, 25, 26}, [46] = {MDP3_BOOK, 11, 27, 0, 8, 0, 12, 16, 20, 24, 25, 26},
    [64] = {MDP3_BOOK, 11, 31, 0, 8, 1, 16, 20, 24, 28, 29, 30},
    [42] = {MDP3_TRADE, 11, 26, 0, 8, 0, 12, 16, 20, 26, 25, 24}, [48] = {MDP3_TRADE, 11, 26, 0, 8, 0, 12, 16, 20, 26, 25, 24},
    [65] = {MDP3_TRADE, 11, 34, 0, 8, 1, 16, 20, 24, 28, 33, 32},
    [43] = {MDP3_ORDERS, 11, 34, 16, 24, 0, 28, 0, 0, 0, 32, 33}, [47] = {MDP3_ORDERS, 11, 34, 16, 24, 0, 28, 0, 0, 0, 32, 33},
    [38] = {MDP3_SNAPSHOT, 24, 22, 0, 8, 0, 0, 0, 12, 16, 0, 21}, [52] = {MDP3_SNAPSHOT, 24, 22, 0, 8, 0, 0, 0, 12, 16, 0, 21},
    [69] = {MDP3_SNAPSHOT, 24, 23, 0, 8, 1, 0, 0, 16, 20, 0, 22},
    [44] = {MDP3_ORDER_SNAPSHOT, 28, 29, 16, 24, 0, 0, 0, 0, 0, 0, 28},
    [53] = {MDP3_ORDER_SNAPSHOT, 28, 29, 16, 24, 0, 0, 0, 0, 0, 0, 28}};

struct mdp3_group { const uint8_t *entry; unsigned length, count; };

static inline unsigned mdp3_template(const uint8_t *m) { return le16(m + 4); }

static inline const struct mdp3_layout *mdp3_layout_of(unsigned template) {
    static const struct mdp3_layout unknown = {MDP3_UNKNOWN};
    return template < MDP3_TEMPLATES ? &mdp3_layouts[template] : &unknown;
}

/* The group that begins at *at, and *at behind it; 0 = it does not fit, or its entries are too short. */
static int mdp3_group_at(const uint8_t *m, size_t size, size_t *at, unsigned head, unsigned wanted, struct mdp3_group *group) {
    if (size - *at < head) return 0;
    *group = (struct mdp3_group){m + *at + head, le16(m + *at), m[*at + head - 1]};
    size_t bytes = (size_t)group->length * group->count;
    if ((group->count && group->length < wanted) || bytes > size - *at - head) return 0;
    *at += head + bytes;
    return 1;
}

/* The first group of a message of that layout, which was found to be long enough. */
static inline int mdp3_entries(const struct mdp3_layout *layout, const uint8_t *m, size_t size, size_t *at,
                               struct mdp3_group *group) {
    *at = MDP3_HEAD_BYTES + (size_t)le16(m + 2);
    return mdp3_group_at(m, size, at, 3, layout->entry, group);
}

/* 1: a bid, 2: an offer, of the real book; 3: the book is reset; 0: anything else. */
static inline unsigned mdp3_side(uint8_t type) {
    return type == '0' ? TK_SIDE_BUY : type == '1' ? TK_SIDE_SELL : type == 'J' ? 3 : 0;
}

static inline uint64_t mdp3_size(const struct mdp3_layout *layout, const uint8_t *e) {
    if (layout->wide) return le64(e + layout->size) == UINT64_MAX ? 0 : le64(e + layout->size);
    int32_t size = (int32_t)le32(e + layout->size);
    return size == INT32_MAX || size < 0 ? 0 : (uint64_t)size;
}

static inline uint32_t mdp3_orders(const struct mdp3_layout *layout, const uint8_t *e) {
    int32_t orders = (int32_t)le32(e + layout->orders);
    return orders > 0 && orders != INT32_MAX ? (uint32_t)orders : 0;
}

static inline double mdp3_scale(unsigned template) { return template < 45 ? 1e7 : 1e9; }
/* Books keep prices of all templates in 1e-9; INT64_MAX = there is none. */
static inline int64_t mdp3_price9(unsigned template, int64_t price) {
    int64_t wide;
    if (template >= 45) return price;
    return __builtin_mul_overflow(price, (int64_t)100, &wide) ? INT64_MAX : wide;
}

static inline double mdp3_number(unsigned template, const uint8_t *p) {
    int64_t price = (int64_t)le64(p);
    return price == INT64_MAX ? NAN : (double)price / mdp3_scale(template);
}

#endif
