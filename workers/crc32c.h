/* CRC-32C (Castagnoli; iSCSI, RFC 3720 appendix B.4) of a run of bytes: what guards each block of the journal.
 *
 * Called by workers/_crc32c.pyx alone. The processor's own instruction where there is one (SSE 4.2, the CRC extension
 * of ARMv8), chosen once at run time; a table of 8 x 256 words elsewhere. Allocates nothing, keeps no state but the
 * table, which is built at import, before there is a second thread.
 */
#ifndef TICKENGINE_CRC32C_H
#define TICKENGINE_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#define TK_CRC32C_POLYNOMIAL 0x82F63B78u /* 0x1EDC6F41, bits reversed */

static uint32_t tk_crc32c_table[8][256];

static inline void tk_crc32c_prepare(void) {
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (crc & 1 ? TK_CRC32C_POLYNOMIAL : 0);
        tk_crc32c_table[0][byte] = crc;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int row = 1; row < 8; row++) {
            uint32_t before = tk_crc32c_table[row - 1][byte];
            tk_crc32c_table[row][byte] = (before >> 8) ^ tk_crc32c_table[0][before & 0xFF];
        }
}

/* Eight bytes a step; little-endian, as the whole project is. */
static inline uint32_t tk_crc32c_by_table(uint32_t crc, const unsigned char *data, size_t bytes) {
    for (; bytes >= 8; data += 8, bytes -= 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        word ^= crc;
        crc = 0;
        for (int row = 0; row < 8; row++) crc ^= tk_crc32c_table[7 - row][(word >> (8 * row)) & 0xFF];
    }
    while (bytes--) crc = (crc >> 8) ^ tk_crc32c_table[0][(crc ^ *data++) & 0xFF];
    return crc;
}

#if defined(__x86_64__)
#define TK_CRC32C_NATIVE __attribute__((target("sse4.2")))
#define TK_CRC32C_WORD(crc, word) ((uint32_t)__builtin_ia32_crc32di(crc, word))
#define TK_CRC32C_BYTE(crc, byte) __builtin_ia32_crc32qi(crc, byte)
static inline int tk_crc32c_is_native(void) { return __builtin_cpu_supports("sse4.2"); }
#elif defined(__aarch64__) && defined(__APPLE__)
#define TK_CRC32C_NATIVE
#define TK_CRC32C_WORD(crc, word) __builtin_arm_crc32cd(crc, word)
#define TK_CRC32C_BYTE(crc, byte) __builtin_arm_crc32cb(crc, byte)
static inline int tk_crc32c_is_native(void) { return 1; }
#elif defined(__aarch64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define TK_CRC32C_NATIVE __attribute__((target("+crc")))
#define TK_CRC32C_WORD(crc, word) __builtin_aarch64_crc32cx(crc, word)
#define TK_CRC32C_BYTE(crc, byte) __builtin_aarch64_crc32cb(crc, byte)
static inline int tk_crc32c_is_native(void) { return (getauxval(AT_HWCAP) & (1ul << 7)) != 0; } /* HWCAP_CRC32 */
#endif

#ifdef TK_CRC32C_NATIVE
TK_CRC32C_NATIVE static uint32_t tk_crc32c_by_instruction(uint32_t crc, const unsigned char *data, size_t bytes) {
    for (; bytes >= 8; data += 8, bytes -= 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        crc = TK_CRC32C_WORD(crc, word);
    }
    while (bytes--) crc = TK_CRC32C_BYTE(crc, *data++);
    return crc;
}
#else
static inline int tk_crc32c_is_native(void) { return 0; }
#endif

/* `crc` = 0, or the result for the bytes that come before these. */
static inline uint32_t tk_crc32c(uint32_t crc, const void *data, size_t bytes) {
#ifdef TK_CRC32C_NATIVE
    if (tk_crc32c_is_native()) return ~tk_crc32c_by_instruction(~crc, data, bytes);
#endif
    return ~tk_crc32c_by_table(~crc, data, bytes);
}

#endif
