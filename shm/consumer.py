"""A running engine as a colocated consumer sees it: its rings, symbols, latest values and status, by one name.

Called by trading processes and notebooks on the same host, and by our own tools. It only attaches and reads; it never
creates, writes or removes a segment (a reader's own line in a ring's reader table excepted).
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from shm.errors import SegmentMissing
from shm.layout import MAX_RINGS
from shm.ring import RingInfo, RingReader, RingSet, Start, ring_info
from shm.segment import check_engine_name, segment_exists, segment_name

if TYPE_CHECKING:
    from shm.instruments import InstrumentTable
    from shm.latest import LatestTable
    from shm.status import StatusBlock


class Engine:
    """Handle of one engine on this host. Tables are attached when first asked for."""

    def __init__(self, name: str) -> None:
        """Raises SegmentMissing if no engine of that name has segments here."""
        self.name = check_engine_name(name)
        if not self.rings:
            raise SegmentMissing(f"no rings of an engine named {name!r} on this host: is it running under this name?")

    @property
    def rings(self) -> dict[int, RingInfo]:
        """Rings that exist now, by ring id."""
        return {
            ring_id: ring_info(self.name, ring_id)
            for ring_id in range(MAX_RINGS)
            if segment_exists(segment_name(self.name, f"r{ring_id}"))
        }

    def reader(
        self, *ring_ids: int, start: Start = "newest", label: str = "", reliable: bool = False, register: bool = True
    ) -> RingSet:
        """Readers of some rings, or of all of them; options as in `RingReader.attach`."""
        readers = RingSet()
        try:
            for ring_id in ring_ids or self.rings:
                readers.append(
                    RingReader.attach(
                        self.name, ring_id, start=start, label=label, reliable=reliable, register=register
                    )
                )
        except BaseException:
            readers.close()
            raise
        return readers

    @cached_property
    def instruments(self) -> InstrumentTable:
        """The symbol table."""
        from shm.instruments import InstrumentTable

        return InstrumentTable.attach(self.name)

    @cached_property
    def latest(self) -> LatestTable:
        """Latest values and the last records of each instrument."""
        from shm.latest import LatestTable

        return LatestTable.attach(self.name)

    @cached_property
    def status(self) -> StatusBlock:
        """Counters, gauges and latencies of every process."""
        from shm.status import StatusBlock

        return StatusBlock.attach(self.name)

    def __repr__(self) -> str:
        return f"<Engine {self.name!r} rings {sorted(self.rings)}>"


def attach(name: str = "main") -> Engine:
    """The engine of that name on this host. Raises SegmentMissing if there is none."""
    return Engine(name)
