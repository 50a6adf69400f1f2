"""The public C header, printed from the table of fields: `shm/include/tickengine.h`, for readers in C, C++ and Rust.

    python -m shm.header             print the header
    python -m shm.header --write     write it, and the record table in shm/README.md, where they belong
    python -m shm.header --include   print the folder for the C compiler: cc -I"$(python -m shm.header --include)" ...

Called by people and by the tests that hold both files against `shm.layout`; never at run time. It prints text and knows
no shared memory: what a reader does with a mapped ring is in `shm/ring.h`, which the header includes.
"""

from __future__ import annotations

import argparse
import enum
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from shm import layout
from shm.layout import BODIES, FIELDS, HEAD_SIZE_BYTES, RECORD_SIZE_BYTES, Field

INCLUDE_FOLDER = Path(__file__).resolve().parent / "include"
HEADER_PATH = INCLUDE_FOLDER / "tickengine.h"
README_PATH = Path(__file__).resolve().parent / "README.md"

TABLE_START = "<!-- record table: written by python -m shm.header --write -->"
TABLE_END = "<!-- end of record table -->"

_C_TYPES = {"u1": "uint8_t", "u2": "uint16_t", "u4": "uint32_t", "u8": "uint64_t", "i8": "int64_t", "f8": "double"}
_ENUMS: tuple[tuple[type[enum.IntEnum] | type[enum.IntFlag], str, str], ...] = (
    (layout.RecordType, "tk_record_type", "TK_TYPE"),
    (layout.Source, "tk_source", "TK_SOURCE"),
    (layout.Flag, "tk_flag", "TK_FLAG"),
    (layout.Priority, "tk_priority", "TK_PRIORITY"),
    (layout.Side, "tk_side", "TK_SIDE"),
    (layout.Action, "tk_action", "TK_ACTION"),
    (layout.StatusCode, "tk_status_code", "TK_STATUS"),
)

_OPENING = """\
/* Readers of the tick engine in C, C++ and whatever can include C: records, and attaching to a ring. This file is all
 * that such a reader includes. Printed from shm/layout.py by `python -m shm.header --write`; edit that.
 *
 *     struct tk_ring ring;
 *     struct tk_record records[256];
 *     int problem = tk_attach("/tk.main.r2", &ring);                  // engine "main", ring 2
 *     if (problem) { fprintf(stderr, "%s\\n", tk_attach_text(problem)); return 1; }
 *
 *     uint64_t next = tk_newest(&ring), lost;                         // or 1, or where you left off
 *     for (;;) {
 *         uint64_t count = tk_read_next(&ring, &next, records, 256, &lost);
 *         if (lost) { ... }          // records [records[0].sequence - lost, records[0].sequence) were overrun
 *         for (uint64_t i = 0; i < count; i++)
 *             if (records[i].record_type == TK_TYPE_TRADE) use(records[i].instrument_id, records[i].tick.price);
 *         if (count == 0) tk_pause();                                 // nothing new: spin, or do something else
 *     }
 *
 * The mapping is read-only: such a reader can harm nobody, and nobody knows of it (it is in no reader table and can't
 * be waited for). Being overrun is a result and not an error: `lost` is exact, and reading has gone on half a ring
 * behind the writer. The ring survives its writer; `ring.header->epoch` tells that another one has taken over.
 *
 * C11 or C++11, GCC or Clang, little-endian machines. Link with -lrt where shm_open still lives there (glibc < 2.34).
 */
#ifndef TICKENGINE_H
#define TICKENGINE_H

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../ring.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "records are little-endian"
#endif
"""

_READING = """\
/* ---- attaching --------------------------------------------------------------------------------------------------- */

enum tk_attach_problem {
    TK_ATTACHED = 0,
    TK_MISSING = 1,         /* no segment of that name: is the engine running under this name? */
    TK_NOT_ALLOWED = 2,     /* its mode keeps this user out */
    TK_NOT_READY = 3,       /* it is being created: try again */
    TK_NOT_A_RING = 4,      /* its magic is wrong */
    TK_OTHER_VERSION = 5,   /* ring version or record size differ from this header's */
    TK_OTHER_SCHEMA = 6,    /* same size, other fields: the schema hash differs */
    TK_TOO_SMALL = 7,       /* the segment ends before its last slot */
    TK_NOT_MAPPED = 8       /* mmap failed: errno says why */
};

static inline const char *tk_attach_text(int problem) {
    switch (problem) {
        case TK_ATTACHED: return "attached";
        case TK_MISSING: return "no such ring: is the engine running under this name?";
        case TK_NOT_ALLOWED: return "the ring's mode does not let this user read it";
        case TK_NOT_READY: return "the ring is being created";
        case TK_NOT_A_RING: return "the segment is not a ring";
        case TK_OTHER_VERSION: return "the ring was made by another version of the engine";
        case TK_OTHER_SCHEMA: return "the ring's records have other fields than this program was built for";
        case TK_TOO_SMALL: return "the segment is smaller than its header says";
        default: return "the ring could not be mapped";
    }
}

/* Map a ring read-only. `name` is the segment's, "/tk.ENGINE.rN". Returns TK_ATTACHED or another tk_attach_problem. */
static inline int tk_attach(const char *name, struct tk_ring *ring) {
    struct stat status;
    int problem = TK_ATTACHED;
    int fd = shm_open(name, O_RDONLY, 0);
    if (fd < 0) return errno == ENOENT ? TK_MISSING : errno == EACCES ? TK_NOT_ALLOWED : TK_NOT_MAPPED;
    if (fstat(fd, &status) != 0) problem = TK_NOT_MAPPED;
    else if (status.st_size == 0) problem = TK_NOT_READY;
    else if (status.st_size < TK_RING_SLOTS_OFFSET) problem = TK_TOO_SMALL;
    if (problem != TK_ATTACHED) {
        close(fd);
        return problem;
    }
    void *memory = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED) return TK_NOT_MAPPED;

    struct tk_ring_header *h = (struct tk_ring_header *)memory;
    uint64_t magic = tk_load_acquire(&h->magic); /* stored last by the creator: line 0 is constant after it */
    uint64_t room = ((uint64_t)status.st_size - TK_RING_SLOTS_OFFSET) / TK_RECORD_BYTES;
    if (magic == 0) problem = TK_NOT_READY;
    else if (magic != TK_RING_MAGIC) problem = TK_NOT_A_RING;
    else if (h->version != TK_RING_VERSION || h->record_bytes != TK_RECORD_BYTES) problem = TK_OTHER_VERSION;
    else if (h->schema_hash != TK_SCHEMA_HASH) problem = TK_OTHER_SCHEMA;
    else if (h->depth == 0 || (h->depth & (h->depth - 1)) != 0 || h->depth > room) problem = TK_TOO_SMALL;
    if (problem != TK_ATTACHED) {
        munmap(memory, (size_t)status.st_size);
        return problem;
    }
    ring->header = h;
    ring->readers = NULL;
    ring->slots = (tk_word *)(void *)((char *)memory + TK_RING_SLOTS_OFFSET);
    ring->depth = h->depth;
    ring->mask = h->depth - 1;
    return TK_ATTACHED;
}

/* Unmap a ring; its pointers are dead afterwards. Safe to call twice. */
static inline void tk_detach(struct tk_ring *ring) {
    if (ring->header != NULL) munmap((void *)ring->header, TK_RING_SLOTS_OFFSET + ring->depth * TK_RECORD_BYTES);
    ring->header = NULL;
    ring->slots = NULL;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* Where to start for what comes from now on. */
static inline uint64_t tk_newest(const struct tk_ring *ring) { return tk_load_acquire(&ring->header->published) + 1; }

/* Where to start for as much of the past as is safe: a quarter of a full ring is the writer's head start. */
static inline uint64_t tk_oldest(const struct tk_ring *ring) {
    uint64_t next = tk_newest(ring), back = ring->depth / 4 * 3;
    return next > back ? next - back : 1;
}

/* Copy up to `limit` records from *next on into `records` and move *next past them. Returns how many, 0 for none yet.
 * Never waits. `*lost` is how many records were overrun just before records[0], which then has TK_FLAG_GAP_BEFORE. */
static inline uint64_t tk_read_next(const struct tk_ring *ring, uint64_t *next, struct tk_record *records,
                                    uint64_t limit, uint64_t *lost) {
    uint64_t wanted = *next;
    if (limit > ring->depth) limit = ring->depth;
    for (;;) {
        int64_t count = limit == 0 ? 0 : tk_read_batch(ring, *next, (char *)records, limit);
        if (count >= 0) {
            *lost = count > 0 ? *next - wanted : 0;
            if (count == 0) *next = wanted;
            if (*lost > 0) records[0].flags = (uint16_t)(records[0].flags | TK_FLAG_GAP_BEFORE);
            *next += (uint64_t)count;
            return (uint64_t)count;
        }
        *next = tk_resume(ring, *next);
    }
}

#endif
"""


def include_folder() -> Path:
    """The folder that `#include <tickengine.h>` needs on the compiler's search path."""
    return INCLUDE_FOLDER


def generate() -> str:
    """The whole header as text."""
    parts = [
        _OPENING,
        "/* ---- records " + "-" * 102 + " */\n",
        f"#define TK_LAYOUT_VERSION {layout.LAYOUT_VERSION}",
        f"#define TK_SCHEMA_HASH UINT64_C(0x{layout.schema_hash():016x}) /* digest of the table of fields */",
        f"#define TK_SYMBOL_BYTES {layout.SYMBOL_SIZE_BYTES}",
        f"#define TK_MAX_RINGS {layout.MAX_RINGS}",
        f"#define TK_NO_INSTRUMENT UINT32_C(0x{layout.NO_INSTRUMENT:x}) /* the record concerns no single instrument */",
        "",
        *(_enum_text(*each) for each in _ENUMS),
        _states_text(),
        *(_body_text(body) for body in BODIES),
        _record_text(),
        *_asserts(),
        "",
        _READING,
    ]
    return "\n".join(parts)


def record_table() -> str:
    """The record as a Markdown table, for shm/README.md."""
    rows = ["| body | offset | type | field | meaning |", "|---|---|---|---|---|"]
    rows += [
        f"| {'tick, trade' if f.body == 'tick' else f.body} | {f.offset} | {_type_text(f)} | {f.name} | {f.doc} |"
        for f in FIELDS
    ]
    return "\n".join(rows) + "\n"


def replace_table(readme: str) -> str:
    """`readme` with the record table between its two marks brought up to date."""
    pattern = re.compile(f"{re.escape(TABLE_START)}.*?{re.escape(TABLE_END)}", re.DOTALL)
    new, found = pattern.subn(lambda _: f"{TABLE_START}\n{record_table()}{TABLE_END}", readme)
    if found != 1:
        raise ValueError(f"shm/README.md must have {TABLE_START!r} once, it has it {found} times")
    return new


def _type_text(field: Field) -> str:
    return f"char[{field.type[1:]}]" if field.type[0] == "S" else _C_TYPES[field.type].removesuffix("_t")


def _declaration(field: Field) -> str:
    if field.type[0] == "S":
        return f"char {field.name}[{field.type[1:]}];"
    return f"{_C_TYPES[field.type]} {field.name};"


def _members(body: str, start: int, end: int) -> Iterator[str]:
    """One line a field, holes filled with named spare bytes."""
    at = start
    spares = 0
    for field in sorted((f for f in FIELDS if f.body == body), key=lambda f: f.offset):
        if field.offset > at:
            yield f"    uint8_t spare{spares}[{field.offset - at}];"
            spares += 1
        yield f"    {_declaration(field):<28} /* {field.offset:>3}  {field.doc} */"
        at = field.offset + field.dtype.itemsize
    if at < end:
        yield f"    uint8_t spare{spares}[{end - at}];"


def _enum_text(members: type[enum.IntEnum] | type[enum.IntFlag], name: str, prefix: str) -> str:
    flags = issubclass(members, enum.IntFlag)
    values = (f"    {prefix}_{m.name} = {f'0x{int(m):04x}' if flags else int(m)}" for m in members)
    summary = (members.__doc__ or "").splitlines()[0]
    return f"/* {summary} */\nenum {name} {{\n" + ",\n".join(values) + "\n};\n"


def _states_text() -> str:
    lines = []
    for word, meaning in layout.TRADING_STATES.items():
        name, text = f"TK_STATE_{word.upper().replace(' ', '_')}", f'"{word}"'
        lines.append(f"#define {name:<19} {text:<12} /* {meaning} */")
    opening = (
        "/* What the text of a TK_STATUS_TRADING_STATUS begins with, up to its colon. Their first letters differ. */\n"
    )
    return opening + "\n".join(lines) + "\n"


def _body_text(body: str) -> str:
    lines = "\n".join(_members(body, HEAD_SIZE_BYTES, RECORD_SIZE_BYTES))
    return f"struct tk_{body} {{\n{lines}\n}};\n"


def _record_text() -> str:
    head = "\n".join(_members("head", 0, HEAD_SIZE_BYTES))
    union = "\n".join(f"        struct tk_{body} {body};" for body in BODIES)
    trade = "        struct tk_tick trade; /* the same fields as tick */"
    return f"struct tk_record {{\n{head}\n    union {{ /* by record_type */\n{union}\n{trade}\n    }};\n}};\n"


def _asserts() -> Iterator[str]:
    yield f'TK_ASSERT(sizeof(struct tk_record) == {RECORD_SIZE_BYTES}, "a record fills a slot");'
    for field in FIELDS:
        member = field.name if field.body == "head" else f"{field.body}.{field.name}"
        yield f'TK_ASSERT(offsetof(struct tk_record, {member}) == {field.offset}, "{member}");'


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m shm.header`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m shm.header", description="The public C header of the tick engine.")
    parser.add_argument("--write", action="store_true", help="write the header and the table in shm/README.md")
    parser.add_argument("--include", action="store_true", help="print the folder for the C compiler's search path")
    options = parser.parse_args(arguments)
    if options.include:
        print(include_folder())
    elif options.write:
        HEADER_PATH.parent.mkdir(exist_ok=True)
        HEADER_PATH.write_text(generate())
        if README_PATH.exists():
            README_PATH.write_text(replace_table(README_PATH.read_text()))
    else:
        sys.stdout.write(generate())
    return 0


if __name__ == "__main__":
    sys.exit(main())
