"""Print records as they come: from the rings of an engine on this host, or with --zmq as any subscriber gets them.

Called by tools/cli.py. A reader here is one of many and holds nobody up: when the terminal is slower than the feed,
records are lost to it, and a line says which.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from shm.errors import ShmError
from shm.layout import NO_INSTRUMENT, RecordType, StatusCode
from tools.console import Paint
from tools.topic_filter import PatternError, TopicFilter

if TYPE_CHECKING:
    from shm.source_names import SourceNames
    from workers.keys import CurveKeys

_BATCH_SLOTS: Final = 1024
_IDLE_CHECK_S: Final = 0.5
_ENDPOINT: Final = re.compile(r"(tcp://)?[^/\s]+:\d+|(ipc|inproc)://\S+")


class Piece(NamedTuple):
    """Some records, and what was lost before them.

    `symbols` is a symbol for all records (ZeroMQ), or None where they are looked up in the table.
    """

    ring_id: int
    records: np.ndarray
    gap: tuple[int, int] | None
    symbol: str | None


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of `tickengine tail`."""
    parser.add_argument(
        "patterns", nargs="*", metavar="PATTERN", help="'tick.AAPL', 'quote.*', '*.AAPL', 'trade', AAPL"
    )
    parser.add_argument("--name", default="main", help="engine to read from (default main)")
    parser.add_argument("--from", dest="start", choices=("newest", "oldest"), default="newest", help="where to begin")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="stop after N records")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of columns")
    parser.add_argument(
        "--zmq",
        nargs="?",
        const="",
        metavar="ENDPOINT",
        help="receive through ZeroMQ, raw endpoint of a shard (default: those of the engine --name)",
    )
    parser.add_argument("--key", metavar="FILE", help="with --zmq: one's own CURVE secret key (NAME.key)")
    parser.add_argument(
        "--server-key",
        metavar="KEY",
        help="with --zmq: the engine's public key or its file (default: as the engine --name says)",
    )
    parser.epilog = (
        "examples:\n  tickengine tail 'tick.AAPL'                one symbol's ticks\n"
        "  tickengine tail 'trade.*' 'bar.BTC*'       several patterns, with globs\n"
        "  tickengine tail --from oldest --count 100  the 100 oldest records still there\n"
        "  tickengine tail quote --json | jq .data.bid\n"
        "  tickengine tail 'tick.AAPL' --zmq tcp://127.0.0.1:8801\n"
        "  tickengine tail trade --zmq tcp://ticks:8801 --key me.key --server-key server.pub\n\n"
        "Quote patterns, or the shell expands them. Times are the venue's, UTC. Ends after --count, when\n"
        "the engine ends (not with --zmq), or by Ctrl-C.\n\n"
        "exit status: 0 done, 2 unusable pattern or key, 3 no such engine, 130 Ctrl-C"
    )


def run(args: argparse.Namespace) -> int:
    """Print until the count is reached, the engine is gone, or Ctrl-C."""
    try:
        wanted = TopicFilter(args.patterns)
        endpoints = raw_endpoints(args.zmq, args.name) if args.zmq is not None else []
        keys = _keys(args)
    except (PatternError, ValueError) as error:
        print(f"tickengine tail: {error}", file=sys.stderr)
        return 2
    symbol_of = _symbols_of(args.name) if args.zmq == "" else None  # another endpoint may be another engine's
    pieces = _from_zmq(endpoints, wanted, keys, symbol_of) if endpoints else _from_rings(args)
    return _print(pieces, wanted, args)


def _print(pieces: Iterator[Piece], wanted: TopicFilter, args: argparse.Namespace) -> int:
    from shm.instruments import InstrumentTable
    from shm.message import payload
    from tools.record_line import RecordLines

    table = InstrumentTable.attach(args.name) if args.zmq is None else None
    received = {"symbol": ""}
    names = _source_names(args.name)
    lines = RecordLines(table or (lambda _: received["symbol"]), Paint.for_stream(sys.stdout))
    left = args.count if args.count > 0 else -1
    write = sys.stdout.write
    for piece in pieces:
        received["symbol"] = piece.symbol or "-"
        if piece.gap is not None:
            write(_gap_json(piece) if args.json else _gap_line(piece, lines.paint) + "\n")
        # The wire has the symbol in the topic, and its records have been chosen by that already.
        chosen = piece.records if table is None else piece.records[wanted.select(piece.records, lines.symbol)]
        if left >= 0:
            chosen = chosen[:left]
            left -= len(chosen)
        if args.json:
            for record in chosen:
                symbol = _json_symbol(lines.symbol(int(record["instrument_id"])))
                write(json.dumps(payload(record, symbol, source_names=names)) + "\n")
        else:
            for line in lines.lines(chosen, piece.ring_id):
                write(line + "\n")
        if len(chosen) or piece.gap is not None:
            sys.stdout.flush()
        if left == 0:
            return 0
    print("-- the engine has stopped", file=sys.stderr)
    return 0


def _symbols_of(engine: str) -> Callable[[int], str]:
    """Symbols of an engine on this host."""
    from shm.instruments import InstrumentTable

    return InstrumentTable.attach(engine).symbol


def _source_names(engine: str) -> SourceNames | None:
    """Names of plug-ins, as the engine of that name says; None if it is on another host."""
    from shm.source_names import SourceNames
    from shm.status import StatusBlock

    try:
        return SourceNames(StatusBlock.attach(engine))
    except ShmError:
        return None


def _json_symbol(symbol: str) -> str | None:
    return None if symbol == "-" else symbol


def _gap_line(piece: Piece, paint: Paint) -> str:
    start, end = piece.gap or (0, 0)
    where = f"of {piece.symbol} did not arrive" if piece.symbol else f"of ring {piece.ring_id} came faster than printed"
    return paint(f"-- gap: {end - start} records {where} ({start} to {end - 1})", "red")


def _gap_json(piece: Piece) -> str:
    start, end = piece.gap or (0, 0)
    where = {"symbol": piece.symbol} if piece.symbol else {"ring": piece.ring_id}
    return json.dumps({"gap": {**where, "from": start, "to": end}}) + "\n"


def _from_rings(args: argparse.Namespace) -> Iterator[Piece]:
    """Batches of all rings of an engine, until no process of it lives and all is read."""
    import shm
    from shm.ring import ring_info

    readers = shm.attach(args.name).reader(start=args.start, label="tail")
    out = shm.empty(_BATCH_SLOTS)
    alive = True
    try:
        while True:
            idle = True
            for reader in readers:
                count = reader.read(out)
                if count:
                    idle = False
                    yield Piece(reader.ring_id, out[:count], reader.gap, None)
            if not idle or readers.wait(_IDLE_CHECK_S):
                continue
            if not alive:
                return
            try:
                alive = any(ring_info(args.name, reader.ring_id).writer_alive for reader in readers)
            except ShmError:
                alive = False  # removed: the engine has stopped; one more round reads what is left
    finally:
        readers.close()


def _keys(args: argparse.Namespace) -> CurveKeys | None:
    """The CURVE keys to connect with; None where none are given and the engine asks for none. ValueError."""
    if args.zmq is None:
        if args.key or args.server_key:
            raise ValueError("--key, --server-key: are for --zmq, which is not given")
        return None
    from workers.keys import CurveKeys

    server = args.server_key or (_server_key(args.name) if not args.zmq or args.key else "")
    if args.key and not server:
        raise ValueError("--key needs --server-key, the engine's public key or its file")
    if server and not args.key:
        raise ValueError("this engine's sockets want a key: give --key FILE, made by `tickengine keys`")
    return CurveKeys.read(args.key, server) if server else None


def _server_key(engine: str) -> str:
    """The public key that an engine on this host says; "" if it has none or is not there."""
    from shm.status import StatusBlock

    try:
        block = StatusBlock.attach(engine)
    except ShmError:
        return ""
    try:
        return str(block.facts.get("curve", ""))
    finally:
        block.close()


def _from_zmq(
    endpoints: list[str], wanted: TopicFilter, keys: CurveKeys | None, symbol_of: Callable[[int], str] | None
) -> Iterator[Piece]:
    """Messages of the raw endpoints. `symbol_of`: of an instrument id, where the engine is on this host."""
    from workers.subscriber import Subscriber

    with Subscriber(endpoints, wanted.topics(), keys=keys) as subscriber:
        for message in subscriber:
            gap = (message.gap.from_sequence, message.gap.to_sequence) if message.gap is not None else None
            kind, _, symbol = message.topic.removeprefix("marketdata.").partition(".")
            if int(message.records["record_type"][0]) == RecordType.STATUS:
                for row in range(len(message.records)):
                    symbol = _of_status(message.records[row], symbol_of)
                    if wanted.matches("status", symbol):
                        yield Piece(message.ring, message.records[row : row + 1], gap, symbol)
                        gap = None
                continue
            if wanted.matches(kind, symbol):
                yield Piece(message.ring, message.records, gap, symbol)


def _of_status(record: np.void, symbol_of: Callable[[int], str] | None) -> str:
    """Symbol of a trading status, whose topic names none; "#7" for one not known here, "-" for other status records."""
    instrument = int(record["instrument_id"])
    if record["code"] != StatusCode.TRADING_STATUS or instrument == NO_INSTRUMENT:
        return "-"
    try:
        return symbol_of(instrument) if symbol_of is not None else f"#{instrument}"
    except ShmError:
        return f"#{instrument}"


def raw_endpoints(given: str, engine: str) -> list[str]:
    """Raw endpoints to connect to: the one given, else those that the engine of that name has written down.

    Raises ShmError if no engine of that name is on this host, PatternError for what cannot be an endpoint.
    """
    from shm.status import StatusBlock

    if given:
        if not _ENDPOINT.fullmatch(given):
            raise PatternError(f"--zmq {given!r} is no endpoint, e.g. tcp://127.0.0.1:8801; patterns go before --zmq")
        return [given if "://" in given else f"tcp://{given}"]
    block = StatusBlock.attach(engine)
    try:
        zmq = block.facts.get("zmq")
        endpoints = [str(address) for address in (zmq.get("raw", []) if isinstance(zmq, dict) else [])]
        shards = sum(process.role == "fanout" for process in block.processes())
    finally:
        block.close()
    if not endpoints:
        raise ShmError(f"engine {engine!r} does not say where it publishes: give --zmq an ENDPOINT")
    return shard_endpoints(endpoints, shards)


def shard_endpoints(known: list[str], shards: int) -> list[str]:
    """One endpoint a shard. Facts name the first few only; the ports of the others follow theirs."""
    host, _, port = known[0].rpartition(":")
    if not port.isdecimal():
        return known
    return known + [f"{host}:{int(port) + shard}" for shard in range(len(known), shards)]
