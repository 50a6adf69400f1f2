"""Write recorded data into a file: one symbol, one type of record, a range of time, as Parquet, CSV, Arrow or DBN.

Called by tools/cli.py. Reads the journal and the Parquet archive of an engine, which may be running or not; changes
neither.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

from tools.recorded import RecordedError, add_options, folder_of, time_ns

FORMATS: Final = {"parquet": "parquet", "csv": "csv", "arrow": "arrow", "dbn": "dbn"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `tickengine export`."""
    add = parser.add_argument
    add("symbol", metavar="SYMBOL", help="as the feed names it; '*' = all")
    add(
        "--type", dest="kind", metavar="TYPE", help="tick, quote, bar, trade, level2, news or status; needed if several"
    )
    add("--format", choices=FORMATS, default="parquet", help="default parquet")
    add("--interval", type=int, metavar="SECONDS", help="bars of this length only")
    add("--output", "-o", metavar="FILE", help="default SYMBOL.TYPE.FORMAT in this folder")
    add_options(parser)
    parser.epilog = (
        "examples:\n"
        "  tickengine export BTCUSDT --type trade --from 2026-11-21T14:00 --to 2026-11-21T15:00\n"
        "  tickengine export BTCUSDT --type bar --interval 60 --format csv -o minutes.csv\n"
        "  tickengine export '*' --type quote --format arrow\n\n"
        "Times are the venue's. DBN: trades, ticks, quotes and bars with whole sizes.\n\n"
        "exit status: 0 written; 1 nothing to write, or not possible in this format; 2 unusable options"
    )


def run(args: argparse.Namespace) -> int:
    """Find, write, say what was written."""
    from engine.errors import ConfigError

    try:
        from workers.history import History
    except ModuleNotFoundError as missing:
        print(f"tickengine export: needs {missing.name}: pip install 'tickengine[storage]'", file=sys.stderr)
        return 1
    from shm.layout import TYPE_NAMES, RecordType

    try:
        history = History(folder_of(args))
        symbol = None if args.symbol == "*" else args.symbol
        choice: dict[str, Any] = {"symbol": symbol, "from_ns": time_ns(args.start), "to_ns": time_ns(args.end)}
        if args.kind is None:
            args.kind = _only_type(history, args.symbol, choice)
        elif args.kind not in TYPE_NAMES[1:]:
            raise RecordedError(f"--type {args.kind}: there are {', '.join(TYPE_NAMES[1:])}")
        record_type = RecordType(TYPE_NAMES.index(args.kind))
        table = history.table(record_type, **choice)
        if args.interval is not None and record_type is RecordType.BAR:
            import pyarrow.compute as pc

            table = table.filter(pc.equal(table["interval_s"], args.interval))
        if not table.num_rows:
            raise RecordedError(f"no {args.kind} of {args.symbol} in {history.folder} for that time")
        name = f"{args.symbol if symbol else 'all'}.{args.kind}.{FORMATS[args.format]}".replace("/", "_")
        path = Path(args.output or name)
        write(path, table, record_type, args.format)
    except ConfigError as error:
        print(f"tickengine export: {error}", file=sys.stderr)
        return 2
    except (RecordedError, ValueError, OSError) as error:
        print(f"tickengine export: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {table.num_rows} records, {path.stat().st_size} bytes")
    return 0


def _only_type(history: Any, symbol: str, choice: dict[str, Any]) -> str:
    from shm.layout import TYPE_NAMES, RecordType

    counts = {
        TYPE_NAMES[record_type]: history.table(record_type, columns=["ts_event"], **choice).num_rows
        for record_type in RecordType
    }
    found = [name for name, count in counts.items() if count]
    if not found:
        raise RecordedError(f"nothing of {symbol} in {history.folder} for that time")
    if len(found) > 1:
        listed = ", ".join(f"{name} ({counts[name]})" for name in found)
        raise RecordedError(f"{symbol} has several types of records, choose one with --type: {listed}")
    return found[0]


def write(path: Path, table: Any, record_type: Any, form: str) -> None:
    """Write a table of workers.history to `path`. DbnError if DBN can not hold it."""
    if form == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(table, path, compression="zstd")
    elif form == "arrow":
        import pyarrow as pa

        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif form == "csv":
        import pyarrow.csv

        plain = table.set_column(0, "symbol", table["symbol"].cast("string"))
        pyarrow.csv.write_csv(plain, path)
    else:
        from tools.dbn_file import write_dbn

        write_dbn(path, table, record_type)
