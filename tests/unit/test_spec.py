"""Settings and commands between control process and workers: strict, and the same on both sides."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from workers.spec import (
    MODULES,
    AnyCommand,
    CacheSettings,
    Done,
    Drain,
    FanoutSettings,
    FeedSpec,
    Found,
    Hello,
    HistorianSettings,
    IngestSettings,
    PauseFeed,
    Ping,
    Placement,
    Question,
    RecorderSettings,
    Refused,
    ResumeFeed,
    SetSubscriptions,
    SubscriptionSpec,
    WebhookSettings,
    WorkerSettings,
    decode,
    decode_command,
    decode_found,
    decode_question,
    decode_reply,
    encode,
    encode_command,
    encode_feed,
    encode_found,
    encode_question,
    encode_reply,
)

ROOT = Path(__file__).resolve().parents[2]

FEED = FeedSpec(
    feed_id=3, name="binance", source="replay", symbols=("BTCUSDT",), options={"files": ["a.gz"], "speed": 2.5}
)
SUBSCRIPTION = SubscriptionSpec(
    key=1, subscription_id="sub_1", topics=("marketdata.*.A*",), callback_url="https://x/", secret="s", priority="low"
)
SETTINGS: list[WorkerSettings] = [
    IngestSettings(engine="main", label="ingest-0", ring_id=2, feeds=(FEED,), placement=Placement(rank=0, workers=3)),
    FanoutSettings(engine="main", label="fanout-0", rings=(0, 1, 2), shards=2, shard=1, ipc_dir="/run/x"),
    CacheSettings(engine="main", label="cache", rings=(2, 3), bar_intervals_s=(1, 60, 300)),
    RecorderSettings(engine="main", label="recorder", rings=(0, 1, 2), folder="/var/lib/x/main", fsync="always"),
    HistorianSettings(engine="main", label="historian", endpoint="ipc:///run/x/historian", folder="/var/lib/x/main"),
    WebhookSettings(
        engine="main", label="webhooks", rings=(0, 1), ledger="/var/lib/x/l", subscriptions=(SUBSCRIPTION,)
    ),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.role)
def test_settings_arrive_as_they_were_sent_in_one_line(settings: WorkerSettings) -> None:
    line = encode(settings)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line, type(settings)) == settings
    assert settings.role in MODULES


@pytest.mark.parametrize(
    ("line", "key"),
    [
        (b'{"engine":"main","label":"i","ring_id":2,"batchslots":5}', "batchslots"),
        (b'{"engine":"Main!","label":"i","ring_id":2}', "engine"),
        (b'{"engine":"main","label":"","ring_id":2}', "label"),
        (b'{"engine":"main","label":"i"}', "ring_id"),
        (b'{"engine":"main","label":"i","ring_id":16}', "ring_id"),
        (b'{"engine":"main","label":"i","ring_id":2,"start_delay_s":-1}', "start_delay_s"),
        (b'{"engine":"main","label":"i","ring_id":2,"quality":{"policy":"drop"}}', "quality.policy"),
    ],
)
def test_settings_that_can_not_work_are_refused_by_key(line: bytes, key: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=key):
        decode(line, IngestSettings)


@pytest.mark.parametrize(
    "command",
    [
        Ping(request_id=1),
        Drain(request_id=2),
        PauseFeed(feed_id=7),
        ResumeFeed(request_id=4, feed_id=7),
        SetSubscriptions(request_id=5, subscriptions=(SUBSCRIPTION,), removed=(3, 4), unpark=True),
    ],
)
def test_commands_arrive_as_they_were_sent(command: AnyCommand) -> None:
    assert decode_command(encode_command(command)) == command


@pytest.mark.parametrize("reply", [Hello(label="cache", pid=5), Done(request_id=1), Refused(request_id=2, error="no")])
def test_replies_arrive_as_they_were_sent(reply: Hello | Done | Refused) -> None:
    assert decode_reply(encode_reply(reply)) == reply


def test_questions_and_answers_arrive_as_they_were_sent() -> None:
    key = (-5, 7, (1 << 64) - 1)
    question = Question(symbol="AAPL", before=key, limit=5, newer=bytes(256), applied={2: 1 << 40}, deadline_ns=9)
    assert decode_question(encode_question(question)) == question
    found = Found(number=3, count=2, oldest=key, asked=("L2",), gave=("L1", "L2"), missing=("L3 parquet: damaged",))
    assert decode_found(encode_found(found)) == found


def test_a_frame_that_is_no_command_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_command(b"\xc1rubbish")
    with pytest.raises(msgspec.ValidationError):
        decode_command(encode_reply(Done()))


def test_the_same_feed_settings_give_the_same_bytes() -> None:
    same = FeedSpec(
        feed_id=3, name="binance", source="replay", symbols=("BTCUSDT",), options={"speed": 2.5, "files": ["a.gz"]}
    )
    assert encode_feed(same) == encode_feed(FEED)


def test_importing_the_specification_is_light() -> None:
    code = "import sys, workers.spec; print(*(m for m in ('numpy', 'zmq', 'shm', 'posix_ipc') if m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == ""
