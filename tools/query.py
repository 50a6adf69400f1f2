"""Ask the recorded data in SQL (DuckDB): views over the Parquet archive and what of the journal is not in it yet.

Called by tools/cli.py. Reads an engine's folder, which may be running or not; changes nothing. Views: one for each type
of record (tick, quote, bar, trade, level2, news, status), `ticks` over all of them with a column `type`, and `gaps`:
what the rings lost before it could be recorded.
"""

from __future__ import annotations

import argparse
import re
import sys
from decimal import Decimal
from typing import Any

from tools.recorded import RecordedError, add_options, folder_of, time_ns


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `tickengine query`."""
    parser.add_argument("sql", metavar="SQL", help="one statement; '-' reads it from standard input")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="default table")
    add_options(parser)
    parser.epilog = (
        "examples:\n"
        "  tickengine query 'SELECT type, count(*) FROM ticks GROUP BY type'\n"
        '  tickengine query "SELECT time_bucket(INTERVAL 1 minute, ts_event) AS minute, sum(price * size) / sum(size)\n'
        "                    FROM trade WHERE symbol = 'BTCUSDT' GROUP BY minute ORDER BY minute\"\n"
        "  tickengine query 'SELECT * FROM gaps' --format csv\n\n"
        "What is still in the journal is read into memory for the views that the statement names: with much of it,\n"
        "bound the time by --from and --to. DuckDB before 2.0 rounds times to microseconds.\n\n"
        "exit status: 0 done; 1 the statement failed, or nothing was recorded; 2 unusable options"
    )


def run(args: argparse.Namespace) -> int:
    """Make the views, run the statement, print its rows."""
    from engine.errors import ConfigError

    try:
        import duckdb

        from workers.history import History
    except ModuleNotFoundError as missing:
        print(f"tickengine query: needs {missing.name}: pip install 'tickengine[storage]'", file=sys.stderr)
        return 1
    sql = sys.stdin.read() if args.sql == "-" else args.sql
    try:
        history = History(folder_of(args))
        connection = connect(history, sql, time_ns(args.start), time_ns(args.end))
        result = connection.sql(sql)
    except ConfigError as error:
        print(f"tickengine query: {error}", file=sys.stderr)
        return 2
    except (RecordedError, OSError, duckdb.Error) as error:
        print(f"tickengine query: {error}", file=sys.stderr)
        return 1
    if result is None:
        return 0
    _print(result, args.format)
    return 0


def connect(history: Any, sql: str, from_ns: int | None = None, to_ns: int | None = None) -> Any:
    """A DuckDB connection with the views that `sql` names, of records with `ts_event` in [from, to)."""
    import duckdb

    from shm.layout import TYPE_NAMES, RecordType
    from workers.parquet import schema_of

    connection = duckdb.connect(":memory:")
    connection.execute("SET TimeZone = 'UTC'")
    words = set(re.findall(r"\w+", sql.lower()))
    everything = "ticks" in words
    selects = []
    parts, segments = history.sources()
    for record_type in RecordType:
        name = TYPE_NAMES[record_type]
        if not everything and name not in words:
            continue
        connection.register(f"recent_{name}", history.recent(record_type, segments, from_ns, to_ns))
        columns = ", ".join(f'"{column}"' for column in schema_of(record_type).names)
        select = f"SELECT {columns} FROM recent_{name}"
        files = [str(path).replace("'", "''") for path in history.files_of(parts, record_type, from_ns, to_ns)]
        if files:
            listed = ", ".join(f"'{path}'" for path in files)
            bounds = [
                f"epoch_ns(ts_event) {sign} {at}" for sign, at in ((">=", from_ns), ("<", to_ns)) if at is not None
            ]
            where = f" WHERE {' AND '.join(bounds)}" if bounds else ""
            select += f" UNION ALL SELECT {columns} FROM read_parquet([{listed}]){where}"
        connection.execute(f'CREATE VIEW "{name}" AS {select}')
        selects.append(f"SELECT '{name}' AS type, * FROM \"{name}\"")
    if everything:
        connection.execute(f"CREATE VIEW ticks AS {' UNION ALL BY NAME '.join(selects)}")
    if "gaps" in words:
        connection.register("gaps", history.gaps())
    return connection


def _print(result: Any, form: str) -> None:
    if form == "table":
        result.show(max_width=10_000 if not sys.stdout.isatty() else None)
        return
    import json

    import pyarrow as pa
    import pyarrow.csv

    table = result.to_arrow_table()
    for index, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):  # as text, because Python's own times end at microseconds
            table = table.set_column(index, field.name, table.column(index).cast(pa.string()))
    if form == "csv":
        sys.stdout.flush()
        pyarrow.csv.write_csv(table, sys.stdout.buffer)
        return
    for row in table.to_pylist():
        sys.stdout.write(json.dumps(row, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """What JSON has no type for: sums of whole numbers come as Decimal, everything else as text."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)
