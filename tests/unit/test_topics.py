"""The topic table: found again by the next process, refused where it does not fit, owned by one process a shard."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from shm.errors import BadArgument, LayoutMismatch, SegmentExists, SegmentMissing, WriterBusy
from shm.layout import RecordType
from tests.children import Child
from workers import topics
from workers.topics import TopicTable, topic_index


@pytest.fixture
def table(engine_name: str) -> Iterator[TopicTable]:
    with TopicTable.create(engine_name, shards=2, turn_records=100) as made:
        yield made


def test_table_is_found_again_with_what_it_held(engine_name: str, table: TopicTable) -> None:
    table.words[table.topics_word + topic_index(RecordType.QUOTE, 5)] = 77
    table.set_cursor(1, 3, 1000, 9)
    table.words[table.block_word(1) + topics.SHARD_TOPIC_WORD] = 11

    with TopicTable.attach(engine_name) as again:
        assert (again.shards, again.turn_records) == (2, 100)
        assert again.sequence(topic_index(RecordType.QUOTE, 5)) == 77
        assert (again.cursor(1, 3, 1000), again.cursor(0, 3, 1000)) == (9, 0)
        assert (again.sequence(topics.BATCH, 1), again.sequence(topics.BATCH, 0)) == (11, 0)


@pytest.mark.usefixtures("table")
def test_reader_of_the_table_can_not_write_it(engine_name: str) -> None:
    with TopicTable.attach(engine_name) as again, pytest.raises(ValueError, match="read-only"):
        again.words[0] = 0


def test_shards_and_topics_never_share_a_word(table: TopicTable) -> None:
    last_topic = table.topics_word + topics.SYMBOL_TOPICS - 1
    first, second = table.block_word(0), table.block_word(1)
    block_words = topics.LOG_WORD + 2 * (table.turn_records + topics.LOG_SPARE)

    assert last_topic < first
    assert first + block_words <= second
    assert second + block_words <= table.words.size


def test_one_process_owns_a_shard_until_it_closes(engine_name: str, table: TopicTable) -> None:
    table.claim(0)
    with TopicTable.attach(engine_name, write=True) as other:
        other.claim(1)
        with pytest.raises(WriterBusy, match="shard 0"):
            other.claim(0)
        table.close()
        other.claim(0)


def test_create_or_attach_adopts_what_is_there_if_it_fits(engine_name: str, table: TopicTable) -> None:
    table.set_cursor(0, 0, 1000, 5)

    with TopicTable.create_or_attach(engine_name, shards=2, turn_records=100) as adopted:
        assert adopted.cursor(0, 0, 1000) == 5
    with pytest.raises(LayoutMismatch, match=r"2 shards and turns of 100.*wanted are 3 and 100"):
        TopicTable.create_or_attach(engine_name, shards=3, turn_records=100)
    with pytest.raises(SegmentExists):
        TopicTable.create(engine_name)


def test_table_of_another_version_is_refused(engine_name: str, table: TopicTable) -> None:
    table.words[1] = 99
    with pytest.raises(LayoutMismatch, match="version 99"):
        TopicTable.attach(engine_name)
    table.words[0] = 0
    with pytest.raises(SegmentMissing, match="being created"):
        TopicTable.attach(engine_name)


MAKER = """
import os, signal, sys
from shm import segment
from workers.topics import TopicTable
allocate = segment._allocate

def killed(name, fd, size_bytes):
    if sys.argv[2] == "whole":
        allocate(name, fd, size_bytes)
    print("here", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

segment._allocate = killed
TopicTable.create(sys.argv[1])
"""


@pytest.mark.parametrize("size", ["none", "whole"])
def test_table_whose_maker_was_killed_is_made_anew(engine_name: str, size: str) -> None:
    with Child(MAKER, engine_name, size) as maker:
        assert maker.hear() == "here"
        assert maker.process.wait() == -signal.SIGKILL
    with pytest.raises(SegmentMissing, match="being created"):
        TopicTable.attach(engine_name)
    with TopicTable.create_or_attach(engine_name, shards=2) as made:
        made.claim(0)
        assert TopicTable.attach(engine_name).shards == 2


@pytest.mark.parametrize("options", [{"shards": 0}, {"shards": 65}, {"turn_records": 0}, {"turn_records": 1 << 20}])
def test_sizes_out_of_range_are_refused(engine_name: str, options: dict[str, int]) -> None:
    with pytest.raises(BadArgument):
        TopicTable.create(engine_name, **options)


def test_topics_have_indices_of_their_own() -> None:
    found = {topic_index(kind, instrument) for kind in range(1, 7) for instrument in (0, 1, 65535)}

    assert len(found) == 18
    assert found.isdisjoint({topics.BATCH, topics.STATUS, topics.ERROR, topics.ALERT})
    assert max(found) < topics.TOPICS
    for kind, instrument in ((0, 0), (7, 0), (1, 65536), (1, -1)):
        with pytest.raises(BadArgument):
            topic_index(kind, instrument)


def test_unknown_shard_is_refused(table: TopicTable) -> None:
    with pytest.raises(BadArgument, match="shard is 2"):
        table.block_word(2)


def test_cursor_of_a_ring_that_was_made_anew_is_forgotten(table: TopicTable) -> None:
    table.set_cursor(0, 4, ring_created_ns=1000, cursor=12)

    assert table.cursor(0, 4, ring_created_ns=1000) == 12
    assert table.cursor(0, 4, ring_created_ns=2000) == 0
    table.set_cursor(0, 4, ring_created_ns=2000, cursor=1)
    assert table.cursor(0, 4, ring_created_ns=2000) == 1
