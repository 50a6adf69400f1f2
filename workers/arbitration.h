/* Line arbitration: several lossy copies of one numbered packet stream -> the stream, once and in order.
 *
 * Words: a *line* is one way on which copies arrive (A, B, answers to re-requests); a *stream* is one numbering (a MoldUDP64
 * session, an IEX-TP channel and session); a *hole* is messages that nobody has brought yet, while later ones are here.
 *
 *     datagram --> header --> end <= expected              a copy of what was had: dropped, counted for its line
 *                         --> first <= expected < end      handed on; then what was held and now follows
 *                         --> first > expected             a hole: held, sorted by number, until the hole is filled or
 *                                                          given up (`arb_give_up`, by the policy in arbitration.py)
 *
 * The first copy wins, whichever line brings it. A hole that is given up is not marked here: the packet after it is
 * handed on, and the decoder, which counts the same numbers, makes the exact GAP record. Heartbeats and ends of session name the
 * next number, and so reveal a hole at the tail.
 *
 * A stream that is met after its beginning starts with the packet met first, or, `from_start`, with message 1: what lies before
 * is a hole then, as any other, and until it is closed the stream *joins*. Packets of a joining stream that find the window full
 * are dropped (`put_off`) instead of the hole being given up: they are part of what is asked for next. Frames that an answer
 * to a re-request brings meanwhile are marked ARB_JOINED.
 *
 * Memory is one arena of equal slots, taken once: a datagram is received into a slot and stays there until it has been decoded.
 * At most `window` slots are held; when one more is wanted, the oldest hole of the stream concerned is given up
 * (counted in `overflows`). So held + received never exceed the slots, and nothing is copied.
 *
 * What moves the numbers must be a well-formed packet to its last byte: a stray datagram is refused, and a damaged copy does not
 * beat a good one.
 * No I/O, no clock, no Python. One thread. */
#ifndef TK_ARBITRATION_H
#define TK_ARBITRATION_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "workers/decoders/frames.h"

enum { ARB_JOINED = 1 };  /* `reserved` of a frame */
enum { ARB_LINES = 9, ARB_STREAMS = 8, ARB_KEY_BYTES = 16, ARB_END_OF_SESSION = 0xFFFF };

/* IEX-TP: the number of the message protocol inside, which alone is taken. */
enum { ARB_MOLD = 0, ARB_IEX_TOPS = 0x8003, ARB_IEX_DEEP = 0x8004 };

struct arb_header {
    uint8_t key[ARB_KEY_BYTES];   /* MoldUDP64: session; IEX-TP: channel and session as on the wire; zero padded */
    uint64_t first, end;          /* messages [first, end) */
    int over;                     /* end of session */
};

struct arb_held { uint64_t first, end; int64_t arrived_ns, ts_ns; uint32_t slot, size; uint32_t line; };

struct arb_stream {
    uint8_t key[ARB_KEY_BYTES];
    uint64_t expected;            /* number of the next message wanted */
    uint64_t join_to;             /* joins while `expected` is less */
    uint64_t lost_from, lost_to;  /* the last hole that was given up */
    uint64_t used;                /* when it had a packet last, in datagrams; 0 = free */
    int64_t hole_since_ns;        /* when the first hole was noticed; valid while count > 0 */
    struct arb_held *held;        /* by first; all begin beyond `expected` */
    size_t count;
    int over, rebase;             /* session has ended; the next packet is taken wherever it begins */
    uint64_t line_next[ARB_LINES];
};

struct arb_line {
    uint64_t packets, bytes, messages;  /* good packets, heartbeats included; messages in them */
    uint64_t duplicates, late;          /* packets that came second; of these, what came after it was given up */
    uint64_t missing;                   /* messages that this line skipped and has not brought since */
    uint64_t won;                       /* messages that this line brought first */
    uint64_t refused;                   /* datagrams that are none of this protocol, or cut off */
    int64_t last_ns;                    /* time of receipt of the last one */
};

struct arbiter {
    int protocol, from_start;
    uint32_t slots, slot_bytes, window, held;  /* `held` of all streams */
    uint8_t *arena;
    uint32_t *free_slot;                       /* a stack */
    uint32_t free_count;
    struct tk_frame *frame;                    /* handed on and not decoded yet */
    uint32_t frames;
    struct arb_stream stream[ARB_STREAMS];
    struct arb_stream *recent;
    struct arb_line line[ARB_LINES];
    uint64_t datagrams, lost, overflows, sessions_over, reordered;
    uint64_t joins, joined, put_off;           /* streams met late; messages that were asked for; packets dropped meanwhile */
};

static void arb_close(struct arbiter *a) {
    for (int i = 0; i < ARB_STREAMS; i++) free(a->stream[i].held);
    free(a->arena); free(a->free_slot); free(a->frame);
    memset(a, 0, sizeof *a);
}

/* 0 = no memory. `batch` slots are for receiving beside those that are held. */
static int arb_open(struct arbiter *a, int protocol, uint32_t window, uint32_t batch, uint32_t slot_bytes) {
    memset(a, 0, sizeof *a);
    a->protocol = protocol;
    a->window = window;
    a->slots = window + batch;
    a->slot_bytes = slot_bytes;
    a->arena = calloc(a->slots, slot_bytes);
    a->free_slot = calloc(a->slots, sizeof *a->free_slot);
    a->frame = calloc(a->slots, sizeof *a->frame);
    int ok = a->arena && a->free_slot && a->frame;
    for (int i = 0; i < ARB_STREAMS && ok; i++) ok = (a->stream[i].held = calloc(window + 1, sizeof(struct arb_held))) != NULL;
    if (!ok) return arb_close(a), 0;
    for (uint32_t i = 0; i < a->slots; i++) a->free_slot[a->free_count++] = a->slots - 1 - i;
    return 1;
}

static inline uint8_t *arb_slot(struct arbiter *a, uint32_t slot) { return a->arena + (size_t)slot * a->slot_bytes; }

/* ---- headers --------------------------------------------------------------------------------------------------- */

/* "MoldUDP64 Protocol Specification" 1.00, Downstream Packet: session 10, sequence u64, count u16; big-endian. */
static inline int arb_mold_header(struct arb_header *h, const uint8_t *p, uint32_t size) {
    if (size < 20) return 0;
    uint32_t count = be16(p + 18);
    memset(h->key, 0, ARB_KEY_BYTES);
    memcpy(h->key, p, 10);
    h->first = be64(p + 10);
    h->over = count == ARB_END_OF_SESSION;
    if (h->over) count = 0;
    h->end = h->first + count;
    return h->first != 0 && h->first <= INT64_MAX && size >= 20 + 2 * count;
}

/* "IEX Transport Protocol Specification" 1.25, Outbound Segment; little-endian. */
static inline int arb_iex_header(struct arb_header *h, const uint8_t *p, uint32_t size, int protocol) {
    if (size < 40 || p[0] != 1 || le16(p + 2) != protocol) return 0;
    memset(h->key, 0, ARB_KEY_BYTES);
    memcpy(h->key, p + 4, 8);
    h->first = le64(p + 24);
    h->over = 0;
    h->end = h->first + le16(p + 14);
    return h->first <= INT64_MAX && size >= 40u + le16(p + 12);
}

/* Do the message lengths consume the packet exactly? Not asked of copies of what was had. */
static int arb_sound(const struct arbiter *a, const struct arb_header *h, const uint8_t *p, uint32_t size) {
    uint32_t at = a->protocol == ARB_MOLD ? 20 : 40;
    if (a->protocol == ARB_MOLD) {
        for (int i = 0; i < 10; i++)
            if (p[i] < 0x20 || p[i] > 0x7E) return 0;
    } else {
        size = 40u + le16(p + 12);
    }
    for (uint64_t n = h->first; n < h->end; n++) {
        if (at + 2 > size) return 0;
        at += 2 + (a->protocol == ARB_MOLD ? be16(p + at) : le16(p + at));
    }
    return at == size;
}

/* ---- streams --------------------------------------------------------------------------------------------------- */

/* Messages [from, end) of the packet in `slot` are new, and `line` brought them. */
static inline void arb_hand_on(struct arbiter *a, const struct arb_stream *s, unsigned line, uint64_t from, uint64_t end,
                               uint32_t slot, uint32_t size, int64_t ts_ns) {
    int joined = line == ARB_LINES - 1 && from < s->join_to;
    if (joined) a->joined += end - from;
    a->frame[a->frames++] = (struct tk_frame){(uint64_t)slot * a->slot_bytes, size, 0, joined ? ARB_JOINED : 0, ts_ns};
}

static inline void arb_drop(struct arbiter *a, uint32_t slot) { a->free_slot[a->free_count++] = slot; }

/* Hands on what was held and now follows; `revealed`: the first one comes after a hole that was given up. */
static void arb_release(struct arbiter *a, struct arb_stream *s, int revealed) {
    size_t n = 0;
    for (; n < s->count && s->held[n].first <= s->expected; n++) {
        const struct arb_held *held = &s->held[n];
        if (held->end > s->expected || (revealed && n == 0)) {
            uint64_t from = s->expected;
            if (held->end > s->expected) {
                a->line[held->line].won += held->end - s->expected;
                s->expected = held->end;
            }
            arb_hand_on(a, s, held->line, from, s->expected, held->slot, held->size, held->ts_ns);
        } else {
            if (held->end > held->first) a->line[held->line].duplicates++;
            arb_drop(a, held->slot);
        }
    }
    if (!n) return;
    s->count -= n;
    a->held -= (uint32_t)n;
    memmove(s->held, s->held + n, s->count * sizeof *s->held);
    if (s->count) s->hole_since_ns = s->held[0].arrived_ns;
}

/* The first hole of the stream is lost: goes on behind it. */
static void arb_give_up(struct arbiter *a, struct arb_stream *s) {
    if (!s->count) return;
    s->lost_from = s->expected;
    s->lost_to = s->held[0].first;
    a->lost += s->lost_to - s->lost_from;
    s->expected = s->lost_to;
    arb_release(a, s, 1);
}

static void arb_drop_stream(struct arbiter *a, struct arb_stream *s) {
    while (s->count) arb_give_up(a, s);
    struct arb_held *held = s->held;
    memset(s, 0, sizeof *s);
    s->held = held;
}

/* The stream of that key, made (in place of the one that has been silent longest) if it is new; `made` says so. */
static inline struct arb_stream *arb_find(struct arbiter *a, const struct arb_header *h) {
    if (a->recent && !memcmp(a->recent->key, h->key, ARB_KEY_BYTES)) return a->recent;
    for (int i = 0; i < ARB_STREAMS; i++)
        if (a->stream[i].used && !memcmp(a->stream[i].key, h->key, ARB_KEY_BYTES)) return a->recent = &a->stream[i];
    return NULL;
}

static struct arb_stream *arb_make(struct arbiter *a, const struct arb_header *h) {
    struct arb_stream *oldest = &a->stream[0];
    for (int i = 1; i < ARB_STREAMS; i++)
        if (a->stream[i].used < oldest->used) oldest = &a->stream[i];
    arb_drop_stream(a, oldest);
    memcpy(oldest->key, h->key, ARB_KEY_BYTES);
    oldest->expected = h->first;
    if (a->from_start && h->first > 1) {
        oldest->expected = 1;
        oldest->join_to = h->first;
        a->joins++;
    }
    return a->recent = oldest;
}

/* Where in `held` a packet goes; SIZE_MAX = it is there already. */
static inline size_t arb_place(const struct arb_stream *s, const struct arb_header *h) {
    size_t at = 0, end = s->count;
    while (at < end) {
        size_t middle = (at + end) / 2;
        if (s->held[middle].first > h->first) end = middle;
        else at = middle + 1;
    }
    for (size_t i = at; i && i + 2 > at; i--)
        if (s->held[i - 1].end >= h->end && (h->end > h->first || s->held[i - 1].first == h->first)) return SIZE_MAX;
    return at;
}

/* ---- one datagram ---------------------------------------------------------------------------------------------- */

static inline void arb_note_line(struct arbiter *a, struct arb_stream *s, unsigned line, const struct arb_header *h) {
    struct arb_line *l = &a->line[line];
    uint64_t count = h->end - h->first, *next = &s->line_next[line];
    l->messages += count;
    if (!*next) *next = h->first;
    if (h->first > *next) l->missing += h->first - *next;
    else if (h->end <= *next) l->missing -= l->missing < count ? l->missing : count;  /* overtaken by a later one */
    if (h->end > *next) *next = h->end;
}

/* Takes the datagram in `slot`, which is the arbiter's from now on. `now_ns` is the time that holes are measured by,
 * `ts_ns` that of receipt. */
static void arb_offer(struct arbiter *a, unsigned line, uint32_t slot, uint32_t size, int64_t ts_ns, int64_t now_ns) {
    struct arb_header h;
    struct arb_line *l = &a->line[line];
    const uint8_t *p = arb_slot(a, slot);
    a->datagrams++;
    l->bytes += size;
    int known = a->protocol == ARB_MOLD ? arb_mold_header(&h, p, size) : arb_iex_header(&h, p, size, a->protocol);
    struct arb_stream *s = known ? arb_find(a, &h) : NULL;
    int made = 0;
    if (known && (!s || h.end > s->expected || h.first > s->expected || h.over) && !arb_sound(a, &h, p, size)) known = 0;
    if (!known) { l->refused++; arb_drop(a, slot); return; }
    if (!s) { s = arb_make(a, &h); made = 1; }
    s->used = a->datagrams;
    l->packets++;
    l->last_ns = ts_ns;
    arb_note_line(a, s, line, &h);
    if (h.over && !s->over) { s->over = 1; a->sessions_over++; }
    if (h.first > s->expected && s->rebase) {
        while (s->count) arb_give_up(a, s);
        if (h.first > s->expected) {
            a->lost += h.first - s->expected;
            s->lost_from = s->expected;
            s->expected = s->lost_to = h.first;
        }
        made = 1;  /* hand it on even if it is a heartbeat */
    }
    s->rebase = 0;
    if (h.first <= s->expected) {
        if (h.end > s->expected || made) {
            l->won += h.end - s->expected;
            arb_hand_on(a, s, line, s->expected, h.end, slot, size, ts_ns);
            s->expected = h.end;
            if (s->count) { a->reordered += s->held[0].first <= s->expected; arb_release(a, s, 0); }
            return;
        }
        if (h.end > h.first) {
            l->duplicates++;
            l->late += h.first < s->lost_to && h.end > s->lost_from;
        }
        arb_drop(a, slot);
        return;
    }
    size_t at = arb_place(s, &h);
    if (at == SIZE_MAX) {
        l->duplicates += h.end > h.first;
        arb_drop(a, slot);
        return;
    }
    if (a->held >= a->window && s->expected < s->join_to) {
        a->put_off++;
        if (h.end > s->join_to) s->join_to = h.end;
        arb_drop(a, slot);
        return;
    }
    if (a->held >= a->window) {
        a->overflows++;
        if (!s->count) {  /* the room is another stream's: the one with the oldest hole pays */
            struct arb_stream *oldest = NULL;
            for (int i = 0; i < ARB_STREAMS; i++)
                if (a->stream[i].count && (!oldest || a->stream[i].hole_since_ns < oldest->hole_since_ns)) oldest = &a->stream[i];
            arb_give_up(a, oldest);
        } else {
            arb_give_up(a, s);
        }
        if (h.first <= s->expected) {  /* the way is free up to this one */
            if (h.end > s->expected) {
                l->won += h.end - s->expected;
                arb_hand_on(a, s, line, s->expected, h.end, slot, size, ts_ns);
                s->expected = h.end;
                arb_release(a, s, 0);
            } else {
                l->duplicates += h.end > h.first;
                arb_drop(a, slot);
            }
            return;
        }
        at = arb_place(s, &h);
    }
    if (!s->count) s->hole_since_ns = now_ns;
    memmove(&s->held[at + 1], &s->held[at], (s->count - at) * sizeof *s->held);
    s->held[at] = (struct arb_held){h.first, h.end, now_ns, ts_ns, slot, size, line};
    s->count++;
    a->held++;
}

/* The frames have been decoded: their slots can be received into again. */
static void arb_recycle(struct arbiter *a) {
    for (uint32_t i = 0; i < a->frames; i++) arb_drop(a, (uint32_t)(a->frame[i].offset / a->slot_bytes));
    a->frames = 0;
}

#endif
