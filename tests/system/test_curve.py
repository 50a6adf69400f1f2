"""With keys, only those on the list get anything, on any endpoint; who is not is counted, and a list may change."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from shm.layout import RECORD
from tests.children import DEADLINE_S, ROOT, wait_until
from tests.system.engine_process import EngineProcess, wait_for
from tests.system.fanout_process import FanoutStage, ticks
from workers.keys import CurveKeys, make_pair
from workers.replay_client import ReplayClient
from workers.spec import EXIT_BAD_SETTINGS
from workers.subscriber import Subscriber
from workers.wire import HEADER_SIZE_BYTES

A = "marketdata.tick.A"
KINDS = ("raw", "msgpack", "json")


class Guarded:
    """A fan-out with keys: alice and bob may connect, eve has a key that is not on the list."""

    def __init__(self, engine: str, folder: Path, stack: ExitStack) -> None:
        self.clients = folder / "clients"
        self.clients.mkdir()
        for name in ("server", "other", "alice", "bob", "eve"):
            make_pair(folder, name)
        for name in ("alice", "bob"):
            self.allow(folder, name)
        self.folder = folder
        self.stage = FanoutStage(engine, ["A", "B"])
        stack.callback(self.stage.close)
        self.settings = {"server_key_file": str(folder / "server.key"), "client_keys": str(self.clients)}
        self.stage.start(**self.settings, ipc_dir=str(folder))
        self.context: zmq.Context[Any] = stack.enter_context(zmq.Context())
        self._stack = stack

    def allow(self, folder: Path, name: str) -> None:
        shutil.copy(folder / f"{name}.pub", self.clients)

    def keys(self, name: str, server: str = "server") -> CurveKeys:
        return CurveKeys.read(self.folder / f"{name}.key", self.folder / f"{server}.pub")

    def endpoint(self, kind: str) -> str:
        return f"tcp://127.0.0.1:{self.stage.ports[kind]}"

    def subscriber(self, name: str, **options: Any) -> Subscriber:
        return Subscriber(
            self.endpoint("raw"),
            [A],
            keys=self.keys(name),
            replay_endpoints=[self.endpoint("replay")],
            heal_timeout_s=DEADLINE_S,
            **options,
        )

    def plain(self, kind: str, keys: CurveKeys | None, endpoint: str = "") -> zmq.Socket[bytes]:
        """A subscriber as anybody would write it."""
        socket = self.context.socket(zmq.SUB)
        self._stack.callback(socket.close, 0)
        if keys is not None:
            socket.curve_secretkey, socket.curve_serverkey = keys.secret, keys.server
            socket.curve_publickey = zmq.curve_public(keys.secret)
        socket.rcvtimeo = int(DEADLINE_S * 1000)
        socket.subscribe(A)
        socket.connect(endpoint or self.endpoint(kind))
        return socket


def receive(subscriber: Subscriber, count: int) -> list[int]:
    """The numbers of that many records."""
    got: list[int] = []
    while len(got) < count:
        message = subscriber.receive(DEADLINE_S)
        assert message is not None
        got += message.records["source_sequence"].tolist()
    return got


@pytest.fixture
def guarded(engine_name: str, tmp_path: Path) -> Iterator[Guarded]:
    with ExitStack() as stack:
        yield Guarded(engine_name, tmp_path, stack)


def test_the_right_key_opens_every_endpoint(guarded: Guarded) -> None:
    stage, keys = guarded.stage, guarded.keys("alice")
    sockets = {kind: guarded.plain(kind, keys) for kind in KINDS}
    ipc = guarded.plain("raw", keys, f"ipc://{guarded.folder}/{stage.engine}.raw.0")
    stage.wait_counter("subscriptions", 4)
    stage.writer.publish_batch(ticks(np.zeros(3, int)))
    for socket in (sockets["raw"], ipc):
        assert np.frombuffer(socket.recv_multipart()[1], RECORD, offset=HEADER_SIZE_BYTES)["source_sequence"][0] == 0
    assert b"payload" in sockets["msgpack"].recv_multipart()[1]
    assert b'"payload"' in sockets["json"].recv_multipart()[1]
    with ReplayClient(guarded.endpoint("replay"), keys=keys, timeout_s=DEADLINE_S) as replay:
        assert replay.range(A, 1, 4).header["records"] == 3
    with guarded.subscriber("alice", join_records=10) as late:
        got = receive(late, 3)
        stage.kill()  # what it numbers after the kill and does not send is healed through the guarded socket
        stage.writer.publish_batch(ticks(np.zeros(5, int), 3))
        stage.start(**guarded.settings)
        stage.wait_counter("records_read", 5)
        # A SUB socket subscribes anew when it is looked at.
        wait_until(lambda: late.receive(0) is not None or stage.counter("subscriptions") >= 1, "it is back")
        stage.writer.publish_batch(ticks(np.zeros(1, int), 8))
        got += receive(late, 6)
    assert got == list(range(9))
    assert late.gap_count == 0
    assert stage.counter("curve_refused") == 0


@pytest.mark.parametrize(
    ("name", "server"),
    [("eve", "server"), ("", ""), ("alice", "other")],
    ids=["a key that is not on the list", "no key", "a wrong server key"],
)
def test_who_may_not_gets_nothing_and_is_counted(guarded: Guarded, name: str, server: str) -> None:
    stage = guarded.stage
    keys = guarded.keys(name, server) if name else None
    right = {kind: guarded.plain(kind, guarded.keys("bob")) for kind in KINDS}
    stage.wait_counter("subscriptions", 3)
    wrong = []
    for count, kind in enumerate(KINDS, 1):
        wrong.append(guarded.plain(kind, keys))
        stage.wait_counter("curve_refused", count)
    asker = guarded.context.socket(zmq.DEALER)
    asker.linger = 0
    if keys is not None:
        keys.apply(asker)
    before = stage.counter("curve_refused")
    asker.connect(guarded.endpoint("replay"))
    asker.send(b"\x81\xa4kind\xa8snapshot")
    stage.wait_counter("curve_refused", before + 1)
    stage.writer.publish_batch(ticks(np.zeros(3, int)))
    for socket in right.values():
        socket.recv_multipart()
    assert [socket.poll(0) for socket in (*wrong, asker)] == [0, 0, 0, 0]
    assert stage.counter("subscriptions") == 3
    assert stage.counter("replay_requests") == 0
    asker.close(0)


def test_a_key_taken_off_the_list_ends_its_connections_and_others_miss_nothing(guarded: Guarded) -> None:
    stage = guarded.stage
    alice = guarded.plain("raw", guarded.keys("alice"))
    with guarded.subscriber("bob") as bob:
        stage.wait_counter("subscriptions", 2)
        stage.writer.publish_batch(ticks(np.zeros(1, int)))
        assert receive(bob, 1) == [0]
        alice.recv_multipart()
        (guarded.clients / "alice.pub").unlink()
        # She was disconnected, and tries again.
        stage.wait_counter("curve_refused", 1)
        stage.writer.publish_batch(ticks(np.zeros(4, int), 1))  # perhaps while bob connects anew
        stage.wait_counter("records_read", 5)
        got: list[int] = []

        def bob_is_back() -> bool:
            message = bob.receive(0)
            got.extend(message.records["source_sequence"].tolist() if message is not None else [])
            return stage.counter("subscriptions") == 1

        wait_until(bob_is_back, "bob is back, alice is not")
        stage.writer.publish_batch(ticks(np.zeros(1, int), 5))
        got += receive(bob, 5 - len(got))
        assert got == [1, 2, 3, 4, 5]
        assert alice.poll(0) == 0

        guarded.allow(guarded.folder, "alice")
        again = guarded.plain("raw", guarded.keys("alice"))  # ZeroMQ does not try again with a socket that was refused
        stage.wait_counter("subscriptions", 2)
        stage.writer.publish_batch(ticks(np.zeros(1, int), 6))
        frame = again.recv_multipart()[1]
        assert np.frombuffer(frame, RECORD, offset=HEADER_SIZE_BYTES)["source_sequence"].tolist() == [6]


def test_a_broken_list_keeps_everybody_as_they_are(guarded: Guarded) -> None:
    stage = guarded.stage
    alice = guarded.plain("raw", guarded.keys("alice"))
    stage.wait_counter("subscriptions", 1)
    (guarded.clients / "broken.pub").write_text("no key\n")
    eve = guarded.plain("raw", guarded.keys("eve"))  # makes it look at the list
    stage.wait_counter("curve_refused", 1)
    guarded.plain("raw", guarded.keys("bob"))
    stage.wait_counter("subscriptions", 2)
    stage.writer.publish_batch(ticks(np.zeros(1, int)))
    alice.recv_multipart()
    assert eve.poll(0) == 0


def test_fan_out_does_not_listen_beyond_loopback_without_keys(
    engine_name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    stage = FanoutStage(engine_name, ["A"])
    try:
        with pytest.raises(AssertionError, match=f"ended with {EXIT_BAD_SETTINGS}"):
            stage.start(host="0.0.0.0")
        assert "CURVE keys are needed" in capfd.readouterr().err
    finally:
        stage.close()


@pytest.mark.slow
def test_an_engine_with_keys_serves_tail_with_one_and_says_what_is_missing(engine_name: str, tmp_path: Path) -> None:
    clients = tmp_path / "clients"
    clients.mkdir()
    server, _ = make_pair(tmp_path, "server")
    mine, _ = make_pair(tmp_path, "alice")
    shutil.copy(tmp_path / "alice.pub", clients)
    path = tmp_path / "engine.toml"
    path.write_text(f'[zmq]\nserver_key_file = "{server}"\nclient_keys = "{clients}"\n[simulate]\nenabled = true\n')

    def tail(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tools", "tail", "quote", "--name", engine_name, "--count", "3", *options]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    with EngineProcess(engine_name, tmp_path, "--config", str(path)) as engine:
        engine.wait_ready()
        shown = tail("--key", str(mine), "--zmq")
        assert shown.returncode == 0, shown.stderr
        assert len(shown.stdout.splitlines()) >= 3
        public, endpoint = str(tmp_path / "server.pub"), f"127.0.0.1:{engine.base + 1}"
        named = tail("--key", str(mine), "--server-key", public, "--zmq", endpoint)
        assert named.returncode == 0, named.stderr
        refused = tail("--zmq")
        assert refused.returncode == 2
        assert "give --key" in refused.stderr
        socket = zmq.Context.instance().socket(zmq.SUB)
        socket.subscribe(b"")
        socket.connect(f"tcp://127.0.0.1:{engine.base + 21}")

        def counted() -> bool:
            lines = engine.get("/metrics/prometheus")[2].decode().splitlines()
            return any("curve_refused" in line and not line.endswith(" 0.0") for line in lines if line[0] != "#")

        wait_for("the refusal in the metrics", counted)
        assert socket.poll(0) == 0
        socket.close(0)

    path.write_text('[zmq]\nhost = "0.0.0.0"\n[simulate]\nenabled = true\n')
    with EngineProcess(f"{engine_name}x"[:16], tmp_path, "--config", str(path)) as engine:
        assert engine.process.wait(DEADLINE_S) == 2
        assert "CURVE keys are needed" in engine.output
