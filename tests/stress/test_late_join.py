"""Subscribers that join at random moments, are stopped, are dropped for, and outlive a killed fan-out: what they are
handed is what the ring had, each record once and in order, or a gap that says exactly what is missing."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.children import DEADLINE_S, ROOT, wait_until
from tests.system.fanout_process import FanoutStage, MakeStage, fanout_stages, ticks

SYMBOLS = [f"S{i}" for i in range(12)]
TOTAL = 60_000
END = 1_000_000
SMALL_RING = 4096  # slots


@pytest.fixture
def make_stage(engine_name: str) -> Iterator[MakeStage]:
    with fanout_stages(engine_name, SYMBOLS) as make:
        yield make


def end_process(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


@dataclass
class Joiner:
    """One subscriber process and what it wrote down."""

    process: subprocess.Popen[str]
    file: Path

    def result(self) -> dict[str, np.ndarray]:
        assert self.process.wait(DEADLINE_S) == 0
        with np.load(self.file) as found:
            return dict(found)


@dataclass
class Run:
    """A load of TOTAL records and then of ends, with the number of each record in its topic."""

    stage: FanoutStage
    rng: np.random.Generator
    folder: Path
    instruments: list[int]
    joiners: list[Joiner]
    stack: ExitStack
    alive: bool = True

    def join(self, join_records: int, *topics: str) -> None:
        file = self.folder / f"{len(self.joiners)}.npz"
        symbols = len(SYMBOLS) if topics == ("marketdata.tick.*",) else len(topics)
        endpoints = [f"tcp://127.0.0.1:{self.stage.ports[kind]}" for kind in ("raw", "replay")]
        arguments = [str(file), *endpoints, "2", str(join_records), str(END)]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.stress.late_joiner", *arguments, str(symbols), *topics],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.stack.callback(end_process, process)
        self.joiners.append(Joiner(process, file))

    def publish(self, count: int) -> None:
        """Some records, no further ahead of fan-out than the ring allows."""
        for _ in range(0, count, 500):
            first = len(self.instruments)
            chosen = self.rng.integers(0, len(SYMBOLS), 500)
            self.stage.writer.publish_batch(ticks(chosen, first))
            self.instruments += chosen.tolist()
            wait_until(self.follows, "fan-out follows")

    def follows(self) -> bool:
        return self.stage.counter("records_read") >= len(self.instruments) - 2000 or not self.alive

    def end(self) -> None:
        """Ends for every symbol, until every subscriber has seen its own: the last one may be dropped as any other."""

        def all_ended() -> bool:
            self.stage.writer.publish_batch(ticks(np.arange(len(SYMBOLS)), END))
            self.instruments += range(len(SYMBOLS))
            return all(joiner.process.poll() is not None for joiner in self.joiners)

        wait_until(all_ended, "all subscribers have seen the end")

    def numbers(self) -> dict[str, np.ndarray]:
        """Ring sequences by topic, in order: number n of a topic stands at n - 1."""
        instruments = np.array(self.instruments)
        found = {f"marketdata.tick.{name}": np.flatnonzero(instruments == i) + 1 for i, name in enumerate(SYMBOLS)}
        found["marketdata.batch"] = np.arange(1, len(instruments) + 1)
        return found


@contextmanager
def load(stage: FanoutStage, folder: Path, *, kill: bool) -> Iterator[Run]:
    """Subscribers come at random moments, one of them stands still for a while, fan-out is killed if asked for."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    with ExitStack() as stack:
        run = Run(stage, np.random.default_rng(seed), folder, [], [], stack)
        drive(run, kill)
        yield run


def drive(run: Run, kill: bool) -> None:
    stage = run.stage
    kinds = [
        (0, ["marketdata.tick.*"]),
        (300, ["marketdata.tick.*"]),
        (8000, ["marketdata.tick.S3", "marketdata.tick.S4"]),
        (500, ["marketdata.batch"]),
    ]
    moments = sorted(run.rng.integers(0, TOTAL // 2, len(kinds)).tolist())
    stage.start(send_hwm=2, start="oldest")
    for moment, (join_records, topics) in zip(moments, kinds, strict=True):
        run.publish(moment - len(run.instruments))
        run.join(join_records, *topics)
    for joiner in run.joiners:
        assert joiner.process.stdout is not None
        assert joiner.process.stdout.readline() == "ready\n"
    for turn in range(4):
        stopped = run.joiners[int(run.rng.integers(0, len(kinds)))]
        os.kill(stopped.process.pid, signal.SIGSTOP)
        run.publish(4000)
        if kill and turn == 1:
            stage.kill()
            run.alive = False
            run.publish(1000)
            stage.start(send_hwm=2)
            run.alive = True
            run.publish(2 * SMALL_RING)  # before the stopped one can connect again
        os.kill(stopped.process.pid, signal.SIGCONT)
        run.publish(2000)
    run.publish(TOTAL - len(run.instruments))
    run.end()


@pytest.mark.parametrize("kill", [False, True])
def test_late_joiners_get_the_rings_sequence_without_gap_or_double(
    make_stage: MakeStage, tmp_path: Path, kill: bool
) -> None:
    with load(make_stage(depth_slots=1 << 20), tmp_path, kill=kill) as run:
        expected = run.numbers()
        healed = 0
        for joiner in run.joiners:
            found = joiner.result()
            healed += int(found["counts"][0])
            print("healed, joined, gaps, missed:", found["counts"])
            assert found["counts"][2:].tolist() == [0, 0]
            topics = [name for name in found if name.startswith("marketdata.")]
            assert topics
            for topic in topics:
                numbers, sequences, _ = found[topic].T
                assert numbers.tolist() == list(range(numbers[0], numbers[0] + len(numbers)))
                assert sequences.tolist() == expected[topic][numbers - 1].tolist()
        assert healed > 0


def test_what_can_not_be_healed_is_reported_to_the_record(make_stage: MakeStage, tmp_path: Path) -> None:
    with load(make_stage(depth_slots=SMALL_RING), tmp_path, kill=True) as run:
        expected = run.numbers()
        missed = 0
        for joiner in run.joiners:
            found = joiner.result()
            missed += int(found["counts"][3])
            print("healed, joined, gaps, missed:", found["counts"])
            for topic in [name for name in found if name.startswith("marketdata.")]:
                numbers, sequences, _ = found[topic].T
                spans = found["gap_spans"][found["gap_topics"] == topic]
                gone = np.concatenate([np.arange(first, end) for first, end in spans.tolist()] or [np.zeros(0, int)])
                both = np.concatenate((numbers, gone))
                assert np.all(np.diff(numbers) > 0)
                assert np.sort(both).tolist() == list(range(numbers[0], numbers[-1] + 1))
                if not run.stage.counter("records_lost"):
                    assert sequences.tolist() == expected[topic][numbers - 1].tolist()
        assert missed > 0
