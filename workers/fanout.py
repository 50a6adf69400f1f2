"""Fan-out: the worker that takes records from rings and publishes them on ZeroMQ. `python -m workers.fanout`.

    rings --> read --> route (workers/_route.pyx) --> commit (workers/topics.py) --> raw      XPUB  header + records
                                                                               `---> msgpack  XPUB  a message a record
                                                                                `--> json     XPUB  a message a record
    who wants which topic (workers/listeners.py): asked before, looked at between turns
    turn log, rings <-- asks for the past (workers/replay.py) <------------------------- replay   ROUTER

One turn takes what one ring has, up to `batch_slots` records, groups it by topic, commits numbers and cursor, sends. An
idle engine so sends a record a message, at once; a busy one as many as have come meanwhile: nothing waits for a batch
to fill. Nothing is grouped or encoded for a topic that nobody subscribed to.

What is lost, and how it shows:
    slow subscriber     workers/outlet.py drops for that one; a hole in its topic numbers; `messages_dropped`. With the
                        setting `reliable` it is waited for, within bounds, and so is the ring's writer
    this process killed what was committed and not sent; a hole of known size in the topic numbers
                        (both holes can be filled from the replay socket as long as the rings hold the records)
    overrun by a ring   the lost records' topics are unknown, so no number can tell: a status record GAP with ring and
                        range on marketdata.feed.status, Flag.GAP_BEFORE on the next record; `gaps`, `records_lost`
    more than it sends  quotes, levels and bars are conflated to the newest of each, then low ones shed
                        (workers/relief.py); trades, ticks, news and status never. A hole in the topic's numbers,
                        Flag.GAP_BEFORE behind it; OVERLOAD on marketdata.feed.status when it begins, changes and ends;
                        `records_conflated`, `records_shed`. marketdata.batch stays whole: it costs least
    too much to encode  of the high tier alone: it waits in order, so that raw subscribers do not pay for JSON; beyond
                        relief.LATE_RECORDS the oldest go, a hole in the numbers; `messages_dropped`

Started by the control process (workers/runtime.py); it publishes no ring and blocks on no subscriber.
"""

from __future__ import annotations

import logging
import time
from typing import Final

import numpy as np

from shm.errors import BadArgument, SegmentMissing
from shm.instruments import InstrumentTable
from shm.layout import empty
from shm.ring import RingReader, RingSet, ring_info
from shm.source_names import SourceNames
from workers import topics as topic_table
from workers._route import JSON, MSGPACK, RAW, Router
from workers.chronicle import Chronicle
from workers.encode import MessageBuilder, encode_json, encode_msgpack
from workers.listeners import Listeners, endpoints
from workers.recent import Recent, gap_record, overload_record
from workers.relief import BUSY_RECORDS, ENCODE_RECORDS, SLICE_NS, Relief
from workers.replay import ReplayService
from workers.runtime import Runtime, main
from workers.spec import FanoutSettings
from workers.topics import TopicTable

FRAME_RECORDS: Final = 256  # 32 KiB: what a slow subscriber loses at a time, and `send_hwm` counts
REPLAY_BUSY_NS: Final = 300_000  # what a turn of a busy fan-out may spend on answers from the past
REPLAY_IDLE_NS: Final = 300_000  # an idle one looks at its rings as often: a record may come
REPLAY_DISK_S: Final = 0.0005  # while the journal's thread reads
IDLE_WAIT_S: Final = 0.1  # until a first question at the replay socket is noticed
REPLAY_WAIT_S: Final = 0.002  # for a second after somebody has asked: the next question seldom stays away
SUBSCRIPTIONS_NS: Final = 2_000_000  # how often a busy fan-out looks for subscriptions; an idle one does at every wake
DRAIN_S: Final = 0.5
LINGER_S: Final = 0.4
CLAIM_S: Final = 3.0  # an orphan of a killed engine may need as long to go

log = logging.getLogger("fanout")


class Fanout:
    """One shard at work: its readers, its router, what it sends to its listeners."""

    def __init__(self, runtime: Runtime[FanoutSettings]) -> None:
        """Attach to the engine, claim the shard, resume at its cursors, bind the endpoints.

        Raises:
            ShmError: a segment is missing or does not fit, or another process has the shard (WriterBusy).
            WorkerError: an endpoint can't be bound.
            SettingsError: keys that can't be used, or none for an address beyond loopback.
        """
        self._settings = settings = runtime.settings
        self._runtime = runtime
        self._instruments = InstrumentTable.attach(settings.engine)
        self._table = _open_table(settings)
        self._table.claim(settings.shard, CLAIM_S)
        self._router = Router(self._table, settings.shard, frame_records=FRAME_RECORDS)
        self._turn_records = min(settings.batch_slots, self._table.turn_records)
        self._records = empty(self._turn_records)
        self._records_view = memoryview(self._records.view(np.uint8).data)
        self._own = empty(1)
        self._streams = {ring: ring_info(settings.engine, ring).created_ns for ring in settings.rings}
        self._readers = RingSet(self._attach(ring) for ring in settings.rings)
        self._builder = MessageBuilder(SourceNames(runtime.block), self._instruments.symbol)
        self._listeners = Listeners(runtime, self._router, self._instruments, frame_records=FRAME_RECORDS)
        self._outlets, self._raw = self._listeners.outlets, self._listeners.outlets.get(RAW)
        self._names, self._symbols = self._listeners.names, self._listeners.symbols
        self._replay = self._make_replay() if settings.replay_port else None
        self._look_again_ns = 0
        counter = runtime.status.counter
        self._records_read = counter("records_read")
        self._records_lost = counter("records_lost")
        self._gaps = counter("gaps")
        self._records_sent = counter("records_sent")
        self._messages_sent = counter("messages_sent")
        self._messages_dropped = counter("messages_dropped")
        self._messages_encoded = counter("messages_encoded")
        self._bytes_sent = counter("bytes_sent")
        self._unroutable = counter("records_unroutable")
        self._ring_latency = runtime.status.histogram("ring_latency")
        self._send_latency = runtime.status.histogram("send_latency")
        self._relief = Relief(self._router, runtime.status, patient=settings.reliable)
        self._before = tuple(c.value for c in (self._messages_sent, self._messages_dropped, self._bytes_sent))

    def _make_replay(self) -> ReplayService:
        settings, readers = self._settings, {reader.ring_id: reader for reader in self._readers}
        listens = endpoints(settings, "replay", settings.replay_port)
        past = Recent(self._table, settings.shard, readers, self._router.rings_of, settings.label)
        chronicle = Chronicle(
            past, readers, self._streams, table=self._table, shard=settings.shard, journal=settings.journal
        )
        log.info("replay on %s", ", ".join(listens))
        service = ReplayService(
            self._listeners.context,
            listens,
            past,
            chronicle,
            engine=settings.engine,
            shard=settings.shard,
            rings=settings.rings,
            table=self._table,
            instruments=self._instruments,
            status=self._runtime.status,
            published=lambda ring: readers[ring].published,
            guard=self._listeners.guard,
        )
        self._listeners.judge_too(service)
        return service

    def _attach(self, ring: int) -> RingReader:
        """A reader of the ring at this shard's cursor, or where the settings say if it has none."""
        settings = self._settings
        reader = RingReader.attach(
            settings.engine, ring, start=settings.start, label=settings.label, reliable=settings.reliable
        )
        created_ns = self._streams[ring]
        cursor = self._table.cursor(settings.shard, ring, created_ns)
        if cursor == 0:
            self._table.set_cursor(settings.shard, ring, created_ns, reader.sequence)
        else:
            try:
                reader.seek(cursor)
            except BadArgument:
                # Records are stamped before the header's `published` moves: their writer was killed in between, and
                # this shard has sent them.
                reader._set_position(cursor)
            log.info("ring %d: resuming at %d", ring, cursor)
        return reader

    def run(self) -> None:
        """Turn after turn, until the runtime says stop; then what the rings still hold."""
        runtime, readers, replay = self._runtime, self._readers, self._replay
        spin_ns, came = int(self._settings.spin_us * 1000), False
        while not runtime.stopping:
            if self.turn():
                came = True
                continue
            self._listeners.look(self._relief.ranked)
            wait_s = IDLE_WAIT_S
            pause_s = self._relief.pause_s(time.monotonic_ns())
            if pause_s == 0.0:
                continue
            if replay is not None:
                replay.look()
                replay.step(REPLAY_IDLE_NS)
                if replay.pending and not replay.waiting:
                    continue
                if replay.pending:
                    wait_s = REPLAY_DISK_S
                elif time.monotonic() - replay.asked_at < 1.0:
                    wait_s = REPLAY_WAIT_S
            if pause_s is not None:
                wait_s = min(wait_s, pause_s)
            readers[0].spin_ns = spin_ns if came else 0  # nothing came for a whole wait: spinning would be waste
            came = readers.wait(wait_s)
        deadline = time.monotonic() + DRAIN_S
        while (self.turn() or self._relief.pause_s(0) is not None) and time.monotonic() < deadline:
            pass

    def turn(self) -> int:
        """Take what each ring has, a ring after the other, and send it. Returns how many records that were."""
        taken, relief = 0, self._relief
        for reader in self._readers:
            count = reader.read(self._records, min(self._turn_records, relief.turn_records))
            if count:
                taken += count
                if reader.gap is not None:
                    self._announce(reader.ring_id, *reader.gap)
                self._forward(reader, count)
        if relief.busy:
            self._relieve(taken)
        now_ns = time.time_ns()
        self._runtime.beat(now_ns)
        if not 0 <= self._look_again_ns - now_ns <= SUBSCRIPTIONS_NS:  # the clock may have been set back
            self._listeners.look(self._relief.ranked)
            self._look_again_ns = now_ns + SUBSCRIPTIONS_NS
            if self._replay is not None:
                self._replay.look()
        if taken and self._replay is not None and self._replay.pending:
            self._replay.step(REPLAY_BUSY_NS)
        return taken

    def _forward(self, reader: RingReader, count: int) -> None:
        """Route, commit and send `count` records that were just read. Hot: once a turn, and allocates little."""
        router, relief, ring, hold = self._router, self._relief, reader.ring_id, 0
        read_ns = time.time_ns()
        if router.scan(self._records, count):
            self._listeners.resolve(router.unresolved())
        if count >= BUSY_RECORDS or relief.busy:
            behind = count + max(0, reader.published + 1 - reader.sequence)
            hold = relief.judge(behind / reader.depth_slots, router.encoded_records, time.monotonic_ns())
        frames = router.route(ring, reader.sequence, hold=hold)
        if router.held_count:
            relief.keep(self._records, ring, time.monotonic_ns())
        publish_ns = router.publish_ns
        if frames and self._raw is not None:
            self._raw.send_frames(router.frames(), self._names)
            self._send_latency.record(time.time_ns() - publish_ns)
            self._records_sent.add(router.frame_records_total)
        self._ring_latency.record(read_ns - publish_ns)
        self._records_read.add(count)
        listed = router.encode_list()
        if listed and (relief.has_late or len(listed) > ENCODE_RECORDS):
            relief.put_off(listed, ring, self._records)
        elif listed:
            self._encode(listed, ring, self._records_view)
        self._count()

    def _relieve(self, taken: int) -> None:
        """Send some of what waits, for about SLICE_NS; tell of what has begun or ended."""
        relief, until_ns = self._relief, time.monotonic_ns() + SLICE_NS
        if not taken:
            relief.judge(0.0, 0, time.monotonic_ns())
        while (late := relief.take_late()) is not None:
            self._encode(late.listed, late.ring, late.records)
            if time.monotonic_ns() > until_ns and not relief.late_is_full:
                break
        wanted, began_ns = self._router.wanted, time.monotonic_ns()
        while (now_ns := time.monotonic_ns()) < until_ns and (listed := relief.take_held(now_ns)):
            if self._raw is not None:
                frames = [(topic, relief.held_frame(i)) for i, topic, _ in listed if int(wanted[topic]) & RAW]
                self._raw.send_frames(frames, self._names)
                self._records_sent.add(len(frames))
            messages = [entry for entry in listed if int(wanted[entry[1]]) & (MSGPACK | JSON)]
            if messages:
                self._encode(messages, 0, relief.held_records)
        relief.rest(began_ns, now_ns)
        news = relief.news()
        relief.count()
        if news is not None:
            log.warning("overload: %s; %d records conflated, %d shed", relief.state.name, news.conflated, news.shed)
            settings, counts = self._settings, (news.conflated, news.shed)
            self._own[:] = overload_record(news.kind, settings.shard, settings.label, counts, time.time_ns())
            self._tell(self._readers[0].ring_id, 0, news.kind)
        self._count()

    def _encode(self, listed: list[tuple[int, int, int]], ring: int, records: memoryview) -> None:
        """Send the listed records as messages to whoever wants them so."""
        wanted = self._router.wanted
        msgpack, json, names = self._outlets.get(MSGPACK), self._outlets.get(JSON), self._names
        sent, began_ns = 0, time.monotonic_ns()
        for topic, message in self._builder.build(records, listed, ring, names, self._symbols):
            bits = int(wanted[topic])
            if bits & MSGPACK and msgpack is not None:
                msgpack.send(names[topic], encode_msgpack(message))
                sent += 1
            if bits & JSON and json is not None:
                json.send(names[topic], encode_json(message))
                sent += 1
        self._records_sent.add(sent)
        self._messages_encoded.add(sent)
        self._relief.spent(sent, time.monotonic_ns() - began_ns)

    def _announce(self, ring: int, lost_from: int, lost_to: int) -> None:
        """Tell on marketdata.feed.status which records of a ring this shard never saw."""
        log.warning("ring %d: lost %d records, %d to %d", ring, lost_to - lost_from, lost_from, lost_to - 1)
        self._gaps.add(1)
        self._records_lost.add(lost_to - lost_from)
        lost = (lost_from, lost_to)
        self._own[:] = gap_record(ring, self._settings.shard, self._settings.label, lost, time.time_ns())
        # With the cursor: a process killed before it sends what comes next does not announce the same loss again.
        self._tell(ring, lost_to, topic_table.ANNOUNCED)

    def _tell(self, ring: int, cursor: int, kind: int) -> None:
        """Number and send the record of our own in `_own`; `cursor` and `kind` as `Router.route` has them."""
        router, own = self._router, self._own
        router.scan(own, 1)
        if router.route(ring, cursor, announce=kind) and self._raw is not None:
            self._raw.send_frames(router.frames(), self._names)
        listed = router.encode_list()
        if listed:
            self._encode(listed, ring, memoryview(own.tobytes()))

    def _count(self) -> None:
        messages, dropped, size_bytes = self._listeners.totals()
        self._messages_sent.set(self._before[0] + messages)
        self._messages_dropped.set(self._before[1] + dropped + self._relief.dropped)
        self._bytes_sent.set(self._before[2] + size_bytes)
        self._unroutable.set(self._router.unroutable)

    def close(self) -> None:
        """Leave the engine; what is queued for subscribers is still sent for up to LINGER_S seconds."""
        self._listeners.close_outlets(LINGER_S)
        if self._replay is not None:
            self._replay.close()
        self._readers.close()
        self._router.close()
        self._table.close()
        self._instruments.close()
        self._listeners.close()


def _open_table(settings: FanoutSettings) -> TopicTable:
    """The engine's topic table; the first fan-out worker makes it."""
    try:
        table = TopicTable.attach(settings.engine, write=True)
    except SegmentMissing:
        table = TopicTable.create_or_attach(
            settings.engine, shards=settings.shards, mode=settings.segment_mode, group=settings.segment_group or None
        )
    if table.shards != settings.shards:
        found = table.shards
        table.close()
        raise BadArgument(f"shards is {settings.shards}, the topic table of engine {settings.engine} is for {found}")
    return table


def run(runtime: Runtime[FanoutSettings]) -> None:
    """The life of this worker, as workers.runtime.main calls it."""
    fanout = Fanout(runtime)
    try:
        runtime.ready()
        fanout.run()
    finally:
        fanout.close()


if __name__ == "__main__":
    main("fanout", FanoutSettings, run)
