"""Commands and replies: what the control process and a worker say to each other while the worker runs.

They travel as msgpack between the control process (ROUTER, engine/commands.py) and each worker (DEALER, its identity is
its label, workers/runtime.py). Types and their msgpack; no socket is known here.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

from workers.spec.settings import FeedId, FeedSpec, SubscriptionSpec


class Command(Struct, frozen=True, kw_only=True, tag_field="command"):
    """Base of what the control process asks of a worker; the reply carries the same `request_id`."""

    request_id: int = 0


class Ping(Command, frozen=True, kw_only=True, tag="ping"):
    """Answered with Done: the worker's main loop is alive."""


class Drain(Command, frozen=True, kw_only=True, tag="drain"):
    """Finish what is in hand and exit 0; what SIGTERM does too."""


class PauseFeed(Command, frozen=True, kw_only=True, tag="pause_feed"):
    """Ingest only: stop taking records from a feed."""

    feed_id: FeedId


class ResumeFeed(Command, frozen=True, kw_only=True, tag="resume_feed"):
    """Ingest only: go on with a paused feed."""

    feed_id: FeedId


class AddFeed(Command, frozen=True, kw_only=True, tag="add_feed"):
    """Ingest only: host one feed more. Done also if it hosts a feed of that number; Refused if it can't work."""

    feed: FeedSpec
    fresh: bool = False  # the number was another feed's: its counts begin at 0


class RemoveFeed(Command, frozen=True, kw_only=True, tag="remove_feed"):
    """Ingest only: close a feed and forget it. Done also if there is none of that number."""

    feed_id: FeedId


class SetSubscriptions(Command, frozen=True, kw_only=True, tag="set_subscriptions"):
    """Webhooks only: serve these, in place of earlier ones of the same key, and no longer those in `removed`.

    All or, if one can't work, nothing. `unpark`: those that are parked or wait for their next attempt go on at once.
    """

    subscriptions: tuple[SubscriptionSpec, ...] = ()
    removed: tuple[int, ...] = ()
    unpark: bool = False


class Reply(Struct, frozen=True, kw_only=True, tag_field="reply"):
    """Base of what a worker sends to the control process."""

    request_id: int = 0


class Hello(Reply, frozen=True, kw_only=True, tag="hello"):
    """First message of a worker: now the control process can address it by its label."""

    label: str
    pid: int


class Done(Reply, frozen=True, kw_only=True, tag="done"):
    """The command was carried out."""


class Refused(Reply, frozen=True, kw_only=True, tag="refused"):
    """The command was not carried out; `error` says why. `settings`: asked for again it will not work either.

    `index`: which of several things that were asked for is meant.
    """

    error: str
    settings: bool = False
    index: int = 0


class FeedReport(Reply, frozen=True, kw_only=True, tag="feed_report"):
    """Ingest only, unasked: how a live feed is. Sent when that changes, and every second."""

    feed_id: FeedId
    state: str  # a value of workers.session.State
    why: str  # one line, for people
    health_score: float = 0.0  # 0 to 1 (workers/feed_health.py)
    degraded: bool = False  # it delivers, but something is wrong
    breaker: str = "closed"  # or open, half-open
    retry_at_ns: int = 0  # when it is tried again; 0 = it is not waiting
    connections: int = 1
    reconnects: int = 0
    silent: int = 0  # instruments that are silent for longer than they ever are
    latency_ms: float | None = None  # from the venue's clock to ours, lately
    usual_latency_ms: float | None = None
    errors: int = 0
    at_ns: int = 0


class GroupMember(Struct, frozen=True, kw_only=True):
    """One feed of a redundancy group."""

    feed_id: FeedId
    role: Literal["active", "standby"]
    condition: str  # a value of workers.redundancy.Condition
    why: str = ""
    withheld: int = 0  # records
    symbols: tuple[str, ...] = ()  # that it publishes although another feed publishes the rest; some, if many
    without: tuple[str, ...] = ()  # that others publish in its place


class GroupReport(Reply, frozen=True, kw_only=True, tag="group_report"):
    """Ingest only, unasked: who publishes in a redundancy group. Sent when that changes, and every second."""

    group: str
    members: tuple[GroupMember, ...]
    switches: int = 0  # since the worker's start
    last_switch: str = ""  # why
    last_switch_ns: int = 0
    held_back: bool = False  # a switch back waits because there were too many in a minute
    at_ns: int = 0


AnyCommand = Ping | Drain | PauseFeed | ResumeFeed | AddFeed | RemoveFeed | SetSubscriptions
AnyReply = Hello | Done | Refused | FeedReport | GroupReport

_encoder = msgspec.msgpack.Encoder()
_command_decoder: msgspec.msgpack.Decoder[AnyCommand] = msgspec.msgpack.Decoder(AnyCommand)
_reply_decoder: msgspec.msgpack.Decoder[AnyReply] = msgspec.msgpack.Decoder(AnyReply)


def encode_command(command: Command) -> bytes:
    """A command as msgpack: one frame to a worker."""
    return _encoder.encode(command)


def decode_command(frame: bytes) -> AnyCommand:
    """A command from its frame. msgspec.ValidationError or DecodeError when it is none."""
    return _command_decoder.decode(frame)


def encode_reply(reply: Reply) -> bytes:
    """A reply as msgpack: one frame to the control process."""
    return _encoder.encode(reply)


def decode_reply(frame: bytes) -> AnyReply:
    """A reply from its frame. msgspec.ValidationError or DecodeError when it is none."""
    return _reply_decoder.decode(frame)
