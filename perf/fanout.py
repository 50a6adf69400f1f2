"""How many records a second go from a ring to a ZeroMQ subscriber, and how long does a single one take?

    fanout_raw        ticks of 1000 instruments, a topic each, one subscriber of them all    peer: plain pyzmq
    fanout_batch      the same records on marketdata.batch, whole ring batches a message     peer: plain pyzmq
    fanout_latency    a single tick on an idle machine, median                               peer: plain pyzmq
    route             grouping by topic, numbering, committing alone, in one process         peer: the same in numpy

        writer process            python -m workers.fanout                    subscriber process
        publish_batch --> ring 2 --> read, group by topic, XPUB --> tcp on loopback --> workers.subscriber --> numpy

        peer:     publisher process: one two-frame message a tick, PUB --> tcp on loopback --> SUB, decode to numpy

Fan-out reads as a reliable reader, and the writer keeps at most WINDOW records ahead of what the subscriber says it
has, so that nothing is dropped and the rate is that of the slowest part; the peer is held back in the same way. Nobody
is pinned: three processes and ZeroMQ's threads share what cores there are. Timed by the subscriber from its first to
its last message.

fanout_latency: one record a millisecond, everybody asleep in between; from ts_publish (peer: just before
send_multipart) to the record in the subscriber's hands. The ring's path has one process more to wake than the peer's.

route: turns of 4096 records through workers._route.Router into frames that nobody sends; numpy sorts by instrument,
cuts and copies, and numbers nothing.

Verified: every record arrives once, topic numbers without a gap; contents of every 64th message. route: the frames of
the last turn hold each instrument's records, whole and in order.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from perf import peers_zmq
from perf.errors import require
from perf.process import CONTEXT, PATIENCE_S, Child, Pipe, quiet_collector, scratch_engine
from perf.report import Row, Target, compare
from perf.rounds import Plan, alternate
from perf.stage import RING, Stage, free_port
from perf.ticks import ticks
from shm._ring import now_ns
from shm.ring import RingWriter
from workers._route import RAW, RESOLVED, Router
from workers.spec import FanoutSettings
from workers.topics import INSTRUMENTS as TOPIC_INSTRUMENTS
from workers.topics import SYMBOL_TOPICS, TopicTable
from workers.wire import unpack_frame

INSTRUMENTS = 1000
BATCH = 4000
TURN = 4096
WINDOW = 200_000
PACE_S = 0.001
SPIN_US = 2000.0
LATENCY_RATIO = 1.3
RATE_RATIO = 5.0
PEER = "plain pyzmq, one message a tick"


def raw(plan: Plan) -> Row:
    """Records a second on a topic for each symbol."""
    return _throughput(plan, "fanout_raw", "marketdata.tick.*", plan.amount(4_000_000), Target(2e6, "higher"))


def batch(plan: Plan) -> Row:
    """Records a second on marketdata.batch."""
    return _throughput(plan, "fanout_batch", "marketdata.batch", plan.amount(12_000_000), Target(6e6, "higher"))


def latency(plan: Plan) -> Row:
    """Median time of a single record, ns."""
    count = plan.amount(2000)
    everything: list[np.ndarray] = []
    awake_ns: list[float] = []

    def ours() -> float:
        everything.append(_one_way_ns(count, awake_ns))
        return float(np.median(everything[-1]))

    mine, theirs = alternate(plan, ours, lambda: float(np.median(peers_zmq.one_way_ns(count, PACE_S))))
    spinning = statistics.median(float(np.median(_one_way_ns(count, [], spin_us=SPIN_US))) for _ in range(3))
    target = Target(LATENCY_RATIO * theirs.median, "lower")
    p99 = np.percentile(np.concatenate(everything[1:]), 99)
    note = (
        f"{mine.median / theirs.median:.2f} x plain pyzmq (at most {LATENCY_RATIO}); p99 {p99 / 1000:.0f} us; "
        f"runs {mine.spread('{:.0f}', 1000)} us; {np.median(awake_ns[1:]) / 1000:.0f} us of it until fan-out is "
        f"awake and has the record; {spinning / theirs.median:.2f} x where fan-out spins (low_latency)"
    )
    return compare("fanout_latency", "ns", mine, "plain pyzmq PUB to SUB", theirs, target=target, note=note)


def route(plan: Plan) -> Row:
    """Records a second through the router alone."""
    turns = plan.amount(1000)
    ours, theirs = alternate(plan, lambda: _route_rate(turns), lambda: _numpy_rate(turns))
    note = f"{1e9 / ours.median:.0f} ns a record; runs {ours.spread('{:.1f}', 1e6)} M/s"
    return compare("route", "records/s", ours, "numpy", theirs, target=Target(5e6, "higher"), note=note)


def _route_rate(turns: int) -> float:
    records = ticks(TURN, INSTRUMENTS)
    with scratch_engine() as engine, TopicTable.create(engine) as table:
        table.claim(0)
        router = Router(table, 0)
        router.wanted[:] = RAW | RESOLVED
        frames: list[tuple[int, memoryview]] = []
        start = time.perf_counter_ns()
        for turn in range(1, turns + 1):
            router.scan(records, TURN)
            router.route(RING, turn * TURN)
            frames = router.frames()
        elapsed_ns = time.perf_counter_ns() - start
        seen = 0
        for topic, frame in frames:
            if topic >= SYMBOL_TOPICS:
                continue  # marketdata.batch and its like hold all of them once more
            _, part = unpack_frame(frame)
            wanted = records["source_sequence"][topic % TOPIC_INSTRUMENTS :: INSTRUMENTS]
            require(np.array_equal(part["source_sequence"], wanted), f"topic {topic} has other records")
            seen += len(part)
        require(seen == TURN, f"{seen} of {TURN} records were routed")
        del frames, frame, part
        router.close()
    return turns * TURN / elapsed_ns * 1e9


def _numpy_rate(turns: int) -> float:
    records = ticks(TURN, INSTRUMENTS)
    rows = records.view(np.uint8).reshape(TURN, -1)
    frames: list[bytes] = []
    start = time.perf_counter_ns()
    for _ in range(turns):
        ids = records["instrument_id"]
        order = np.argsort(ids, kind="stable")
        cuts = np.flatnonzero(np.diff(ids[order])) + 1
        frames = [part.tobytes() for part in np.split(rows[order], cuts)]
    elapsed_ns = time.perf_counter_ns() - start
    require(sum(map(len, frames)) == records.nbytes, "numpy lost records")
    return turns * TURN / elapsed_ns * 1e9


def _throughput(plan: Plan, name: str, topic: str, count: int, target: Target) -> Row:
    messages: list[int] = []
    peer_count = plan.amount(400_000)
    mine, theirs = alternate(
        plan, lambda: _rate(topic, count, messages), lambda: peers_zmq.rate(peer_count, INSTRUMENTS)
    )
    note = f"{count / np.median(messages[1:]):.1f} records a message; runs {mine.spread('{:.2f}', 1e6)} M/s"
    return compare(name, "records/s", mine, PEER, theirs, target=target, note=note)


def _start_fanout(stage: Stage, **options: Any) -> int:
    """Start the worker with the raw endpoint alone; returns its port."""
    port = free_port()
    stage.start(
        FanoutSettings(
            engine=stage.engine,
            label="fanout-0",
            rings=(RING,),
            raw_port=port,
            msgpack_port=0,
            json_port=0,
            replay_port=0,
            reliable=True,
            log_level="warning",
            **options,
        )
    )
    return port


def _wait_subscribed(stage: Stage) -> None:
    """Wait until fan-out has the subscriber's subscription: what is published earlier goes to nobody."""
    deadline = time.monotonic() + PATIENCE_S
    while not any(process.counters.get("subscriptions") for process in stage.status.processes()):
        require(time.monotonic() < deadline, "the subscription did not reach fan-out")
        time.sleep(0.005)


def _rate(topic: str, count: int, messages: list[int]) -> float:
    """Records a second at the subscriber; how many messages they came in goes to `messages`."""
    taken = CONTEXT.RawValue("Q", 0)
    with Stage(INSTRUMENTS) as stage:
        port = _start_fanout(stage)
        with (
            Child(_subscribe, port, topic, taken, count) as subscriber,
            Child(_write, stage.engine, taken, count) as writer,
        ):
            require(writer.hear() == "ready" and subscriber.hear() == "ready", "a role did not start")
            _wait_subscribed(stage)
            writer.tell("go")
            first, elapsed_ns, received = subscriber.hear()
    messages.append(received)
    return float((count - first) / elapsed_ns * 1e9)


def _write(pipe: Pipe, engine: str, taken: Any, count: int) -> None:
    records = ticks(BATCH, INSTRUMENTS)
    with RingWriter.open(engine, RING) as writer, quiet_collector():
        pipe.say("ready")
        pipe.hear()
        sent = 0
        while sent < count:
            while sent - taken.value > WINDOW:
                time.sleep(0.0001)
            writer.publish_batch(records, min(BATCH, count - sent))
            sent += BATCH
        pipe.hear()  # the ring's writer stays until all is over


def _subscribe(pipe: Pipe, port: int, topic: str, taken: Any, count: int) -> None:
    from workers.subscriber import Subscriber

    with Subscriber(f"tcp://127.0.0.1:{port}", [topic]) as subscriber, quiet_collector():
        pipe.say("ready")
        receive = subscriber.receive
        first = receive(PATIENCE_S)
        require(first is not None, "nothing arrived")
        assert first is not None
        start_ns = time.perf_counter_ns()
        got, told, messages = len(first.records), 0, 1
        while got < count:
            message = receive(PATIENCE_S)
            if message is None:
                break
            records = message.records
            got += len(records)
            messages += 1
            if got - told > WINDOW // 8:
                taken.value = told = got
            if messages % 64 == 0:
                right = records["price"] == 100.0 + (records["source_sequence"] - 1) / 64
                require(bool(right.all()), "a record is not what was published")
        elapsed_ns = time.perf_counter_ns() - start_ns
        lost = f"{subscriber.records_missed} records missed, {subscriber.duplicates} twice, {got} of {count} received"
        require(got == count and subscriber.gap_count == subscriber.duplicates == 0, lost)
    pipe.say((len(first.records), elapsed_ns, messages))


def _one_way_ns(count: int, awake_ns: list[float], **options: Any) -> np.ndarray:
    """Times of single records, ns, shape (count,); `awake_ns` gets the median until fan-out had read one."""
    with Stage(1) as stage:
        port = _start_fanout(stage, **options)
        with Child(_time, port, count) as subscriber, Child(_write_paced, stage.engine, count) as writer:
            require(writer.hear() == "ready" and subscriber.hear() == "ready", "a role did not start")
            _wait_subscribed(stage)
            writer.tell("go")
            taken: np.ndarray = subscriber.hear()
            (fanout,) = (process for process in stage.status.processes() if process.label == "fanout-0")
            awake_ns.append(fanout.histograms["ring_latency"].percentile(50))
    return taken


def _write_paced(pipe: Pipe, engine: str, count: int) -> None:
    records = ticks(count, 1)
    single = [records[i : i + 1].tobytes() for i in range(count)]
    with RingWriter.open(engine, RING) as writer, quiet_collector():
        pipe.say("ready")
        pipe.hear()
        for record in single:
            time.sleep(PACE_S)
            writer.publish(record)
        pipe.hear()


def _time(pipe: Pipe, port: int, count: int) -> None:
    from workers.subscriber import Subscriber

    taken = np.zeros(count, dtype=np.int64)
    with Subscriber(f"tcp://127.0.0.1:{port}", ["marketdata.tick.S0000"]) as subscriber, quiet_collector():
        pipe.say("ready")
        got = 0
        while got < count:
            message = subscriber.receive(PATIENCE_S)
            arrived_ns = now_ns()
            require(message is not None and message.gap is None, f"record {got + 1} did not arrive")
            assert message is not None
            records = message.records
            require(int(records["source_sequence"][0]) == got + 1, f"record {got + 1} is another one")
            taken[got : got + len(records)] = arrived_ns - records["ts_publish"]
            got += len(records)
    pipe.say(taken)
