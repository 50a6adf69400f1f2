"""Containers give the same frames however their input is cut, and say where it is damaged."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from shm.layout import RECORD
from workers.decoders._containers import LengthReader, LineReader, PacketReader
from workers.decoders.capture import open_capture
from workers.decoders.jsonl import JsonlReader
from workers.decoders.protocol import Container, FramingError, UnknownFormatError
from workers.errors import SettingsError

Frame = tuple[int, int, bytes]  # receive time, port, payload


def frames_of(container: Container, pieces: list[bytes]) -> list[Frame]:
    """Everything a container gives for an input cut into these pieces; runs of length-framed blocks are joined."""
    found = []
    for piece in pieces:
        batch = container.feed(piece)
        for frame in batch.frames:
            first = int(frame["offset"])
            payload = batch.buffer[first : first + int(frame["size"])]
            found.append((int(frame["ts_receive"]), int(frame["port"]), payload))
    return found


@pytest.mark.parametrize(
    ("name", "first"),  # in s
    [
        ("websocket/spot_btcusdt_20240808.gz", 1_723_161_253),
        ("websocket/BITFINEX.jsonl.zst", 1_618_677_543),
        ("iex/TOPS16.pcapng.gz", 1_499_697_138),
        ("ticks/truefx/usdjpy-ticks.csv", 0),
        ("dbn/es-futures/futures_definition.dbn.zst", 0),
    ],
)
def test_a_capture_says_when_its_first_message_was_received_and_loses_nothing(
    samples: Path, name: str, first: int
) -> None:
    def decode(ask: bool) -> tuple[int, bytes, dict[str, int]]:
        numbers: dict[str, int] = {}
        with open_capture(samples / name, intern=lambda text: numbers.setdefault(text, len(numbers))) as capture:
            found, out, data = capture.first_received_ns() if ask else 0, np.zeros(5000, RECORD), b""
            while count := capture.decode(out):
                data += out[:count].tobytes()
            return found, data, capture.counters.messages

    asked, plain = decode(True), decode(False)
    assert asked[1:] == plain[1:]
    assert asked[0] // 1_000_000_000 == first


def udp_packet(payload: bytes, *, vlan: int = 0, ipv6: bool = False, port: int = 5000, link: str = "ethernet") -> bytes:
    udp = struct.pack(">HHHH", 1234, port, 8 + len(payload), 0) + payload
    if ipv6:
        hop_by_hop = bytes([17, 0, 1, 4, 0, 0, 0, 0])
        ip = struct.pack(">IHBB", 6 << 28, len(udp) + 8, 0, 64) + bytes(32) + hop_by_hop + udp
    else:
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0x4000, 64, 17, 0) + bytes(8) + udp
    kind = 0x86DD if ipv6 else 0x0800
    if link == "raw":
        return ip
    if link == "cooked":
        return bytes(14) + struct.pack(">H", kind) + ip
    tags = b"".join(struct.pack(">HH", 0x8100, 5) for _ in range(vlan))
    return bytes(12) + tags + struct.pack(">H", kind) + ip


def pcap(packets: list[tuple[int, bytes]], *, order: str = "<", nanos: bool = False, link: int = 1) -> bytes:
    magic = 0xA1B23C4D if nanos else 0xA1B2C3D4
    data = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for ts_ns, packet in packets:
        rest = ts_ns % 10**9
        data += struct.pack(order + "IIII", ts_ns // 10**9, rest if nanos else rest // 1000, len(packet), len(packet))
        data += packet
    return data


def pcapng(packets: list[tuple[int, bytes]], *, order: str = "<", resolution: int = 9) -> bytes:
    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        total = 12 + len(body)
        return struct.pack(order + "II", kind, total) + body + struct.pack(order + "I", total)

    data = block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    option = struct.pack(order + "HHB3x", 9, 1, resolution) + struct.pack(order + "HH", 0, 0)
    data += block(1, struct.pack(order + "HHI", 1, 0, 65535) + option)
    data += block(4, b"name resolution, passed over")
    for ts_ns, packet in packets:
        units = ts_ns // 10 ** (9 - resolution)
        head = struct.pack(order + "IIIII", 0, units >> 32, units & 0xFFFFFFFF, len(packet), len(packet))
        data += block(6, head + packet)
    return data


TIME_NS = 1_692_711_038_952_561_782
PACKETS = [(TIME_NS, udp_packet(b"first")), (TIME_NS + 1000, udp_packet(b"second one", port=6000))]
WANTED = [(TIME_NS, 5000, b"first"), (TIME_NS + 1000, 6000, b"second one")]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("form", ["pcap us", "pcap ns", "pcapng ns", "pcapng us"])
def test_packet_captures_of_every_form_and_byte_order_give_the_same_frames(form: str, order: str) -> None:
    exact = form.endswith("ns")
    data = (
        pcap(PACKETS, order=order, nanos=exact)
        if form.startswith("pcap ")
        else pcapng(PACKETS, order=order, resolution=9 if exact else 6)
    )
    wanted = WANTED if exact else [(ts // 1000 * 1000, port, payload) for ts, port, payload in WANTED]
    assert frames_of(PacketReader(), [data]) == wanted
    assert frames_of(PacketReader(), [data[i : i + 1] for i in range(len(data))]) == wanted


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize(
    ("link", "number", "vlan"), [("ethernet", 1, 0), ("ethernet", 1, 2), ("raw", 101, 0), ("cooked", 113, 0)]
)
def test_link_layers_and_vlan_tags_are_taken_off(link: str, number: int, vlan: int, ipv6: bool) -> None:
    data = pcap([(TIME_NS, udp_packet(b"payload", vlan=vlan, ipv6=ipv6, link=link))], nanos=True, link=number)
    assert frames_of(PacketReader(), [data]) == [(TIME_NS, 5000, b"payload")]


def test_what_is_no_whole_udp_datagram_is_counted_by_reason() -> None:
    whole = udp_packet(b"payload")
    fragment = bytearray(whole)
    fragment[20:22] = b"\x20\x00"
    tcp = bytearray(whole)
    tcp[23] = 6
    arp = bytearray(whole)
    arp[12:14] = b"\x08\x06"
    data = pcap([(0, bytes(packet)) for packet in (fragment, tcp, arp, whole[:-3], whole[:20], whole)])
    reader = PacketReader()
    assert [payload for _, _, payload in frames_of(reader, [data])] == [b"payload"]
    assert reader.counts() == {
        "packets": 6, "not udp": 2, "ip fragments": 1, "cut by the capture": 1, "damaged headers": 1,
    }  # fmt: skip


def test_a_port_picks_its_datagrams() -> None:
    assert frames_of(PacketReader(6000), [pcap(PACKETS, nanos=True)]) == WANTED[1:]


def test_a_truncated_capture_gives_the_whole_packets_before_the_cut() -> None:
    data = pcap(PACKETS, nanos=True)
    second = len(data) - len(PACKETS[1][1]) - 16
    for cut in range(len(data) + 1):
        reader = PacketReader()
        found = frames_of(reader, [data[:cut]])
        assert found == WANTED[: (cut >= second) + (cut == len(data))]
        assert reader.error is None
        begun = 0 if cut < 24 else 24 if cut < second else second if cut < len(data) else len(data)
        assert reader.finish() == cut - begun


def test_damaged_framing_names_the_offset() -> None:
    data = bytearray(pcap(PACKETS, nanos=True))
    second = len(data) - len(PACKETS[1][1]) - 16
    data[second + 8 : second + 12] = b"\xff\xff\xff\xff"
    reader = PacketReader()
    assert frames_of(reader, [bytes(data)]) == WANTED[:1]
    assert isinstance(reader.error, FramingError)
    assert reader.error.offset == second
    assert f"at byte {second}" in str(reader.error)
    assert frames_of(reader, [bytes(data)]) == []


def test_length_framed_blocks_are_cut_at_whole_messages() -> None:
    blocks = b"".join(struct.pack(">H", size) + b"x" * size for size in (3, 0, 300, 1))
    for step in (1, 7, len(blocks)):
        reader = LengthReader()
        pieces = [blocks[i : i + step] for i in range(0, len(blocks), step)]
        assert b"".join(payload for _, _, payload in frames_of(reader, pieces)) == blocks
        assert reader.finish() == 0
    for cut in range(len(blocks)):
        reader = LengthReader()
        found = b"".join(payload for _, _, payload in frames_of(reader, [blocks[:cut]]))
        assert blocks.startswith(found)
        assert len(found) + reader.finish() == cut


def test_timed_lines_are_frames_and_other_lines_are_counted() -> None:
    text = b'1723161253937085768 {"a":1}\r\n\nno time\n12{\n5 x\n99999999999999999999 {}\n7 tail'
    wanted = [(1723161253937085768, 0, b'{"a":1}'), (5, 0, b"x")]
    for step in (1, 4, len(text)):
        reader = LineReader()
        assert frames_of(reader, [text[i : i + step] for i in range(0, len(text), step)]) == wanted
        assert reader.counts() == {"lines without a time": 4}
        assert reader.finish() == len(b"7 tail")


def test_jsonl_frames_are_the_received_texts() -> None:
    lines = [
        b'{"t":"header","exchange":"BINANCE"}',
        b'{"t":"recv","conn":"a","ts":1633998512.0633569,"data":"{\\"x\\":\\"\\u00e9\\"}"}',
        b'{"t":"recv","conn":"b","ts":5,"data":"2"}',
        b'{"t":"send","conn":"a","ts":6,"data":"3"}',
        b"not json",
    ]
    text = b"\n".join(lines) + b"\n"
    wanted = [(1633998512063357000, 0, '{"x":"é"}'.encode()), (5_000_000_000, 1, b"2")]
    for step in (1, len(text)):
        reader = JsonlReader()
        assert frames_of(reader, [text[i : i + step] for i in range(0, len(text), step)]) == wanted
        assert reader.exchange == "BINANCE"
        assert reader.counts() == {"header lines": 1, "send lines": 1, "lines that are not JSON": 1}


def decode(path: Path, **options: object) -> np.ndarray:
    out = np.zeros(64, RECORD)
    with open_capture(path, intern=len, options=options) as capture:
        count = capture.decode(out)
        assert capture.decode(out[count:]) == 0 if count < len(out) else True
    return out[:count]


TRADE_LINE = b'%d {"e":"trade","E":1,"s":"BTCUSDT","t":%d,"p":"1.5","q":"2","T":3,"m":false,"M":true}'


def test_gzip_members_one_after_the_other_are_one_stream(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    halves = (TRADE_LINE % (10, 1) + b"\n" + TRADE_LINE[:20] % 11, TRADE_LINE[20:] % 2)
    path.write_bytes(gzip.compress(halves[0]) + gzip.compress(halves[1]))
    assert decode(path)["trade_id"].tolist() == [1, 2]  # the last line has no newline


def test_a_gzip_stream_that_ends_early_is_a_framing_error_after_its_records(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(TRADE_LINE % (i, i) + b"\n" for i in range(1, 2000)))
    path = tmp_path / "cut.gz"
    path.write_bytes(packed[:-20])
    out = np.zeros(4096, RECORD)
    with open_capture(path, intern=lambda _: 0) as capture:
        assert capture.decode(out) > 1000
        with pytest.raises(FramingError, match="gzip"):
            capture.decode(out)
        assert capture.decode(out) == 0


def test_capture_raises_the_framing_error_after_the_records_before_it(tmp_path: Path, samples: Path) -> None:
    data = bytearray((samples / "pcap/Nasdaq/Nasdaq.Equities.TotalView.Itch.v5.0/Multiple.Packets.pcap").read_bytes())
    path = tmp_path / "x.pcap"
    path.write_bytes(data + struct.pack("<IIII", 1, 2, 1 << 30, 1 << 30) + bytes(50))
    out = np.zeros(100, RECORD)
    with open_capture(path, intern=lambda _: 0) as capture:
        assert capture.decode(out) == 39
        with pytest.raises(FramingError, match=f"at byte {len(data)}"):
            capture.decode(out)
        assert capture.decode(out) == 0


def test_unknown_content_and_options_are_clear_errors(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    for content, words in ((b"", "empty"), (b"hello world, this is nothing", "no known capture begins with")):
        path.write_bytes(content)
        with pytest.raises(UnknownFormatError, match=words):
            decode(path)
    with pytest.raises(SettingsError, match="no option 'colour'"):
        decode(path, colour="blue")
    with pytest.raises(SettingsError, match="format"):
        decode(path, format="parquet")
    with pytest.raises(SettingsError, match="YYYY-MM-DD"):
        decode(path, date="yesterday")
