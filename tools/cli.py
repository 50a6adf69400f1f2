"""The command line `tickengine`: finds the subcommand, reads its options, runs it, turns what went wrong into a line.

Each subcommand is a module of this package with `configure(parser)` and `run(args) -> exit status`; its libraries are
imported when it runs, so that `--help` answers at once. Called as the console script, as `python -m tools`, by tests.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Final

# Name -> module and what it is for. The order is that of the help text.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "run": ("tools.run", "start the engine, in the foreground"),
    "top": ("tools.top", "watch a running engine: rates, latencies, lags, losses"),
    "tail": ("tools.tail", "print records as they come"),
    "feeds": ("tools.feeds", "list, add, pause, restart and remove feeds"),
    "capture": ("tools.capture", "write down what live feeds receive, for replays"),
    "plugins": ("tools.plugins", "list the sources that other packages bring"),
    "export": ("tools.export", "write recorded data into a file"),
    "query": ("tools.query", "ask recorded data in SQL"),
    "replay-info": ("tools.replay_info", "say what is in captured files"),
    "shm": ("tools.segments", "list, inspect and clean up shared memory"),
    "keys": ("tools.keys", "make CURVE keys for ZeroMQ"),
    "doctor": ("tools.doctor", "check this machine and say what to change"),
    "bench": ("tools.bench", "measure the engine on this machine"),
    "config": ("tools.show_config", "print and check the configuration"),
}

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_SHM: Final = 3
EXIT_INTERRUPTED: Final = 130

_EPILOG: Final = """\
examples:
  tickengine run                                simulated ticks, HTTP on 8800, ZeroMQ on 8801
  tickengine run --replay day.dbn.zst --speed 10
  tickengine top                                in a second terminal
  tickengine tail 'trade.AAPL' 'quote.*'
  tickengine COMMAND --help                     options, examples, exit status of one command

exit status:
  0 done; 1 failed; 2 unusable options or configuration; 3 shared memory can not be used (no such engine, no room, no
  permission); 130 interrupted. `run` and `doctor` have their own, see their help.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status. `arguments` without the program's name, default sys.argv[1:]."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="tickengine",
        description="A market-data engine in shared memory: feeds into rings, rings to ZeroMQ.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tickengine {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    wanted = next((word for word in given if not word.startswith("-")), None)
    for name, (module, purpose) in COMMANDS.items():
        chosen = import_module(module) if name == wanted else None
        command = commands.add_parser(
            name,
            help=purpose,
            description=(chosen.__doc__ or "").strip().split("\n\n")[0] if chosen else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # a script that says --sim must not change its meaning when an option is added
        )
        if chosen:
            chosen.configure(command)
            command.set_defaults(run=chosen.run)
    args, unread = parser.parse_known_args(given)
    if args.command is None:
        parser.print_help()
        return EXIT_USAGE
    if unread and not getattr(args, "takes_unread", False):
        commands.choices[args.command].error(_unknown(unread[0], commands.choices[args.command]))
    args.unread = unread
    return _run(args)


def _unknown(given: str, command: argparse.ArgumentParser) -> str:
    options = [option for option in command._option_string_actions if option.startswith("--")]
    nearest = difflib.get_close_matches(given.partition("=")[0], options, n=1)
    return f"unknown option {given!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else "")


def _run(args: argparse.Namespace) -> int:
    from shm.errors import ShmError

    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `tickengine tail | head`: the reader has gone, nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ShmError as error:
        print(f"tickengine {args.command}: {error}", file=sys.stderr)
        return EXIT_SHM


def _version() -> str:
    try:
        return version("tickengine")
    except PackageNotFoundError:
        return "(not installed)"
