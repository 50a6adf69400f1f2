"""Decoders against slow models and against damage: both Binance paths agree, orders follow a dict, nothing crashes."""

from __future__ import annotations

import lzma
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shm.layout import Action, RecordType, concatenate, empty
from tests.decoding import collect
from workers.decoders._binance import BinanceDecoder
from workers.decoders._coinbase import CoinbaseDecoder
from workers.decoders._containers import LengthReader, LineReader, PacketReader
from workers.decoders._dbn import DbnDecoder, DbnReader
from workers.decoders._decimal import parse_decimal
from workers.decoders._decoder import NativeDecoder
from workers.decoders._iex import IexDecoder
from workers.decoders._itch import ItchDecoder
from workers.decoders._mdp3 import Mdp3Decoder
from workers.decoders._tick_files import Bi5Decoder, LobsterDecoder, TrueFxDecoder
from workers.decoders.jsonl import JsonlReader
from workers.decoders.protocol import Container, many_frames
from workers.decoders.tick_files import RunReader


def names() -> Callable[[str], int]:
    numbers: dict[str, int] = {}
    return lambda name: numbers.setdefault(name, len(numbers))


# ---- decimals -----------------------------------------------------------------------------------------------------

DECIMALS = st.one_of(
    st.decimals(min_value=0, max_value=10**12, allow_nan=False, allow_infinity=False).map(lambda value: f"{value:f}"),
    st.from_regex(r"[0-9]{1,25}(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,2})?", fullmatch=True),
)


@settings(deadline=None)
@given(DECIMALS)
def test_decimals_are_rounded_as_float_rounds_them(text: str) -> None:
    assert parse_decimal(text) == float(text)


@settings(deadline=None)
@given(st.text(alphabet="0123456789.eE+-_ nif", max_size=12))
def test_what_is_no_plain_decimal_is_refused(text: str) -> None:
    import re

    plain = re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", text) is not None
    try:
        value = parse_decimal(text)
    except ValueError:
        assert not plain or not 0 <= float(text) < float("inf")
    else:
        assert plain
        assert value == float(text)


# ---- Binance: kernel and msgspec ----------------------------------------------------------------------------------

SYMBOLS = st.sampled_from(["BTCUSDT", "ETHUSDT", "1000SHIBUSDT", "S" * 33, "", "é"])
WHOLE = st.one_of(st.integers(0, 30), st.sampled_from([-1, 1723161255343, 10**16, 10**18, 2**63, 1.5, "7", None, True]))
PRICES = st.one_of(DECIMALS, st.sampled_from(["", "-1", "-0", "1.", ".5", "inf", "1e5", "1_0", " 1", 5, None]))
LEVELS = st.one_of(st.lists(st.tuples(PRICES, PRICES), max_size=3), st.sampled_from([None, [["1"]], [[]], "x"]))
MESSAGES = st.one_of(
    st.fixed_dictionaries(
        {
            "e": st.sampled_from(["trade", "aggTrade"]),
            "s": SYMBOLS,
            "p": PRICES,
            "q": PRICES,
            "m": st.sampled_from([True, False, 1]),
        },
        optional={"t": WHOLE, "a": WHOLE, "T": WHOLE, "E": WHOLE, "M": st.booleans(), "nq": PRICES},
    ),
    st.fixed_dictionaries(
        {"u": WHOLE, "s": SYMBOLS, "b": PRICES, "B": PRICES, "a": PRICES, "A": PRICES},
        optional={"e": st.sampled_from(["bookTicker", None, "other"]), "E": WHOLE, "T": WHOLE},
    ),
    st.fixed_dictionaries(
        {"e": st.just("depthUpdate"), "E": WHOLE, "s": SYMBOLS, "U": WHOLE, "u": WHOLE, "b": LEVELS, "a": LEVELS},
        optional={"pu": WHOLE, "T": WHOLE},
    ),
    st.fixed_dictionaries({"lastUpdateId": WHOLE, "bids": LEVELS, "asks": LEVELS}),
    st.fixed_dictionaries({"result": st.none(), "id": WHOLE}),
)


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    import json

    message = draw(MESSAGES)
    items = draw(st.permutations(list(message.items())))
    if items and draw(st.integers(0, 9)) == 0:
        items.append(items[0])  # a key that comes twice
    spaced = draw(st.sampled_from([",", ", "]))
    body = "{" + spaced.join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in items) + "}"
    if draw(st.booleans()):
        body = '{"stream":"btcusdt@trade","data":' + body + "}"
    text = body.encode()
    if draw(st.integers(0, 3)) == 0 and text:
        at = draw(st.integers(0, len(text) - 1))
        text = text[:at] + draw(st.sampled_from([b"", b"\\", b'"', b"}", b"\xff", b"\0", b" "])) + text[at + 1 :]
    return text


@settings(max_examples=400, deadline=None)
@given(st.lists(texts(), max_size=6))
def test_binance_kernel_and_msgspec_make_the_same_records(messages: list[bytes]) -> None:
    found = []
    for native in (True, False):
        decoder = BinanceDecoder(names(), native=native)
        decoder.feed(*many_frames(messages, list(range(len(messages)))))
        found.append((collect(decoder, 256).tobytes(), decoder.counters))
    assert found[0] == found[1]


# ---- ITCH: orders against a dict ----------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from("AFEXDU"), st.integers(0, 12), st.integers(1, 9), st.integers(0, 12)), max_size=200
)


@settings(deadline=None)
@given(STEPS)
def test_itch_orders_follow_a_dict(steps: list[tuple[str, int, int, int]]) -> None:
    decoder = ItchDecoder(names(), packets=False)
    model: dict[int, tuple[int, int]] = {}  # reference -> (price, shares)
    wanted: list[tuple[int, float, float]] = []
    messages = []
    unknown = 0
    spread = 0x0123_4567_89AB_CDEF  # far apart, and in the same order as the small numbers
    for kind, small, shares, other in steps:
        reference, new = small * spread % 2**64, other * spread % 2**64
        head = kind.encode() + bytes(10)
        if kind in "AF":
            price = 100 + small
            body = struct.pack(">QcI8sI", reference, b"B", shares, b"X       ", price) + b"MPID" * (kind == "F")
            model[reference] = (price, shares)
            wanted.append((Action.ADD, price / 1e4, shares))
        else:
            body = {
                "E": struct.pack(">QIQ", reference, shares, 1),
                "X": struct.pack(">QI", reference, shares),
                "D": struct.pack(">Q", reference),
                "U": struct.pack(">QQII", reference, new, shares, 500 + other),
            }[kind]
            if reference not in model:
                unknown += 1
            else:
                price, had = model.pop(reference)
                left = max(0, had - shares) if kind in "EX" else 0
                if left:
                    model[reference] = (price, left)
                action = Action.EXECUTE if kind == "E" else Action.MODIFY if left else Action.DELETE
                wanted.append((action, price / 1e4, left))
                if kind == "U":
                    model[new] = (500 + other, shares)
                    wanted.append((Action.ADD, (500 + other) / 1e4, shares))
        messages.append(head + body)
    run = b"".join(struct.pack(">H", len(message)) + message for message in messages)
    decoder.feed(*many_frames([run], [0]))
    records = collect(decoder, size=7)
    levels = records[records["record_type"] == RecordType.LEVEL2]
    assert [(int(one["action"]), float(one["price"]), float(one["size"])) for one in levels] == wanted
    assert decoder.live_orders == len(model)
    assert decoder.counters.malformed.get("unknown order", 0) == unknown


def test_itch_order_map_grows_and_empties() -> None:
    decoder = ItchDecoder(names(), packets=False)
    rng = random.Random(5)
    references = [rng.getrandbits(64) for _ in range(50_000)]

    def run(kind: bytes, tail: bytes) -> None:
        messages = [kind + bytes(10) + struct.pack(">Q", one) + tail for one in references]
        decoder.feed(*many_frames([b"".join(struct.pack(">H", len(one)) + one for one in messages)], [0]))
        collect(decoder, size=4096)

    run(b"A", struct.pack(">cI8sI", b"S", 5, b"X       ", 10_000))
    assert decoder.live_orders == len(set(references))
    rng.shuffle(references)
    run(b"D", b"")
    assert decoder.live_orders == 0
    assert decoder.counters.malformed == {}


def test_itch_order_map_refuses_more_than_its_limit_and_counts() -> None:
    decoder = ItchDecoder(names(), packets=False, max_orders=10)
    orders = [b"A" + bytes(10) + struct.pack(">QcI8sI", one, b"S", 5, b"X       ", 10_000) for one in range(1, 31)]
    decoder.feed(*many_frames([b"".join(struct.pack(">H", len(one)) + one for one in orders)], [0]))
    assert len(collect(decoder, 256)) == 30
    assert decoder.live_orders == 10
    assert decoder.counters.malformed == {"no memory": 20}


# ---- LOBSTER: what differs between two books rebuilds the second -------------------------------------------------

SIDE = st.dictionaries(st.integers(1, 30), st.integers(1, 9), max_size=6)


@settings(deadline=None)
@given(st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=12))
def test_lobster_levels_lead_from_each_book_to_the_next(books: list[tuple[dict[int, int], dict[int, int]]]) -> None:
    depth = 4
    shown = []
    for bids, asks in books:
        best = (
            sorted(bids.items(), reverse=True)[:depth],
            sorted((price + 30, size) for price, size in asks.items())[:depth],
        )
        shown.append(best)
    lines = []
    for number, (bids_shown, asks_shown) in enumerate(shown):
        row = [f"{34200 + number}.5,1,{number + 1},1,1,1"]
        for rank in range(depth):
            for side, absent in ((asks_shown, 9999999999), (bids_shown, -9999999999)):
                price, size = side[rank] if rank < len(side) else (absent, 0)
                row.append(f"{price},{size}")
        lines.append(",".join(row) + "\n")
    decoder = LobsterDecoder(names(), "X", 0)
    decoder.feed(*many_frames(["".join(lines).encode()], [0]))
    records = collect(decoder, size=3)
    assert decoder.counters.malformed == {}
    levels = records[records["record_type"] == RecordType.LEVEL2]
    have: dict[int, dict[float, float]] = {1: {}, 2: {}}
    for number, (bids_shown, asks_shown) in enumerate(shown):
        for level in levels[levels["source_sequence"] == number + 1]:
            book = have.get(int(level["side"]), {})
            if level["action"] == Action.DELETE:
                del book[float(level["price"])]
            elif level["action"] != Action.CLEAR:
                assert (level["action"] == Action.ADD) == (float(level["price"]) not in book)
                book[float(level["price"])] = float(level["size"])
        assert have == {
            side: {price / 1e4: size for price, size in listed} for side, listed in ((1, bids_shown), (2, asks_shown))
        }


# ---- any cut, any damage ------------------------------------------------------------------------------------------


def pipelines(samples: Path) -> dict[str, tuple[bytes, Callable[[], Container], Callable[[Container], NativeDecoder]]]:
    """A small real input of each kind, its container, and its decoder."""
    import gzip

    zstandard = pytest.importorskip("zstandard")

    def unpack(path: Path) -> bytes:
        data: bytes = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True).read()
        return data

    dbn = samples / "dbn/databento-python/GLBX.MDP3"
    moldudp = samples / "pcap/Nasdaq/Nasdaq.Equities.TotalView.Itch.v5.0/Multiple.Packets.pcap"
    lines = gzip.decompress((samples / "websocket/spot_btcusdt_20240808.gz").read_bytes()).splitlines(keepends=True)
    book = b"".join(line for line in lines[:30] if b"lastUpdateId" not in line)

    def dbn_decoder(container: Container) -> NativeDecoder:
        assert isinstance(container, DbnReader)
        return DbnDecoder(names(), container.symbols)

    coinbase = unpack(samples / "websocket/COINBASE.jsonl.zst").splitlines(keepends=True)
    small = b"".join(line for line in coinbase if len(line) < 900)[:6000]
    ticks = samples / "ticks"
    events, books = (sorted((ticks / "lobster").glob(f"*_{kind}_*"))[0] for kind in ("message", "orderbook"))
    joined = zip(events.read_bytes().splitlines(), books.read_bytes().splitlines(), strict=True)
    return {
        "iex": (
            gzip.decompress((samples / "iex/TOPS16.pcapng.gz").read_bytes())[:9000],
            PacketReader,
            lambda _: IexDecoder(names()),
        ),
        "mold": (moldudp.read_bytes(), PacketReader, lambda _: ItchDecoder(names())),
        "mdp3": (
            (samples / "pcap/Cme/Mdp3.Sbe.v1.9/MdIncrementalRefreshBook.pcap").read_bytes(),
            PacketReader,
            lambda _: Mdp3Decoder(names(), book=True),
        ),
        "itch": (
            (samples / "itch/bekele-first1000-start-of-day.itch").read_bytes()[:2000],
            LengthReader,
            lambda _: ItchDecoder(names(), packets=False),
        ),
        "mbp-10": (unpack(dbn / "test_data.mbp-10.dbn.zst"), DbnReader, dbn_decoder),
        "mbo": (unpack(dbn / "test_data.mbo.dbn.zst"), DbnReader, dbn_decoder),
        "live": (unpack(samples / "dbn/databento-python/LIVE/test_data.live.dbn.zst"), DbnReader, dbn_decoder),
        "binance": (book, LineReader, lambda _: BinanceDecoder(names())),
        "coinbase": (small, JsonlReader, lambda _: CoinbaseDecoder(names())),
        "bi5": (
            lzma.decompress((ticks / "dukascopy/EURUSD/2019/01/04/00h_ticks.bi5").read_bytes())[:6000],
            lambda: RunReader(20),
            lambda _: Bi5Decoder(names(), "EURUSD", 0),
        ),
        "truefx": (
            (ticks / "truefx/usdjpy-ticks.csv").read_bytes()[:6000],
            RunReader,
            lambda _: TrueFxDecoder(names(), "USDJPY"),
        ),
        "lobster": (
            b"".join(event + b"," + book + b"\n" for event, book in list(joined)[:30]),
            RunReader,
            lambda _: LobsterDecoder(names(), "AAPL", 0),
        ),
    }


KINDS = ["iex", "mold", "mdp3", "itch", "mbp-10", "mbo", "live", "binance", "coinbase", "bi5", "truefx", "lobster"]


def decode(
    pipeline: tuple[bytes, Callable[[], Container], Callable[[Container], NativeDecoder]], data: bytes, step: int
) -> np.ndarray:
    """Records of `data` fed in pieces of `step` bytes."""
    _, make_container, make_decoder = pipeline
    container = make_container()
    decoder = make_decoder(container)
    batches = [empty(0)]
    for first in range(0, len(data), step):
        batch = container.feed(data[first : first + step])
        if len(batch.frames):
            decoder.feed(*batch)
            batches.append(collect(decoder, 256))
    return concatenate(batches)


@pytest.mark.parametrize("kind", KINDS)
def test_byte_by_byte_and_whole_give_the_same_records(samples: Path, kind: str) -> None:
    pipeline = pipelines(samples)[kind]
    whole = decode(pipeline, pipeline[0], len(pipeline[0]))
    assert len(whole) or kind == "itch"
    for step in (1, 2, 1000):
        assert decode(pipeline, pipeline[0], step).tobytes() == whole.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_input_gives_the_records_before_the_cut(samples: Path, kind: str) -> None:
    pipeline = pipelines(samples)[kind]
    data = pipeline[0][:2500]
    whole = decode(pipeline, pipeline[0], len(pipeline[0])).tobytes()
    longest = 0
    for cut in range(len(data)):
        part = decode(pipeline, data[:cut], cut or 1).tobytes()
        assert whole.startswith(part)
        assert len(part) >= longest
        longest = len(part)


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_bytes_never_raise_and_never_write_past_the_array(samples: Path, kind: str) -> None:
    pipeline = pipelines(samples)[kind]
    rng = random.Random(20240)
    _, make_container, make_decoder = pipeline
    for _ in range(150):
        data = bytearray(pipeline[0])
        for _ in range(rng.choice((1, 3, 30))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        container = make_container()
        decoder = make_decoder(container)
        batch = container.feed(bytes(data))
        if not len(batch.frames):
            continue
        decoder.feed(*batch)
        room = rng.choice((1, 5, 64))
        guarded = empty(room + 1)
        guarded.view(np.uint8)[-128:] = 0xA5
        while count := decoder.decode(guarded[:room]):
            assert 0 < count <= room
            assert np.all(guarded.view(np.uint8)[-128:] == 0xA5)
            assert set(guarded["record_type"][:count]) <= {1, 2, 3, 4, 5, 7}
        assert sum(decoder.counters.records.values()) == decoder.records
