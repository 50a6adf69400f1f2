"""One frame of `tickengine top`, from real segments: what is slow, stale or losing is on it, with its reason."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import pytest
from rich.console import Console

from engine.health import Verdict
from shm.errors import SegmentMissing
from shm.layout import RecordType, empty
from shm.ring import RingReader, RingWriter
from shm.status import ProcessState, ProcessStatus, StatusBlock
from tools.observer import Observer, View
from tools.top_frame import frame

NOW_NS = 1_800_000_000_000_000_000
SECOND_NS = 1_000_000_000


class Scene:
    """Status block, ring 2 and an ingest worker (this process), as an engine has them."""

    def __init__(self, name: str) -> None:
        self.block = StatusBlock.create(name)
        self.block.set_facts({"http": "http://127.0.0.1:1", "feeds": {"1": "simulated"}})
        self.writer = RingWriter.create(name, 2, depth_slots=1024)
        self.block.set_ring(2, "ingest-0", "ingest")
        self.worker: ProcessStatus = self.block.register("ingest-0", "ingest", os.getpid())
        self.worker.state = ProcessState.READY
        self.seconds = 0
        self.beat()

    def beat(self) -> None:
        """The worker says that it lives, at the time of the next look."""
        self.worker.heartbeat(NOW_NS + self.seconds * SECOND_NS)

    def publish(self, count: int) -> None:
        """Records of feed 1, as its worker counts them."""
        batch = empty(count)
        batch["record_type"] = RecordType.TICK
        self.writer.publish_batch(batch)
        self.worker.counter("records_published").add(count)
        self.worker.counter("feed.1.records").add(count)
        self.worker.counter("feed.1.last_update_ns").set(NOW_NS + self.seconds * SECOND_NS)

    def look(self, observer: Observer) -> View:
        """A look, one second after the one before."""
        self.seconds += 1
        return observer.look(NOW_NS + (self.seconds - 1) * SECOND_NS, float(self.seconds))


@pytest.fixture
def scene(engine_name: str) -> Iterator[Scene]:
    """An engine of one worker."""
    made = Scene(engine_name)
    yield made
    made.writer.close()
    made.writer.unlink()
    made.block.unlink()
    made.block.close()


@pytest.fixture
def observer(scene: Scene, engine_name: str) -> Iterator[Observer]:
    """Looking at the scene."""
    assert scene.worker
    looking = Observer(engine_name)
    yield looking
    looking.close()


def text_of(view: View) -> str:
    """The frame without colours, wide enough for every column."""
    console = Console(file=io.StringIO(), width=200, color_system=None)
    with console.capture() as captured:
        console.print(frame(view))
    return captured.get()


def row(text: str, table: str, first: str) -> list[str]:
    """Words of the row that begins with `first` in the table whose header begins with `table`."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.split()[:1] == [table])
    return next(line.split() for line in lines[start + 1 :] if line.split()[:1] == [first])


def test_rates_are_those_between_two_looks(scene: Scene, observer: Observer) -> None:
    scene.publish(100)
    scene.look(observer)
    scene.beat()
    scene.publish(250)
    text = text_of(scene.look(observer))
    assert row(text, "RING", "r2")[1:5] == ["ingest-0", "ingest", "250", "350"]
    assert row(text, "FEED", "simulated")[2:5] == ["active", "250", "350"]
    assert "250" in row(text, "PROCESS", "ingest-0")
    assert "250 records/s" in text.splitlines()[0]


def test_lost_records_and_slow_reader_are_told_with_the_reason(scene: Scene, observer: Observer) -> None:
    scene.publish(10)
    with RingReader.attach(observer.engine, 2, start="oldest", label="turtle") as reader:
        reader.read(empty(1))
        scene.look(observer)
        scene.beat()
        scene.publish(800)
        text = text_of(scene.look(observer))
        assert row(text, "READER", "turtle")[3] == "809"
        assert "turtle is slow: 809 records behind in ring 2" in text
        assert "nothing slow" not in text


def test_feed_that_falls_silent_is_stale(scene: Scene, observer: Observer) -> None:
    scene.publish(10)
    scene.look(observer)
    for _ in range(30):
        scene.beat()
        view = scene.look(observer)
    assert view.feeds[1] == ("simulated", "stale")
    assert "feed:simulated: silent for" in text_of(view)
    assert view.health.verdict > Verdict.HEALTHY


def test_worker_without_heartbeat_is_told(scene: Scene, observer: Observer) -> None:
    scene.publish(10)
    for _ in range(8):
        view = scene.look(observer)
    assert "process:ingest-0: silent for" in text_of(view)


def test_engine_in_order_says_so(scene: Scene, observer: Observer) -> None:
    scene.publish(10)
    scene.look(observer)
    scene.beat()
    scene.publish(10)
    view = scene.look(observer)
    assert view.alive
    assert "HEALTHY" in text_of(view)
    assert "nothing slow, stale or losing" in text_of(view)


def test_restarted_engine_is_followed(scene: Scene, observer: Observer, engine_name: str) -> None:
    scene.look(observer)
    scene.block.unlink()
    fresh = StatusBlock.create(engine_name)
    fresh.register("ingest-9", "ingest", os.getpid()).state = ProcessState.READY
    assert [process.label for process in scene.look(observer).now.processes] == ["ingest-9"]
    fresh.unlink()
    fresh.close()


def test_no_such_engine_is_an_error(engine_name: str) -> None:
    with pytest.raises(SegmentMissing):
        Observer(engine_name)


def test_overloaded_fan_out_shows_as_such_with_its_losses(scene: Scene, observer: Observer) -> None:
    scene.look(observer)
    scene.beat()
    scene.worker.gauge("overload").set(1.0)
    scene.worker.counter("records_conflated").add(40)
    scene.worker.counter("records_shed").add(2)
    words = row(text_of(scene.look(observer)), "PROCESS", "ingest-0")
    assert "conflating" in words
    assert "42" in words
