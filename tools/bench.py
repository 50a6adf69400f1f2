"""Measure the engine on this machine against its peers: the same as `python -m perf`, with the same options.

Called by tools/cli.py. Everything after `bench` is handed to perf unread.
"""

from __future__ import annotations

import argparse
import subprocess
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    """Its options are those of perf: tools/cli.py leaves what it does not know in `args.unread`."""
    parser.usage = "tickengine bench [--only NAME ...] [--runs N] [--quick] [--profile] [--json FILE]"
    parser.set_defaults(takes_unread=True)
    parser.epilog = (
        "examples:\n  tickengine bench\n  tickengine bench --only publish_batch read_concurrent --json figures.json\n"
        "  tickengine bench --quick\n\n"
        "`python -m perf --help` explains every option and names the figures. Quiet the machine first\n"
        "(`tickengine doctor`). Exit status is that of perf: 0 data verified, 1 data lost or broken, 2 wrong options."
    )


def run(args: argparse.Namespace) -> int:
    """Run perf in its own process, so that nothing of this one disturbs the figures."""
    return subprocess.call([sys.executable, "-m", "perf", *args.unread])
