"""Write down what live feeds receive and send, as it is, without an engine: for replays, bug reports and tests.

Called by tools/cli.py. The feeds are those of a configuration file, or one that the options describe. Multicast feeds
become `.pcap`, all others `.jsonl.zst`; `tickengine run --replay FILE...` plays them to the same records. Of an engine
only the budgets of API keys are shared, so that both together ask no more than a key may, and, with its configuration,
the numbers of FIX sessions, since a venue goes on with them whoever logs on.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tools.capture_feeds import CapturedFeed
    from tools.capture_frame import CaptureView, ConnectionView
    from workers.capture_log import Recording, Tally
    from workers.spec import FeedSpec

_LINE_EVERY_S: Final = 10.0
_FRAME_EVERY_S: Final = 0.25
_RATE_OVER_S: Final = 2.0
_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class CaptureError(Exception):
    """What can't be captured, in a line for people."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `tickengine capture`."""
    add = parser.add_argument
    add("symbols", nargs="*", metavar="SYMBOL", help="with --source: what to capture, in the venue's words")
    add("--config", metavar="FILE", help="TOML file; its live [[feeds]] are captured")
    add("--feed", action="append", default=[], metavar="NAME", help="only this one of them; may be given several times")
    add("--source", help="without a file: websocket, fix, multicast, yahoo, alpha_vantage, fred")
    add("--types", default="", metavar="A,B", help="data types; default: the source's own choice")
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="of the source; VALUE as JSON, or text")
    add("--out", default="capture", metavar="DIR", help="folder of the files (capture)")
    add("--for", dest="seconds", type=_duration, metavar="TIME", help="end after 90, 60s, 5m, 2h; default: Ctrl-C")
    add("--part-size", type=_size, default=256 << 20, metavar="SIZE", help="begin a new file at this size (256MiB)")
    add("--part-time", type=_duration, default=3600.0, metavar="TIME", help="... or after this time (1h)")
    add("--compress", choices=("auto", "zstd", "none"), default="auto", help="auto: text with zstd, packets not")
    add("--json", action="store_true", help="the result as JSON on standard output")
    parser.epilog = (
        "examples:\n"
        "  tickengine capture --config engine.toml --for 10m\n"
        "  tickengine capture --config engine.toml --feed binance --out /var/tmp/wire\n"
        "  tickengine capture BTCUSDT ETHUSDT --source websocket --types trade,level2 --option venue=binance\n"
        "  FRED_API_KEY=... tickengine capture DGS10 --source fred --option poll_s=600\n"
        "  tickengine run --replay capture/*.jsonl.zst\n\n"
        "Logins, values of headers, and what sounds like a key or token in options and URLs never reach a file.\n"
        "What waits for the disk is bounded (64 MiB a feed); beyond it the newest messages are dropped and counted.\n\n"
        "exit status: 0 done; 1 nothing was captured, or messages were dropped; 2 unusable options or configuration;\n"
        "130 a second Ctrl-C"
    )


def run(args: argparse.Namespace) -> int:
    """Capture until it is time, or until told to stop."""
    from engine.config import load
    from engine.errors import EngineError
    from engine.folders import data_folder
    from tools.feeds import FeedsError
    from workers.capture_log import Recording
    from workers.errors import SettingsError
    from workers.spec import CaptureSettings

    try:
        specs = _specs(args)
        data = data_folder(load(args.config, os.environ))
        budgets = str(data.parent / ".budgets")
        folder = str(data) if args.config else args.out
        settings = CaptureSettings(
            folder=args.out, compress=args.compress, part_bytes=args.part_size, part_s=args.part_time
        )
        recording = Recording(settings)
    except EngineError as error:
        print(f"tickengine capture: {error}", file=sys.stderr)
        return error.exit_status
    except (CaptureError, FeedsError, SettingsError, OSError) as error:
        print(f"tickengine capture: {error}", file=sys.stderr)
        return 2
    try:
        return _capture(args, specs, recording, folder=folder, budgets=budgets)
    except SettingsError as error:
        print(f"tickengine capture: {error}", file=sys.stderr)
        return 2
    finally:
        recording.close()


def _capture(
    args: argparse.Namespace, specs: list[FeedSpec], recording: Recording, *, folder: str, budgets: str
) -> int:
    from tools.capture_feeds import CapturedFeed, run_feeds

    stop = _Stop(args.seconds)
    feeds: list[CapturedFeed] = []
    progress = _Progress(feeds, recording, args.seconds, stop)
    progress.begin()
    try:
        feeds += [CapturedFeed(spec, recording, folder=folder, budgets=budgets) for spec in specs]
        run_feeds(feeds, stop.go_on, progress.look)
    finally:
        progress.end()  # before the connections are closed, and shown as down
        for feed in feeds:
            feed.close()
        recording.close()
        stop.restore()
    return _conclude(progress.view(), recording, as_json=args.json)


def _conclude(view: CaptureView, recording: Recording, *, as_json: bool) -> int:
    from tools.console import bytes_text, duration_text

    paths = [path for log in recording.logs for path in log.paths]
    done = 0 if view.received and not view.dropped else 1
    if as_json:
        answer = {
            "seconds": round(view.seconds, 3),
            "messages": view.received,
            "bytes": view.received_bytes,
            "dropped": view.dropped,
            "files": [{"path": str(path), "bytes": path.stat().st_size} for path in paths],
            "connections": [
                {"feed": one.feed, "connection": one.name, "messages": one.received, "bytes": one.received_bytes}
                for one in view.connections
            ],
        }
        print(json.dumps(answer, indent=2))
        return done
    print(
        f"captured {view.received:,} messages, {bytes_text(view.received_bytes)}, "
        f"in {duration_text(view.seconds * 1e9)}; {view.dropped:,} dropped"
    )
    for path in paths:
        print(f"  {path}  {bytes_text(path.stat().st_size)}")
    if paths:
        print(f"replay: tickengine run --replay {' '.join(map(str, paths[:3]))}{' ...' if len(paths) > 3 else ''}")
    for one in view.connections:
        if not one.received and one.why:
            print(f"tickengine capture: {one.feed}: {one.why}", file=sys.stderr)
    return done


def _specs(args: argparse.Namespace) -> list[FeedSpec]:
    """What to capture. CaptureError, FeedsError, EngineError."""
    from workers.captures import why_not
    from workers.spec import FeedSpec

    if args.source:
        if args.config or args.feed:
            raise CaptureError("--source describes one feed: it does not go with --config and --feed")
        from tools.feeds import options_of

        types: Any = tuple(word for word in args.types.split(",") if word)
        if why := why_not(args.source):
            raise CaptureError(f"--source {args.source}: {why}")
        options = options_of(args.option)
        name = str(options.get("venue") or options.get("protocol") or args.source)
        return [
            FeedSpec(
                feed_id=1,
                name=name,
                source=args.source,
                symbols=tuple(args.symbols),
                data_types=types,
                options=options,
            )
        ]
    if args.symbols or args.option or args.types:
        raise CaptureError("SYMBOL, --types and --option describe a feed: name its --source, too")
    if not args.config:
        raise CaptureError("which feeds? --config FILE, or --source SOURCE with its options")
    return _configured(args)


def _configured(args: argparse.Namespace) -> list[FeedSpec]:
    from engine.config import load
    from workers.captures import NOT_LIVE, why_not
    from workers.source import nearest
    from workers.spec import FeedSpec

    config = load(args.config, os.environ)
    sections = {section.name: section for section in config.feeds}
    for name in args.feed:
        if name not in sections:
            there = nearest(name, sections) if sections else ""
            raise CaptureError(f"--feed {name}: {args.config} has no such feed{there}")
        if why := why_not(sections[name].source):
            raise CaptureError(f"--feed {name}: source {sections[name].source!r} {why}")
    live = [
        section
        for section in config.feeds
        if (section.name in args.feed if args.feed else section.enabled and section.source not in NOT_LIVE)
    ]
    if not live:
        raise CaptureError(f"{args.config} has no live feed that is enabled")
    refused = {one.name: why for one in live if (why := why_not(one.source))}
    for section in live:
        if section.name in refused:
            print(
                f"tickengine capture: {section.name} is left out: source {section.source!r} {refused[section.name]}",
                file=sys.stderr,
            )
    wanted = [section for section in live if section.name not in refused]
    if not wanted:
        raise CaptureError(f"{args.config} has no enabled feed that can be captured")
    return [
        FeedSpec(
            feed_id=number,
            name=section.name,
            source=section.source,
            symbols=section.symbols,
            data_types=section.data_types,
            options=section.options,
        )
        for number, section in enumerate(wanted, 1)
    ]


class _Stop:
    """When it is over: after a time, or at Ctrl-C or SIGTERM; a second Ctrl-C is Python's own."""

    def __init__(self, seconds: float | None) -> None:
        self._until_s = time.monotonic() + seconds if seconds is not None else None
        self._asked = False
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def go_on(self) -> bool:
        return not self._asked and (self._until_s is None or time.monotonic() < self._until_s)

    def _ask(self, *_: object) -> None:
        self._asked = True
        self.restore()

    def restore(self) -> None:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else handler)


class _Progress:
    """Shows how it goes: a live table on a terminal, a line now and then elsewhere; both on standard error."""

    def __init__(self, feeds: list[CapturedFeed], recording: Recording, seconds: float | None, stop: _Stop) -> None:
        from rich.console import Console

        self._feeds = feeds
        self._recording = recording
        self._of_seconds = seconds
        self._stop = stop
        self._begun_s = time.monotonic()
        self._ended_s = 0.0
        self._next_s = self._begun_s
        self._console = Console(stderr=True, highlight=False)
        self._live: Any = None
        self._marks: dict[tuple[str, str], tuple[float, int, float]] = {}  # when, messages then, rate since before
        self._last: CaptureView | None = None

    def begin(self) -> None:
        logging.basicConfig(level=logging.WARNING, handlers=[_Printing(self._console)], force=True)
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        else:
            self._next_s += _LINE_EVERY_S

    def look(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        from tools.capture_frame import frame, line

        if self._live is not None:
            self._next_s = now_s + _FRAME_EVERY_S
            self._live.update(frame(self.view()), refresh=True)
        else:
            self._next_s = now_s + _LINE_EVERY_S
            print(line(self.view()), file=sys.stderr, flush=True)

    def end(self) -> None:
        self._ended_s = time.monotonic()
        if self._live is not None:
            from tools.capture_frame import frame

            self._live.stop()
            self._live = None
            self._console.print(frame(self.view(), ended=True))
        logging.basicConfig(level=logging.WARNING, force=True)

    def view(self) -> CaptureView:
        from tools.capture_frame import CaptureView

        logs = self._recording.logs
        return CaptureView(
            seconds=(self._ended_s or time.monotonic()) - self._begun_s,
            of_seconds=self._of_seconds,
            written_bytes=sum(log.bytes_written for log in logs),
            waiting_bytes=sum(log.waiting_bytes for log in logs),
            files=sum(len(log.paths) for log in logs),
            dropped=sum(log.dropped for log in logs),
            records=sum(feed.records for feed in self._feeds),
            connections=[one for feed in self._feeds for one in self._connections(feed)],
        )

    def _connections(self, feed: CapturedFeed) -> list[ConnectionView]:
        from tools.capture_frame import ConnectionView
        from workers.capture_log import Tally

        now_ns = time.time_ns()
        report = feed.report
        said = feed.why or (report.why if report is not None and report.state != "live" else "")
        found, over_http = [], Tally()
        for name, tally in feed.log.connections.items():
            if not tally.connects and not tally.up and not tally.why:  # a request and its answer: one row for all
                over_http.received += tally.received
                over_http.received_bytes += tally.received_bytes
                over_http.sent += tally.sent
                over_http.last_ns = max(over_http.last_ns, tally.last_ns)
                continue
            found.append(self._row(feed, name, "up" if tally.up else "down", tally, now_ns, why=tally.why or said))
        if over_http.sent:
            found.append(self._row(feed, "http", "-", over_http, now_ns, why="" if found else said))
        if not found:  # nothing has happened yet
            found.append(ConnectionView(feed.spec.name, "-", "waiting", 0, 0, 0.0, 0, None, said))
        return found

    def _row(self, feed: CapturedFeed, name: str, state: str, tally: Tally, now_ns: int, *, why: str) -> ConnectionView:
        from tools.capture_frame import ConnectionView

        return ConnectionView(
            feed=feed.spec.name,
            name=name,
            state=state,
            received=tally.received,
            received_bytes=tally.received_bytes,
            rate=self._rate((feed.spec.name, name), tally.received),
            sent=tally.sent,
            age_ns=max(0, now_ns - tally.last_ns) if tally.last_ns else None,
            why=why,
        )

    def _rate(self, key: tuple[str, str], received: int) -> float:
        now_s = time.monotonic()
        since_s, then, rate = self._marks.setdefault(key, (self._begun_s, 0, 0.0))
        passed_s = now_s - since_s
        if passed_s >= _RATE_OVER_S:
            rate = (received - then) / passed_s
            self._marks[key] = (now_s, received, rate)
        elif not rate and passed_s > 0:
            rate = (received - then) / passed_s
        return rate


class _Printing(logging.Handler):
    """Log lines above the live table."""

    def __init__(self, console: Any) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(f"{record.levelname.lower()}: {record.getMessage()}", markup=False, soft_wrap=True)


def _duration(text: str) -> float:
    """Seconds of 90, 60s, 5m, 2h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if found is None or found[2] not in _UNITS or not float(found[1]) > 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a time such as 90, 60s, 5m, 2h")
    return float(found[1]) * _UNITS[found[2]]


def _size(text: str) -> int:
    from engine.byte_size import parse_bytes

    try:
        size = parse_bytes(text)
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r}: a size such as 64MiB, 1GB") from None
    if size < 4096:
        raise argparse.ArgumentTypeError(f"{text!r}: at least 4096 bytes")
    return size
