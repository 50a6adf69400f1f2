"""Watch a running engine: rates, latencies, lags and losses, per process, feed and ring; what is wrong, and why.

Called by tools/cli.py. Everything comes from shared memory: it works when HTTP does not, and costs the engine nothing.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from tools.observer import Observer


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `tickengine top`."""
    parser.add_argument("--name", default="main", help="engine to watch (default main)")
    parser.add_argument("--interval", type=_interval, default=1.0, metavar="SECONDS", help="between frames (default 1)")
    parser.add_argument("--once", action="store_true", help="print one frame, measured over one interval, and exit")
    parser.epilog = (
        "examples:\n  tickengine top\n  tickengine top --name paper --interval 0.5\n"
        "  tickengine top --once | tee state.txt\n\n"
        "q or Ctrl-C ends it. Red and yellow are what is slow, stale or losing; the reasons stand at the bottom.\n"
        "LOST counts records lost to a slow reader, messages dropped, records rejected, input not decoded.\n\n"
        "exit status: 0 done; with --once 1 if the engine is unhealthy or stopped; 3 no such engine"
    )


def _interval(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is outside 0.05..3600 seconds")
    return value


def run(args: argparse.Namespace) -> int:
    """Show frames until told to stop."""
    from rich.console import Console

    from tools.observer import Observer

    observer = Observer(args.name)
    console = Console(highlight=False)
    try:
        return _once(observer, console, args.interval) if args.once else _live(observer, console, args.interval)
    finally:
        observer.close()


def _once(observer: Observer, console: Console, interval_s: float) -> int:
    from engine.health import Verdict
    from tools.top_frame import frame

    observer.look(time.time_ns(), time.monotonic())
    time.sleep(interval_s)
    view = observer.look(time.time_ns(), time.monotonic())
    if not console.is_terminal:
        console.width = 160  # a file has no width of its own; columns must not be cut
    console.print(frame(view))
    return 0 if view.alive and view.health.verdict < Verdict.UNHEALTHY else 1


def _live(observer: Observer, console: Console, interval_s: float) -> int:
    from rich.live import Live

    from tools.top_frame import frame

    view = observer.look(time.time_ns(), time.monotonic())
    with _keys() as keys, Live(frame(view), console=console, screen=console.is_terminal, auto_refresh=False) as live:
        first_s = min(interval_s, 0.2)  # rates need a second look: have it soon
        while True:
            ready, _, _ = select.select(keys, [], [], first_s)
            first_s = interval_s
            if ready and os.read(keys[0], 16).lower() in (b"q", b"\x1b", b""):
                return 0
            view = observer.look(time.time_ns(), time.monotonic())
            live.update(frame(view), refresh=True)


@contextmanager
def _keys() -> Iterator[list[int]]:
    """Descriptors on which single keys arrive: standard input, if it is a terminal, without line editing and echo."""
    if not sys.stdin.isatty():
        yield []
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield [descriptor]
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
