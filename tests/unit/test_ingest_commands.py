"""What the control process asks of a running ingest worker: pause, resume, add and remove feeds, drain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.ingest_worker import DEADLINE_S, Engine, simulated, until
from workers.spec import (
    EXIT_CLEAN,
    AddFeed,
    AnyReply,
    Command,
    Done,
    Drain,
    FeedSpec,
    Hello,
    PauseFeed,
    Ping,
    Refused,
    RemoveFeed,
    ResumeFeed,
    decode_reply,
    encode_command,
)


@pytest.fixture
def engine(engine_name: str) -> Iterator[Engine]:
    engine = Engine(engine_name)
    yield engine
    engine.close()


class Control:
    """The control process's end of the command socket."""

    def __init__(self, path: Path) -> None:
        self.endpoint = f"ipc://{path}"
        self.socket = zmq.Context.instance().socket(zmq.ROUTER)
        self.socket.bind(self.endpoint)

    def receive(self) -> tuple[bytes, AnyReply]:
        assert self.socket.poll(DEADLINE_S * 1000), "no reply"
        label, frame = self.socket.recv_multipart()
        return label, decode_reply(frame)

    def ask(self, command: Command) -> AnyReply:
        self.socket.send_multipart([b"ingest-0", encode_command(command)])
        return self.receive()[1]


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    control = Control(tmp_path / "control")
    yield control
    control.socket.close(linger=0)


def test_commands_are_answered_and_carried_out(engine: Engine, control: Control) -> None:
    worker = engine.start(simulated(rate=2000), control_endpoint=control.endpoint)
    label, hello = control.receive()
    assert label == b"ingest-0"
    assert isinstance(hello, Hello)
    assert hello.pid == worker.pid
    assert control.ask(Ping(request_id=7)) == Done(request_id=7)
    reader = engine.reader()
    engine.records(reader, 100)

    assert control.ask(PauseFeed(request_id=8, feed_id=1)) == Done(request_id=8)
    paused_at = engine.counter("feed.1.records")
    assert control.ask(Ping(request_id=9)) == Done(request_id=9)
    assert engine.counter("feed.1.records") == paused_at
    assert engine.counter("feed.1.paused") == 1

    assert control.ask(ResumeFeed(request_id=10, feed_id=1)) == Done(request_id=10)
    until(lambda: engine.counter("feed.1.records") > paused_at + 100, "records after the pause")

    refused = control.ask(PauseFeed(request_id=11, feed_id=77))
    assert isinstance(refused, Refused)
    assert "no feed 77" in refused.error

    control.socket.send_multipart([b"ingest-0", b"rubbish"])
    assert isinstance(control.receive()[1], Refused)

    assert control.ask(Drain(request_id=12)) == Done(request_id=12)
    assert worker.wait(DEADLINE_S) == EXIT_CLEAN


def test_feeds_are_added_and_removed_while_the_worker_runs(engine: Engine, control: Control) -> None:
    engine.start(control_endpoint=control.endpoint)
    control.receive()
    spec = FeedSpec(feed_id=9, name="late", source="simulated", symbols=("TSLA",), options={"rate": 500}, added=True)
    assert control.ask(AddFeed(request_id=1, feed=spec)) == Done(request_id=1)
    assert control.ask(AddFeed(request_id=2, feed=spec)) == Done(request_id=2)  # hosts it already
    until(lambda: engine.counter("feed.9.records") > 50, "records of the feed")
    assert control.ask(RemoveFeed(request_id=3, feed_id=9)) == Done(request_id=3)
    assert control.ask(RemoveFeed(request_id=4, feed_id=9)) == Done(request_id=4)
    held = engine.counter("feed.9.records")
    assert control.ask(Ping(request_id=5)) == Done(request_id=5)
    assert engine.counter("feed.9.records") == held
    assert control.ask(AddFeed(request_id=6, feed=spec, fresh=True)) == Done(request_id=6)
    assert engine.counter("feed.9.records") < held


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [("simulatd", {}, "simulated"), ("simulated", {"rat": 1}, "rate"), ("replay", {}, "files")],
)
def test_a_feed_that_can_not_work_is_refused_when_added(
    engine: Engine, control: Control, source: str, options: dict[str, Any], says: str
) -> None:
    engine.start(simulated(rate=2000), control_endpoint=control.endpoint)
    control.receive()
    bad = FeedSpec(feed_id=9, name="bad", source=source, options=options, added=True)
    reply = control.ask(AddFeed(request_id=1, feed=bad))
    assert isinstance(reply, Refused)
    assert reply.settings
    assert says in reply.error
    before = engine.counter("feed.1.records")
    until(lambda: engine.counter("feed.1.records") > before, "the other feed to go on")


def test_an_added_feed_that_can_not_work_any_more_does_not_keep_its_worker_from_starting(engine: Engine) -> None:
    gone = FeedSpec(feed_id=9, name="gone", source="no-such-source", added=True)
    paused = FeedSpec(feed_id=8, name="paused", source="simulated", options={"rate": 500}, added=True, paused=True)
    engine.start(simulated(rate=2000), gone, paused)
    until(lambda: engine.counter("feed.9.down") and engine.counter("feed.1.records") > 100, "one down, one up")
    assert engine.counter("feed.8.paused") == 1
    assert engine.counter("feed.8.records") == 0
