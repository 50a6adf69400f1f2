/* Frames: what a container hands to a decoder -- one datagram, one text message, or a run of whole messages of a stream,
 * as spans of one buffer with the time at which they were received. Also the byte-order loads that every kernel uses. */
#ifndef TK_DECODERS_FRAMES_H
#define TK_DECODERS_FRAMES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* numpy twin: workers.decoders.protocol.FRAME */
struct tk_frame {
    uint64_t offset;      /* bytes from the start of the buffer */
    uint32_t size;        /* bytes */
    uint16_t port;        /* UDP destination port of a datagram; number of the connection of a message */
    uint16_t reserved;
    int64_t ts_receive;   /* ns since the epoch; 0 = the container does not say */
};
_Static_assert(sizeof(struct tk_frame) == 24, "frame");

struct tk_frames {
    const uint8_t *data;
    size_t size;
    const struct tk_frame *frame;
    size_t count, index;  /* frames; the one being decoded */
    size_t at;            /* position inside it */
    int begun;            /* its header was read and counted */
};

/* How a kernel's run over its frames ends. All but DONE are resumed by calling it again. */
enum tk_stop {
    TK_DONE,     /* every frame was consumed */
    TK_FULL,     /* the caller's array is full */
    TK_MISS,     /* a symbol is not in the native table yet: the shell resolves it */
    TK_NEW_DAY,  /* ITCH: the receive time left the session day: the shell computes midnight */
    TK_SLOW,     /* the frame has a shape, or needs a list, that the kernel leaves to the shell */
    TK_MAPPING   /* DBN: a symbol mapping record for the shell */
};

/* The current frame if its span lies inside the buffer, else NULL (a span that does not is the caller's error). */
static inline const uint8_t *frame_bytes(const struct tk_frames *frames) {
    const struct tk_frame *frame = &frames->frame[frames->index];
    if (frame->offset > frames->size || frame->size > frames->size - frame->offset) return NULL;
    return frames->data + frame->offset;
}

/* Marks the frame as begun; once for each, before its first message. */
#define frame_count(frames, counts) \
    ((counts)->frames++, (counts)->bytes += (frames)->frame[(frames)->index].size, (frames)->begun = 1)

static inline uint16_t le16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline uint32_t le32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t le64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline uint16_t be16(const uint8_t *p) { return __builtin_bswap16(le16(p)); }
static inline uint32_t be32(const uint8_t *p) { return __builtin_bswap32(le32(p)); }
static inline uint64_t be64(const uint8_t *p) { return __builtin_bswap64(le64(p)); }
static inline uint64_t be48(const uint8_t *p) { return (uint64_t)be16(p) << 32 | be32(p + 2); }

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "records are little-endian, and so must the host be"
#endif

#endif
