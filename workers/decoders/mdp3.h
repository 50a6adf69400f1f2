/* CME MDP 3.0: packets of simple binary messages -> records.
 *
 * Layouts: CME's published message schema (id 1), versions 5 to 13; all little-endian. A packet is a sequence number (u32),
 * the sending time (u64 ns) and messages: size (u16, itself included), root length, template, schema id, version (u16 each), the
 * root, then groups: entry length (u16) and count (u8 behind it, or at byte 7 of an 8-byte head). Lengths on the wire rule, so
 * that what later versions append is stepped over. Prices are i64 in 1e-9, in templates before 45 in 1e-7, as sent: no display
 * factor is applied.
 *
 *   32 46 64 book           -> level2 of the real book; what falls out of the market depth is deleted; J, and 4 channel
 *                              reset: CLEAR. With `orders` instead: level2 of the orders behind the entries
 *   43 47 order book        -> with `orders` level2 of each order, source_sequence = order id
 *   42 48 65 trades         -> trade; changed or cancelled ones flagged CORRECTED
 *   38 52 69 snapshot       -> CLEAR and ADDs flagged SNAPSHOT, unless it says nothing new of a book that is whole
 *   44 53 order snapshot    -> the same of orders with `orders`; CLEAR with the first chunk
 *   27 29 41 54-58 63       -> definitions: the symbol and market depth of a security id
 *   30 security status      -> status of trading of an instrument; of a group: one without an instrument that names it, then
 *                              one for each of its instruments that anything was said of. source_sequence is the packet's
 *   33-35 37 49-51 66 67    -> counted; so are 15 16 39 59-62 68, and 12 (heartbeat)
 *
 * Levels of implied books (E, F) and of w, x stay out. Numbers are followed for each port; lower numbers of later packets
 * begin a new loop (snapshots, definitions) or week. Quotes (`book`) come with what ends an event's quotes and are flagged
 * INCOMPLETE from a gap on until the next snapshot of their instrument. */
#ifndef TK_DECODERS_MDP3_H
#define TK_DECODERS_MDP3_H

#include "workers/decoders/frames.h"
#include "workers/decoders/mdp3_market.h"
#include "workers/decoders/mdp3_message.h"
#include "workers/decoders/sink.h"
#include "workers/decoders/symbols.h"

enum { MDP3_PACKET_BYTES = 12, MDP3_OTHER = 255 };

/* May this message make records? Then it, and not the one before it, ends its event. */
static int mdp3_tells(const struct mdp3 *s, const uint8_t *m, size_t size) {
    const struct mdp3_layout *layout = mdp3_layout_of(mdp3_template(m));
    struct mdp3_group group;
    size_t at;
    if (layout->kind < MDP3_BOOK || le16(m + 2) < layout->root || !mdp3_entries(layout, m, size, &at, &group)) return 0;
    if (layout->kind == MDP3_TRADE) return group.count > 0;
    if (layout->kind == MDP3_ORDERS && !s->orders) return 0;
    if (layout->kind == MDP3_ORDER_SNAPSHOT && !s->orders) return 0;
    if (layout->kind != MDP3_BOOK && layout->kind != MDP3_ORDERS) return 1;
    unsigned prices = layout->kind == MDP3_ORDERS || !s->orders || s->book;  /* or only orders and resets tell */
    struct mdp3_group orders;
    if (!prices && mdp3_group_at(m, size, &at, 8, 22, &orders) && orders.count) return 1;
    for (unsigned i = 0; i < group.count; i++) {
        unsigned side = mdp3_side(group.entry[(size_t)i * group.length + layout->type]);
        if (side == 3 || (side && prices)) return 1;
    }
    return 0;
}

/* Is the message that ends before `at` the last of its event that makes records? Looks through the rest of the packet. */
static int mdp3_ends_event(const struct mdp3 *s, const uint8_t *p, size_t at, size_t end, unsigned indicator) {
    while (!(indicator & MDP3_END)) {
        if (end - at < MDP3_HEAD_BYTES) return 0;
        const uint8_t *m = p + at;
        size_t size = le16(m), root = le16(m + 2);
        if (size < MDP3_HEAD_BYTES || size > end - at || root > size - MDP3_HEAD_BYTES || mdp3_tells(s, m, size)) return 0;
        unsigned kind = mdp3_layout_of(mdp3_template(m))->kind;
        indicator = (kind == MDP3_BOOK || kind == MDP3_ORDERS || kind == MDP3_TRADE || kind == MDP3_STATISTICS) && root >= 9
                        ? m[MDP3_HEAD_BYTES + 8] : 0;
        at += size;
    }
    return 1;
}

static inline uint64_t mdp3_made(const struct mdp3 *s) { return (uint64_t)s->sink.count + s->sink.spare_count; }

/* One message that lies whole in its packet. TK_MISS, TK_MAPPING and TK_SLOW change nothing; anything else consumes it. */
static enum tk_stop mdp3_message(struct mdp3 *s, const uint8_t *p, size_t begin, size_t end, int64_t ts_receive) {
    struct tk_sink *sink = &s->sink;
    const uint8_t *m = p + begin, *root = m + MDP3_HEAD_BYTES;
    size_t size = le16(m), at;
    unsigned template = mdp3_template(m), code = template < MDP3_OTHER ? template : MDP3_OTHER;
    const struct mdp3_layout *layout = mdp3_layout_of(template);
    struct mdp3_group group = {NULL, 0, 0}, orders = {NULL, 0, 0};
    enum tk_reason wrong = TK_REASONS;
    if (le16(m + 6) != MDP3_SCHEMA) wrong = TK_FOREIGN;
    else if (layout->kind == MDP3_UNKNOWN) wrong = TK_UNKNOWN_TYPE;
    else if (le16(m + 2) > size - MDP3_HEAD_BYTES || le16(m + 2) < layout->root) wrong = TK_BAD_LENGTH;
    else if (layout->kind >= MDP3_STATISTICS && !mdp3_entries(layout, m, size, &at, &group)) wrong = TK_BAD_LENGTH;
    else if (layout->kind == MDP3_BOOK && s->orders && at < size && !mdp3_group_at(m, size, &at, 8, 22, &orders))
        wrong = TK_BAD_LENGTH;
    if (wrong != TK_REASONS) {
        sink->counts->messages[code]++;
        sink_refuse(sink, wrong);
        return TK_DONE;
    }
    if (layout->kind == MDP3_DEFINITION && !s->mapped) return TK_MAPPING;
    if (layout->kind == MDP3_SNAPSHOT || (layout->kind == MDP3_ORDER_SNAPSHOT && s->orders)) {
        if (!mdp3_symbol(s, root + 8)) return TK_MISS;
    } else if (layout->kind == MDP3_STATUS) {
        if (le32(root + 20) != INT32_MAX ? !mdp3_symbol(s, root + 20) : !s->listed)
            return le32(root + 20) != INT32_MAX ? TK_MISS : TK_SLOW;
    } else if (layout->kind == MDP3_TRADE || layout->kind == MDP3_BOOK || (layout->kind == MDP3_ORDERS && s->orders)) {
        for (unsigned i = 0; i < group.count; i++) {
            const uint8_t *e = group.entry + (size_t)i * group.length;
            if (layout->kind != MDP3_TRADE && !mdp3_side(e[layout->type])) continue;
            if (!mdp3_symbol(s, e + layout->security)) return TK_MISS;
        }
    }
    s->mapped = s->listed = 0;
    sink->counts->messages[code]++;
    if (layout->kind == MDP3_HEARTBEAT) sink->counts->heartbeats++;
    if (layout->kind == MDP3_STATUS) mdp3_status(s, root, le32(p), (int64_t)le64(root), ts_receive);
    if (layout->kind < MDP3_STATISTICS && layout->kind != MDP3_RESET) return TK_DONE;
    int64_t ts_event = (int64_t)le64(root);
    uint64_t before = mdp3_made(s);
    int ends = 0;
    switch (layout->kind) {
    case MDP3_STATISTICS:
        for (unsigned i = 0; i < group.count; i++) {
            const uint8_t *e = group.entry + (size_t)i * group.length;
            struct tk_symbol *symbol = mdp3_symbol(s, e + layout->security);
            if (symbol) symbol->last[0] = le32(e + layout->report);
        }
        break;
    case MDP3_RESET: mdp3_reset(s, ts_event, ts_receive); ends = 1; break;
    case MDP3_SNAPSHOT: mdp3_snapshot(s, layout, template, root, &group, ts_receive); ends = 1; break;
    case MDP3_ORDER_SNAPSHOT: {
        if (!s->orders) break;
        struct tk_symbol *symbol = mdp3_symbol(s, root + 8);
        if (symbol->id == TK_REFUSED) { sink_refuse(sink, TK_BAD_SYMBOL); break; }
        ts_event = (int64_t)le64(root + 20);
        if (le32(root + 16) <= 1)
            mdp3_level2(s, symbol, ts_event, ts_receive, TK_SIDE_NONE, NAN, 0, TK_ACTION_CLEAR, 0)->flags |= TK_FLAG_SNAPSHOT;
        for (unsigned i = 0; i < group.count; i++) {
            const uint8_t *e = group.entry + (size_t)i * group.length;
            mdp3_order(s, symbol, ts_event, ts_receive, e[layout->type], mdp3_number(template, e + layout->price),
                       (int32_t)le32(e + layout->size), 0, le64(e), TK_FLAG_SNAPSHOT);
        }
        ends = le32(root + 16) == le32(root + 12);
        break;
    }
    default:
        for (unsigned i = 0; i < group.count; i++) {
            const uint8_t *e = group.entry + (size_t)i * group.length;
            if (layout->kind == MDP3_BOOK) mdp3_book(s, layout, template, e, ts_event, ts_receive);
            else if (layout->kind == MDP3_TRADE) mdp3_trade(s, layout, template, e, group.length, ts_event, ts_receive);
            else if (s->orders && mdp3_side(e[layout->type])) {
                struct tk_symbol *symbol = mdp3_symbol(s, e + layout->security);
                if (symbol->id == TK_REFUSED) sink_refuse(sink, TK_BAD_SYMBOL);
                else mdp3_order(s, symbol, ts_event, ts_receive, e[layout->type], mdp3_number(template, e + layout->price),
                                (int32_t)le32(e + layout->size), e[layout->action], le64(e), 0);
            }
        }
        for (unsigned i = 0; i < orders.count; i++) {  /* orders of a book message point at its entries */
            const uint8_t *o = orders.entry + (size_t)i * orders.length;
            if (!o[20] || o[20] > group.count) { sink_refuse(sink, TK_BAD_VALUE); continue; }
            const uint8_t *e = group.entry + (size_t)(o[20] - 1) * group.length;
            struct tk_symbol *symbol = mdp3_side(e[layout->type]) ? mdp3_symbol(s, e + layout->security) : NULL;
            if (symbol && symbol->id != TK_REFUSED)
                mdp3_order(s, symbol, ts_event, ts_receive, e[layout->type], mdp3_number(template, e + layout->price),
                           (int32_t)le32(o + 16), o[21], le64(o), 0);
        }
        ends = (s->touched_count || mdp3_made(s) != before) && mdp3_ends_event(s, p, begin + size, end, root[8]);
        if (ends || root[8] & MDP3_LAST_QUOTE || s->touched_count >= MDP3_TOUCHED) mdp3_quotes(s, ts_event, ts_receive);
    }
    if (ends && mdp3_made(s) != before) sink_last(sink)->flags |= TK_FLAG_LAST_OF_BATCH;
    return TK_DONE;
}

static struct mdp3_stream *mdp3_stream_of(struct mdp3 *s, uint32_t port) {
    for (unsigned i = 0; i < s->streams; i++)
        if (s->stream[i].port == port) return &s->stream[i];
    struct mdp3_stream *stream;
    if (s->streams < MDP3_STREAMS) stream = &s->stream[s->streams++];
    else stream = &s->stream[s->replace++ % MDP3_STREAMS];
    *stream = (struct mdp3_stream){.port = port};
    return stream;
}

/* Does a packet hold increments, by its first message? */
static int mdp3_increments(const uint8_t *p, size_t size) {
    if (size < MDP3_PACKET_BYTES + MDP3_HEAD_BYTES) return 0;
    unsigned template = mdp3_template(p + MDP3_PACKET_BYTES), kind = mdp3_layout_of(template)->kind;
    return (kind >= MDP3_STATISTICS && kind <= MDP3_ORDERS) || template == 4 || template == 30 || template == 39;
}

/* Reads the packet header. 0 = nothing to decode in it. */
static int mdp3_packet(struct mdp3 *s, const uint8_t *p, size_t size, uint32_t port, int64_t ts_receive) {
    struct tk_sink *sink = &s->sink;
    if (!s->epoch) s->epoch = s->all_whole = 1;
    if (size < MDP3_PACKET_BYTES) return sink_refuse(sink, TK_TRUNCATED), 0;
    uint64_t number = le32(p), sent_ns = le64(p + 4);
    if (sent_ns > INT64_MAX) return sink_refuse(sink, TK_BAD_HEADER), 0;
    struct mdp3_stream *stream = mdp3_stream_of(s, port);
    int beat = size >= MDP3_PACKET_BYTES + MDP3_HEAD_BYTES && mdp3_template(p + MDP3_PACKET_BYTES) == 12;
    if (stream->beat && number + 1 == stream->expected) stream->expected = number;  /* heartbeats may have used up no number */
    if (stream->expected && number < stream->expected) {
        if (sent_ns <= stream->sent_ns) {
            sink->counts->duplicates++;
            return 0;
        }
        stream->expected = 1;  /* a loop or a week begins again */
    }
    if (!stream->expected && number > 1) stream->doubt = 1;
    if (stream->expected && number > stream->expected) {
        sink_gap(sink, port, stream->expected, number, TK_NO_INSTRUMENT, (int64_t)sent_ns, ts_receive);
        stream->doubt = 1;
    }
    if (mdp3_increments(p, size)) {  /* gaps among snapshots and definitions leave books as they are */
        s->epoch += stream->doubt != 0;
        s->channels += !stream->carries;
        stream->carries = 1;
        stream->doubt = 0;
    }
    stream->expected = number + 1;
    stream->sent_ns = sent_ns;
    stream->beat = beat;
    return 1;
}

static enum tk_stop mdp3_run(struct mdp3 *s) {
    struct tk_frames *frames = &s->frames;
    struct tk_sink *sink = &s->sink;
    for (; frames->index < frames->count; frames->index++, frames->at = 0, frames->begun = 0) {
        const uint8_t *p = frame_bytes(frames);
        const struct tk_frame *frame = &frames->frame[frames->index];
        if (!frames->begun) {
            if (sink_full(sink)) return TK_FULL;
            frame_count(frames, sink->counts);
            if (!p) { sink_refuse(sink, TK_TRUNCATED); continue; }
            if (!mdp3_packet(s, p, frame->size, frame->port, frame->ts_receive)) continue;
            frames->at = MDP3_PACKET_BYTES;
        }
        while (frames->at < frame->size) {
            if (sink_full(sink)) return TK_FULL;
            size_t left = frame->size - frames->at;
            size_t size = left >= 2 ? le16(p + frames->at) : 0;
            if (left < MDP3_HEAD_BYTES || size < MDP3_HEAD_BYTES || size > left) { sink_refuse(sink, TK_TRUNCATED); break; }
            enum tk_stop stop = mdp3_message(s, p, frames->at, frame->size, frame->ts_receive);
            if (stop != TK_DONE) return stop;
            frames->at += size;
        }
    }
    return TK_DONE;
}

#endif
