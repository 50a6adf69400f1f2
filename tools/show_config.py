"""Print the effective configuration as commented TOML, and check it: each key, its meaning, range and origin.

Called by tools/cli.py. The output is itself a valid configuration file; it never holds a secret, because secrets are
not settings.
"""

from __future__ import annotations

import argparse
import os
import sys


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `tickengine config`."""
    parser.add_argument("--config", metavar="FILE", help="TOML file to read; without it defaults and environment")
    parser.add_argument("--check", action="store_true", help="check only, print one line")
    parser.epilog = (
        "examples:\n  tickengine config > tickengine.toml        a file to start from\n"
        "  tickengine config --config my.toml         what my.toml and the environment come to\n"
        "  tickengine config --config my.toml --check\n\n"
        "exit status: 0 usable, 2 not (the message names the key and what is allowed)"
    )


def run(args: argparse.Namespace) -> int:
    """Load, and print."""
    from engine.config import load
    from engine.errors import ConfigError
    from engine.manual import render

    try:
        config = load(args.config, os.environ)
    except ConfigError as error:
        print(f"tickengine config: {error}", file=sys.stderr)
        return 2
    if args.check:
        feeds = sum(feed.enabled for feed in config.feeds) + len(config.replay.files) + config.simulate.enabled
        print(f"{args.config or 'defaults and environment'}: usable, {feeds} feeds, {len(config.origins)} values set")
        return 0
    sys.stdout.write(render(config))
    return 0
