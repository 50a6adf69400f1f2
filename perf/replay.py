"""How fast does captured market data get from a file into a ring, in one process?

    replay_dbn        Databento DBN, MBP-1 of ES futures              peer: databento_dbn's own decoder
    replay_itch       NASDAQ TotalView-ITCH 5.0, order flow           peer: a loop of struct.unpack
    replay_iex        IEX TOPS 1.6 in a pcap                          peer: a loop of struct.unpack
    replay_binance    Binance spot trades, JSON text                  peer: msgspec alone, decode and two floats
    replay_bi5        Dukascopy ticks, unpacked                       peer: a loop of struct.iter_unpack
    replay_truefx     quotes as lines of text                         peer: the csv module, a time and two floats
    replay_lobster    LOBSTER events with ten levels                  peer: the csv module, numbers
    ingest_dbn        the DBN file through a whole ingest worker      peer: databento_dbn's own decoder

        this process, pinned
        file --> open_capture: container, decoder --> batch of 2048 records --> publish_batch --> ring, nobody reads

        ingest_dbn: python -m workers.ingest: replay source at full speed --> quality checks --> publish_batch --> ring

Captured samples, unpacked and repeated (perf/captures.py) until they are long enough; each pass opens its file anew. A
pass that is not timed goes first: it enters the symbols into the instrument table, which a day's replay does once.
Counted are the venue's messages, not the records made of them. What the peers do is less: they make no records, keep no
order table, publish nothing.

Verified: as many messages as an independent count found, none refused, the same records in every pass, the ring's
newest sequence equal to the records decoded, and what the ring still holds contiguous.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from perf import captures, peers_decode
from perf.captures import CaptureFile
from perf.errors import require
from perf.process import PATIENCE_S, pinned, scratch_engine
from perf.report import Row, Target, compare
from perf.rounds import Plan, alternate
from perf.stage import RING, Stage
from shm.instruments import InstrumentTable
from shm.layout import RecordType, StatusCode, empty
from shm.ring import RingReader, RingWriter
from workers.decoders.capture import open_capture
from workers.spec import FeedSpec, IngestSettings

BATCH = 2048
FEED_ID = 1

Make = Callable[[Path], CaptureFile]
Peer = Callable[[CaptureFile], float]


def dbn(plan: Plan) -> Row:
    """DBN records a second."""
    return _feed(plan, "replay_dbn", captures.dbn, 300, peer="databento_dbn decoder", peer_rate=peers_decode.dbn_rate)


def itch(plan: Plan) -> Row:
    """ITCH messages a second."""
    return _feed(plan, "replay_itch", captures.itch, 30, peer="struct.unpack loop", peer_rate=peers_decode.itch_rate)


def iex(plan: Plan) -> Row:
    """IEX TOPS messages a second."""
    return _feed(plan, "replay_iex", captures.iex, 15, peer="struct.unpack loop", peer_rate=peers_decode.iex_rate)


def binance(plan: Plan) -> Row:
    """Binance trades a second."""
    return _replay(
        plan,
        "replay_binance",
        captures.binance,
        plan.amount(60),
        peer="msgspec, two floats",
        peer_rate=peers_decode.binance_rate,
        target=Target(0.9e6, "higher"),
    )


def bi5(plan: Plan) -> Row:
    """Dukascopy ticks a second."""
    return _feed(plan, "replay_bi5", captures.bi5, 10, peer="struct.iter_unpack loop", peer_rate=peers_decode.bi5_rate)


def truefx(plan: Plan) -> Row:
    """Quotes a second, from lines of text."""
    return _text(plan, "replay_truefx", captures.truefx, 500, peer_rate=peers_decode.truefx_rate)


def lobster(plan: Plan) -> Row:
    """LOBSTER events a second, each with its book."""
    return _text(plan, "replay_lobster", captures.lobster, 100, peer_rate=peers_decode.lobster_rate)


def _text(plan: Plan, name: str, make: Callable[[Path, int], CaptureFile], copies: int, *, peer_rate: Peer) -> Row:
    """A table of text, its sample `copies` times over."""
    amount = plan.amount(copies)
    target = Target(0.5e6, "higher")
    return _replay(
        plan, name, lambda folder: make(folder, amount), 3, peer="csv module", peer_rate=peer_rate, target=target
    )


def _feed(
    plan: Plan, name: str, make: Callable[[Path, int], CaptureFile], copies: int, *, peer: str, peer_rate: Peer
) -> Row:
    """A venue's binary feed, its sample `copies` times over."""
    amount = plan.amount(copies)
    target = Target(5e6, "higher")
    return _replay(plan, name, lambda folder: make(folder, amount), 3, peer=peer, peer_rate=peer_rate, target=target)


def _replay(plan: Plan, name: str, make: Make, passes: int, *, peer: str, peer_rate: Peer, target: Target) -> Row:
    records: list[int] = []
    with tempfile.TemporaryDirectory(prefix="tickengine-perf-") as folder, pinned(0):
        capture = make(Path(folder))
        ours, theirs = alternate(plan, lambda: _rate(capture, passes, records), lambda: peer_rate(capture))
    per_message = records[-1] / (capture.messages * passes)
    note = f"{per_message:.2f} records a message; runs {ours.spread('{:.2f}', 1e6)} M/s"
    return compare(name, "messages/s", ours, peer, theirs, target=target, note=note)


def _rate(capture: CaptureFile, passes: int, records: list[int]) -> float:
    """Messages a second from the file to the ring; how many records they made goes to `records`."""
    with scratch_engine() as engine, RingWriter.create(engine, RING) as writer:
        instruments = InstrumentTable.create(engine)
        per_pass = [_one_pass(capture, instruments, writer)]  # not timed: every symbol is new
        start = time.perf_counter_ns()
        for _ in range(passes):
            per_pass.append(_one_pass(capture, instruments, writer))
        elapsed_ns = time.perf_counter_ns() - start
        instruments.close()
        require(len(set(per_pass)) == 1, f"passes over the same file made {per_pass} records")
        _check_ring(engine, writer.next_sequence - 1, sum(per_pass))
    records.append(per_pass[0] * passes)
    return capture.messages * passes / elapsed_ns * 1e9


def _one_pass(capture: CaptureFile, instruments: InstrumentTable, writer: RingWriter) -> int:
    """Decode the file into the ring; returns how many records that made."""
    opened = open_capture(capture.path, intern=instruments.intern, feed_id=FEED_ID)
    decode, publish, out, count = opened.decode, writer.publish_batch, empty(BATCH), 0
    while got := decode(out):
        publish(out, got)
        count += got
    counters = opened.counters
    opened.close()
    seen = sum(counters.messages.values())
    require(seen == capture.messages, f"decoded {seen:,} messages, the file has {capture.messages:,}")
    require(not counters.malformed, f"messages were refused: {counters.malformed}")
    return count


def _check_ring(engine: str, published: int, records: int) -> None:
    require(published == records > 0, f"decoded {records} records, published {published}")
    with RingReader.attach(engine, RING, start="oldest", register=False) as reader:
        first = reader.sequence
        held = empty(reader.depth_slots)
        got = reader.read(held)
    wanted = np.arange(first, first + got)
    require(
        got == published + 1 - first and np.array_equal(held["sequence"][:got], wanted), "the ring is not contiguous"
    )
    require(bool((held["feed_id"][:got] == FEED_ID).all()), "a record is not of this feed")


def ingest_dbn(plan: Plan) -> Row:
    """DBN records a second through a whole ingest worker."""
    copies = plan.amount(1000)
    with tempfile.TemporaryDirectory(prefix="tickengine-perf-") as folder:
        capture = captures.dbn(Path(folder), copies)
        ours, theirs = alternate(plan, lambda: _worker_rate(capture), lambda: peers_decode.dbn_rate(capture))
    note = f"replay source, quality checks, ring; runs {ours.spread('{:.2f}', 1e6)} M/s"
    target = Target(5e6, "higher")
    return compare("ingest_dbn", "messages/s", ours, "databento_dbn decoder", theirs, target=target, note=note)


def _worker_rate(capture: CaptureFile) -> float:
    """Messages a second of a worker, from the ts_publish of its first record to that of its last."""
    options = {"files": [str(capture.path)], "speed": "max"}
    feed = FeedSpec(feed_id=FEED_ID, name="dbn", source="replay", options=options)
    with Stage(0) as stage, RingReader.attach(stage.engine, RING, start=1, label="perf") as reader:
        stage.start(
            IngestSettings(
                engine=stage.engine,
                label="ingest-0",
                ring_id=RING,
                feeds=(feed,),
                start_delay_s=0.2,
                log_level="warning",
            )
        )
        require(reader.wait(PATIENCE_S), "the worker published nothing")
        out = empty(1)
        reader.read(out)
        require(int(out["sequence"][0]) == 1, "the first record was overrun")
        first_ns = int(out["ts_publish"][0])
        deadline = time.monotonic() + PATIENCE_S
        # Nobody follows the ring: a look at its newest record now and then disturbs the worker least.
        while out["record_type"][0] != RecordType.STATUS or out["code"][0] != StatusCode.FEED_DOWN:
            require(time.monotonic() < deadline, f"the worker published {reader.published} records and did not end")
            time.sleep(0.005)
            reader.seek(reader.published)
            reader.read(out)
        last_ns, published = int(out["ts_publish"][0]), reader.published
        (worker,) = [process for process in stage.status.processes() if process.label == "ingest-0"]
        counted = worker.counters
    require(counted["records_published"] == published >= capture.messages, f"{published} records were published")
    require(counted["decode_errors"] == counted["records_rejected"] == 0, "messages were refused")
    return capture.messages / (last_ns - first_ns) * 1e9
