"""`python -m perf`: run the benchmarks, print the table, write the JSON.

    python -m perf                                   everything, five runs each (some minutes)
    python -m perf --only publish_single latency_native --runs 9
    python -m perf --quick --json perf/out/figures.json

Exit status: 0 all data verified, 1 a benchmark lost data or broke, 2 wrong arguments. A missed target is shown, and
does not change the status: a machine may be busy or small.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from rich.console import Console

from perf.errors import BenchmarkFailed, Skipped
from perf.machine import this_machine
from perf.report import Row, print_table, write_json
from perf.rounds import Plan

OUT_FOLDER = Path(__file__).parent / "out"

# name -> "module:function" of a function (Plan) -> Row. A module is imported when one of its benchmarks runs.
BENCHMARKS: dict[str, str] = {
    "publish_single": "perf.publish:single",
    "publish_batch": "perf.publish:batch",
    "read_concurrent": "perf.readers:concurrent",
    "readers_slowdown": "perf.readers:slowdown",
    "idle_rings": "perf.readers:idle_rings",
    "latency_native": "perf.latency:with_native_reader",
    "latency_python": "perf.latency:with_python_reader",
    "fanout_raw": "perf.fanout:raw",
    "fanout_batch": "perf.fanout:batch",
    "fanout_latency": "perf.fanout:latency",
    "route": "perf.fanout:route",
    "overload_trade": "perf.overload:trade",
    "gateway_1": "perf.gateway:one",
    "gateway_100": "perf.gateway:hundred",
    "gateway_5000": "perf.gateway:many",
    "gateway_latency": "perf.gateway:latency",
    "gateway_memory": "perf.gateway:memory",
    "webhook_messages": "perf.webhooks:messages",
    "replay_dbn": "perf.replay:dbn",
    "replay_itch": "perf.replay:itch",
    "replay_iex": "perf.replay:iex",
    "replay_binance": "perf.replay:binance",
    "replay_bi5": "perf.replay:bi5",
    "replay_truefx": "perf.replay:truefx",
    "replay_lobster": "perf.replay:lobster",
    "ingest_dbn": "perf.replay:ingest_dbn",
    "fix_decode": "perf.fix:decode",
    "multicast_in": "perf.multicast:multicast_in",
    "itch_book": "perf.multicast:itch_book",
    "arbitration": "perf.multicast:arbitration",
    "failover": "perf.failover:failover",
    "group_filter": "perf.failover:group_filter",
    "cache_apply": "perf.cache:apply",
    "journal_append": "perf.journal:append",
    "record_ring": "perf.journal:record_ring",
    "journal_recovery": "perf.journal:recovery",
    "parquet_seal": "perf.journal:seal",
    "parquet_hour": "perf.journal:hour",
    "parquet_day": "perf.journal:day",
    "redis_store": "perf.stores:redis_store",
    "postgres_copy": "perf.stores:postgres_copy",
    "ingest_json": "perf.api:ingest_json",
    "ingest_msgpack": "perf.api:ingest_msgpack",
    "data_l1": "perf.api:data_l1",
    "data_journal": "perf.api:data_journal",
    "snapshot": "perf.api:snapshot",
    "memory_per_record": "perf.footprint:memory_per_record",
    "control_rss": "perf.footprint:control_rss",
    "start_time": "perf.footprint:start_time",
    "idle_cpu": "perf.footprint:idle_cpu",
}


def run_one(name: str, plan: Plan) -> Row:
    """Run one benchmark; whatever goes wrong becomes a row that says so."""
    module, function = BENCHMARKS[name].split(":")
    try:
        benchmark: Callable[[Plan], Row] = getattr(import_module(module), function)
        return benchmark(plan)
    except Skipped as reason:
        return Row(name, None, "", note=f"skipped: {reason}")
    except BenchmarkFailed as reason:
        return Row(name, None, "", note=f"FAILED: {reason}", failed=True)
    except Exception as error:  # noqa: BLE001 -- the outermost loop: the other benchmarks shall run, and the status tells
        traceback.print_exc()
        return Row(name, None, "", note=f"BROKEN: {error!r}", failed=True)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m perf", description="Benchmarks of the tick engine and of its peers."
    )
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", choices=BENCHMARKS, help=f"some of: {', '.join(BENCHMARKS)}")
    add("--json", type=Path, metavar="FILE", help="write the rows there, and the machine beside it: .machine.json")
    add("--runs", type=int, default=5, metavar="N", help="counted runs of each, after one of warm-up (default 5)")
    add("--quick", action="store_true", help="a tenth of the data: shows that it works, the figures are rough")
    add("--profile", action="store_true", help="record with py-spy into perf/out/NAME.speedscope.json")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error(f"--runs is {options.runs}, must be at least 1")
    names = list(options.only or BENCHMARKS)
    if options.profile:
        return profile(names, options.runs)

    machine = this_machine()
    console = Console(stderr=True)
    console.print(str(machine), highlight=False)
    plan = Plan(runs=options.runs, quick=options.quick)
    rows: list[Row] = []
    for name in names:
        start = time.monotonic()
        with console.status(name):
            rows.append(run_one(name, plan))
        console.print(f"  {name} {time.monotonic() - start:.1f} s", style="dim", highlight=False)
    print_table(rows, str(machine))
    if options.json:
        write_json(rows, options.json)
        beside = options.json.with_suffix(".machine.json")
        beside.write_text(json.dumps(machine.as_json(), indent=1) + "\n")
    return 1 if any(row.failed for row in rows) else 0


def profile(names: list[str], runs: int) -> int:
    """Run each benchmark under py-spy, its child processes and native frames included."""
    beside = str(Path(sys.executable).parent)  # the environment that we run in, activated or not
    spy = shutil.which("py-spy", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if spy is None:
        print("py-spy is not here: pip install py-spy", file=sys.stderr)
        return 2
    OUT_FOLDER.mkdir(parents=True, exist_ok=True)
    status = 0
    for name in names:
        target = OUT_FOLDER / f"{name}.speedscope.json"
        recorder = [spy, "record", "--native", "--subprocesses", "--format", "speedscope", "--output", str(target)]
        command = [*recorder, "--", sys.executable, "-m", "perf", "--only", name, "--runs", str(runs)]
        status |= subprocess.run(command, check=False).returncode
        print(f"{target}: open it at https://www.speedscope.app")
    return status


if __name__ == "__main__":
    sys.exit(main())
