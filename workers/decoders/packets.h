/* Packet captures -> UDP payloads with their capture time.
 *
 * Layouts: libpcap "pcap-savefile(5)" (microsecond and nanosecond magic, both byte orders); "PCAP Next Generation Capture
 * File Format" (draft-ietf-opsawg-pcapng) sections 4.1 SHB, 4.2 IDB, 4.3 EPB, 4.4 SPB; link types of
 * tcpdump.org/linktypes: Ethernet, raw IP, BSD loopback, Linux cooked v1 and v2. IEEE 802.1Q tags, IPv4 (RFC 791), IPv6
 * with its extension headers (RFC 8200), UDP (RFC 768). IP fragments and whatever is not UDP are counted and passed over.
 *
 * `packets_run` reads whole records from the front of what it is given; the caller keeps the rest for the next call. */
#ifndef TK_DECODERS_PACKETS_H
#define TK_DECODERS_PACKETS_H

#include "workers/decoders/frames.h"

enum { PACKET_MAX_BYTES = 1 << 24, PACKET_INTERFACES = 256 };
enum packets_form { PACKETS_UNKNOWN, PACKETS_PCAP, PACKETS_PCAPNG };
enum packets_stop { PACKETS_MORE, PACKETS_ROOM, PACKETS_BAD };

struct packet_interface { uint32_t link; int64_t per_second; int64_t offset_s; };

struct packets {
    enum packets_form form;
    int swapped;                /* the file's byte order is not ours */
    int64_t per_second;         /* of classic pcap: 1e6 or 1e9 */
    uint32_t link;
    struct packet_interface interface[PACKET_INTERFACES];
    unsigned interfaces;
    const char *problem;        /* PACKETS_BAD: what is wrong at the offset reached */
    /* counted */
    uint64_t packets, not_udp, fragments, cut, damaged;
};

static inline uint32_t packets_u32(const struct packets *s, const uint8_t *p) { return s->swapped ? be32(p) : le32(p); }
static inline uint16_t packets_u16(const struct packets *s, const uint8_t *p) { return s->swapped ? be16(p) : le16(p); }

static inline int64_t packets_ns(uint64_t units, int64_t per_second) {
    uint64_t seconds = units / (uint64_t)per_second, rest = units % (uint64_t)per_second;
    if (seconds > 9200000000u) return 0;
    return (int64_t)(seconds * 1000000000u) + (int64_t)((double)rest * (1e9 / (double)per_second) + 0.5);
}

/* Offset of the UDP payload in a captured packet, its size and port; 0 = none, counted. */
static size_t packets_payload(struct packets *s, uint32_t link, const uint8_t *p, size_t size, uint32_t *length,
                              uint16_t *port) {
    size_t at;
    uint16_t type;
    switch (link) {
    case 1:  /* Ethernet */
        if (size < 14) goto damaged;
        at = 14;
        type = be16(p + 12);
        break;
    case 101: case 12: case 14: case 228: case 229:  /* raw IP */
        if (size < 1) goto damaged;
        at = 0;
        type = p[0] >> 4 == 6 ? 0x86DD : 0x0800;
        break;
    case 0: case 108:  /* BSD loopback: an address family in some byte order */
        if (size < 5) goto damaged;
        at = 4;
        type = p[4] >> 4 == 6 ? 0x86DD : 0x0800;
        break;
    case 113:  /* Linux cooked v1 */
        if (size < 16) goto damaged;
        at = 16;
        type = be16(p + 14);
        break;
    case 276:  /* Linux cooked v2 */
        if (size < 20) goto damaged;
        at = 20;
        type = be16(p);
        break;
    default: s->not_udp++; return 0;
    }
    while (type == 0x8100 || type == 0x88A8 || type == 0x9100) {
        if (size < at + 4) goto damaged;
        type = be16(p + at + 2);
        at += 4;
    }
    uint8_t protocol;
    if (type == 0x0800) {
        if (size < at + 20 || p[at] >> 4 != 4 || (p[at] & 15) < 5) goto damaged;
        size_t header = (size_t)(p[at] & 15) * 4;
        if (be16(p + at + 6) & 0x3FFF) { s->fragments++; return 0; }  /* more fragments, or not the first */
        protocol = p[at + 9];
        at += header;
    } else if (type == 0x86DD) {
        if (size < at + 40 || p[at] >> 4 != 6) goto damaged;
        protocol = p[at + 6];
        at += 40;
        while (protocol == 0 || protocol == 43 || protocol == 60) {  /* hop-by-hop, routing, destination options */
            if (size < at + 8) goto damaged;
            protocol = p[at];
            at += 8 + (size_t)p[at + 1] * 8;
        }
        if (protocol == 44) { s->fragments++; return 0; }
    } else {
        s->not_udp++;
        return 0;
    }
    if (protocol != 17) { s->not_udp++; return 0; }
    if (size < at + 8) goto damaged;
    uint16_t udp = be16(p + at + 4);
    if (udp < 8) goto damaged;
    if (size - at < udp) { s->cut++; return 0; }  /* the capture kept less than was sent */
    *port = be16(p + at + 2);
    *length = udp - 8u;
    return at + 8;
damaged:
    s->damaged++;
    return 0;
}

static int packets_bad(struct packets *s, const char *problem) { s->problem = problem; return PACKETS_BAD; }

static int packets_begin(struct packets *s, const uint8_t *p, size_t size, size_t *consumed) {
    if (size < 4) return PACKETS_MORE;
    uint32_t magic = le32(p);
    if (magic == 0x0A0D0D0A) {
        s->form = PACKETS_PCAPNG;
        return PACKETS_MORE;
    }
    s->swapped = magic == 0xD4C3B2A1 || magic == 0x4D3CB2A1;
    if (s->swapped) magic = __builtin_bswap32(magic);
    if (magic != 0xA1B2C3D4 && magic != 0xA1B23C4D) return packets_bad(s, "not a packet capture");
    if (size < 24) return PACKETS_MORE;
    s->per_second = magic == 0xA1B23C4D ? 1000000000 : 1000000;
    s->link = packets_u32(s, p + 20) & 0x0FFFFFFF;
    s->form = PACKETS_PCAP;
    *consumed = 24;
    return PACKETS_MORE;
}

static void packets_interface(struct packets *s, const uint8_t *body, size_t size) {
    struct packet_interface new = {packets_u16(s, body), 1000000, 0};
    for (size_t at = 8; at + 4 <= size;) {
        uint16_t code = packets_u16(s, body + at), length = packets_u16(s, body + at + 2);
        at += 4;
        if (code == 0 || length > size - at) break;
        if (code == 9 && length >= 1) {  /* if_tsresol: 10^-n, or 2^-n with the top bit set */
            unsigned n = body[at] & 0x7F;
            if (body[at] & 0x80) new.per_second = n < 63 ? (int64_t)1 << n : 1;
            else for (new.per_second = 1; n && new.per_second < 1000000000000000000; n--) new.per_second *= 10;
        } else if (code == 14 && length >= 8) {  /* if_tsoffset */
            new.offset_s = (int64_t)(s->swapped ? be64(body + at) : le64(body + at));
            if (new.offset_s > 4000000000 || new.offset_s < -4000000000) new.offset_s = 0;
        }
        at += (length + 3u) & ~3u;
    }
    if (s->interfaces < PACKET_INTERFACES) s->interface[s->interfaces++] = new;
}

/* One pcapng block; sets *at to where its packet is, with its captured size, or to 0. */
static int packets_block(struct packets *s, const uint8_t *p, size_t size, size_t *total, size_t *at, size_t *captured,
                         uint32_t *link, int64_t *ts_ns) {
    *at = 0;
    if (size < 12) return PACKETS_MORE;
    uint32_t type = le32(p);
    if (type == 0x0A0D0D0A) {
        uint32_t order = le32(p + 8);
        if (order != 0x1A2B3C4D && order != 0x4D3C2B1A) return packets_bad(s, "section header without byte-order magic");
        s->swapped = order == 0x4D3C2B1A;
        s->interfaces = 0;
    } else if (s->swapped) type = __builtin_bswap32(type);
    *total = packets_u32(s, p + 4);
    if (*total < 12 || *total % 4 || *total > PACKET_MAX_BYTES) return packets_bad(s, "impossible block length");
    if (size < *total) return PACKETS_MORE;
    if (packets_u32(s, p + *total - 4) != *total) return packets_bad(s, "block length differs at its end");
    const uint8_t *body = p + 8;
    size_t body_size = *total - 12;
    if (type == 1 && body_size >= 8) packets_interface(s, body, body_size);
    else if (type == 6 && body_size >= 20) {
        uint32_t index = packets_u32(s, body);
        *captured = packets_u32(s, body + 12);
        if (*captured > body_size - 20 || index >= s->interfaces) { s->packets++; s->damaged++; return PACKETS_MORE; }
        const struct packet_interface *interface = &s->interface[index];
        uint64_t units = (uint64_t)packets_u32(s, body + 4) << 32 | packets_u32(s, body + 8);
        *ts_ns = (int64_t)((uint64_t)packets_ns(units, interface->per_second) + (uint64_t)(interface->offset_s * 1000000000));
        *link = interface->link;
        *at = 28;
    } else if (type == 3 && body_size >= 4 && s->interfaces) {  /* simple packet: no time */
        uint32_t length = packets_u32(s, body);
        *captured = length < body_size - 4 ? length : body_size - 4;
        *ts_ns = 0;
        *link = s->interface[0].link;
        *at = 12;
    }
    return PACKETS_MORE;
}

/* Reads from the front of `data`, writes at most `room` frames; *consumed bytes are done with. PACKETS_MORE: needs more
 * bytes; PACKETS_ROOM: call again; PACKETS_BAD: what stands at *consumed is no packet record. */
static int packets_run(struct packets *s, const uint8_t *data, size_t size, struct tk_frame *out, size_t room, size_t *count,
                       size_t *consumed) {
    *count = *consumed = 0;
    if (s->form == PACKETS_UNKNOWN) {
        int stop = packets_begin(s, data, size, consumed);
        if (stop == PACKETS_BAD || s->form == PACKETS_UNKNOWN) return stop;
    }
    while (*count < room) {
        const uint8_t *p = data + *consumed;
        size_t left = size - *consumed, at = 0, captured = 0, total = 0;
        uint32_t link = s->link;
        int64_t ts_ns = 0;
        if (s->form == PACKETS_PCAP) {
            if (left < 16) return PACKETS_MORE;
            captured = packets_u32(s, p + 8);
            if (captured > PACKET_MAX_BYTES) return packets_bad(s, "impossible packet length");
            total = 16 + captured;
            if (left < total) return PACKETS_MORE;
            ts_ns = (int64_t)packets_u32(s, p) * 1000000000 + (int64_t)packets_u32(s, p + 4) * (1000000000 / s->per_second);
            at = 16;
        } else {
            int stop = packets_block(s, p, left, &total, &at, &captured, &link, &ts_ns);
            if (stop == PACKETS_BAD) return stop;
            if (left < 12 || left < total) return PACKETS_MORE;
        }
        if (at) {
            uint32_t length = 0;
            uint16_t port = 0;
            s->packets++;
            size_t payload = packets_payload(s, link, p + at, captured, &length, &port);
            if (payload) out[(*count)++] = (struct tk_frame){*consumed + at + payload, length, port, 0, ts_ns};
        }
        *consumed += total;
    }
    return PACKETS_ROOM;
}

#endif
