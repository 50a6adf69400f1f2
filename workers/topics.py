"""Topic numbers and ring cursors of fan-out, in shared memory, so that they outlive a killed process exactly.

    /tk.NAME.topic
        0        header    magic (stored last), version, shards, turn_records
        16384    topics    u64 [6 record types][65536 instruments]: last number used in the topic
        ...      shards    one block each: u64 cursor[16], shard_topic[4], logged, turns, ring_created_ns[16], redo log,
                           turn log

The turn log is what replay (workers/recent.py) finds the recent past by: the last TURNS runs of records that the shard
numbered, in the order in which it did. A topic's numbers follow from it and from the records that the rings still
hold. `turns` counts the entries ever made; entry i stands at i % TURNS and has four words:

    first    ring sequence of its first record      ANNOUNCED: first sequence lost     BROKEN, CUT: 0
    meta     count | ring << 48 | kind << 56
    end      0                                      ANNOUNCED: one past the last
    time_ns  0                                      ANNOUNCED: when

    kind     NUMBERED   `count` records of the ring; turns that follow each other in one ring share an entry
             AFTER_GAP  the same, and the first of them was sent with Flag.GAP_BEFORE: the shard was overrun before it
             ANNOUNCED  no record of a ring: fan-out's own GAP record on marketdata.feed.status
             BROKEN     what is older is of another ring under this number: no topic of it can be followed beyond
             CUT        of unknown position: nothing can be followed beyond
    CONFLATING, SHEDDING, RELIEVED
               no record of a ring: fan-out's own OVERLOAD record on marketdata.feed.status; first and end are the
               counts that it tells (workers/overload.py)

Fan-out is at-most-once with exact accounting. Before a turn's messages are sent, everything that the turn changes --
the ring's cursor, the number of each topic it touched -- is written to the shard's redo log as absolute values, the log
is declared valid, the values are applied, the log is emptied (workers/_route.pyx, `Router.route`). A process killed at
any instruction leaves either the old state, or the new one, or a valid log that the next process applies again.
The turn log is changed by the same commit. The next process then resumes at the cursor: no record is ever sent twice,
and what was in flight is a hole of known size in its topic, which replay can fill.

Only order against a kill matters here, not against another core: one process at a time owns a shard (`claim`), and the
memory itself survives. A crash of the machine loses segment, rings and subscribers together.

The first fan-out worker of an engine makes the table, all of them use it, others may look; an engine that starts anew
removes it. It never sends anything.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import numpy as np

from shm.errors import BadArgument, LayoutMismatch, SegmentExists, SegmentMissing, WriterBusy
from shm.layout import MAX_RINGS, RecordType
from shm.locks import ByteLock, unlink_abandoned
from shm.segment import Segment, segment_name

INSTRUMENTS: Final = 65536
MAX_SHARDS: Final = 64
DEFAULT_TURN_RECORDS: Final = 32768
MAX_TURN_RECORDS: Final = 1 << 18

# Topics are known by an index: (record_type - 1) * INSTRUMENTS + instrument_id, then those that each shard has once.
SYMBOL_TOPICS: Final = 6 * INSTRUMENTS
BATCH: Final = SYMBOL_TOPICS
STATUS: Final = SYMBOL_TOPICS + 1
ERROR: Final = SYMBOL_TOPICS + 2
ALERT: Final = SYMBOL_TOPICS + 3
TOPICS: Final = SYMBOL_TOPICS + 4

# Words of a shard's block.
SHARD_TOPIC_WORD: Final = MAX_RINGS
LOGGED_WORD: Final = MAX_RINGS + 4
TURNS_MADE_WORD: Final = MAX_RINGS + 5
RING_CREATED_WORD: Final = 24
LOG_WORD: Final = 64
LOG_SPARE: Final = 16  # entries beyond one a record: the cursor, the shard's own topics, the turn log

TURNS: Final = 32768  # entries of the turn log, 1 MiB a shard
TURN_WORDS: Final = 4
NUMBERED, AFTER_GAP, ANNOUNCED, BROKEN, CUT, CONFLATING, SHEDDING, RELIEVED = range(8)
OVERLOADED: Final = (CONFLATING, SHEDDING, RELIEVED)

_BEING_MADE_S: Final = 2.0
_MAKER_LOCK: Final = MAX_SHARDS  # behind those of the shards
_MAGIC: Final = 0x3143504F544B54  # "TKTOPC1", little-endian
_VERSION: Final = 2
_HEADER_BYTES: Final = 16384
_TOPICS_WORD: Final = _HEADER_BYTES // 8
_SHARDS_WORD: Final = _TOPICS_WORD + SYMBOL_TOPICS


_COUNT_MASK: Final = (1 << 48) - 1


class Turn(NamedTuple):
    """An entry of the turn log, see above; `first` and `end` are ring sequences."""

    kind: int
    ring: int
    first: int
    records: int
    end: int
    time_ns: int


def topic_index(record_type: int, instrument_id: int) -> int:
    """Index of the topic of one instrument's records of one type (not status). BadArgument if out of range."""
    if not RecordType.TICK <= record_type <= RecordType.NEWS or not 0 <= instrument_id < INSTRUMENTS:
        raise BadArgument(f"record_type {record_type}, instrument_id {instrument_id}: no topic has them")
    return (record_type - 1) * INSTRUMENTS + instrument_id


class TopicTable:
    """The table, mapped.

    Attributes:
        words: the whole segment, shape (n,), dtype uint64; writable if created or attached with write.
        shards: number of shards it was made for.
        turn_records: most records that one turn of fan-out may take, which bounds the redo log.
        topics_word: index in `words` of topic 0.
    """

    topics_word: Final = _TOPICS_WORD

    def __init__(self, segment: Segment) -> None:
        """Map a checked segment; use `create` or `attach` instead."""
        self._segment = segment
        self.words: np.ndarray = np.frombuffer(segment.buf, np.uint64)
        self.shards = int(self.words[2])
        self.turn_records = int(self.words[3])
        self._locks: list[ByteLock] = []

    @classmethod
    def create(
        cls,
        engine: str,
        *,
        shards: int = 1,
        turn_records: int = DEFAULT_TURN_RECORDS,
        mode: int = 0o600,
        group: str | int | None = None,
    ) -> TopicTable:
        """Make the table: about 3 MiB, and for each shard 1 MiB and 16 bytes a record of a turn.

        Raises:
            SegmentExists, ShmFull: see `Segment.create`.
            BadArgument: shards not 1 to 64, turn_records not 1 to 262144.
        """
        if not 1 <= shards <= MAX_SHARDS:
            raise BadArgument(f"shards is {shards}, must be 1 to {MAX_SHARDS}")
        if not 1 <= turn_records <= MAX_TURN_RECORDS:
            raise BadArgument(f"turn_records is {turn_records}, must be 1 to {MAX_TURN_RECORDS}")
        size_bytes = 8 * (_SHARDS_WORD + shards * _block_words(turn_records))
        segment = Segment.create(segment_name(engine, "topic"), size_bytes, mode=mode, group=group)
        making = ByteLock(segment.name, _MAKER_LOCK)
        try:
            if not making.try_acquire() or not segment.is_named():
                raise SegmentExists(f"segment {segment.name} was taken for abandoned before it was complete")
            words = np.frombuffer(segment.buf, np.uint64)
            words[1:4] = _VERSION, shards, turn_records
            words[0] = _MAGIC
        except BaseException:
            segment.close()
            raise
        finally:
            making.release()
        return cls(segment)

    @classmethod
    def attach(cls, engine: str, *, write: bool = False) -> TopicTable:
        """Map an existing table. SegmentMissing, NotAllowed, or LayoutMismatch which names both sides."""
        segment = Segment.attach(segment_name(engine, "topic"), write=write)
        words = np.frombuffer(segment.buf[:_HEADER_BYTES], np.uint64)
        magic, version, shards, turn_records = (int(word) for word in words[:4])
        try:
            if magic == 0:
                raise SegmentMissing(f"segment {segment.name} is being created: its header is not complete yet")
            if (magic, version) != (_MAGIC, _VERSION):
                raise LayoutMismatch(
                    f"segment {segment.name}: magic {magic:#x} version {version}, "
                    f"this build has magic {_MAGIC:#x} version {_VERSION}"
                )
            needed = 8 * (_SHARDS_WORD + shards * _block_words(turn_records))
            if segment.size_bytes < needed:
                raise LayoutMismatch(
                    f"segment {segment.name} has {segment.size_bytes} bytes, its header asks for {needed}"
                )
        except BaseException:
            segment.close()
            raise
        return cls(segment)

    @classmethod
    def create_or_attach(
        cls,
        engine: str,
        *,
        shards: int = 1,
        turn_records: int = DEFAULT_TURN_RECORDS,
        mode: int = 0o600,
        group: str | int | None = None,
    ) -> TopicTable:
        """Adopt the table of an engine that ended badly, or make a new one.

        Raises LayoutMismatch if the one that is there has other shards or turns: unlink it, the numbers start anew.
        """
        deadline = time.monotonic() + _BEING_MADE_S
        while True:
            try:
                return cls.create(engine, shards=shards, turn_records=turn_records, mode=mode, group=group)
            except SegmentExists:
                pass
            try:
                table = cls.attach(engine, write=True)
                break
            except SegmentMissing:  # another shard's process is making it at this moment, or was killed doing so
                if time.monotonic() > deadline:
                    unlink_abandoned(segment_name(engine, "topic"), _MAKER_LOCK, lambda: _is_half_made(engine))
                time.sleep(0.001)
        if (table.shards, table.turn_records) != (shards, turn_records):
            found = f"{table.shards} shards and turns of {table.turn_records} records"
            table.close()
            raise LayoutMismatch(
                f"segment {segment_name(engine, 'topic')} is for {found}, wanted are {shards} and {turn_records}"
            )
        return table

    def block_word(self, shard: int) -> int:
        """Index in `words` of a shard's block. BadArgument if there is no such shard."""
        if not 0 <= shard < self.shards:
            raise BadArgument(f"shard is {shard}, the table has shards 0 to {self.shards - 1}")
        return _SHARDS_WORD + shard * _block_words(self.turn_records)

    def claim(self, shard: int, timeout_s: float = 0.0) -> None:
        """Become the one process that advances this shard, until `close`.

        WriterBusy if another live one still is after `timeout_s` seconds: one that was told to end may need a moment.
        """
        self.block_word(shard)
        lock = ByteLock(self._segment.name, shard)
        deadline = time.monotonic() + timeout_s
        while not lock.try_acquire():
            if time.monotonic() >= deadline:
                raise WriterBusy(f"shard {shard} of {self._segment.name} has a fan-out process already")
            time.sleep(0.01)
        self._locks.append(lock)

    def cursor(self, shard: int, ring_id: int, ring_created_ns: int) -> int:
        """Sequence that this shard reads next from a ring; 0 = it never read this one.

        Args:
            ring_created_ns: when the ring was made (`shm.ring.RingInfo`); the cursor of an earlier one is of no use.
        """
        block = self.block_word(shard)
        if int(self.words[block + RING_CREATED_WORD + ring_id]) != ring_created_ns:
            return 0
        return int(self.words[block + ring_id])

    def set_cursor(self, shard: int, ring_id: int, ring_created_ns: int, cursor: int) -> None:
        """Start reading a ring at `cursor`; later moves are the router's. Only the owner of the shard may."""
        block = self.block_word(shard)
        self._break_turns(shard, ring_id)
        # In this order a kill leaves a cursor of 0, "never read", and not one that belongs to another ring.
        self.words[block + ring_id] = 0
        self.words[block + RING_CREATED_WORD + ring_id] = ring_created_ns
        self.words[block + ring_id] = cursor

    def _break_turns(self, shard: int, ring_id: int) -> None:
        """Note that records of this ring before now are another's. Killed meanwhile, it is noted twice or not yet."""
        made = self.turns_made(shard)
        at = self.turns_word(shard) + made % TURNS * TURN_WORDS
        self.words[at : at + TURN_WORDS] = 0, ring_id << 48 | BROKEN << 56, 0, 0
        self.words[self.block_word(shard) + TURNS_MADE_WORD] = made + 1

    def turns_word(self, shard: int) -> int:
        """Index in `words` of a shard's turn log."""
        return self.block_word(shard) + LOG_WORD + 2 * (self.turn_records + LOG_SPARE)

    def turns_made(self, shard: int) -> int:
        """Entries ever made in the turn log; the last TURNS of them are there."""
        return int(self.words[self.block_word(shard) + TURNS_MADE_WORD])

    def turn(self, shard: int, entry: int) -> Turn:
        """One entry of the turn log; of use if `turns_made` - TURNS <= entry < `turns_made`."""
        at = self.turns_word(shard) + entry % TURNS * TURN_WORDS
        first, meta, end, time_ns = self.words[at : at + TURN_WORDS].tolist()
        return Turn(meta >> 56, meta >> 48 & 0xFF, first, meta & _COUNT_MASK, end, time_ns)

    def sequence(self, topic: int, shard: int = 0) -> int:
        """Number of the last record of a topic (0 = none yet), by its index; `shard` matters from BATCH on."""
        if topic < SYMBOL_TOPICS:
            return int(self.words[_TOPICS_WORD + topic])
        return int(self.words[self.block_word(shard) + SHARD_TOPIC_WORD + topic - SYMBOL_TOPICS])

    def logged(self, shard: int) -> int:
        """Entries in the shard's redo log: 0, but while a turn is being committed or after a kill just then."""
        return int(self.words[self.block_word(shard) + LOGGED_WORD])

    def close(self) -> None:
        """Give up claims and let go of the memory. Safe to call twice."""
        for lock in self._locks:
            lock.release()
        self._locks.clear()
        self.words = np.zeros(0, np.uint64)
        self._segment.close()

    def unlink(self) -> None:
        """Remove the table's name. Safe to call twice."""
        self._segment.unlink()

    def __enter__(self) -> TopicTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_half_made(engine: str) -> bool:
    try:
        TopicTable.attach(engine).close()
    except SegmentMissing:
        return True
    except LayoutMismatch:
        pass
    return False


def _block_words(turn_records: int) -> int:
    words = LOG_WORD + 2 * (turn_records + LOG_SPARE) + TURNS * TURN_WORDS
    return -(-words // 2048) * 2048  # 16384-byte regions
