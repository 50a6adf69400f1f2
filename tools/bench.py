"""Measure the engine on this machine against its peers: the same as `python -m perf`, with the same options.

Called by tools/cli.py. Everything after `bench` is handed to perf unread.
"""

from __future__ import annotations

import argparse
import subprocess
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `tickengine bench`."""
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these figures, e.g. publish_single fanout_raw")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    parser.epilog = (
        "examples:\n  tickengine bench\n  tickengine bench --only publish_batch read_concurrent --json figures.json\n\n"
        "Quiet the machine first (`tickengine doctor`). Exit status is that of perf: 0 = all measured."
    )


def run(args: argparse.Namespace) -> int:
    """Run perf in its own process, so that nothing of this one disturbs the figures."""
    command = [sys.executable, "-m", "perf"]
    command += ["--only", *args.only] if args.only else []
    command += ["--json", args.json] if args.json else []
    return subprocess.call(command)
