"""List the plug-in sources that are installed: name, package, class, and why one can not be used.

Called by tools/cli.py. Reads what packages say of themselves; it imports no plug-in and asks no engine.
"""

from __future__ import annotations

import argparse
import json


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `tickengine plugins`."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.epilog = (
        "A plug-in is a package with an entry point in the group tickengine.sources (see workers/PLUGINS.md). It is\n"
        "used by its name: source = NAME in the configuration, data_source over HTTP.\n\n"
        "exit status: 0 done; 1 one of them can not be used"
    )


def run(args: argparse.Namespace) -> int:
    """Print them."""
    from workers.plugins import GROUP, installed

    found = installed()
    for plugin in found:
        if args.json:
            fields = {"name": plugin.name, "package": plugin.package, "class": plugin.entry.value}
            print(json.dumps({**fields, "refused": plugin.refused}))
        else:
            refused = f"  can not be used: {plugin.refused}" if plugin.refused else ""
            print(f"{plugin.name:<20} {plugin.package:<28} {plugin.entry.value}{refused}")
    if not found and not args.json:
        print(f"no package here has an entry point in the group {GROUP}")
    return int(any(plugin.refused for plugin in found))
