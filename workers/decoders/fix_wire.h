/* FIX tag=value text: fields, times, and where a message of a byte stream ends.
 *
 * Source: FIX 4.4 with Errata 20030618, volume 1, "Message Format" and volume 2, "Session Protocol". A message is
 * 8=FIX.x.y, 9=length, 35=type, ..., 10=checksum; length counts from after field 9 up to field 10, the checksum sums every
 * byte before field 10. The separator is SOH. */
#ifndef TK_DECODERS_FIX_WIRE_H
#define TK_DECODERS_FIX_WIRE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { FIX_SOH = 1 };

struct fix_field { uint32_t tag, size; const uint8_t *value; };

/* The next field from `p` on, and where it ends; NULL = there is none that is well formed before `end`. */
static inline const uint8_t *fix_next(const uint8_t *p, const uint8_t *end, struct fix_field *field) {
    uint32_t tag = 0;
    const uint8_t *first = p;
    while (p < end && (uint8_t)(*p - '0') < 10) tag = tag * 10 + (*p++ - '0');
    if (p == first || p - first > 9 || p == end || *p != '=') return NULL;
    field->tag = tag;
    field->value = ++p;
    while (p < end && *p != FIX_SOH) p++;
    if (p == end) return NULL;
    field->size = (uint32_t)(p - field->value);
    return p + 1;
}

/* The data field that a length field announces; its value may hold SOH. 0 = `tag` is no such length. */
static inline uint32_t fix_data_tag(uint32_t tag) {
    switch (tag) {
    case 90: return 91;
    case 93: return 89;
    case 95: return 96;
    case 212: return 213;
    case 348: case 350: case 352: case 354: case 356: case 358: case 360: case 362: case 364: case 445: case 618: case 621:
        return tag + 1;
    default: return 0;
    }
}

/* A number of digits alone, at most 18 of them; -1 = it is none. */
static inline int64_t fix_digits(const uint8_t *p, size_t size) {
    int64_t value = 0;
    if (size == 0 || size > 18) return -1;
    for (size_t i = 0; i < size; i++) {
        if ((uint8_t)(p[i] - '0') > 9) return -1;
        value = value * 10 + (p[i] - '0');
    }
    return value;
}

/* YYYYMMDD as ns since the epoch, -1 = it is none. Days by the civil calendar, years that begin in March. */
static inline int64_t fix_date(const uint8_t *p, size_t size) {
    if (size != 8) return -1;
    int64_t year = fix_digits(p, 4), month = fix_digits(p + 4, 2), day = fix_digits(p + 6, 2);
    if (year < 1970 || year > 2261 || month < 1 || month > 12 || day < 1 || day > 31) return -1;
    int64_t shifted = year - (month <= 2), leap = shifted / 4 - shifted / 100 + shifted / 400;
    int64_t days = 365 * shifted + leap + (153 * ((month + 9) % 12) + 2) / 5 + day - 1 - 719468;
    return days * 86400 * 1000000000;
}

/* HH:MM:SS with up to 12 digits of a fraction, as ns since midnight, -1 = it is none. A leap second is second 60. */
static inline int64_t fix_time(const uint8_t *p, size_t size) {
    if (size < 8 || p[2] != ':' || p[5] != ':') return -1;
    int64_t hour = fix_digits(p, 2), minute = fix_digits(p + 3, 2), second = fix_digits(p + 6, 2), fraction = 0;
    if (hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 60) return -1;
    if (size > 8) {
        if ((p[8] != '.' && p[8] != ',') || size == 9 || size > 21) return -1;
        int64_t scale = 100000000;
        for (size_t i = 9; i < size; i++, scale /= 10) {
            if ((uint8_t)(p[i] - '0') > 9) return -1;
            fraction += (p[i] - '0') * scale;
        }
    }
    return ((hour * 60 + minute) * 60 + second) * 1000000000 + fraction;
}

/* UTCTimestamp, YYYYMMDD-HH:MM:SS[.fraction], as ns since the epoch, -1 = it is none. */
static inline int64_t fix_timestamp(const uint8_t *p, size_t size) {
    if (size < 17 || p[8] != '-') return -1;
    int64_t date = fix_date(p, 8), time = fix_time(p + 9, size - 9);
    return date < 0 || time < 0 ? -1 : date + time;
}

/* What a session must know of a message; numpy twin: workers.decoders.fix_log.HEAD. */
struct fix_head {
    uint64_t seq;      /* MsgSeqNum; 0 = it has none */
    uint16_t type;     /* MsgType, its first letter and, where it has two, the second one times 256 */
    uint8_t possdup;   /* PossDupFlag */
    uint8_t version;   /* 42 or 44, ...: digits of BeginString; 11 = FIXT.1.1 */
    uint32_t reserved;
};

enum fix_cut {
    FIX_WHOLE,       /* a message of `size` bytes, as it should be */
    FIX_PARTIAL,     /* more bytes are needed */
    FIX_NOT_HERE,    /* no message begins here */
    FIX_LENGTH,      /* its body length is wrong: where it ends is not known */
    FIX_CHECKSUM     /* `size` bytes whose checksum is wrong */
};

/* What stands at `p`, which is to begin with "8=". `limit`: longest message, bytes. */
static enum fix_cut fix_cut(const uint8_t *p, const uint8_t *end, size_t limit, size_t *size, struct fix_head *head) {
    static const uint8_t begin[] = "8=FIX";
    size_t room = (size_t)(end - p), at = 0;
    for (; at < 5; at++) {
        if (at == room) return FIX_PARTIAL;
        if (p[at] != begin[at]) return FIX_NOT_HERE;
    }
    unsigned version = 0;
    for (; at < room && p[at] != FIX_SOH; at++) {
        if (at > 12) return FIX_NOT_HERE;
        if ((uint8_t)(p[at] - '0') < 10) version = (version * 10 + (p[at] - '0')) % 100;
    }
    if (room - at < 3) return FIX_PARTIAL;
    if (p[at + 1] != '9' || p[at + 2] != '=') return FIX_LENGTH;
    size_t length = 0, digits = 0;
    for (at += 3; at < room && (uint8_t)(p[at] - '0') < 10 && digits < 9; at++, digits++) length = length * 10 + (p[at] - '0');
    if (at == room) return digits < 9 ? FIX_PARTIAL : FIX_LENGTH;
    if (!digits || p[at] != FIX_SOH || length > limit) return FIX_LENGTH;
    size_t body = at + 1, trailer = body + length;
    if (room < trailer + 7) return FIX_PARTIAL;
    const uint8_t *last = p + trailer;
    if (p[trailer - 1] != FIX_SOH || last[0] != '1' || last[1] != '0' || last[2] != '=' || last[6] != FIX_SOH)
        return FIX_LENGTH;
    *size = trailer + 7;
    uint8_t sum = 0;
    for (size_t i = 0; i < trailer; i++) sum = (uint8_t)(sum + p[i]);
    if (fix_digits(last + 3, 3) != sum) return FIX_CHECKSUM;
    *head = (struct fix_head){.version = (uint8_t)version};
    struct fix_field field;
    const uint8_t *q = fix_next(p + body, last, &field);
    if (!q || field.tag != 35 || field.size < 1 || field.size > 2) return FIX_CHECKSUM;  /* garbled all the same */
    head->type = (uint16_t)(field.value[0] | (field.size == 2 ? field.value[1] << 8 : 0));
    while (q < last && (q = fix_next(q, last, &field))) {
        switch (field.tag) {
        case 34: {
            int64_t seq = fix_digits(field.value, field.size);
            if (seq > 0) head->seq = (uint64_t)seq;
            break;
        }
        case 43: head->possdup = field.size == 1 && field.value[0] == 'Y'; break;
        case 49: case 50: case 52: case 56: case 57: case 97: case 115: case 116: case 122: case 128: case 129: case 142:
        case 143: case 144: case 145: case 347: case 369: case 627: case 628: case 629: case 630: case 1128: break;
        default: return FIX_WHOLE;  /* the header is over */
        }
    }
    return FIX_WHOLE;
}

#endif
