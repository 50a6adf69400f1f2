"""Check this machine and say what to change: cores, clock, memory, limits, kernel, software.

Called by tools/cli.py. The judgement is in tools/machine_checks.py; it changes nothing and needs no engine.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Final

from tools.console import Paint
from tools.machine_checks import Check, Host, check_all

_STYLE: Final = {"ok": ("green",), "warn": ("yellow",), "fail": ("red", "bold")}


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `tickengine doctor`."""
    parser.add_argument("--json", action="store_true", help="one JSON list of {name, verdict, found, change}")
    parser.epilog = (
        "ok: as it should be. warn: works, with more latency or jitter, or not under load. fail: the engine will\n"
        "not run. Under each warning stands what to do, as a command where there is one.\n\n"
        "exit status: 0 nothing fails (warnings are allowed), 1 something fails"
    )


def run(args: argparse.Namespace) -> int:
    """Check, print, and judge."""
    checks = check_all(Host())
    if args.json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        print("\n".join(text_lines(checks, Paint.for_stream(sys.stdout))))
    return 1 if any(check.verdict == "fail" for check in checks) else 0


def text_lines(checks: list[Check], paint: Paint) -> list[str]:
    """Checks for people, and a line that counts them."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{paint(f'{check.verdict:<4}', *_STYLE[check.verdict])}  {check.name:<{width}}  {check.found}")
        if check.change:
            lines.append(f"{'':<{width + 6}}  -> {check.change}")
    counts = {verdict: sum(check.verdict == verdict for check in checks) for verdict in _STYLE}
    lines.append(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return lines
