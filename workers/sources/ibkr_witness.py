"""What an IBKR feed tells of its wire: messages without those of accounts, and notes of what they alone do not say.

    client (ibkr_client.py), source (ibkr.py) --IbkrWitness--> WireLog --> capture --> ibkr_replay.py

Messages of TWS name a request by its number alone. A note says which stream that is from when on, when it was ended,
which version of the protocol is spoken, and which gaps were told: all that a replay needs besides the messages. Notes
of one connection that have the same `of` follow one another, and the recorder repeats the newest in each part of a
capture. Notes and messages of one packet have its time. Never writes account numbers, and whatever brings them.
"""

from __future__ import annotations

from typing import Final

import msgspec

from workers.sources.ibkr_streams import Stream
from workers.wire_log import WireLog

CONNECTION: Final = "tws"
VERSION: Final = "version"  # `of` of the note that names it
_MANAGED_ACCOUNTS: Final = b"15"  # TWS API, EDecoder: MANAGED_ACCTS


class IbkrNote(msgspec.Struct, omit_defaults=True):
    """The text of a note. `of` is VERSION, the number of a request, or "" for a gap.

    Attributes:
        first: of the connections of this source, which knew nothing before.
        over: the request has ended; what still comes for it is nobody's.
        symbol, way, types: of the stream that it brings (ibkr_streams.Stream).
        had, missed: the stream's `had_data` and `gap_before` then.
        gap: text of the status record; every stream has missed something.
    """

    of: str = ""
    over: bool = False
    version: int = 0
    first: bool = False
    symbol: str = ""
    way: str = ""
    types: tuple[str, ...] = ()
    had: bool = False
    missed: bool = False
    gap: str = ""


class IbkrWitness:
    """See the module. Times are ns; without a `wire` nothing is told, and `on` is False."""

    def __init__(self, wire: WireLog | None) -> None:
        """Nothing is told yet."""
        self.on = wire is not None
        self._begun = False
        self._wire = wire

    def connected(self, at_ns: int, url: str, version: int, *, again: bool) -> None:
        """TWS has answered the handshake."""
        if self._wire is not None:
            self._wire.connected(CONNECTION, at_ns, url=url, again=again)
            self._noted(IbkrNote(VERSION, version=version, first=not self._begun), at_ns)
            self._begun = True

    def received(self, body: bytes, at_ns: int) -> None:
        """A message that concerns the feed, without its length."""
        if self._wire is None:
            return
        if body.startswith(_MANAGED_ACCOUNTS + b"\0"):
            for account in body.split(b"\0")[2:3]:
                for name in account.decode(errors="replace").split(","):
                    self._wire.hide(name)
        else:
            self._wire.received(CONNECTION, body, at_ns)

    def sent(self, body: bytes, at_ns: int) -> None:
        """A request went out, without its length."""
        if self._wire is not None:
            self._wire.sent(CONNECTION, body, at_ns)

    def asked(self, stream: Stream, at_ns: int) -> None:
        """The stream has a new request, and begins anew."""
        if self._wire is not None:
            note = IbkrNote(
                str(stream.request),
                symbol=stream.symbol,
                way=stream.way.value,
                types=tuple(stream.types),
                had=stream.had_data,
                missed=stream.gap_before,
            )
            self._noted(note, at_ns)

    def over(self, stream: Stream, request: int, at_ns: int) -> None:
        """The stream's request is."""
        if self._wire is not None:
            self._noted(IbkrNote(str(request), over=True, missed=stream.gap_before), at_ns)

    def gap(self, text: str, at_ns: int) -> None:
        """Told of all streams."""
        if self._wire is not None:
            self._noted(IbkrNote(gap=text), at_ns)

    def lost(self, at_ns: int, why: str) -> None:
        """The connection, or the attempt to make it, is over."""
        if self._wire is not None:
            self._wire.lost(CONNECTION, at_ns, why)

    def _noted(self, note: IbkrNote, at_ns: int) -> None:
        if self._wire is not None:
            self._wire.noted(CONNECTION, msgspec.json.encode(note).decode(), at_ns)
