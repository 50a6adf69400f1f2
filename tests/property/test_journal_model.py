"""The journal against a list: any mixture of appends, gaps, restarts, torn tails and hours reads back as the list."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.journals import HOUR, NOW, STREAM, trades
from workers.journal import Journal
from workers.journal_reader import JournalReader, list_segments

RINGS = (0, 5)
Steps = list[tuple[str, int, int]]

steps = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "gap", "hour", "back", "restart", "torn", "new ring"]),
        st.sampled_from(RINGS),
        st.integers(1, 60),
    ),
    max_size=30,
)


class Model:
    """What the journal should hold: for each ring and stream, sequences and gaps in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_ns = NOW
        self.held: dict[tuple[int, int], list[object]] = {}
        self.next = dict.fromkeys(RINGS, 1)
        self.stream = dict.fromkeys(RINGS, STREAM)
        self.open()

    def open(self) -> None:
        """A new process: it is told where to go on by the journal alone."""
        self.journal = Journal(self.folder, fsync="none", segment_bytes=8192)
        for ring in RINGS:
            assert (self.journal.open_ring(ring, self.stream[ring]) or 1) == self.next[ring]

    def step(self, what: str, ring: int, number: int) -> None:
        first, stream = self.next[ring], self.stream[ring]
        held = self.held.setdefault((ring, stream), [])
        if what == "append":
            self.journal.append(ring, stream, 1, trades(first, number), self.now_ns)
            held += range(first, first + number)
            self.next[ring] += number
        elif what == "gap":
            self.journal.append_gap(ring, stream, 1, (first, first + number), self.now_ns)
            held.append((first, first + number))
            self.next[ring] += number
        elif what == "new ring":
            self.stream[ring] += number
            self.next[ring] = 1
            self.journal.open_ring(ring, self.stream[ring])
        elif what in ("hour", "back"):
            self.now_ns += HOUR if what == "hour" else -number * HOUR
        else:
            self.journal.close()
            mine = [s.path for s in list_segments(self.folder) if s.name[:2] == (ring, stream)]
            if what == "torn" and mine:
                with mine[-1].open("ab") as file:
                    file.write(os.urandom(number))
            self.open()


@settings(max_examples=150, deadline=None)
@given(steps)
def test_a_journal_reads_back_as_what_was_appended(given_steps: Steps) -> None:
    with tempfile.TemporaryDirectory() as name:
        model = Model(Path(name))
        for step in given_steps:
            model.step(*step)
        model.journal.close()
        read: dict[tuple[int, int], list[object]] = {}
        for block in JournalReader(model.folder).blocks():
            header = block.header
            held = read.setdefault((header.ring_id, header.stream), [])
            if block.is_gap:
                held.append((header.first_sequence, header.next_sequence))
            else:
                held += block.records["sequence"].tolist()
                assert block.records.tobytes() == trades(header.first_sequence, header.length).tobytes()
        assert read == {key: held for key, held in model.held.items() if held}
