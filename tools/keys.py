"""Make CURVE keys for ZeroMQ: NAME.key, the secret one (mode 0600), and NAME.pub, to be given to the other side.

Called by tools/cli.py. It never prints a secret, and never replaces a file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `tickengine keys`."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="whose key: 'server', a person, a program")
    parser.add_argument("--folder", default=".", metavar="FOLDER", help="where to write them (default: here)")
    parser.epilog = (
        "examples:\n  tickengine keys server --folder /etc/tickengine\n"
        "  tickengine keys alice                  then copy alice.pub into the folder [zmq] client_keys\n\n"
        'In the configuration:\n  [zmq]\n  server_key_file = "/etc/tickengine/server.key"\n'
        '  client_keys = "/etc/tickengine/clients"     # alice.pub, bob.pub ...\n\n'
        "exit status: 0 done; 1 a file is there already or can't be written; 2 unusable name"
    )


def run(args: argparse.Namespace) -> int:
    """Make a pair for each name."""
    from workers.errors import SettingsError
    from workers.keys import make_pair, read_public

    folder = Path(args.folder).expanduser()
    for name in args.names:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            secret, public = make_pair(folder, name)
        except SettingsError as error:
            print(f"tickengine keys: {error}", file=sys.stderr)
            return 2
        except OSError as error:
            print(f"tickengine keys: {error.filename}: {error.strerror}", file=sys.stderr)
            return 1
        print(f"{secret}  secret, stays with {name}\n{public}  {read_public(public).decode()}")
    return 0
