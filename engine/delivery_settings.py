"""What can be set of what goes out: HTTP, ZeroMQ, WebSocket, webhooks, and what gives way when it is too much.

Sections of the configuration, as engine/settings.py says what they are. Types only.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from engine.byte_size import ByteSize

Port = Annotated[int, Meta(ge=1, le=65535)]


class HttpSection(Struct, frozen=True, kw_only=True):
    """HTTP of the control process: health, metrics, data, the live page."""

    host: Annotated[str, Meta(min_length=1, description="address to listen on; beyond loopback a token is needed")] = (
        "127.0.0.1"
    )
    port: Annotated[Port, Meta(description="TCP port")] = 8800
    token_file: Annotated[
        str,
        Meta(
            description="file with bearer tokens, one a line: TOKEN, or SCOPE TOKEN NAME with scope read or write; "
            "or TICKENGINE_HTTP_TOKEN, or a systemd credential http_token"
        ),
    ] = ""
    requests_per_second: Annotated[
        float, Meta(ge=1, le=1e6, description="requests that one client may send in the long run; twice that at once")
    ] = 5000.0
    max_body: Annotated[ByteSize, Meta(description="greatest body of POST /data/ingest; a stream has no bound")] = (
        "16MiB"
    )
    max_ingest_points: Annotated[
        int, Meta(ge=1, le=1_000_000, description="most points in one POST /data/ingest; a stream has no bound")
    ] = 20_000
    max_data_records: Annotated[
        int, Meta(ge=1, le=100_000, description="greatest `limit` of GET /data, in records")
    ] = 10_000
    max_bulk_records: Annotated[
        int, Meta(ge=1, le=5_000_000, description="the same with format=arrow or parquet; takes 1 to 2 kB each")
    ] = 200_000
    archive_timeout_s: Annotated[
        float, Meta(ge=0.1, le=600, description="what GET /data lets the tiers below L1 take; then it goes without")
    ] = 5.0


class ZmqSection(Struct, frozen=True, kw_only=True):
    """ZeroMQ endpoints of the fan-out workers; shard N adds N to each port."""

    host: Annotated[str, Meta(min_length=1, description="address to bind; beyond loopback CURVE keys are needed")] = (
        "127.0.0.1"
    )
    server_key_file: Annotated[
        str,
        Meta(
            description="file with this engine's CURVE secret key, made by `tickengine keys`, mode 0600; empty = the "
            "systemd credential zmq_server_key if there is one, else no keys"
        ),
    ] = ""
    client_keys: Annotated[
        str,
        Meta(
            description="who may connect: a folder of .pub files, or a file with a line PUBLIC-KEY NAME for each; read "
            "again within a second of a change, and who is taken off is disconnected; ipc sockets ask for keys too"
        ),
    ] = ""
    base_port: Annotated[
        int, Meta(ge=1, le=65000, description="raw is at base+1, msgpack +11, json +21, replay requests +31")
    ] = 8800
    ipc: Annotated[bool, Meta(description="also bind ipc sockets, in a folder of the runtime directory")] = True
    send_hwm: Annotated[
        int, Meta(ge=1, le=10_000_000, description="messages queued per subscriber; beyond it messages drop and count")
    ] = 100_000
    spin_us: Annotated[
        float,
        Meta(
            ge=0, le=1e6, description="fan-out spins so long on idle rings before it sleeps: latency against CPU time"
        ),
    ] = 20.0


class GatewaySection(Struct, frozen=True, kw_only=True):
    """WebSocket clients: ws://HOST:PORT/ws/stream."""

    enabled: Annotated[bool, Meta(description="run the gateway process")] = True
    host: Annotated[str, Meta(min_length=1, description="address to listen on; beyond loopback a token is needed")] = (
        "127.0.0.1"
    )
    port: Annotated[
        int, Meta(ge=0, le=65535, description="TCP port; 0 = the HTTP port less 200, so that engines do not clash")
    ] = 0
    origins: Annotated[
        tuple[str, ...],
        Meta(max_length=64, description='web pages of other hosts that may connect, "https://host"; "*" = any'),
    ] = ()
    max_clients: Annotated[int, Meta(ge=1, le=60_000, description="connections at a time")] = 10_000
    max_topics: Annotated[int, Meta(ge=1, le=65536, description="topics of one client")] = 1024
    queue_messages: Annotated[
        int, Meta(ge=1, le=1 << 20, description="wait for a slow client; beyond it only the newest of each topic")
    ] = 4096
    cut_after_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="a client whose connection takes nothing for so long is cut")
    ] = 10.0


class WebhooksSection(Struct, frozen=True, kw_only=True):
    """Subscriptions made at POST /subscriptions, and their deliveries to callback URLs."""

    enabled: Annotated[bool, Meta(description="run the webhooks process; without it no callback_url is taken")] = True
    max_subscriptions: Annotated[
        int, Meta(ge=1, le=1000, description="subscriptions at a time, those without a callback_url included")
    ] = 256
    allow_private: Annotated[
        bool, Meta(description="deliver to private, loopback and link-local addresses too: trust who may subscribe")
    ] = False
    allow_networks: Annotated[
        tuple[str, ...],
        Meta(max_length=64, description='deliver to these networks though they are not public: "10.1.0.0/16", "::1"'),
    ] = ()
    secret_file: Annotated[
        str,
        Meta(
            description="file with the secret that signs deliveries of subscriptions without their own; or "
            "TICKENGINE_WEBHOOK_SECRET, or a systemd credential webhook_secret; else one is made in the data folder"
        ),
    ] = ""
    timeout_s: Annotated[float, Meta(ge=0.1, le=300, description="a delivery not answered by then has failed")] = 10.0
    queue_messages: Annotated[
        int, Meta(ge=1, le=1 << 20, description="wait for a slow receiver; beyond it the oldest go, and it is told")
    ] = 10_000
    queue_size: Annotated[ByteSize, Meta(description="the same bound in bytes")] = "8MiB"
    total_size: Annotated[
        ByteSize, Meta(description="of all queues together; beyond it those of low priority are shortened first")
    ] = "64MiB"
    batch_messages: Annotated[int, Meta(ge=1, le=10_000, description="most messages of one delivery")] = 500
    park_after: Annotated[
        int, Meta(ge=1, le=1000, description="failures in a row after which a subscription is parked")
    ] = 10
    parked_s: Annotated[
        float, Meta(ge=0.1, le=86400, description="a parked subscription is tried again after so long")
    ] = 300.0


class PrioritySection(Struct, frozen=True, kw_only=True):
    """What fan-out gives up first when it gets more than it can send. Trades, ticks, news and status never."""

    symbols: Annotated[
        dict[str, Literal["high", "normal", "low"]],
        Meta(
            description='tier of the quotes, levels and bars of a symbol, e.g. {"BTC-USD" = "high"}; else quotes are '
            "normal, levels and bars low. Overloaded, high goes out in full, of normal the newest, low if there is time"
        ),
    ] = field(default_factory=dict)
    ranked: Annotated[
        int,
        Meta(
            ge=0,
            le=4096,
            description="so many symbols rank high by what is traded and who watches (GET /symbols?detail=true): "
            "overloaded, their quotes go first and their levels and bars are not given up; 0 = no scores",
        ),
    ] = 32
