/* Dukascopy's tick and candle files (.bi5), unpacked: big-endian, of one instrument, counted from the file's begin.
 *
 * Layout, as the files have it:
 *   tick, 20 bytes     0 u32 ms since the hour began, 4 u32 ask, 8 u32 bid, 12 f32 ask size, 16 f32 bid size
 *   candle, 24 bytes   0 u32 s since the day began, 4 u32 open, 8 u32 close, 12 u32 low, 16 u32 high, 20 f32 volume
 * Prices in units that the instrument decides on (`per_unit`), sizes in millions.
 *
 *   tick -> quote      candle of a minute -> bar; ts_receive is its end, as for other captured bars */
#ifndef TK_DECODERS_BI5_H
#define TK_DECODERS_BI5_H

#include "workers/decoders/frames.h"
#include "workers/decoders/sink.h"

enum { BI5_TICK_BYTES = 20, BI5_CANDLE_BYTES = 24, BI5_HOUR_MS = 3600000, BI5_DAY_S = 86400, BI5_CANDLE_S = 60 };

struct bi5 {
    struct tk_frames frames;
    struct tk_sink sink;
    uint32_t id;
    int candles;
    int64_t begin_ns;   /* of the hour or day */
    double units;       /* price units in 1 */
};

/* A float32 that was written for a decimal number, as the double of that number: 2.06 and not 2.059999942779541. */
static inline double bi5_size(const uint8_t *p) {
    uint32_t bits = be32(p);
    float stated;
    memcpy(&stated, &bits, 4);
    double decimal = rint((double)stated * 1e6) / 1e6;
    return (float)decimal == stated ? decimal : (double)stated;
}

static inline double bi5_price(const struct bi5 *s, const uint8_t *p) { return be32(p) / s->units; }

static inline void bi5_tick(struct bi5 *s, const uint8_t *m) {
    uint32_t ms = be32(m);
    if (ms >= BI5_HOUR_MS) { sink_refuse(&s->sink, TK_BAD_VALUE); return; }
    s->sink.counts->messages[0]++;
    struct tk_record *record = sink_next(&s->sink, TK_TYPE_QUOTE, s->id, s->begin_ns + (int64_t)ms * 1000000, 0);
    set_quote(record, bi5_price(s, m + 8), bi5_size(m + 16), bi5_price(s, m + 4), bi5_size(m + 12));
}

static inline void bi5_candle(struct bi5 *s, const uint8_t *m) {
    uint32_t second = be32(m);
    if (second >= BI5_DAY_S) { sink_refuse(&s->sink, TK_BAD_VALUE); return; }
    s->sink.counts->messages[1]++;
    int64_t begin_ns = s->begin_ns + (int64_t)second * 1000000000;
    struct tk_record *record =
        sink_next(&s->sink, TK_TYPE_BAR, s->id, begin_ns, begin_ns + (int64_t)BI5_CANDLE_S * 1000000000);
    set_bar(record, bi5_price(s, m + 4), bi5_price(s, m + 16), bi5_price(s, m + 12), bi5_price(s, m + 8), bi5_size(m + 20),
            BI5_CANDLE_S, 0);
}

static enum tk_stop bi5_run(struct bi5 *s) {
    struct tk_frames *frames = &s->frames;
    size_t size = s->candles ? BI5_CANDLE_BYTES : BI5_TICK_BYTES;
    for (; frames->index < frames->count; frames->index++, frames->at = 0, frames->begun = 0) {
        const uint8_t *p = frame_bytes(frames);
        size_t end = frames->frame[frames->index].size;
        if (!frames->begun) frame_count(frames, s->sink.counts);
        if (!p) { sink_refuse(&s->sink, TK_TRUNCATED); continue; }
        for (; end - frames->at >= size; frames->at += size) {
            if (sink_full(&s->sink)) return TK_FULL;
            if (s->candles) bi5_candle(s, p + frames->at);
            else bi5_tick(s, p + frames->at);
        }
        if (frames->at < end) sink_refuse(&s->sink, TK_BAD_LENGTH);
    }
    return TK_DONE;
}

#endif
