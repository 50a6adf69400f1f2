"""How fast do live multicast packets get into the ring, and order books out of them?

    multicast_in   datagrams a second from one sender to the ring, none lost   peer: a Python loop of recv, counting
    itch_book      ITCH messages a second into books and quotes                peer: dicts in Python, no best prices
    arbitration    datagrams a second of two lines that lose 1 % each          peer: the same with a dict and a heap

        sender --UDP multicast on lo--> python -m workers.ingest: recvmmsg --> arbiter --> ITCH decoder --> ring
        this process --> decoder with books --> records            (itch_book)
        this process --> arbiter, 1 % of each line missing         (arbitration)

The sender sends 60 datagrams a call where the kernel cuts them (Linux), so that it is not what is measured. A datagram
is a MoldUDP64 packet of three orders. Time runs from the kernel's receipt of the first datagram to `ts_publish` of the
last record. Worker and Python loop have the first CPU, the sender the second.

Verified: every message is in the ring, in order, and the kernel dropped none; best prices after the last message equal
those of a slow book; of the arbitrated lines each message comes once, in order, and what is lost is what both lost.
"""

from __future__ import annotations

import heapq
import random
import socket
import struct
import sys
import time
from collections import defaultdict

import numpy as np
import psutil

from perf.errors import PeerMissing, require
from perf.process import PATIENCE_S, Child, Pipe, cpu, pinned, quiet_collector
from perf.report import Row, Target, compare
from perf.rounds import Plan, alternate
from perf.stage import RING, Stage
from shm.layout import RecordType, empty
from shm.ring import RingReader
from workers._arbitration import Arbiter
from workers.decoders._itch import ItchDecoder
from workers.decoders.protocol import many_frames
from workers.spec import FeedSpec, IngestSettings, Placement

SESSION = b"PERF000001"
FEED_ID = 1
PER_DATAGRAM = 3
GROUP = "239.255.73.1"
_UDP_SEGMENT = 103  # Linux: cut what is sent into datagrams of that size
_SEGMENTS = 60
_RCVBUF_BYTES = 256 << 20
_SO_RCVBUFFORCE = 33
_ORDER = struct.Struct(">HcHHHIQcI8sI")  # framed; time in two parts


def multicast_in(plan: Plan) -> Row:
    """Datagrams a second from one sender to the ring."""
    count = plan.amount(300_000)
    latencies: list[tuple[float, float]] = []
    rates: list[float] = []
    costs: list[float] = []
    ours, theirs = alternate(plan, lambda: _worker_rate(count, latencies, rates, costs), lambda: _recv_rate(count))
    calm, worst = np.median(np.array(latencies), axis=0)
    note = (
        f"{PER_DATAGRAM} messages each, sent at {np.median(rates) / 1e3:,.0f} k/s, none lost; the worker's CPU time "
        f"{np.median(costs):.2f} us a datagram; at 1,000 datagrams/s from the kernel's receipt to the ring "
        f"p50 {calm / 1e3:.0f} us, p99 {worst / 1e3:.0f} us; runs {ours.spread('{:.0f}', 1e3)} k/s"
    )
    target = Target(200e3, "higher")
    return compare("multicast_in", "datagrams/s", ours, "Python recv loop", theirs, target=target, note=note)


def _datagram(first: int) -> bytes:
    orders = b"".join(
        _ORDER.pack(36, b"A", 1, 0, 0, 0, first + i, b"B" if i & 1 else b"S", 100, b"PERF    ", 10_000 + i)
        for i in range(PER_DATAGRAM)
    )
    return SESSION + struct.pack(">QH", first, PER_DATAGRAM) + orders


def _send(pipe: Pipe, port: int, count: int) -> None:
    """Role: sends `count` datagrams at once when told "burst", 500 at one a millisecond when told "calm"."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
    sock.connect((GROUP, port))
    packets = [_datagram(1 + n * PER_DATAGRAM) for n in range(count)]
    calm = [_datagram(1 + n * PER_DATAGRAM) for n in range(count, count + 500)]
    size = len(packets[0])
    pieces = packets
    if sys.platform == "linux":
        pieces = [b"".join(packets[at : at + _SEGMENTS]) for at in range(0, count, _SEGMENTS)]
    pipe.say("ready")
    while (word := pipe.hear()) != "end":
        if word == "burst":
            if sys.platform == "linux":
                sock.setsockopt(socket.SOL_UDP, _UDP_SEGMENT, size)
            send, start = sock.send, time.perf_counter()
            for piece in pieces:
                send(piece)
            pipe.say(count / (time.perf_counter() - start))
            if sys.platform == "linux":
                sock.setsockopt(socket.SOL_UDP, _UDP_SEGMENT, 0)
        else:
            for packet in calm:
                sock.send(packet)
                time.sleep(0.001)
            pipe.say(len(calm))
    sock.close()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _worker_rate(count: int, latencies: list[tuple[float, float]], rates: list[float], costs: list[float]) -> float:
    port = _free_port()
    line = {"group": GROUP, "port": port, "interface": "127.0.0.1"}
    options = {"protocol": "mold-itch50", "lines": [line], "rcvbuf": _RCVBUF_BYTES, "book": False}
    feed = FeedSpec(feed_id=FEED_ID, name="perf", source="multicast", options=options)
    messages = count * PER_DATAGRAM
    with (
        Stage(0, depth_slots=1 << 20) as stage,
        RingReader.attach(stage.engine, RING, start=1, label="perf") as reader,
        Child(_send, port, count, index=1) as sender,
    ):
        placement = Placement(policy="core", core=cpu(0)) if cpu(0) >= 0 else Placement(policy="none")
        started = stage.start(
            IngestSettings(
                engine=stage.engine,
                label="ingest-0",
                ring_id=RING,
                feeds=(feed,),
                placement=placement,
                log_level="error",
            )
        )
        used = psutil.Process(started.pid).cpu_times
        sender.hear()
        before = used()
        sender.tell("burst")
        rates.append(sender.hear())
        first_ns, last_ns = _check_ring(reader, range(1, messages + 1))[0:2]
        after = used()
        costs.append((after.user + after.system - before.user - before.system) / count * 1e6)
        sender.tell("calm")
        calm = sender.hear() * PER_DATAGRAM
        took = _check_ring(reader, range(messages + 1, messages + calm + 1))[2]
        latencies.append((float(np.percentile(took, 50)), float(np.percentile(took, 99))))
        sender.tell("end")
        (worker,) = [process for process in stage.status.processes() if process.label == "ingest-0"]
        dropped = worker.counters[f"multicast.{FEED_ID}.line0.kernel_drops"]
        require(dropped == 0, f"the kernel dropped {dropped} datagrams")
    return count / (last_ns - first_ns) * 1e9


def _check_ring(reader: RingReader, wanted: range) -> tuple[int, int, np.ndarray]:
    """Waits for the messages, in order: first ts_receive, last ts_publish, ns from one to the other for each."""
    expected, first_ns, last_ns, took = wanted.start, 0, 0, []
    deadline = time.monotonic() + PATIENCE_S
    out = empty(65536)
    while expected < wanted.stop:
        require(time.monotonic() < deadline, f"message {expected} did not come")
        got = reader.read(out)
        if not got:
            time.sleep(0.002)  # a look now and then disturbs the worker least
            continue
        require(reader.lost == 0, "the ring overran its reader")
        records = out[:got][out[:got]["record_type"] == RecordType.LEVEL2]
        numbers = np.arange(expected, expected + len(records))
        require(np.array_equal(records["source_sequence"], numbers), f"messages from {expected} on are not in order")
        if len(records):
            first_ns = first_ns or int(records["ts_receive"][0])
            last_ns = int(records["ts_publish"][-1])
            took.append(records["ts_publish"] - records["ts_receive"])
            expected += len(records)
    return first_ns, last_ns, np.concatenate(took)


def _recv_rate(count: int) -> float:
    """The peer: recv in a loop, nothing done with it. From the first datagram to the last."""
    port = _free_port()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (socket.SO_RCVBUF, _SO_RCVBUFFORCE) if sys.platform == "linux" else ():
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, _RCVBUF_BYTES)
        except OSError:
            pass  # it has what it may have
    sock.bind((GROUP, port))
    sock.setsockopt(
        socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + socket.inet_aton("127.0.0.1")
    )
    sock.settimeout(2.0)
    with pinned(0), sock, Child(_send, port, count, index=1) as sender:
        sender.hear()
        sender.tell("burst")
        sock.recv(2048)
        start, got, recv, end = time.perf_counter(), 1, sock.recv, 0.0
        try:
            while got < count:
                recv(2048)
                got += 1
            end = time.perf_counter()
        except TimeoutError:
            raise PeerMissing(f"the Python loop lost {count - got} of {count} datagrams") from None
        sender.hear()
        sender.tell("end")
    return count / (end - start)


def itch_book(plan: Plan) -> Row:
    """Messages a second into order books."""
    flow = _book_flow(plan.amount(400_000))
    of_cpu: list[float] = []
    with pinned(0), quiet_collector():
        ours, theirs = alternate(plan, lambda: _book_rate(flow, of_cpu), lambda: _dict_rate(flow))
    note = (
        f"{len(flow):,} messages, 100 stocks, up to 100,000 live orders; {np.median(of_cpu) / 1e6:.1f} M a second of "
        f"CPU time; runs {ours.spread('{:.2f}', 1e6)} M/s"
    )
    target = Target(3e6, "higher")
    return compare("itch_book", "messages/s", ours, "dicts in Python", theirs, target=target, note=note)


def _book_flow(messages: int) -> list[bytes]:
    """Order flow near one price a stock: adds until 100,000 orders live, then as many deletes and executions."""
    dice = random.Random(3)
    gauss, pick = dice.gauss, dice.random
    middle = [100_0000 + 10_0000 * stock for stock in range(100)]
    live: list[tuple[int, int]] = []
    found: list[bytes] = []
    reference = 0
    for number in range(messages):
        stock = number * 37 % 100
        head = struct.pack(">HH6s", stock, 0, number.to_bytes(6, "big"))
        if len(live) < min(100_000, messages // 4) or pick() < 0.5:
            reference += 1
            side = pick() < 0.5
            away = int(abs(gauss(0, 40))) * 100 + 100
            price = middle[stock] - away if side else middle[stock] + away
            found.append(
                b"A" + head + struct.pack(">QcI8sI", reference, b"B" if side else b"S", 100, b"S%07d" % stock, price)
            )
            live.append((reference, stock))
            continue
        at = dice.randrange(len(live))
        live[at], live[-1] = live[-1], live[at]
        old, stock = live.pop()
        head = struct.pack(">HH6s", stock, 0, number.to_bytes(6, "big"))
        if pick() < 0.15:
            found.append(b"E" + head + struct.pack(">QIQ", old, 100, number))
        else:
            found.append(b"D" + head + struct.pack(">Q", old))
    return found


def _book_rate(flow: list[bytes], of_cpu: list[float]) -> float:
    ids: dict[str, int] = {}
    decoder = ItchDecoder(lambda symbol: ids.setdefault(symbol, len(ids)), packets=False, book=True)
    frames = [b"".join(struct.pack(">H", len(m)) + m for m in flow[at : at + 40]) for at in range(0, len(flow), 40)]
    batch = many_frames(frames, [0] * len(frames))
    out = empty(2048)
    decoder.feed(batch.buffer, batch.frames)
    said: dict[int, tuple[float, float]] = {}
    start, start_cpu = time.perf_counter_ns(), time.process_time_ns()
    while decoder.decode(out):
        pass
    elapsed_ns = time.perf_counter_ns() - start
    of_cpu.append(len(flow) / (time.process_time_ns() - start_cpu) * 1e9)
    require(decoder.errors == 0, "messages were refused")
    counted = decoder.counters
    require(sum(counted.messages.values()) == len(flow), "not every message was decoded")
    # The truth of the books: once more, not timed, against dicts.
    again = ItchDecoder(lambda symbol: ids[symbol], packets=False, book=True)
    again.feed(batch.buffer, batch.frames)
    while got := again.decode(out):
        for quote in out[:got][out[:got]["record_type"] == RecordType.QUOTE]:
            said[int(quote["instrument_id"])] = (float(quote["bid"]), float(quote["ask"]))
    best = _slow_best(flow, ids)
    require(said == best, "best prices are not those of the orders")
    return len(flow) / elapsed_ns * 1e9


def _slow_best(flow: list[bytes], ids: dict[str, int]) -> dict[int, tuple[float, float]]:
    orders: dict[int, tuple[int, bytes, int]] = {}
    for message in flow:
        (reference,) = struct.unpack_from(">Q", message, 11)
        if message[:1] == b"A":
            stock = ids[message[24:32].decode()]
            orders[reference] = (stock, message[19:20], int.from_bytes(message[32:36], "big"))
        else:
            del orders[reference]
    sides: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for stock, side, price in orders.values():
        sides[stock, side].append(price)
    return {stock: (max(sides[stock, b"B"]) / 1e4, min(sides[stock, b"S"]) / 1e4) for stock in ids.values()}


def _dict_rate(flow: list[bytes]) -> float:
    """The peer: orders and levels in dicts, no best prices, no records."""
    orders: dict[int, tuple[tuple[bytes, bytes, bytes], int]] = {}
    levels: dict[tuple[bytes, bytes, bytes], int] = {}
    start = time.perf_counter_ns()
    for message in flow:
        reference = message[11:19]
        key = int.from_bytes(reference, "big")
        if message[0] == 65:
            level = (message[1:3], message[19:20], message[32:36])
            shares = int.from_bytes(message[20:24], "big")
            orders[key] = (level, shares)
            levels[level] = levels.get(level, 0) + shares
        else:
            level, shares = orders.pop(key)
            left = levels[level] - shares
            if left:
                levels[level] = left
            else:
                del levels[level]
    elapsed_ns = time.perf_counter_ns() - start
    require(bool(orders) and bool(levels), "nothing was kept")
    return len(flow) / elapsed_ns * 1e9


def arbitration(plan: Plan) -> Row:
    """Datagrams a second of two lossy lines."""
    count = plan.amount(200_000)
    packets = [_datagram(1 + n * PER_DATAGRAM) for n in range(count)]
    dice = random.Random(4)
    arrivals = []
    for number in range(1, count):
        for line in (0, 1):
            if dice.random() >= 0.01:
                arrivals.append((number + (5 if dice.random() < 0.001 else 0) + line * 3, line, number))
    arrivals.sort()
    arrivals.insert(0, (0, 0, 0))
    brought = {number for _, _, number in arrivals}
    with pinned(0), quiet_collector():
        ours, theirs = alternate(
            plan,
            lambda: _arbiter_rate(packets, arrivals, brought),
            lambda: _heap_rate(packets, arrivals, brought),
        )
    both = count - len(brought)
    note = (
        f"{count:,} packets on two lines, 1 % lost on each, {both} on both: nothing else lost, nothing doubled; "
        f"a Python call a datagram; runs {ours.spread('{:.2f}', 1e6)} M/s"
    )
    target = Target(1e6, "higher")
    return compare("arbitration", "datagrams/s", ours, "dict and heap in Python", theirs, target=target, note=note)


def _arbiter_rate(packets: list[bytes], arrivals: list[tuple[int, int, int]], brought: set[int]) -> float:
    arbiter = Arbiter("mold", window=4096, batch=256)
    offer, taken = arbiter.offer, 0
    found: list[np.ndarray] = []
    start = time.perf_counter_ns()
    for at in range(0, len(arrivals), 200):
        for _, line, number in arrivals[at : at + 200]:
            offer(line, packets[number], 1, number)
        for stream, _, _, _, since in arbiter.holes():
            if number - since > 50:
                arbiter.give_up(stream)
        found.append(arbiter.frames["offset"].copy())
        taken += len(found[-1])
        arbiter.recycle()
    while arbiter.held:
        arbiter.give_up(0)
        taken += len(arbiter.frames)
        arbiter.recycle()
    elapsed_ns = time.perf_counter_ns() - start
    lost = (len(packets) - len(brought)) * PER_DATAGRAM
    tail = PER_DATAGRAM * (len(packets) - 1 - max(brought))
    require(taken == len(brought), f"{taken} packets of {len(brought)} were handed on")
    require(arbiter.lost == lost - tail, f"{arbiter.lost} messages were lost, not {lost - tail}")
    return len(arrivals) / elapsed_ns * 1e9


def _heap_rate(packets: list[bytes], arrivals: list[tuple[int, int, int]], brought: set[int]) -> float:
    """The peer: the header unpacked, what is ahead in a heap, what is old thrown away; a hole waits for 50 packets."""
    waiting: list[tuple[int, int]] = []
    expected, taken, header = 1, 0, struct.Struct(">QH").unpack_from
    start = time.perf_counter_ns()
    for _, _, number in arrivals:
        first, count = header(packets[number], 10)
        if first + count <= expected:
            continue
        if first > expected:
            heapq.heappush(waiting, (first, count))
            if number * PER_DATAGRAM - expected > 50 * PER_DATAGRAM:
                expected = waiting[0][0]
        else:
            expected = first + count
            taken += 1
        while waiting and waiting[0][0] <= expected:
            first, count = heapq.heappop(waiting)
            if first + count > expected:
                expected = first + count
                taken += 1
    while waiting:
        first, count = heapq.heappop(waiting)
        if first + count > expected:
            expected = first + count
            taken += 1
    elapsed_ns = time.perf_counter_ns() - start
    require(taken == len(brought), f"{taken} packets of {len(brought)}")
    return len(arrivals) / elapsed_ns * 1e9
