"""Start the engine in the foreground: feeds into rings, rings to ZeroMQ, health and metrics over HTTP.

Called by tools/cli.py. It only turns options into settings; `engine.main.run` does the rest. An option goes before the
environment, and that before the file.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Final

EXIT_USAGE: Final = 2

# Option -> the setting it stands for.
SETTINGS: Final = {
    "name": "engine.name",
    "simulate": "simulate.enabled",
    "replay": "replay.files",
    "speed": "replay.speed",
    "loop": "replay.loop",
    "faults": "replay.faults",
    "start_delay": "engine.start_delay_s",
    "http_port": "http.port",
    "zmq_port": "zmq.base_port",
    "data_dir": "engine.data_dir",
    "exit_when_done": "engine.exit_when_done",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `tickengine run`."""
    add = parser.add_argument
    add("--config", metavar="FILE", help="TOML file; `tickengine config` prints one to start from")
    add("--name", help="name of this engine, [a-z0-9-], at most 16 characters (main)")
    add("--simulate", action="store_const", const=True, help="a simulated market; the default where nothing else feeds")
    add(
        "--replay",
        nargs="+",
        metavar="FILE",
        help="captured files, merged by time; `replay-info` says what is in one",
    )
    add("--speed", metavar="1|N|max", help="replay as fast as recorded, N times that, or as fast as it goes (1)")
    add("--loop", action="store_const", const=True, help="begin the replay again when it has ended")
    add(
        "--faults",
        metavar="NAME=SHARE,...",
        help="damage the replay on purpose, by seed: drop, duplicate, delay (with delay_ms), reorder, corrupt, seed",
    )
    add("--start-delay", metavar="SECONDS", help="wait before the first record, so that subscribers can connect (0)")
    add("--http-port", metavar="N", help="port of the HTTP API and the live page (8800)")
    add("--zmq-port", metavar="N", help="base of the ZeroMQ ports: raw N+1, msgpack N+11, JSON N+21 (8800)")
    add("--data-dir", metavar="DIR", help="where the engine keeps its files")
    add("--exit-when-done", action="store_const", const=True, help="stop when the replay has been delivered to its end")
    parser.epilog = (
        "examples:\n"
        "  tickengine run\n"
        "  tickengine run --replay day.dbn.zst --speed max --start-delay 2\n"
        "  tickengine run --replay day.pcap --faults drop=0.01,seed=3\n"
        "  tickengine run --name second --http-port 9800 --zmq-port 9800\n\n"
        "Ctrl-C or SIGTERM stops it in order: feeds first, then what is in the rings is delivered. Twice: at once.\n\n"
        "exit status: 0 stopped in order, or replay done with --exit-when-done; 1 a fault of ours; 2 unusable options\n"
        "or configuration; 3 shared memory; 4 a port is taken; 5 a worker never started; 6 an engine of this name is\n"
        "running; 130 stopped by a second Ctrl-C"
    )


def run(args: argparse.Namespace) -> int:
    """Load the configuration and run until told to stop."""
    from engine.config import load
    from engine.errors import EngineError
    from engine.main import run as run_engine

    if args.faults is not None and not _checked(args.faults):
        return EXIT_USAGE
    given = vars(args)
    overrides = {key: given[option] for option, key in SETTINGS.items() if given[option] is not None}
    try:
        config = load(args.config, os.environ, overrides)
    except EngineError as error:
        print(f"tickengine run: {error}", file=sys.stderr)
        return error.exit_status
    return run_engine(config)


def _checked(faults: str) -> bool:
    """Whether the engine would take them: said before it starts."""
    from workers.errors import SettingsError
    from workers.sources.faults import parse_faults

    try:
        parse_faults(faults)
    except SettingsError as error:
        print(f"tickengine run: --{error}", file=sys.stderr)
        return False
    return True
