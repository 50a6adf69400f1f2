"""What can be set of what comes in: feeds, replays, the simulation; how ingest checks, captures and switches feeds.

Sections of the configuration, as engine/settings.py says what they are. Types only.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from engine.byte_size import ByteSize

FeedDataType = Literal["tick", "quote", "bar", "trade", "level2", "news"]


class IngestSection(Struct, frozen=True, kw_only=True):
    """Ingest workers."""

    batch_slots: Annotated[int, Meta(ge=16, le=65536, description="records per publish at full speed")] = 2048
    min_wait_us: Annotated[
        float, Meta(ge=0, le=1e6, description="least pause between two polls of a paced feed: latency against CPU time")
    ] = 200.0


class QualitySection(Struct, frozen=True, kw_only=True):
    """Thresholds of the checks that flag records. A flagged record is never dropped."""

    enabled: Annotated[bool, Meta(description="run the checks at all")] = True
    policy: Annotated[
        Literal["flag", "reject"], Meta(description="impossible values: flagged INCOMPLETE, or rejected and counted")
    ] = "flag"
    late_after_ms: Annotated[
        float, Meta(ge=0, description="received this long after the venue's time is LATE; 0 = never")
    ] = 1000.0
    late_when_replayed: Annotated[bool, Meta(description="judge lateness of replayed records too")] = False
    outlier_deviations: Annotated[
        float, Meta(ge=0, description="distance from the running mean, in mean deviations, that is OUTLIER; 0 = off")
    ] = 12.0
    outlier_floor_percent: Annotated[float, Meta(ge=0, description="and at least this far from it")] = 0.25
    outlier_percent: Annotated[
        float, Meta(ge=0, description="this far from the running mean is OUTLIER whatever the deviation; 0 = off")
    ] = 20.0
    volume_spike_factor: Annotated[
        float, Meta(ge=0, description="a size above this many running mean sizes is VOLUME_SPIKE; 0 = off")
    ] = 50.0
    warm_up_records: Annotated[int, Meta(ge=1, description="records of an instrument before it is judged")] = 32
    memory_records: Annotated[int, Meta(ge=1, description="length of the running means")] = 64


class RedundancySection(Struct, frozen=True, kw_only=True):
    """Feeds with a common `group` stand by for each other: when another one takes over."""

    stale_ms: Annotated[
        float,
        Meta(
            ge=20,
            le=10_000,
            description="a feed silent for so long while a standby delivers is left; or for longer, if it was before",
        ),
    ] = 250.0
    hold_s: Annotated[
        float,
        Meta(ge=0, le=86_400, description="a preferred feed must be healthy for so long to publish again"),
    ] = 30.0
    margin: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="health scores that differ by less are the same: then the rank decides; an outage costs 0.4",
        ),
    ] = 0.5
    switches_per_minute: Annotated[
        int, Meta(ge=1, le=1000, description="beyond it only a feed that is lost or silent is left")
    ] = 6
    backlog_records: Annotated[
        int, Meta(ge=64, le=1 << 20, description="kept of each standby, to fill the hole at a switch; 128 bytes each")
    ] = 16_384
    book_mb: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 14,
            description="at most, for the level2 books of each feed, told whole at a switch; 43 to 85 bytes a level",
        ),
    ] = 32


class CaptureSection(Struct, frozen=True, kw_only=True):
    """What live feeds receive and send, written down as it is; `run --replay` plays it to the same records."""

    feeds: Annotated[
        tuple[str, ...],
        Meta(description='names of the feeds that are captured; "*" = every one that can be; empty = none'),
    ] = ()
    folder: Annotated[str, Meta(description="where the files go; empty = wire/ in the engine's data folder")] = ""
    compress: Annotated[
        Literal["auto", "zstd", "none"],
        Meta(description="auto: text with zstd (extra `replay`), packets not, so that every tool opens them"),
    ] = "auto"
    part_size: Annotated[ByteSize, Meta(description="size on disk at which a file is left for a new one")] = "256MiB"
    part_hours: Annotated[float, Meta(gt=0, le=1e4, description="and its greatest age")] = 1.0
    max_size: Annotated[ByteSize, Meta(description='of a feed; its oldest files go beyond this; "0" = no limit')] = (
        "10GiB"
    )
    queue_size: Annotated[
        ByteSize,
        Meta(description="of a feed: what may wait for the disk; the newest beyond it are dropped and counted"),
    ] = "64MiB"


class SimulateSection(Struct, frozen=True, kw_only=True):
    """The simulated feed; also switched on by `--simulate`, and when nothing at all is configured."""

    enabled: Annotated[bool, Meta(description="add a simulated feed")] = False
    instruments: Annotated[int, Meta(ge=1, le=65536, description="number of simulated instruments")] = 200
    rate: Annotated[
        float, Meta(ge=0, le=1e9, description="records per second over all instruments; 0 = as fast as it goes")
    ] = 2000.0
    seed: Annotated[int, Meta(ge=0, le=(1 << 32) - 1, description="same seed, same ticks")] = 1


class ReplaySection(Struct, frozen=True, kw_only=True):
    """Captured data played back; what `--replay`, `--speed`, `--loop` and `--faults` set."""

    files: Annotated[
        tuple[str, ...],
        Meta(max_length=1024, description="captures; the format is recognised"),
    ] = ()
    speed: Annotated[
        str,
        Meta(
            pattern=r"^(max|\d+(\.\d+)?)$",
            description='1 = as captured, N = N times as fast, "max" = as fast as it goes',
        ),
    ] = "1"
    loop: Annotated[bool, Meta(description="begin again at the end")] = False
    merge: Annotated[bool, Meta(description="several captures by time; false: one after the other, as listed")] = True
    faults: Annotated[
        str,
        Meta(
            pattern=r"^([a-z_]+=[0-9.e+-]+)?(, *[a-z_]+=[0-9.e+-]+)*$",
            description='messages damaged on purpose, by seed, such as "drop=0.01,reorder=0.001,seed=3"; empty = none',
        ),
    ] = ""


class FeedSection(Struct, frozen=True, kw_only=True):
    """One `[[feeds]]` table."""

    name: Annotated[str, Meta(min_length=1, max_length=64, description="unique name of the feed")]
    source: Annotated[
        str,
        Meta(
            min_length=1, description="simulated, replay, websocket, multicast, fix, alpha_vantage, fred, yahoo, ibkr"
        ),
    ]
    symbols: Annotated[tuple[str, ...], Meta(description="empty = all that the source has")] = ()
    data_types: Annotated[
        tuple[FeedDataType, ...],
        Meta(description="empty = all that the source has"),
    ] = ()
    enabled: Annotated[bool, Meta(description="false = known, not started")] = True
    group: Annotated[
        str, Meta(max_length=64, description="feeds of the same group stand by for each other, see [redundancy]")
    ] = ""
    rank: Annotated[int, Meta(ge=0, le=1000, description="within the group; the lowest is preferred")] = 0
    options: Annotated[dict[str, Any], Meta(description="settings of the source itself")] = field(default_factory=dict)
