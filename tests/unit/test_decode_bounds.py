"""The C kernels read and write only what they may: run under the address and undefined-behaviour sanitizers on damage.

The kernels are plain C, so they compile without Python; each frame stands in an allocation of exactly its size, which a
read of one byte too many leaves.
"""

from __future__ import annotations

import gzip
import lzma
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests import mdp3

ROOT = Path(__file__).resolve().parent.parent.parent

HARNESS = r"""
#include <stdio.h>
#include "workers/arbitration.h"
#include "workers/decoders/bi5.h"
#include "workers/decoders/binance.h"
#include "workers/decoders/dbn.h"
#include "workers/decoders/fix.h"
#include "workers/decoders/iex.h"
#include "workers/decoders/itch.h"
#include "workers/decoders/lobster.h"
#include "workers/decoders/mdp3.h"
#include "workers/decoders/packets.h"
#include "workers/decoders/pitch.h"
#include "workers/decoders/truefx.h"

static struct tk_record out[7];
static struct tk_counts counts;

/* What the Cython shells answer, in short: every symbol is new and known. */
#define DECODE(STATE, RUN, ON_STOP)                                              \
    for (int stop = TK_FULL; stop != TK_DONE;) {                                 \
        (STATE)->sink.out = out, (STATE)->sink.count = 0, (STATE)->sink.capacity = 1 + size % 7; \
        sink_drain(&(STATE)->sink);                                              \
        if (sink_full(&(STATE)->sink)) continue;                                 \
        stop = RUN(STATE);                                                       \
        if (stop != TK_DONE && stop != TK_FULL) { ON_STOP; }                     \
    }                                                                            \
    while ((STATE)->sink.spare_count) {                                          \
        (STATE)->sink.count = 0;                                                 \
        sink_drain(&(STATE)->sink);                                              \
    }
#define SKIP(STATE) (STATE)->frames.index++, (STATE)->frames.at = 0, (STATE)->frames.begun = 0

int main(void) {
    struct iex *iex = calloc(1, sizeof *iex);
    struct itch *itch = calloc(1, sizeof *itch);
    struct dbn *dbn = calloc(1, sizeof *dbn);
    struct binance *binance = calloc(1, sizeof *binance);
    struct fix *fix = calloc(1, sizeof *fix);
    fix->sink.counts = &counts;
    struct mdp3 *mdp3 = calloc(1, sizeof *mdp3);
    mdp3->sink.counts = &counts;
    mdp3->book = 1;
    fix->wants = 7;
    struct pitch *pitch = calloc(1, sizeof *pitch);
    pitch->sink.counts = &counts;
    pitch->orders.limit = 1000;
    pitch->book = 1;
    struct bi5 *bi5 = calloc(1, sizeof *bi5);
    struct truefx *truefx = calloc(1, sizeof *truefx);
    struct lobster *lobster = calloc(1, sizeof *lobster);
    bi5->sink.counts = truefx->sink.counts = lobster->sink.counts = &counts;
    bi5->units = 1e5;
    lobster->was = calloc(1, sizeof *lobster->was);
    lobster->now = calloc(1, sizeof *lobster->now);
    iex->sink.counts = itch->sink.counts = dbn->sink.counts = binance->sink.counts = &counts;
    itch->orders.limit = dbn->orders.limit = 1000;
    binance->native = 1;
    iex->book = itch->book = 1;
    static struct arbiter lines[2];
    if (!arb_open(&lines[0], ARB_MOLD, 5, 3, 2048) || !arb_open(&lines[1], ARB_IEX_TOPS, 5, 3, 2048)) return 4;
    memset(itch->locate, 0xFE, sizeof itch->locate);
    unsigned char kind;
    unsigned int size;
    unsigned long cases = 0;
    while (fread(&kind, 1, 1, stdin) == 1 && fread(&size, 4, 1, stdin) == 1) {
        uint8_t *data = malloc(size ? size : 1);
        if (fread(data, 1, size, stdin) != size) return 2;
        struct tk_frame frame = {0, size, 0, 0, (int64_t)(cases * 3600000000000)};
        struct tk_frames frames = {data, size, &frame, 1, 0, 0, 0};
        cases++;
        if (kind == 'I') {
            iex->frames = frames;
            DECODE(iex, iex_run, symbols_add(&iex->symbols, iex->symbols.missed, 1))
        } else if (kind == 'M' || kind == 'L') {
            itch->frames = frames;
            itch->packets = kind == 'M';
            itch->fixed_day = 1;
            DECODE(itch, itch_run, symbols_add(&itch->symbols, itch->symbols.missed, 1))
        } else if (kind == 'U') {
            pitch->frames = frames;
            if (pitch_recognise(data, size) && size < 8) return 8;
            DECODE(pitch, pitch_run, if (stop == TK_MAPPING) pitch_map(pitch, (uint32_t)cases % 50);
                   else symbols_add(&pitch->symbols, pitch->symbols.missed, (uint32_t)pitch->symbols.count % 50))
        } else if (kind == 'D') {
            dbn->frames = frames;
            DECODE(dbn, dbn_run, if (stop == TK_MAPPING) dbn->frames.at += (size_t)data[dbn->frames.at] * 4;
                   else dbn_set(dbn, dbn->missed, 1, INT64_MIN, INT64_MAX))
        } else if (kind == 'B') {
            binance->frames = frames;
            DECODE(binance, binance_run, if (stop == TK_SLOW) SKIP(binance);
                   else symbols_add(&binance->symbols, binance->symbols.missed, 1))
        } else if (kind == 'F') {
            fix->frames = frames;
            fix->top = cases % 5 == 0;
            DECODE(fix, fix_run, symbols_add(&fix->symbols, fix->symbols.missed, (uint32_t)fix->symbols.count))
            if (cases % 50 == 0) fix_doubt(fix);
            struct fix_head head;
            size_t at = 0, length;
            for (; at < size; at++)
                if (fix_cut(data + at, data + size, 4096, &length, &head) == FIX_WHOLE && length > size - at) return 7;
        } else if (kind == 'K' || kind == 'C') {
            bi5->frames = frames;
            bi5->candles = kind == 'C';
            DECODE(bi5, bi5_run, return 7)
        } else if (kind == 'G') {
            mdp3->frames = frames;
            frame.port = (uint16_t)(cases % 70);
            mdp3->orders = cases % 3 == 0;
            DECODE(mdp3, mdp3_run, if (stop == TK_MAPPING) mdp3->mapped = 1; else if (stop == TK_SLOW) {
                   mdp3->listed = 1;
                   mdp3->group_count = cases % 20;
                   mdp3->group = realloc(mdp3->group, 20 * sizeof *mdp3->group);
                   for (unsigned i = 0; i < 20; i++) mdp3->group[i] = i; } else {
                   symbols_add(&mdp3->symbols, mdp3->symbols.missed, (uint32_t)mdp3->symbols.count);
                   uint64_t key[4];
                   memcpy(key, mdp3->symbols.missed, sizeof key);
                   symbols_find(&mdp3->symbols, key)->last[2] = (cases % 4) << 32 | (mdp3->symbols.count - 1); })
        } else if (kind == 'T') {
            truefx->frames = frames;
            DECODE(truefx, truefx_run, symbols_add(&truefx->symbols, truefx->symbols.missed, 1))
        } else if (kind == 'O') {
            lobster->frames = frames;
            lobster->levels = cases % 3 ? lobster->levels : 0;
            DECODE(lobster, lobster_run, return 7)
        } else if (kind == 'A' || kind == 'X') {
            struct arbiter *a = &lines[kind == 'X'];
            if (size > 2048 || !a->free_count) size = 0;
            uint32_t slot = a->free_slot[--a->free_count];
            memcpy(arb_slot(a, slot), data, size);
            arb_offer(a, cases % ARB_LINES, slot, size, 1, (int64_t)cases);
            if (cases % 7 == 0) arb_give_up(a, &a->stream[cases / 7 % ARB_STREAMS]);
            for (uint32_t i = 0; i < a->frames; i++)
                if (a->frame[i].offset + a->frame[i].size > (uint64_t)a->slots * 2048) return 5;
            arb_recycle(a);
            if (a->free_count + a->held != a->slots) return 6;
        } else if (kind == 'P') {
            struct packets *packets = calloc(1, sizeof *packets);
            struct tk_frame *found = malloc(4 * sizeof *found);
            size_t at = 0, count, consumed;
            int stop;
            do {
                stop = packets_run(packets, data + at, size - at, found, 4, &count, &consumed);
                for (size_t i = 0; i < count; i++)
                    if (found[i].offset > size - at || found[i].size > size - at - found[i].offset) return 3;
                at += consumed;
            } while (stop == PACKETS_ROOM);
            free(found);
            free(packets);
        }
        free(data);
    }
    uint64_t records = 0;
    for (int i = 0; i < 8; i++) records += counts.records[i];
    printf("%lu cases %llu records\n", cases, (unsigned long long)records);
    return 0;
}
"""


def damaged(rng: random.Random, data: bytes) -> bytes:
    text = bytearray(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data)
    for _ in range(rng.choice((0, 1, 2, 10))):
        if text:
            text[rng.randrange(len(text))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(text)


def payloads(capture: bytes, at: int = 42) -> list[bytes]:
    """UDP payloads of a classic little-endian Ethernet capture without options."""
    found, offset = [], 24
    while offset + 16 <= len(capture):
        (length,) = struct.unpack_from("<I", capture, offset + 8)
        found.append(capture[offset + 16 + at : offset + 16 + length])
        offset += 16 + length
    return found


def pitch_packet(rng: random.Random) -> bytes:
    """A PITCH packet of a few messages of types and lengths that there are, about few orders, units and sequences."""
    body, count = b"", rng.randrange(6)
    for _ in range(count):
        kind, length = rng.choice(((0x20, 6), (0x21, 34), (0x22, 26), (0x23, 26), (0x24, 38), (0x25, 18), (0x26, 16),
                                   (0x27, 27), (0x28, 19), (0x29, 14), (0x2A, 41), (0x2B, 33), (0x2E, 38), (0x2F, 41),
                                   (0x30, 43), (0x31, 18), (0x97, 6)))  # fmt: skip
        fields = struct.pack("<IQcHH", 7, rng.randrange(20), rng.choice((b"B", b"S")), rng.randrange(3), 0)
        fields += bytes(65 + rng.randrange(2) for _ in range(8)) + rng.randbytes(20)
        body += bytes((length, kind)) + fields[: length - 2].ljust(length - 2, b"0")
    return struct.pack("<HBBI", 8 + len(body), count, rng.randrange(1, 4), rng.randrange(40)) + body


def test_kernels_stay_in_bounds_on_damaged_input(samples: Path, tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here")
    zstandard = pytest.importorskip("zstandard")
    source, binary = tmp_path / "bounds.c", tmp_path / "bounds"
    source.write_text(HARNESS)
    command = [compiler, "-std=gnu11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += ["-Wno-unused-function", f"-I{ROOT}", str(source), "-o", str(binary), "-lm"]
    command += ["-lrt"] if sys.platform == "linux" else []
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find -l" in built.stderr and "san" in built.stderr:
        pytest.skip("the compiler has no sanitizers here")
    assert built.returncode == 0, built.stderr

    itch = samples / "pcap/Nasdaq/Nasdaq.Equities.TotalView.Itch.v5.0"
    dbn = [
        zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True).read()
        for folder in ("GLBX.MDP3", "LIVE", "XNAS.ITCH")
        for path in sorted((samples / "dbn/databento-python" / folder).glob("*.zst"))
    ]
    lines = gzip.decompress((samples / "websocket/spot_btcusdt_20240808.gz").read_bytes()).splitlines()[:400]
    iex = gzip.decompress((samples / "iex/TOPS16.pcapng.gz").read_bytes())
    seeds: list[tuple[bytes, bytes]] = [
        (b"I", payload) for payload in payloads(iex[:400_000])[::7] if len(payload) > 40
    ]
    seeds += [(b"M", payload) for path in sorted(itch.glob("*.pcap")) for payload in payloads(path.read_bytes())]
    seeds += [(b"A" if kind == b"M" else b"X", payload) for kind, payload in seeds]
    seeds += [(b"L", payload[20:]) for kind, payload in seeds if kind == b"M"]
    seeds += [(b"D", data[8 + int.from_bytes(data[4:8], "little") :]) for data in dbn]
    seeds += [(b"B", line.split(b" ", 1)[1]) for line in lines if len(line) < 3000]
    seeds += [(b"P", path.read_bytes()) for path in sorted((samples / "pcap").rglob("*.pcap"))]
    seeds += [(b"P", iex[:3000])]
    cme = sorted((samples / "pcap/Cme").rglob("*.pcap"))
    seeds += [(b"G", payload) for path in cme for payload in payloads(path.read_bytes())] * 5
    seeds += [(b"G", packet) for packet in mdp3.one_of_each()] * 5
    wire = (samples / "fix/valid-soh.fix").read_bytes()
    seeds += [(b"F", b"8=FIX" + message) for message in wire.split(b"8=FIX")[1:]] * 20
    halt = b"9=83|35=f|34=41|49=V|56=C|52=20230124-13:30:46.130|55=IBM|326=2|327=P|10=000|".replace(b"|", b"\1")
    seeds += [(b"F", b"8=FIX.4.4\1" + halt)] * 100
    ticks = samples / "ticks"
    seeds += [(b"K", lzma.decompress(path.read_bytes())[:400]) for path in sorted(ticks.rglob("*h_ticks.bi5"))]
    seeds += [(b"C", lzma.decompress(path.read_bytes())[:400]) for path in sorted(ticks.rglob("*candles*.bi5"))]
    seeds += [(b"T", path.read_bytes()[at : at + 300]) for path in sorted(ticks.rglob("truefx/*")) for at in range(20)]
    seeds += [(b"T", b"EUR/USD,20200701 12:00:00.247,1.3228,1.32289\r\n2020-07-01 14:30:00.1+02:30,1,2")] * 20
    events, books = (path.read_bytes().splitlines() for path in sorted((ticks / "lobster").iterdir()))
    seeds += [(b"O", b",".join(pair)) for pair in zip(events[:40], books[:40], strict=True)]
    rng = random.Random(1)
    seeds += [(b"U", pitch_packet(rng)) for _ in range(300)]
    cases = []
    for _ in range(6000):
        kind, data = rng.choice(seeds)
        broken = damaged(rng, data)
        cases.append(kind + struct.pack("<I", len(broken)) + broken)
    ran = subprocess.run(
        [str(binary)],
        input=b"".join(cases),
        env={"ASAN_OPTIONS": "detect_leaks=0"},  # the harness leaves its tables to the end of the process
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode(errors="replace")[-3000:]
    assert ran.stdout.startswith(b"6000 cases")
    assert int(ran.stdout.split()[2]) > 1000
