"""The feeds of a running engine: list them with state and reason, add, pause, resume, restart, remove.

Called by tools/cli.py. Asks the control process over HTTP, found through the engine's status block; it opens no feed
and keeps nothing. A token, where one is wanted, comes from the environment (TICKENGINE_HTTP_TOKEN).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import datetime
from typing import Any, Final

from tools.console import count_text, duration_text

TIMEOUT_S: Final = 10.0
TOKEN_VARIABLE: Final = "TICKENGINE_HTTP_TOKEN"  # engine.access has it too; importing that costs a fifth of a second
_COLUMNS: Final = (
    *("FEED", "STATE", "HEALTH", "RATE", "RECORDS", "AGE", "SILENT", "GAPS", "ERRORS", "LATENCY", "SOURCE"),
    *("GROUP", "ROLE"),
)


class FeedsError(Exception):
    """What could not be done, in a line for people."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `tickengine feeds`."""
    parser.add_argument("--name", default="main", help="engine (default main)")
    parser.add_argument("--json", action="store_true", help="what the engine answers, as JSON")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    add = actions.add_parser("add", help="add a feed")
    add.add_argument("symbol", help="one symbol; * = all that the source has")
    add.add_argument("--source", required=True, help="websocket, mock, replay, ...")
    add.add_argument("--types", default="", metavar="A,B", help="data types; default: the source's own choice")
    add.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the source; VALUE as JSON, or text"
    )
    add.add_argument("--group", default="", help="of feeds that stand by for each other")
    add.add_argument("--rank", type=int, default=0, help="within the group; the lowest is preferred (default 0)")
    for name, text in (
        ("pause", "take nothing from a feed"),
        ("resume", "go on with it"),
        ("restart", "close a feed and open it anew"),
        ("remove", "remove a feed that was added"),
    ):
        actions.add_parser(name, help=text).add_argument("feed_id")
    parser.epilog = (
        "examples:\n  tickengine feeds\n"
        "  tickengine feeds add BTCUSDT --source websocket --types trade,quote --option venue=binance\n"
        "  tickengine feeds restart feed_btcusdt_001\n\n"
        f"A bearer token is taken from {TOKEN_VARIABLE}.\n\n"
        "exit status: 0 done; 1 refused, or the engine does not answer; 3 no such engine"
    )


def run(args: argparse.Namespace) -> int:
    """Carry out the action; without one, list."""
    try:
        url = _http_url(args.name)
        if args.action is None:
            answer = ask(url, "GET", "/feeds")
            print(json.dumps(answer, indent=2) if args.json else table(answer["feeds"], time.time()))
            return 0
        answer = _change(url, args)
        print(json.dumps(answer, indent=2) if args.json else _said(args.action, answer))
    except FeedsError as error:
        print(f"tickengine feeds: {error}", file=sys.stderr)
        return 1
    return 0


def _change(url: str, args: argparse.Namespace) -> Any:
    if args.action == "add":
        body = {
            "symbol": args.symbol,
            "data_source": args.source,
            "data_types": [word for word in args.types.split(",") if word],
            "group": args.group,
            "rank": args.rank,
            "options": options_of(args.option),
        }
        return ask(url, "POST", "/feeds", body)
    path = f"/feeds/{urllib.parse.quote(args.feed_id, safe='')}"
    if args.action == "remove":
        return ask(url, "DELETE", path)
    if args.action == "restart":
        ask(url, "PATCH", path, {"paused": True})
    return ask(url, "PATCH", path, {"paused": args.action == "pause"})


def options_of(given: list[str]) -> dict[str, Any]:
    """KEY=VALUE pairs as an object; a value that is no JSON is text. FeedsError without a "="."""
    options: dict[str, Any] = {}
    for word in given:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise FeedsError(f"--option {word!r}: expected KEY=VALUE")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def ask(url: str, method: str, path: str, body: Any = None) -> Any:
    """One call, and its decoded answer. FeedsError with the engine's own words if it refuses."""
    headers = {"Accept": "application/json"}
    if token := os.environ.get(TOKEN_VARIABLE, ""):
        headers["Authorization"] = f"Bearer {token.split()[-1]}"
    data = None
    if body is not None:
        data = json.dumps(body).encode()
        headers["Content-Type"] = "application/json"
    request = urllib.request.Request(url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        text = error.read()
        try:
            problem = json.loads(text)
            said = str(problem.get("detail") or problem.get("title"))
        except ValueError:
            said = text.decode("utf-8", "replace")[:200]
        raise FeedsError(f"{said} (HTTP {error.code})") from None
    except (OSError, ValueError) as error:
        raise FeedsError(f"{url} does not answer: {getattr(error, 'reason', error)}") from None


def table(feeds: list[dict[str, Any]], now_s: float) -> str:
    """The feeds as aligned lines, each with its reason where it is not simply delivering."""
    rows = [_COLUMNS, *(_row(feed) for feed in feeds)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_COLUMNS))]
    lines = []
    for number, row in enumerate(rows):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if number:
            feed = feeds[number - 1]
            if feed["why"] != "delivers":
                lines.append(f"    {feed['why']}{_retry(feed, now_s)}")
    return "\n".join(lines) if feeds else "no feed"


def _row(feed: dict[str, Any]) -> tuple[str, ...]:
    age, latency = feed["age_seconds"], feed["latency_ms"]
    return (
        feed["feed_id"],
        feed["state"],
        f"{feed['health_score']:.2f}",
        f"{count_text(feed['rate'])}/s",
        count_text(feed["message_count"]),
        "-" if age is None else duration_text(age * 1e9),
        "-" if feed["silent_symbols"] is None else str(feed["silent_symbols"]),
        count_text(feed["gap_count"]),
        count_text(feed["error_count"]),
        "-" if latency is None else f"{latency:.1f}ms",
        feed["data_source"],
        f"{feed['group']}/{feed['rank']}" if feed.get("group") else "-",
        _role(feed),
    )


def _role(feed: dict[str, Any]) -> str:
    """ "standby", "standby, publishes ETHUSDT", "active but for ETHUSDT" or "-"."""
    role: str = feed.get("role") or "-"
    if alone := feed.get("publishes_alone"):
        return f"{role}, publishes {', '.join(alone)}"
    if elsewhere := feed.get("silent_here"):
        return f"{role} but for {', '.join(elsewhere)}"
    return role


def _retry(feed: dict[str, Any], now_s: float) -> str:
    if not feed["retry_at"] or "next try" in feed["why"]:
        return ""
    wait_s = datetime.fromisoformat(feed["retry_at"]).timestamp() - now_s
    return f"; next try in {max(0.0, wait_s):.0f} s"


def _said(action: str, answer: dict[str, Any]) -> str:
    return f"{answer['feed_id']}: {answer.get('status') or answer.get('state') or action}"


def _http_url(name: str) -> str:
    """Where the engine's control process answers. ShmError if there is no such engine."""
    from shm.status import StatusBlock

    block = StatusBlock.attach(name)
    try:
        url = block.facts.get("http")
    finally:
        block.close()
    if not isinstance(url, str):
        raise FeedsError(f"engine {name} is starting: it has not said where it answers")
    return url
