"""How a capture goes, as a table for a terminal and as a line for a log. Pure: what it shows is passed in.

Called by tools/capture.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tools.console import bytes_text, count_text, duration_text

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class ConnectionView:
    """One connection of a feed; `age_ns` since its last message, None = none yet."""

    feed: str
    name: str
    state: str  # "up", "down", "waiting", "-" = it has none
    received: int
    received_bytes: int
    rate: float  # messages a second, lately
    sent: int
    age_ns: int | None
    why: str = ""


@dataclass(frozen=True)
class CaptureView:
    """The whole of it at one moment."""

    seconds: float
    of_seconds: float | None  # None = until it is told to stop
    written_bytes: int
    waiting_bytes: int
    files: int
    dropped: int
    records: int
    connections: list[ConnectionView] = field(default_factory=list)

    @property
    def received(self) -> int:
        """Messages of all connections."""
        return sum(one.received for one in self.connections)

    @property
    def received_bytes(self) -> int:
        """Bytes of all connections."""
        return sum(one.received_bytes for one in self.connections)

    @property
    def up(self) -> int:
        """How many connections are up."""
        return sum(one.state == "up" for one in self.connections)

    @property
    def files_text(self) -> str:
        """`1 file`, `2 files`."""
        return f"{self.files} file{'' if self.files == 1 else 's'}"

    @property
    def down(self) -> list[ConnectionView]:
        """Those that are not, and should be."""
        return [one for one in self.connections if one.state in ("down", "waiting")]


_COLOURS = {"up": "green", "down": "red", "waiting": "yellow"}


def frame(view: CaptureView, *, ended: bool = False) -> RenderableType:
    """A table of the connections, and below it what becomes of what they bring; `ended`: the last one."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("FEED", "CONNECTION", "STATE"):
        table.add_column(name, no_wrap=True)
    for name in ("MESSAGES", "RATE", "BYTES", "SENT", "LAST"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", ratio=1, overflow="ellipsis", no_wrap=True)
    for one in view.connections:
        table.add_row(
            escape(one.feed),
            escape(one.name),
            Text(one.state, _COLOURS.get(one.state, "")),
            count_text(one.received),
            f"{count_text(one.rate)}/s",
            bytes_text(one.received_bytes),
            count_text(one.sent),
            "-" if one.age_ns is None else duration_text(one.age_ns),
            Text(one.why, "dim"),
        )
    time = duration_text(view.seconds * 1e9)
    if view.of_seconds is not None:
        time += f" of {duration_text(view.of_seconds * 1e9)}"
    foot = Text.assemble(
        (time, "bold"),
        f"   {view.received:,} messages, {bytes_text(view.received_bytes)}",
        f"   {bytes_text(view.written_bytes)} in {view.files_text}",
        "" if ended else f"   {bytes_text(view.waiting_bytes)} waiting",
        (f"   {view.dropped:,} dropped", "bold red" if view.dropped else "dim"),
        ("" if ended else "   Ctrl-C ends it", "dim"),
    )
    return Group(table, Text(""), foot)


def line(view: CaptureView) -> str:
    """The same in one line."""
    down = view.down
    text = (
        f"capture: {duration_text(view.seconds * 1e9)}: {view.received:,} messages, {bytes_text(view.received_bytes)}, "
        f"{view.up} of {view.up + len(down)} connections up, {bytes_text(view.written_bytes)} in {view.files_text}, "
        f"{view.dropped:,} dropped"
    )
    if down:
        text += f"; {down[0].feed}: {down[0].why or down[0].state}"
    return text
