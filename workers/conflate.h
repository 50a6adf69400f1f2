/* What waits to be sent while fan-out is overloaded: of each topic the newest record of each key, in the order of their numbers.
 *
 * Plain C11, called by workers/_conflate.pyx, in the one process that owns it. No clock, no system call, no allocation after
 * `tk_conflate_open`; everything is bounded by `capacity` records, and what finds no room is shed and counted.
 *
 *     key          quote: one    bar: its interval    level2: side and level; side and price where the venue sends the full book
 *
 *     hold(record) -> its topic waits already: the record of the same key is replaced, the newer one goes to the end
 *                     it does not:             a place for the topic, which joins the queue of its class for the next pass
 *     begin_pass   -> the topics of a class that wait now are those that `take` gives, until it has given all of them: so a
 *                     busy topic starves no other of its class
 *     take         -> topic after topic, class by class; of each all records, ascending
 *
 * A record that a hole in its topic's numbers precedes leaves with Flag.GAP_BEFORE: who reads it knows that the hole is meant.
 * `marks` (one byte a topic, shared with the router) says HELD while a topic waits and HOLE when its newest record was shed, so
 * that the next one that is sent past this store is flagged as well.
 */
#ifndef TICKENGINE_CONFLATE_H
#define TICKENGINE_CONFLATE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "shm/include/tickengine.h"

enum {
    TK_CONFLATE_CLASSES = 3, /* what goes first: 0 ranked high, 1 normal, 2 low */
    TK_CONFLATE_TIERS = 3,   /* enum tk_priority */
    TK_CONFLATE_KEYS = 64,   /* of one topic; the oldest goes when one more comes */
    TK_FRAME_HEADER = 16,    /* workers/wire.py */
};
#define TK_CONFLATE_FRAME (TK_FRAME_HEADER + sizeof(struct tk_record))

enum tk_mark { TK_MARK_NOTHING = 0, TK_MARK_HOLE = 1, TK_MARK_HELD = 2 };

struct tk_held {
    struct tk_record record;
    uint64_t number, key;
    uint32_t next; /* of the same topic, younger; or the next free one */
    uint16_t ring;
    uint8_t tier;
};

struct tk_place { /* a topic that waits */
    uint64_t expected; /* number that subscribers have not had yet */
    uint64_t last;     /* newest number that came, kept or not */
    int64_t since_ns;
    uint32_t topic, oldest, newest, records;
    uint32_t next; /* in its queue, or the next free one */
};

struct tk_queue {
    uint32_t first, last;
};

struct tk_conflate {
    struct tk_held *held;
    struct tk_place *places;
    uint32_t *place_of; /* [topics] 1 + index; 0 = does not wait */
    uint8_t *marks;     /* [topics], the caller's */
    uint32_t topics, capacity, free_held, free_place, waiting, waiting_topics;
    struct tk_queue pass[TK_CONFLATE_CLASSES], later[TK_CONFLATE_CLASSES];
    uint64_t offered[TK_CONFLATE_TIERS], conflated[TK_CONFLATE_TIERS], shed[TK_CONFLATE_TIERS], taken[TK_CONFLATE_TIERS];
};

#define TK_NONE UINT32_MAX

static inline uint8_t tk_tier(uint8_t priority) { return priority > TK_PRIORITY_LOW ? TK_PRIORITY_LOW : priority; }

static inline uint64_t tk_conflate_key(const struct tk_record *r) {
    uint64_t key = 0;
    if (r->record_type == TK_TYPE_BAR) return r->bar.interval_s;
    if (r->record_type != TK_TYPE_LEVEL2) return 0;
    if (r->level2.depth != 0) return (uint64_t)(r->side + 1) << 32 | r->level2.level;
    memcpy(&key, &r->level2.price, 8);
    return key ^ (uint64_t)(r->side + 1) << 62;
}

static inline void tk_queue_add(struct tk_conflate *c, struct tk_queue *queue, uint32_t place) {
    c->places[place].next = TK_NONE;
    if (queue->first == TK_NONE) queue->first = place;
    else c->places[queue->last].next = place;
    queue->last = place;
}

static inline void tk_conflate_free(struct tk_conflate *c, uint32_t held) {
    c->held[held].next = c->free_held;
    c->free_held = held;
    c->waiting--;
}

/* Take one record out of a place, `before` the one that precedes it there (TK_NONE = it is the oldest). */
static inline void tk_place_remove(struct tk_conflate *c, struct tk_place *place, uint32_t before, uint32_t held) {
    uint32_t after = c->held[held].next;
    if (before == TK_NONE) place->oldest = after;
    else c->held[before].next = after;
    if (place->newest == held) place->newest = before;
    place->records--;
    tk_conflate_free(c, held);
}

/* The record is not kept; its topic's next one will be flagged. */
static inline void tk_conflate_shed(struct tk_conflate *c, uint32_t topic, uint64_t number, uint8_t tier) {
    c->shed[tier]++;
    if (c->place_of[topic]) c->places[c->place_of[topic] - 1].last = number;
    else c->marks[topic] = TK_MARK_HOLE;
}

/* Whether a record of that tier may wait: a quarter of the room is not for low. */
static inline int tk_conflate_room(const struct tk_conflate *c, uint8_t tier) {
    return c->waiting < (tier == TK_PRIORITY_LOW ? c->capacity - c->capacity / 4 : c->capacity);
}

/* Let a record wait, or (`shed`: bit t for tier t) shed it. Numbers of a topic ascend from call to call. `ranked`: its
 * instrument ranks high, so that normal goes first and low counts as normal and is not shed. */
static inline void tk_conflate_hold(struct tk_conflate *c, const struct tk_record *r, uint32_t topic, uint64_t number,
                                    uint16_t ring, int64_t now_ns, uint32_t shed, int ranked) {
    const uint8_t tier = tk_tier(r->priority);
    const uint64_t key = tk_conflate_key(r);
    struct tk_place *place;
    uint32_t index, before = TK_NONE;
    c->offered[tier]++;
    if ((shed >> tier & 1) && !ranked) {
        tk_conflate_shed(c, topic, number, tier);
        return;
    }
    if (c->place_of[topic]) {
        place = &c->places[c->place_of[topic] - 1];
        if (r->record_type == TK_TYPE_LEVEL2 && r->level2.action == TK_ACTION_CLEAR) {
            while (place->records) { /* what was in the book is void */
                c->conflated[c->held[place->oldest].tier]++;
                tk_place_remove(c, place, TK_NONE, place->oldest);
            }
        }
        for (index = place->oldest; index != TK_NONE; before = index, index = c->held[index].next) {
            if (c->held[index].key == key) {
                c->conflated[c->held[index].tier]++;
                tk_place_remove(c, place, before, index);
                break;
            }
        }
        if (place->records >= TK_CONFLATE_KEYS) {
            c->shed[c->held[place->oldest].tier]++;
            tk_place_remove(c, place, TK_NONE, place->oldest);
        }
    } else if (!tk_conflate_room(c, tier) || c->free_place == TK_NONE) { /* a place may have no record: a cleared book's */
        tk_conflate_shed(c, topic, number, tier);
        return;
    } else {
        uint32_t which = c->free_place;
        place = &c->places[which];
        c->free_place = place->next;
        place->topic = topic;
        place->oldest = place->newest = TK_NONE;
        place->records = 0;
        place->since_ns = now_ns;
        place->expected = c->marks[topic] == TK_MARK_HOLE ? number - 1 : number;
        c->place_of[topic] = which + 1;
        c->marks[topic] = TK_MARK_HELD;
        c->waiting_topics++;
        tk_queue_add(c, &c->later[ranked ? (tier == TK_PRIORITY_LOW ? 1 : 0) : (tier == TK_PRIORITY_LOW ? 2 : 1)], which);
    }
    place->last = number;
    if (!tk_conflate_room(c, tier)) {
        c->shed[tier]++;
        return;
    }
    index = c->free_held;
    c->free_held = c->held[index].next;
    c->waiting++;
    c->held[index].record = *r;
    c->held[index].number = number;
    c->held[index].key = key;
    c->held[index].ring = ring;
    c->held[index].tier = tier;
    c->held[index].next = TK_NONE;
    if (place->records++) c->held[place->newest].next = index;
    else place->oldest = index;
    place->newest = index;
}

/* In each class whose pass is over, what waits now is what `tk_conflate_take` gives next. */
static inline void tk_conflate_begin_pass(struct tk_conflate *c) {
    for (int k = 0; k < TK_CONFLATE_CLASSES; k++) {
        if (c->pass[k].first != TK_NONE) continue;
        c->pass[k] = c->later[k];
        c->later[k].first = c->later[k].last = TK_NONE;
    }
}

/* Up to `limit` records of this pass into `records`, and each once more as a raw frame, header and all, into `frames`. */
static inline uint32_t tk_conflate_take(struct tk_conflate *c, uint32_t limit, struct tk_record *records, char *frames,
                                        uint32_t *topics, uint64_t *numbers, uint16_t wire_version) {
    uint32_t count = 0;
    for (int k = 0; k < TK_CONFLATE_CLASSES; k++) {
        while (count < limit && c->pass[k].first != TK_NONE) {
            const uint32_t which = c->pass[k].first;
            struct tk_place *place = &c->places[which];
            while (count < limit && place->records) {
                const uint32_t index = place->oldest, one = 1;
                struct tk_held *held = &c->held[index];
                char *frame = frames + (uint64_t)count * TK_CONFLATE_FRAME;
                if (held->number != place->expected) held->record.flags |= TK_FLAG_GAP_BEFORE;
                place->expected = held->number + 1;
                records[count] = held->record;
                topics[count] = place->topic;
                numbers[count] = held->number;
                memcpy(frame, &wire_version, 2);
                memcpy(frame + 2, &held->ring, 2);
                memcpy(frame + 4, &one, 4);
                memcpy(frame + 8, &held->number, 8);
                memcpy(frame + TK_FRAME_HEADER, &held->record, sizeof held->record);
                c->taken[held->tier]++;
                tk_place_remove(c, place, TK_NONE, index);
                count++;
            }
            if (place->records) return count;
            c->pass[k].first = place->next;
            c->place_of[place->topic] = 0;
            c->marks[place->topic] = place->expected == place->last + 1 ? TK_MARK_NOTHING : TK_MARK_HOLE;
            c->waiting_topics--;
            place->next = c->free_place;
            c->free_place = which;
        }
    }
    return count;
}

/* Since when the topic that has waited longest does; 0 = none waits. */
static inline int64_t tk_conflate_since(const struct tk_conflate *c) {
    int64_t since = 0;
    for (int k = 0; k < 2 * TK_CONFLATE_CLASSES; k++) {
        const struct tk_queue *queue = k < TK_CONFLATE_CLASSES ? &c->pass[k] : &c->later[k - TK_CONFLATE_CLASSES];
        if (queue->first != TK_NONE && (since == 0 || c->places[queue->first].since_ns < since))
            since = c->places[queue->first].since_ns;
    }
    return since;
}

static inline void tk_conflate_close(struct tk_conflate *c) {
    free(c->held);
    free(c->places);
    free(c->place_of);
    memset(c, 0, sizeof *c);
}

/* Room for `capacity` records. 0, or -1 without memory. `marks` must stay. */
static inline int tk_conflate_open(struct tk_conflate *c, uint32_t capacity, uint32_t topics, uint8_t *marks) {
    memset(c, 0, sizeof *c);
    c->held = (struct tk_held *)calloc(capacity, sizeof *c->held);
    c->places = (struct tk_place *)calloc(capacity, sizeof *c->places);
    c->place_of = (uint32_t *)calloc(topics, sizeof *c->place_of);
    if (!c->held || !c->places || !c->place_of) {
        tk_conflate_close(c);
        return -1;
    }
    c->topics = topics;
    c->capacity = capacity;
    c->marks = marks;
    for (uint32_t i = 0; i < capacity; i++) c->held[i].next = c->places[i].next = i + 1 < capacity ? i + 1 : TK_NONE;
    for (int k = 0; k < TK_CONFLATE_CLASSES; k++)
        c->pass[k].first = c->pass[k].last = c->later[k].first = c->later[k].last = TK_NONE;
    return 0;
}

#endif
