"""Every captured sample decodes to the figures that independent parsers found in it."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from shm.layout import RECORD, Action, Flag, RecordType, Side, Source, concatenate
from workers.decoders.capture import describe_capture, open_capture
from workers.decoders.protocol import UnknownFormatError


def read(path: Path, size: int = 4096, **options: Any) -> tuple[np.ndarray, dict[str, Any], dict[int, str]]:
    """All records of a file, its description, and the symbols by id."""
    numbers: dict[str, int] = {}
    batches = []
    with open_capture(
        path, intern=lambda name: numbers.setdefault(name, len(numbers)), options=options, feed_id=7
    ) as capture:
        while True:
            out = np.zeros(size, RECORD)
            count = capture.decode(out)
            if not count:
                break
            batches.append(out[:count])
        summary = capture.describe()
    records = concatenate(batches) if batches else np.zeros(0, RECORD)
    return records, summary, {number: name for name, number in numbers.items()}


def of_type(records: np.ndarray, record_type: RecordType) -> np.ndarray:
    return records[records["record_type"] == record_type]


def iso(time_ns: int) -> str:
    return str(np.datetime64(int(time_ns), "ns"))


def test_records_of_a_capture_say_that_they_are_replayed(samples: Path) -> None:
    records, summary, _ = read(samples / "iex/TOPS16.pcapng.gz")
    assert set(records["source"]) == {Source.REPLAY}
    assert np.all(records["flags"] & Flag.REPLAYED)
    assert set(records["feed_id"]) == {7}
    assert set(records["venue"]) == {b"IEXG"}
    assert summary["progress"] == 1.0


def test_iex_tops_counts_every_message_and_sums_its_trades(samples: Path) -> None:
    records, summary, symbols = read(samples / "iex/TOPS16.pcapng.gz")
    assert summary["messages"] == {
        "Q": 27_217, "T": 6_390, "H": 7_803, "O": 7_801, "P": 7_802, "A": 642, "D": 10, "S": 6, "B": 3,
    }  # fmt: skip
    assert (summary["frames"], summary["heartbeats"], summary["gaps"], summary["malformed"]) == (13_022, 237, 0, {})
    trades = of_type(records, RecordType.TRADE)
    reported = trades[trades["flags"] & Flag.CORRECTED == 0]
    assert (len(reported), reported["size"].sum()) == (6_390, 1_427_907)
    broken = trades[trades["flags"] & Flag.CORRECTED != 0]
    assert len(broken) == 3
    assert np.all(np.isin(broken["trade_id"], reported["trade_id"]))
    assert len(of_type(records, RecordType.QUOTE)) == 27_217
    assert len(of_type(records, RecordType.STATUS)) == 7_803 + 7_801
    assert len(records) == 27_217 + 6_393 + 7_803 + 7_801
    assert "AAPL" in symbols.values()
    assert np.all(np.abs(records["ts_receive"] - records["ts_event"]) < 60 * 10**9)


def test_iex_quotes_without_a_side_are_undefined_there(samples: Path) -> None:
    quotes = of_type(read(samples / "iex/TOPS16.pcapng.gz")[0], RecordType.QUOTE)
    assert np.array_equal(np.isnan(quotes["bid"]), quotes["bid_size"] == 0)
    assert np.array_equal(np.isnan(quotes["ask"]), quotes["ask_size"] == 0)
    both = quotes[(quotes["bid_size"] > 0) & (quotes["ask_size"] > 0)]
    assert len(both)
    assert np.array_equal(both["mid"], (both["bid"] + both["ask"]) * 0.5)


def test_itch_start_of_day_names_993_instruments(samples: Path) -> None:
    _, summary, symbols = read(samples / "itch/bekele-first1000-start-of-day.itch")
    assert summary["messages"] == {"S": 1, "R": 993, "H": 3, "Y": 3}
    assert len(symbols) == 993
    assert (summary["records"], summary["malformed"]) == ({"status": 3}, {})


def test_moldudp64_packets_are_consumed_exactly_and_their_gap_is_reported(samples: Path) -> None:
    folder = samples / "pcap/Nasdaq/Nasdaq.Equities.TotalView.Itch.v5.0"
    messages: dict[str, int] = {}
    frames = 0
    for path in sorted(folder.glob("*.pcap")):
        _, summary, _ = read(path)
        frames += summary["frames"]
        assert not set(summary["malformed"]) - {"unknown order"}, path.name
        for name, count in summary["messages"].items():
            messages[name] = messages.get(name, 0) + count
    assert (frames, sum(messages.values())) == (9, 46)
    records, summary, symbols = read(folder / "Multiple.Packets.pcap")
    assert summary["gap_ranges"] == [(10059, 0xE149D1, 0x1220E5D)]
    status = of_type(records, RecordType.STATUS)
    assert (status["from_sequence"][0], status["to_sequence"][0]) == (0xE149D1, 0x1220E5D)
    levels = of_type(records, RecordType.LEVEL2)
    assert levels["flags"][0] & Flag.GAP_BEFORE
    assert not np.any(levels["flags"][1:] & Flag.GAP_BEFORE)
    assert set(levels["action"]) == {Action.ADD}
    assert symbols[int(levels["instrument_id"][0])] == "META"
    assert iso(levels["ts_event"][0]) == "2023-08-22T13:30:38.952381153"  # 09:30:38 in New York


def test_iex_deep_price_levels_are_level2(samples: Path) -> None:
    records, _, symbols = read(samples / "pcap/Iex/Deep.IexTp.v1.0/PriceLevelBuyUpdateMessage.pcap")
    assert (records["side"][0], records["price"][0], records["size"][0]) == (Side.BUY, 202.77, 190)
    assert symbols[int(records["instrument_id"][0])] == "V"


def test_pitch_messages_of_byx_are_orders(samples: Path) -> None:
    folder = samples / "pcap/Cboe/Byx.Equities.DepthOfBook.Pitch.v2.41"
    records, summary, symbols = read(folder / "AddOrderShortMessage.pcap", book=True, venue="BATY")
    assert (summary["format"], summary["messages"]) == ("Cboe PITCH in pcap", {"time": 2, "add order short": 7})
    assert (summary["gaps"], summary["malformed"], set(records["venue"])) == (0, {}, {b"BATY"})
    levels, quotes = of_type(records, RecordType.LEVEL2), of_type(records, RecordType.QUOTE)
    names = [symbols[int(one)] for one in levels["instrument_id"]]
    sides = [Side(one).name for one in levels["side"]]
    times = [iso(one)[17:] for one in levels["ts_event"]]
    assert list(zip(names, sides, levels["price"], levels["size"], times, strict=True)) == [
        ("MAT", "BUY", 20.66, 400, "59.999997000"),  # of the second before its packet's
        ("JDST", "BUY", 7.56, 21_700, "00.000646000"),
        ("IXN", "BUY", 59.9, 200, "00.000674000"),
        ("IWO", "SELL", 235.26, 100, "00.000771000"),
        ("IWO", "BUY", 234.14, 100, "00.000777000"),
        ("YANG", "BUY", 11.33, 8_200, "00.000754000"),
        ("XSVN", "BUY", 46.67, 100, "00.000772000"),
    ]
    assert iso(levels["ts_event"][0]).startswith("2023-08-22T13:29:59")  # 09:29:59 in New York
    assert all(levels["ts_receive"] > levels["ts_event"])
    assert levels["source_sequence"][0] == 2265901215303825392
    assert (len(quotes), quotes["bid"][4], quotes["ask"][4]) == (7, 234.14, 235.26)
    assert all(quotes["flags"] & Flag.INCOMPLETE)  # the file begins in the middle of a day
    assert read(folder / "MultipleMessages.pcap")[1]["messages"] == {"time": 1, "add order short": 2}
    assert read(folder / "ModifyOrderShortMessage.pcap")[1]["malformed"] == {"unknown order": 1}


def test_captures_of_other_protocols_are_named_errors(tmp_path: Path) -> None:
    payload = b"something else altogether"
    udp = struct.pack(">HHHH", 4000, 53, 8 + len(payload), 0) + payload
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), bytes(4)) + udp
    frame = bytes(12) + b"\x08\x00" + ip
    path = tmp_path / "other.pcap"
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    path.write_bytes(head + struct.pack("<IIII", 1_700_000_000, 0, len(frame), len(frame)) + frame)
    with pytest.raises(UnknownFormatError, match=r"1 UDP datagrams to ports \[53\], none of IEX-TP, MoldUDP64"):
        read(path)


def test_dbn_mbp1_gives_quotes_and_the_trades_of_the_trades_file(samples: Path) -> None:
    folder = samples / "dbn/es-futures"
    records, summary, symbols = read(folder / "futures_mbp-1_2024-07-01T23-58_2024-07-02T00-02.dbn.zst")
    trades, _, _ = read(folder / "futures_trades_2024-07-01T23-58_2024-07-02T00-02.dbn.zst")
    assert summary["messages"] == {"mbp-1": 2_288}
    assert symbols == {0: "ESU4"}
    assert len(of_type(records, RecordType.QUOTE)) == 2_288
    assert (len(trades), trades["size"].sum()) == (120, 253)
    assert iso(trades["ts_event"][0]) == "2024-07-01T23:58:01.218218853"
    assert iso(trades["ts_event"][-1]) == "2024-07-02T00:01:52.813445903"
    assert of_type(records, RecordType.TRADE).tobytes() == trades.tobytes()
    assert set(records["venue"]) == {b"GLBX"}


def test_dbn_bars_are_bars(samples: Path) -> None:
    bars, _, symbols = read(samples / "dbn/es-futures/futures_ohlcv-1m_2024-07-01T23-40_2024-07-02T00-10.dbn.zst")
    assert (len(bars), bars["volume"].sum(), set(bars["interval_s"])) == (60, 2_742, {60})
    es = bars[bars["instrument_id"] == {name: number for number, name in symbols.items()}["ESU4"]]
    from_2358 = es[es["ts_event"] >= int(np.datetime64("2024-07-01T23:58", "ns").astype(int))][:4]
    assert from_2358["volume"].tolist() == [18, 23, 175, 37]


def strip_version(path: Path) -> str:
    name = path.name.removesuffix(".zst").removesuffix(".dbn")
    return name.removesuffix(".v1").removesuffix(".v2").removesuffix(".v3")


def test_dbn_versions_of_one_schema_decode_to_equal_records(samples: Path) -> None:
    seen: dict[str, list[np.ndarray]] = {}
    for path in sorted((samples / "dbn/dbn-official").glob("test_data.*.dbn*")):
        if ".frag" not in path.name:
            seen.setdefault(strip_version(path), []).append(read(path)[0])
    assert len(seen) >= 16
    for schema, versions in seen.items():
        assert len(versions) >= 3, schema
        assert len({records.tobytes() for records in versions}) == 1, schema
    trades, hours = seen["test_data.trades"][0], seen["test_data.ohlcv-1h"][0]
    assert (len(trades), trades["size"].sum()) == (2, 26)
    assert (len(hours), hours["volume"].sum()) == (2, 122_083)


def test_dbn_records_agree_with_databentos_own_decoder(samples: Path) -> None:
    databento_dbn = pytest.importorskip("databento_dbn")
    zstandard = pytest.importorskip("zstandard")
    checked = 0
    for path in sorted((samples / "dbn").rglob("*.dbn.zst")):
        schema = path.name.split(".")[1]
        if schema not in {
            "trades",
            "tbbo",
            "mbp-1",
            "bbo-1s",
            "bbo-1m",
            "cbbo-1s",
            "cmbp-1",
            "mbo",
            "ohlcv-1s",
            "ohlcv-1d",
        }:
            continue
        raw = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True).read()
        decoder = databento_dbn.DBNDecoder()
        decoder.write(raw)
        theirs = [one for one in decoder.decode() if hasattr(one, "instrument_id")]
        ours, _, symbols = read(path)
        quotes, trades = of_type(ours, RecordType.QUOTE), of_type(ours, RecordType.TRADE)
        if schema.startswith("ohlcv"):
            assert [one.pretty_close for one in theirs] == ours["close"].tolist()
            assert [one.ts_event for one in theirs] == ours["ts_event"].tolist()
        elif schema != "mbo":
            struck = [one for one in theirs if schema == "trades" or str(getattr(one, "action", "")) == "T"]
            assert [one.pretty_price for one in struck] == trades["price"].tolist(), path.name
            assert [one.ts_recv for one in struck] == trades["ts_receive"].tolist()
        if schema not in {"trades", "mbo"} and not schema.startswith("ohlcv"):
            level = [one.levels[0] for one in theirs]
            np.testing.assert_array_equal([one.pretty_bid_px for one in level], quotes["bid"])
            np.testing.assert_array_equal([one.ask_sz for one in level], quotes["ask_size"])
            assert [one.ts_recv for one in theirs] == quotes["ts_receive"].tolist()
        assert not any(name.startswith("id-") for name in symbols.values()), path.name
        checked += len(theirs)
    assert checked > 60


def test_dbn_live_stream_maps_symbols_as_it_goes(samples: Path) -> None:
    records, summary, symbols = read(samples / "dbn/databento-python/LIVE/test_data.live.dbn.zst")
    assert sum(summary["messages"].values()) == 46
    assert len({name.split("-")[0] if name.startswith("ohlcv") else name for name in summary["messages"]}) == 8
    assert symbols == {0: "ESZ4"}
    assert len(of_type(records, RecordType.BAR)) == 4


def test_dbn_fragments_are_read_by_their_name_or_where_the_option_says_so(samples: Path, tmp_path: Path) -> None:
    folder = samples / "dbn/dbn-official"
    fragments = sorted(folder.glob("*.frag*"))
    assert len(fragments) == 7
    for path in fragments:
        _, summary, _ = read(path)
        assert summary["messages"] == {"definition": 8 if path.name.startswith("multi-frame") else 2}, path.name
        assert (summary["malformed"], summary["truncated_bytes"]) == ({}, 0)
        assert summary["format"].startswith("Databento DBN fragment")
    renamed = tmp_path / "definitions"
    renamed.write_bytes((folder / "test_data.definition.v1.dbn.frag").read_bytes())
    with pytest.raises(UnknownFormatError):
        read(renamed)
    assert read(renamed, format="dbn-fragment")[1]["messages"] == {"definition": 2}


def test_schemas_without_a_record_are_counted_by_type(samples: Path) -> None:
    seen: set[str] = set()
    for path in sorted((samples / "dbn").rglob("*.zst")):
        schema = path.name.split(".")[1]
        if schema in {"statistics", "definition", "imbalance"} and ".frag" not in path.name:
            records, summary, _ = read(path)
            assert len(records) == 0
            assert set(summary["messages"]) == {schema}, path.name
            assert summary["malformed"] == {}
            seen.add(schema)
    assert len(seen) == 3


# What no decoder is here for, and what the error says.
REFUSED = {
    "which reads both": ["_orderbook_"],
    "no known capture begins with": ["/REFERENCE/", "/vendor/"],
}


def test_every_sample_is_read_whole_or_refused_for_what_it_is(samples: Path) -> None:
    read_whole = refused = 0
    for path in sorted(path for path in samples.rglob("*") if path.is_file() and path.name != "README.md"):
        where = path.as_posix()
        reasons = [reason for reason, parts in REFUSED.items() if any(part in where for part in parts)]
        if path.suffix == ".fix":
            continue
        if reasons:
            with pytest.raises(UnknownFormatError, match=re.escape(reasons[0])):
                describe_capture(path)
            refused += 1
            continue
        summary = describe_capture(path)
        assert (summary["error"], summary["truncated_bytes"], summary["progress"]) == ("", 0, 1.0), where
        assert not set(summary["malformed"]) - {"unknown order"}, where  # files that begin in the middle of a day
        read_whole += 1
    assert read_whole > 160
    assert refused > 5  # what is no capture of a market


def test_mbp10_changes_rebuild_the_ten_levels(samples: Path) -> None:
    databento_dbn = pytest.importorskip("databento_dbn")
    zstandard = pytest.importorskip("zstandard")
    path = samples / "dbn/databento-python/GLBX.MDP3/test_data.mbp-10.dbn.zst"
    decoder = databento_dbn.DBNDecoder()
    decoder.write(zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read())
    states = [one for one in decoder.decode() if hasattr(one, "instrument_id")]
    levels = of_type(read(path)[0], RecordType.LEVEL2)
    books: dict[int, dict[float, tuple[float, int]]] = {Side.BUY: {}, Side.SELL: {}}
    ends = np.flatnonzero(levels["flags"] & Flag.LAST_OF_BATCH)
    assert len(ends) == len(states)
    begin = 0
    for end, state in zip(ends, states, strict=True):
        for level in levels[begin : end + 1]:
            book = books[int(level["side"])]
            if level["action"] == Action.DELETE:
                del book[float(level["price"])]
            else:
                book[float(level["price"])] = (float(level["size"]), int(level["order_count"]))
        begin = end + 1
        assert books[Side.BUY] == {one.pretty_bid_px: (one.bid_sz, one.bid_ct) for one in state.levels if one.bid_ct}
        assert books[Side.SELL] == {one.pretty_ask_px: (one.ask_sz, one.ask_ct) for one in state.levels if one.ask_ct}


def test_binance_spot_stream_is_whole_and_exact(samples: Path) -> None:
    records, summary, symbols = read(samples / "websocket/spot_btcusdt_20240808.gz")
    assert summary["messages"] == {"trade": 9_757, "bookTicker": 28_040, "depthUpdate": 3_451, "depth snapshot": 1}
    assert (summary["gaps"], summary["malformed"], summary["duplicates"]) == (0, {}, 0)
    trades = of_type(records, RecordType.TRADE)
    assert symbols == {0: "BTCUSDT"}
    assert trades["trade_id"].tolist() == list(range(3735683259, 3735693015 + 1))
    assert trades["size"].sum() == pytest.approx(212.03315, abs=1e-9)
    assert (trades["size"] * trades["price"]).sum() == pytest.approx(13_084_074.1123886, abs=1e-6)
    assert set(trades["side"]) == {Side.BUY, Side.SELL}
    behind = trades["ts_event"] - trades["ts_receive"]
    assert 1_100_000_000 < np.median(behind) < 1_300_000_000  # the recorder's clock
    assert iso(records["ts_receive"].min()) == "2024-08-08T23:54:13.937085768"


def test_binance_snapshot_clears_the_book_and_changes_come_in_batches(samples: Path) -> None:
    records, _, _ = read(samples / "websocket/spot_btcusdt_20240808.gz")
    levels = of_type(records, RecordType.LEVEL2)
    snapshot = levels[levels["flags"] & Flag.SNAPSHOT != 0]
    assert snapshot["action"][0] == Action.CLEAR
    assert (len(snapshot) - 1, set(snapshot["action"][1:])) == (2_000, {Action.ADD})
    assert snapshot["flags"][-1] & Flag.LAST_OF_BATCH
    changes = levels[levels["flags"] & Flag.SNAPSHOT == 0]
    assert np.array_equal(changes["size"] == 0, changes["action"] == Action.DELETE)
    assert np.count_nonzero(changes["flags"] & Flag.LAST_OF_BATCH) == 3_451


def test_binance_jsonl_capture_has_snapshots_by_symbol(samples: Path) -> None:
    records, summary, symbols = read(samples / "websocket/BINANCE.jsonl.zst")
    assert summary["frames"] == 265 + 4
    assert summary["messages"]["depth snapshot"] == 4
    assert summary["malformed"] == {}
    cleared = records[(records["record_type"] == RecordType.LEVEL2) & (records["action"] == Action.CLEAR)]
    assert {symbols[int(number)] for number in cleared["instrument_id"]} == {"NKNUSDT", "BLZETH", "LRCBTC", "RUNEEUR"}


def test_coinbase_capture_is_contiguous_and_sums_up(samples: Path) -> None:
    records, summary, symbols = read(samples / "websocket/COINBASE.jsonl.zst")
    assert (summary["frames"], summary["gaps"], summary["malformed"]) == (1_030, 0, {})
    trades = of_type(records, RecordType.TRADE)
    assert len(np.unique(trades["trade_id"])) == len(trades) == 279
    for name, count, size in (("BTC-USD", 147, 1.24903697), ("ETH-USD", 132, 70.43699852)):
        of_name = trades[[symbols[int(number)] == name for number in trades["instrument_id"]]]
        assert len(of_name) == count
        assert of_name["size"].sum() == pytest.approx(size, abs=1e-9)
        assert np.all(np.diff(of_name["trade_id"].astype(np.int64)) == 1)


def test_coinbase_trades_have_the_aggressors_side(samples: Path) -> None:
    """A buyer who comes in pays the ask: with the maker's side it would be the other way round."""
    records, _, symbols = read(samples / "websocket/COINBASE.jsonl.zst")
    right = wrong = 0
    quote: dict[int, tuple[float, float]] = {}
    for record in records:
        number = int(record["instrument_id"])
        if record["record_type"] == RecordType.QUOTE:
            quote[number] = (float(record["bid"]), float(record["ask"]))
        elif record["record_type"] == RecordType.TRADE and number in quote:
            bid, ask = quote[number]
            if record["price"] in (bid, ask):
                bought = record["side"] == Side.BUY
                right += bought == (record["price"] == ask)
                wrong += bought != (record["price"] == ask)
    assert symbols
    assert right > 20
    assert right > 5 * wrong


def test_bitstamp_capture(samples: Path) -> None:
    records, summary, symbols = read(samples / "websocket/BITSTAMP.jsonl.zst")
    assert (summary["frames"], summary["malformed"], summary["format"]) == (
        747 + 10,  # pictures of ten books over REST
        {},
        "Bitstamp WebSocket messages, jsonl capture (zstd)",
    )
    trades = of_type(records, RecordType.TRADE)
    assert {symbols[int(number)] for number in trades["instrument_id"]} == {"ethusd"}
    assert trades["trade_id"][:2].tolist() == [216000477, 216000484]
    assert trades["price"][:2].tolist() == [3805.44, 3802.93]
    assert trades["side"][:2].tolist() == [Side.BUY, Side.SELL]
    assert trades["ts_event"][0] == 1641343699596000000


def test_bitstamp_books_are_the_pictures_and_what_changed_after_them(samples: Path) -> None:
    path = samples / "websocket/BITSTAMP.jsonl.zst"
    text = zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read()
    wanted: dict[tuple[str, int], dict[float, float]] = {}
    pictures: dict[str, int] = {}
    older = 0
    for line in map(json.loads, text.splitlines()):
        if line["t"] == "http" and "/order_book/" in line["url"]:
            pair, book = line["url"].rpartition("/")[2], json.loads(line["data"])
            pictures[pair] = int(book["microtimestamp"])
        elif line["t"] == "recv" and '"bids"' in line["data"]:
            message = json.loads(line["data"])
            pair, book = message["channel"].rpartition("_")[2], message["data"]
            if int(book["microtimestamp"]) <= pictures[pair]:
                older += 1
                continue
        else:
            continue
        for side, name in ((Side.BUY, "bids"), (Side.SELL, "asks")):
            for price, size in book[name]:
                wanted.setdefault((pair, side), {})[float(price)] = float(size)
    records, summary, symbols = read(path)
    found: dict[tuple[str, int], dict[float, float]] = {}
    for level in of_type(records, RecordType.LEVEL2):
        if level["action"] == Action.CLEAR:
            assert symbols[int(level["instrument_id"])] in pictures
            continue
        key = symbols[int(level["instrument_id"])], int(level["side"])
        found.setdefault(key, {})[float(level["price"])] = float(level["size"])
    assert found == wanted
    assert (summary["duplicates"], len(pictures)) == (older, 10)
    assert older > 0


def test_venues_without_a_decoder_are_named_errors(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_text('{"t":"header","exchange":"EXAMPLE"}\n{"t":"recv","ts":1.0,"data":"{}"}\n')
    with pytest.raises(UnknownFormatError, match="EXAMPLE"):
        read(path)
    path.write_text('1723161254000000000 {"ticks":[]}\n')
    with pytest.raises(UnknownFormatError, match="without a decoder"):
        read(path)


@pytest.mark.parametrize(
    "name",
    [
        "iex/TOPS16.pcapng.gz",
        "pcap/Nasdaq/Nasdaq.Equities.TotalView.Itch.v5.0/Multiple.Packets.pcap",
        "pcap/Cme/Mdp3.Sbe.v1.9/MdIncrementalRefreshBook.pcap",
        "websocket/BINANCE.jsonl.zst",
        "dbn/databento-python/GLBX.MDP3/test_data.mbp-10.dbn.zst",
        "dbn/dbn-official/test_data.tbbo.v3.dbn.zst",
    ],
)
def test_any_size_of_the_callers_array_gives_the_same_records(samples: Path, name: str) -> None:
    whole, _, _ = read(samples / name, size=100_000)
    for size in (1, 3) if len(whole) < 10_000 else (101,):
        assert read(samples / name, size=size)[0].tobytes() == whole.tobytes()


def test_describe_capture_tells_a_file_in_plain_types(samples: Path) -> None:
    summary = describe_capture(samples / "dbn/es-futures/futures_trades_2024-07-01T23-58_2024-07-02T00-02.dbn.zst")
    assert summary["format"] == "Databento DBN v1 trades (zstd)"
    assert summary["records"] == {"trade": 120}
    assert summary["first"] == "2024-07-01T23:58:01.218218853Z"
    assert (summary["symbols"], summary["error"]) == (["ESU4"], "")
