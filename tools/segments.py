"""List, inspect and clean up the shared memory of engines, running or dead.

Called by tools/cli.py as `tickengine shm`. Looking never disturbs: segments are mapped read-only and no reader is
registered. Only `clean` removes, and only what belongs to engines of which no process lives, unless forced.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from shm.errors import ShmError
from tools.console import Paint, bytes_text, count_text, duration_text
from tools.liveness import Found, engine_alive, find_segments, remove_engine

_MEANING = {
    "inst": "symbols",
    "stat": "status",
    "last": "latest values, L1",
    "topic": "topic numbers",
    "rank": "scores of symbols",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `tickengine shm`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("ls", help="segments with owner, size, epoch, who lives in them", allow_abbrev=False)
    listing.add_argument("name", nargs="?", metavar="NAME", help="only this engine (needed on macOS)")
    listing.add_argument("--json", action="store_true", help="one JSON list")
    inspect = actions.add_parser(
        "inspect",
        help="header, readers and last records of rings; processes, counters, symbols",
        epilog="examples:\n  tickengine shm inspect main          everything of the engine main\n"
        "  tickengine shm inspect main.r2       its ring 2 only; works after a crash too",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    inspect.add_argument("name", metavar="NAME[.PART]", help="engine, or one segment of it: main.r2, main.stat")
    inspect.add_argument("--last", type=int, default=5, metavar="N", help="records to show of each ring (default 5)")
    clean = actions.add_parser("clean", help="remove the segments of engines that are dead", allow_abbrev=False)
    clean.add_argument("name", nargs="?", metavar="NAME", help="only this engine (needed on macOS)")
    clean.add_argument("--dry-run", action="store_true", help="say what would be removed")
    clean.add_argument("--force", action="store_true", help="also remove what a living engine of that NAME uses")
    parser.epilog = (
        "examples:\n  tickengine shm ls\n  tickengine shm inspect main.r2 --last 20\n"
        "  tickengine shm clean --dry-run\n\n"
        "exit status: 0 done, 1 refused or not all removed, 2 unusable options, 3 no such engine or not permitted"
    )


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    actions: dict[str, Callable[[argparse.Namespace], int]] = {"ls": _list, "inspect": _inspect, "clean": _clean}
    return actions[args.action](args)


def _list(args: argparse.Namespace) -> int:
    segments = find_segments(args.name)
    rows = [_row(item) for item in segments]
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    if not segments:
        print("no segments" + (f" of an engine named {args.name!r}" if args.name else ""))
        return 0
    paint = Paint.for_stream(sys.stdout)
    print(paint(f"{'SEGMENT':<26} {'SIZE':>9} {'OWNER':<10} {'MODE':<4} {'EPOCH':>5} {'PUBLISHED':>10}  STATE", "bold"))
    for item, row in zip(segments, rows, strict=True):
        state, style = _state(item, row)
        epoch = "" if row["epoch"] is None else str(row["epoch"])
        published = "" if row["published"] is None else count_text(row["published"])
        facts = f"{item.name:<26} {bytes_text(item.size_bytes):>9} {item.owner:<10} {item.mode:04o} {epoch:>5}"
        print(f"{facts} {published:>10}  {paint(state, style)}")
    total = sum(item.size_bytes for item in segments)
    dead = sorted({item.engine for item in segments if engine_alive(_of(segments, item.engine)) is False})
    print(f"{len(segments)} segments, {bytes_text(total)}")
    if dead:
        print(f"no process of {', '.join(dead)} is alive; remove with: tickengine shm clean")
    return 0


def _row(item: Found) -> dict[str, Any]:
    from shm.ring import ring_info

    row: dict[str, Any] = {
        "name": item.name,
        "engine": item.engine,
        "size_bytes": item.size_bytes,
        "owner": item.owner,
        "mode": f"{item.mode:04o}",
        "alive": item.held,
        "epoch": None,
        "published": None,
        "writer_pid": None,
        "error": None,
    }
    if item.ring_id is not None:
        try:
            info = ring_info(item.engine, item.ring_id)
        except ShmError as error:
            row["error"] = str(error)
        else:
            row.update(epoch=info.epoch, published=info.published, writer_pid=info.writer_pid)
    return row


def _state(item: Found, row: dict[str, Any]) -> tuple[str, str]:
    if row["error"]:
        return f"unusable: {row['error']}", "red"
    if item.held is None:
        return "not permitted to look", "yellow"
    what = _MEANING.get(item.what, "")
    if item.ring_id is not None:
        pid = row["writer_pid"]
        if item.held:
            return f"written by pid {pid}", "green"
        return (f"writer {pid} is dead", "yellow") if pid else ("no writer", "dim")
    if item.what in ("stat", "topic"):
        return (f"{what}: alive", "green") if item.held else (f"{what}: nobody alive", "dim")
    return what, "dim"


def _of(segments: list[Found], engine: str) -> list[Found]:
    return [item for item in segments if item.engine == engine]


def _inspect(args: argparse.Namespace) -> int:
    engine, _, part = args.name.removeprefix("/").removeprefix("tk.").partition(".")
    segments = [item for item in find_segments(engine) if not part or item.what == part]
    if not segments:
        print(f"tickengine shm: there is no segment of {args.name!r}; `tickengine shm ls` lists all", file=sys.stderr)
        return 3
    paint = Paint.for_stream(sys.stdout)
    failed = False
    for number, item in enumerate(segments):
        if number:
            print()
        print(paint(f"{item.name}  {bytes_text(item.size_bytes)}, {item.owner}, mode {item.mode:04o}", "bold"))
        try:
            if item.ring_id is not None:
                _inspect_ring(item, item.ring_id, args.last, paint)
            elif item.what == "stat":
                _inspect_status(item, paint)
            elif item.what == "inst":
                _inspect_instruments(item)
            else:
                print(f"  {_MEANING.get(item.what, 'of another version')}")
        except ShmError as error:
            print(paint(f"  unusable: {error}", "red"))
            failed = True
    return 3 if failed else 0


def _inspect_ring(item: Found, ring_id: int, last: int, paint: Paint) -> None:
    from shm.ring import list_readers, ring_info

    info = ring_info(item.engine, ring_id)
    writer = f"pid {info.writer_pid}" if info.writer_pid else "none (closed in order)"
    if info.writer_pid:
        writer += paint(" alive", "green") if info.writer_alive else paint(" dead", "red")
    print(f"  writer     {writer}, epoch {info.epoch}, since {_ago(info.writer_started_ns)}")
    print(f"  published  {info.published} records; {info.depth_slots} slots, made {_ago(info.created_ns)}")
    print(f"  wake-ups   {'on' if info.wakeups else 'off'}")
    for reader in list_readers(item.engine, ring_id):
        kind = "demoted" if reader.demoted else "reliable" if reader.reliable else "lossy"
        alive = "alive" if reader.alive else paint("dead", "red")
        lost = paint(f"lost {reader.lost}", "red") if reader.lost else "lost 0"
        print(f"  reader     {reader.label} (pid {reader.pid}, {alive}, {kind}): lag {reader.lag}, {lost}")
    if last > 0 and info.published:
        _print_last(item, ring_id, info.published, last, paint)


def _print_last(item: Found, ring_id: int, published: int, last: int, paint: Paint) -> None:
    from shm.instruments import InstrumentTable
    from shm.layout import empty
    from shm.ring import RingReader
    from tools.record_line import RecordLines

    symbols: InstrumentTable | None
    try:
        symbols = InstrumentTable.attach(item.engine)
    except ShmError:
        symbols = None  # the ring is all that is left: numbers instead of symbols
    lines = RecordLines(symbols, paint)
    out = empty(last)
    with RingReader.attach(item.engine, ring_id, start=max(1, published - last + 1), register=False) as reader:
        count = reader.read(out)
        print(f"  last {count} records")
        for text in lines.lines(out[:count], ring_id):
            print(f"  {text}")


def _inspect_status(item: Found, paint: Paint) -> None:
    from shm.status import StatusBlock

    block = StatusBlock.attach(item.engine)
    print(f"  control    pid {block.control_pid}, started {_ago(block.started_ns)}, stopping: {block.shutdown}")
    if block.facts:
        print(f"  facts      {json.dumps(block.facts)}")
    for ring_id, entry in block.rings().items():
        print(f"  ring {ring_id:<5} {entry.role} of {entry.label}")
    for view in block.processes(retired=True):
        alive = paint("alive", "green") if view.alive else paint("dead", "red")
        print(
            f"  {view.label}: {view.role}, pid {view.pid} {alive}, {view.state.name.lower()}, heartbeat "
            f"{_ago(view.heartbeat_ns)}, restarts {view.restarts}, {view.placement or 'placement not said'}"
        )
        for name, value in view.counters.items():
            print(f"    {name:<36} {value}")
        for name, gauge in view.gauges.items():
            print(f"    {name:<36} {gauge:g}")
        for name, histogram in view.histograms.items():
            figures = " ".join(f"p{q:g} {duration_text(histogram.percentile(q))}" for q in (50, 99, 99.9))
            print(f"    {name:<36} {histogram.count} times, {figures}, max {duration_text(histogram.max)}")
    block.close()


def _inspect_instruments(item: Found) -> None:
    from shm.instruments import InstrumentTable

    table = InstrumentTable.attach(item.engine)
    symbols = table.symbols()
    print(f"  {len(symbols)} of {table.capacity} symbols")
    if symbols:
        shown = symbols[:20]
        print("  " + " ".join(shown) + (f" ... {symbols[-1]}" if len(symbols) > len(shown) else ""))
    table.close()


def _ago(ns: int) -> str:
    return f"{duration_text(max(0, time.time_ns() - ns))} ago" if ns else "never"


def _clean(args: argparse.Namespace) -> int:
    segments = find_segments(args.name)
    if args.force and not args.name:
        print("tickengine shm clean: --force needs the NAME of the engine", file=sys.stderr)
        return 2
    if not segments:
        print("nothing to clean")
        return 0
    status = 0
    for engine in sorted({item.engine for item in segments}):
        mine = _of(segments, engine)
        size = bytes_text(sum(item.size_bytes for item in mine))
        alive = engine_alive(mine)
        if alive is not False and not args.force:
            why = "it is alive" if alive else f"this user ({os.geteuid()}) may not see whether it is alive"
            print(f"{engine}: kept, {why} ({len(mine)} segments, {size})")
            status = 1 if args.name else status
        elif args.dry_run:
            print(f"{engine}: would remove {len(mine)} segments, {size}: {' '.join(item.name for item in mine)}")
        else:
            try:
                removed = remove_engine(mine, force=args.force)
            except ShmError as error:
                print(f"{engine}: kept, {error}", file=sys.stderr)
                status = 1
            else:
                print(f"{engine}: removed {len(removed)} segments, {size}")
    return status
