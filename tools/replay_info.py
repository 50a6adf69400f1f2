"""Say what is in captured files: format, messages, records, time range, symbols, gaps, damage.

Called by tools/cli.py. Every file is decoded to its end by the decoders of the replay, so what stands here is what
`tickengine run --replay` will publish. Needs no engine and touches no shared memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from tools.console import Paint, bytes_text, duration_text

_BATCH_SLOTS: Final = 8192
_PROGRESS_FROM_BYTES: Final = 4 << 20  # smaller files are done before a bar could be read
_SYMBOLS_SHOWN: Final = 12
_SWITCHES: Final = {"true": True, "false": False}
_GAPS_SHOWN: Final = 3

OnProgress = Callable[[float], None]


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `tickengine replay-info`."""
    from workers.decoders.capture_options import OPTIONS
    from workers.decoders.detection import FORMATS, PROTOCOLS

    add = parser.add_argument
    add(
        "files",
        nargs="+",
        metavar="FILE",
        help="DBN, packet capture, ITCH, WebSocket lines, ticks; gzip, zstd, LZMA or plain",
    )
    add("--json", action="store_true", help="one JSON list, with every symbol and the gaps")
    choices = {"format": FORMATS, "protocol": PROTOCOLS}
    for name, meaning in OPTIONS.items():
        add(f"--{name}", metavar=name.upper(), choices=choices.get(name), help=meaning)
    parser.epilog = (
        "examples:\n  tickengine replay-info day.dbn.zst\n"
        "  tickengine replay-info *.pcap.gz --port 10378\n"
        "  tickengine replay-info day.itch --date 2024-07-01 --json | jq '.[0].records'\n\n"
        "exit status: 0 all whole; 1 a file is damaged, unreadable or of no known format; 2 unusable options"
    )


def run(args: argparse.Namespace) -> int:
    """Describe each file."""
    from workers.decoders.capture_options import OPTIONS
    from workers.errors import SettingsError

    options = {name: _SWITCHES.get(getattr(args, name), getattr(args, name)) for name in OPTIONS}
    paint = Paint.for_stream(sys.stdout)
    found = []
    try:
        for path in args.files:
            info = _look(path, options)
            found.append(info)
            if not args.json:
                print(("\n" if len(found) > 1 else "") + "\n".join(text_lines(info, paint)), flush=True)
    except SettingsError as error:
        print(f"tickengine replay-info: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(found, indent=1))
    return 1 if any(is_damaged(info) for info in found) else 0


def is_damaged(info: Mapping[str, Any]) -> bool:
    """Whether the file could not be read to its end, or holds messages that had to be refused. Gaps are no damage."""
    return bool(info["error"] or info.get("malformed") or info.get("truncated_bytes"))


def text_lines(info: Mapping[str, Any], paint: Paint) -> list[str]:
    """A description (Capture.describe, with "error") for people."""
    lines = [paint(str(info["path"]), "bold")]

    def line(name: str, text: str, *styles: str) -> None:
        lines.append(f"  {name:<9} {paint(text, *styles)}")

    if "format" in info:
        line("format", f"{info['format']}, {bytes_text(info['size_bytes'])}")
        line("messages", _counts(info["messages"]))
        line("records", _counts(info["records"]))
        if info["first_ns"]:
            length = duration_text(info["last_ns"] - info["first_ns"])
            line("time", f"{info['first']} to {info['last']} ({length})")
        symbols = info["symbols"]
        if symbols:
            more = f" and {len(symbols) - _SYMBOLS_SHOWN} more" if len(symbols) > _SYMBOLS_SHOWN else ""
            line("symbols", f"{len(symbols)}: {' '.join(symbols[:_SYMBOLS_SHOWN])}{more}")
        if info["gaps"]:
            line("gaps", f"{info['gaps']}, {info['missing']} messages are missing: {_ranges(info)}", "yellow")
        else:
            line("gaps", "none")
        also = {"heartbeats": info["heartbeats"], "duplicates": info["duplicates"], **info["passed_over"]}
        besides = ", ".join(f"{name} {count:,}" for name, count in also.items() if count)
        if besides:
            line("besides", besides)
        for reason, count in info["malformed"].items():
            if reason != "truncated":  # said below, with its size
                line("damage", f"{reason}: {count:,} messages refused", "red")
        if info["truncated_bytes"]:
            line("damage", f"the last message is cut short: {info['truncated_bytes']} bytes left over", "red")
    if info["error"]:
        line("damage" if "format" in info else "error", str(info["error"]), "red")
    return lines


def _counts(by_name: Mapping[str, int]) -> str:
    if not by_name:
        return "none"
    return f"{sum(by_name.values()):,}: " + ", ".join(f"{name} {count:,}" for name, count in sorted(by_name.items()))


def _ranges(info: Mapping[str, Any]) -> str:
    shown = [f"[{gap[-2]}, {gap[-1]})" for gap in info["gap_ranges"][:_GAPS_SHOWN]]
    return ", ".join(shown) + (" ..." if len(info["gap_ranges"]) > _GAPS_SHOWN else "")


def _look(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from workers.decoders.protocol import FramingError, UnknownFormatError

    try:
        if sys.stderr.isatty() and os.stat(path).st_size >= _PROGRESS_FROM_BYTES:
            return _with_bar(path, options)
        return _describe(path, options, lambda _: None)
    except OSError as error:
        return {"path": path, "error": error.strerror or str(error)}
    except (FramingError, UnknownFormatError) as error:
        return {"path": path, "error": str(error)}
    except ModuleNotFoundError as error:
        return {"path": path, "error": f"needs {error.name}: pip install 'tickengine[replay]'"}


def _describe(path: str, options: Mapping[str, Any], on_progress: OnProgress) -> dict[str, Any]:
    """As `describe_capture`, but it says how far it is."""
    import numpy as np

    from shm.layout import RECORD
    from workers.decoders.capture import open_capture
    from workers.decoders.protocol import FramingError

    numbers: dict[str, int] = {}
    out = np.empty(_BATCH_SLOTS, RECORD)
    with open_capture(path, intern=lambda symbol: numbers.setdefault(symbol, len(numbers)), options=options) as capture:
        error = ""
        try:
            while capture.decode(out):
                on_progress(capture.progress)
        except FramingError as problem:
            error = str(problem)
        return {**capture.describe(), "error": error}


def _with_bar(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(os.path.basename(path), total=1.0)
        return _describe(path, options, lambda done: progress.update(task, completed=done))
