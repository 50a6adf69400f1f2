"""The public C header: it says what shm.layout says, compiles everywhere, and programs made from it read our rings."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from shm import layout
from shm.header import HEADER_PATH, README_PATH, generate, include_folder, main, record_table, replace_table
from shm.layout import FIELDS, RECORD, RecordType, empty
from shm.ring import RingWriter, create_ring
from shm.segment import Segment, segment_name

C_FOLDER = Path(__file__).resolve().parent.parent / "c"
STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")


def compiler(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def compile_c(source: Path, target: Path, *options: str) -> Path:
    command = [compiler("gcc"), "-std=c11", "-O2", *STRICT, *options, f"-I{include_folder()}", str(source)]
    subprocess.run([*command, "-o", str(target), "-lrt"], check=True, capture_output=True, text=True)
    return target


@pytest.fixture(scope="session")
def c_reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/c/reader.c, compiled from the public header alone."""
    return compile_c(C_FOLDER / "reader.c", tmp_path_factory.mktemp("c") / "reader")


def read_in_c(program: Path, name: str, first: int, last: int, slots: int = 64) -> subprocess.CompletedProcess[str]:
    arguments = [str(program), name, str(first), str(last), str(slots)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)


def trades(count: int) -> np.ndarray:
    records = empty(count)
    records["record_type"] = RecordType.TRADE
    records["instrument_id"] = np.arange(count) % 7
    records["ts_event"] = 1_700_000_000_000_000_000 + np.arange(count)
    records["source_sequence"] = 2**63 + np.arange(count, dtype=np.uint64)
    records["venue"] = b"XNAS-BBO"
    records["price"] = 0.1 + np.arange(count)
    records["size"] = 1e-9 * np.arange(count)
    return records


def test_committed_header_is_what_the_layout_generates() -> None:
    assert HEADER_PATH.read_text() == generate(), "run: python -m shm.header --write"


def test_record_table_in_the_readme_is_what_the_layout_generates() -> None:
    readme = README_PATH.read_text()
    assert replace_table(readme) == readme, "run: python -m shm.header --write"
    assert all(f"| {field.offset} |" in record_table() and f"| {field.name} |" in record_table() for field in FIELDS)


def test_readme_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="record table"):
        replace_table("# shm\n")


def test_command_prints_the_header_and_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == generate()
    assert main(["--include"]) == 0
    assert Path(capsys.readouterr().out.strip(), "tickengine.h") == HEADER_PATH


@pytest.mark.parametrize(
    ("name", "options", "suffix"),
    [
        ("gcc", ("-std=c11",), "c"),
        ("gcc", ("-std=c17", "-O0", "-DTK_COPY_WORDS"), "c"),
        ("g++", ("-std=c++17",), "cpp"),
        ("clang", ("-std=c11",), "c"),
        ("aarch64-linux-gnu-gcc", ("-std=c11",), "c"),
        ("aarch64-linux-gnu-gcc", ("-std=c11", "-DTK_COPY_WORDS"), "c"),
        ("aarch64-linux-gnu-g++", ("-std=c++17",), "cpp"),
    ],
)
def test_header_compiles_without_a_warning(name: str, options: tuple[str, ...], suffix: str, tmp_path: Path) -> None:
    program = compiler(name)
    source = tmp_path / f"all.{suffix}"
    source.write_text(
        """
        #include <tickengine.h>
        uint64_t use(struct tk_ring *ring, struct tk_record *records);
        uint64_t use(struct tk_ring *ring, struct tk_record *records) {
            uint64_t next = 1, lost = 0;
            if (tk_attach("/tk.none.r0", ring) != TK_ATTACHED) return (uint64_t)tk_attach_text(1)[0];
            next = tk_read_next(ring, &next, records, 8, &lost) + (uint64_t)tk_read(ring, next, records);
            tk_publish(ring, next, records, 0);
            tk_publish_batch(ring, next, (const char *)records, 2, 0);
            next += tk_recover(ring) + tk_oldest(ring) + lost;
            tk_detach(ring);
            return next;
        }
        """
    )
    command = [program, "-O2", *options, *STRICT, f"-I{include_folder()}", "-c", str(source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "all.o")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_arm64_build_has_a_barrier_for_each_fence_of_publish_and_read(tmp_path: Path) -> None:
    program = compiler("aarch64-linux-gnu-gcc")
    source = tmp_path / "fences.c"
    source.write_text(
        """
        #include <tickengine.h>
        void publish(struct tk_ring *r, uint64_t n, void *p) { tk_publish(r, n, p, 0); }
        int read_one(struct tk_ring *r, uint64_t n, void *p) { return tk_read(r, n, p); }
        """
    )
    command = [program, "-std=c11", "-O2", f"-I{include_folder()}", "-S", "-o", "-", str(source)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    publish = text.split("publish:")[1].split("ret")[0]
    read = text.split("read_one:")[1]
    assert publish.index("dmb\tish") < publish.index("stp q") < publish.index("stlr")
    assert read.index("ldar") < read.index("ldp q") < read.index("dmb\tishld")


def test_c_offsets_equal_numpy_offsets(tmp_path: Path) -> None:
    names = [field.name if field.body == "head" else f"{field.body}.{field.name}" for field in FIELDS]
    lines = "\n".join(
        f'printf("{name} %zu %zu\\n", offsetof(struct tk_record, {name}), sizeof(((struct tk_record *)0)->{name}));'
        for name in names
    )
    source = tmp_path / "offsets.c"
    source.write_text(
        f"#include <stdio.h>\n#include <inttypes.h>\n#include <tickengine.h>\nint main(void) {{\n{lines}\n"
        'printf("hash %" PRIu64 " %d\\n", TK_SCHEMA_HASH, TK_RECORD_BYTES);\nreturn 0; }\n'
    )
    program = compile_c(source, tmp_path / "offsets")
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.splitlines()
    expected = []
    for field, name in zip(FIELDS, names, strict=True):
        dtype, offset = (RECORD.fields or {})[field.name][:2]
        expected.append(f"{name} {offset} {dtype.itemsize}")
    assert printed == [*expected, f"hash {layout.schema_hash()} {RECORD.itemsize}"]


def test_c_reader_reads_what_python_wrote(engine_name: str, c_reader: Path) -> None:
    records = trades(100)
    records["record_type"][50] = RecordType.QUOTE
    records["bid"][50], records["ask"][50] = 99.25, 99.5
    with RingWriter.create(engine_name, 3, depth_slots=256) as writer:
        writer.publish_batch(records[:60])
        for record in records[60:]:
            writer.publish(record.tobytes())
        done = read_in_c(c_reader, writer.name, 1, 100, slots=7)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "depth 256 newest 101 oldest 1"
    expected = [
        f"{i + 1} {r['record_type']} {r['instrument_id']} {r['ts_event']} {r['source_sequence']} XNAS-BBO "
        f"{float(r['price']):.17g} {float(r['size']):.17g}"
        for i, r in enumerate(records)
    ]
    assert lines[1:] == expected


def test_c_reader_reports_the_exact_gap_when_lapped(engine_name: str, c_reader: Path) -> None:
    with RingWriter.create(engine_name, 3, depth_slots=64) as writer:
        for _ in range(2):
            writer.publish_batch(trades(100))
        done = read_in_c(c_reader, writer.name, 5, 200)
    lines = done.stdout.splitlines()
    assert lines[1] == f"gap 5 {200 - 32}"
    assert lines[2].startswith("168 ")
    assert lines[2].endswith(" after-gap")
    assert [int(line.split()[0]) for line in lines[2:]] == list(range(168, 201))
    assert not any(line.endswith("after-gap") for line in lines[3:])


def test_c_reader_starts_at_the_oldest_safe_record(engine_name: str, c_reader: Path) -> None:
    with RingWriter.create(engine_name, 3, depth_slots=64) as writer:
        writer.publish_batch(trades(100))
        done = read_in_c(c_reader, writer.name, 0, 100)
    sequences = [int(line.split()[0]) for line in done.stdout.splitlines()[1:]]
    assert sequences == list(range(101 - 48, 101))


def test_c_reader_says_why_it_can_not_attach(engine_name: str, c_reader: Path) -> None:
    name = segment_name(engine_name, "r3")
    assert read_in_c(c_reader, name, 1, 1).returncode == 1  # TK_MISSING
    create_ring(engine_name, 3, depth_slots=64)
    segment = Segment.attach(name, write=True)
    whole = bytes(segment.buf[:64])
    for offset, value, problem, words in (
        (0, bytes(8), 3, "being created"),
        (0, b"NOTARING", 4, "not a ring"),
        (8, b"\x02\0\0\0", 5, "another version"),
        (12, b"\x40\0\0\0", 5, "another version"),
        (16, bytes(8), 6, "other fields"),
        (24, (1 << 20).to_bytes(8, "little"), 7, "smaller"),
        (24, (63).to_bytes(8, "little"), 7, "smaller"),
    ):
        segment.buf[offset : offset + len(value)] = value
        done = read_in_c(c_reader, name, 1, 1)
        assert (done.returncode, words in done.stderr) == (problem, True), done.stderr
        segment.buf[:64] = whole
    segment.close()
    small = Segment.create(segment_name(engine_name, "r4"), 16384)
    assert read_in_c(c_reader, small.name, 1, 1).returncode == 7
    small.close()
