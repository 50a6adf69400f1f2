"""What a captured file is, by its first bytes and its name, and what the datagrams in a packet capture are.

Called by workers/decoders/capture_input.py and decoder_choice.py, before there are a container and a decoder. Looks at
what it is given and reads no file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec

from workers.decoders import tick_files
from workers.decoders.fix_log import looks_like_fix
from workers.decoders.protocol import UnknownFormatError

FORMATS: Final = ("pcap", "dbn", "dbn-fragment", "dbz", "itch", "lines", "jsonl", "fix", *tick_files.FORMATS)
PROTOCOLS: Final = ("iex", "itch", "mdp3", "pitch")
HEAD_PORT: Final = 9  # UDP "discard" (RFC 863): where the packet goes that says what a capture of our own is of
_PCAP_MAGICS: Final = tuple(map(bytes.fromhex, ("d4c3b2a1", "a1b2c3d4", "4d3cb2a1", "a1b23c4d", "0a0d0d0a")))
_LINE: Final = re.compile(rb"\d{1,19} [\[{]")
_ITCH_TYPES: Final = b"SRHYLVWKJhAFECXDUPQBINO"


def detect(head: bytes, path: Path) -> str:
    """Format of a stream that begins with `head`: one of FORMATS. UnknownFormatError says what it is instead."""
    if looks_like_fix(head):  # first: its lines may begin with a time, as those of ticks do
        return "fix"
    if found := tick_files.recognise(head, path):
        return found
    if head[:4] in _PCAP_MAGICS:
        return "pcap"
    if head[:3] == b"DBN":
        return "dbn"
    if head.startswith(b'{"t":'):
        return "jsonl"
    if _LINE.match(head):
        return "lines"
    if ".frag" in path.suffixes and _looks_like_dbn_records(head):
        return "dbn-fragment"
    if _looks_like_itch(head):
        return "itch"
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:
        if head[8:11] == b"DBZ":
            return "dbz"
        raise UnknownFormatError("a zstd skippable frame that is no header of DBZ")
    if not head:
        raise UnknownFormatError("the file is empty")
    raise UnknownFormatError(f"no known capture begins with {head[:16]!r}; the option `format` names one of {FORMATS}")


def _looks_like_dbn_records(head: bytes) -> bool:
    """Lengths in words of four bytes, each of a record type that there is, as far as the head goes (16 at most)."""
    from workers.decoders._dbn import RTYPES

    at = seen = 0
    while at + 16 <= len(head) and seen < 16:
        if head[at] < 4 or head[at + 1] not in RTYPES:
            return False
        at += 4 * head[at]
        seen += 1
    return seen > 0


def _looks_like_itch(head: bytes) -> bool:
    """2-byte lengths, each right for the ITCH 5.0 type that follows it, as far as the head goes (16 at most)."""
    from workers.decoders._itch import message_length

    at = seen = 0
    while at + 3 <= len(head) and seen < 16:
        length = int.from_bytes(head[at : at + 2], "big")
        if length == 0 or length != message_length(head[at + 2]):
            return False
        at += 2 + length
        seen += 1
    return seen > 0


def head_of(payload: bytes) -> dict[str, Any] | None:
    """The feed that a packet capture of our own is of, if this datagram says so."""
    if not payload.startswith(b'{"t":"header"'):
        return None
    try:
        feed = msgspec.json.decode(payload)["feed"]
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError):
        return None
    return feed if isinstance(feed, dict) and isinstance(feed.get("options"), dict) else None


def protocol_of(payload: bytes) -> str:
    """One of PROTOCOLS if the datagram is of it, else ""."""
    from workers.decoders._mdp3 import is_packet
    from workers.decoders._pitch import is_pitch

    size = len(payload)
    if is_pitch(payload):
        return "pitch"
    if is_packet(payload):
        return "mdp3"
    if size >= 40 and payload[0] == 1 and payload[2:4] in (b"\x03\x80", b"\x04\x80"):
        return "iex" if int.from_bytes(payload[12:14], "little") + 40 == size else ""
    if size < 20 or not all(32 <= byte < 127 for byte in payload[:10]):
        return ""
    count, at, first = int.from_bytes(payload[18:20], "big"), 20, True
    if count in {0, 0xFFFF}:
        return "itch" if size == 20 else ""
    for _ in range(count):
        length = int.from_bytes(payload[at : at + 2], "big")
        if at + 2 + length > size or not length or (first and payload[at + 2] not in _ITCH_TYPES):
            return ""
        at, first = at + 2 + length, False
    return "itch" if at == size else ""
