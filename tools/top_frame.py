"""One frame of `tickengine top`: a view of the engine as tables, what is wrong in colour and with its reason.

Pure: a `View` in, a rich renderable out. Called by tools/top.py, which shows it; it reads neither clock nor memory of
engines.
"""

from __future__ import annotations

from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.health import Verdict
from engine.sample import HOPS
from shm.ring import ReaderInfo
from shm.status import ProcessState, ProcessView
from tools.console import bytes_text, count_text, duration_text
from tools.observer import View

_VERDICT_STYLE: Final = {Verdict.HEALTHY: "green", Verdict.DEGRADED: "yellow", Verdict.UNHEALTHY: "bold red"}
_FEED_STYLE: Final = {
    "active": "green",
    "waiting": "dim",
    "ended": "dim",
    "stale": "bold red",
    "down": "bold red",
    "recovering": "bold red",
    "failed": "bold red",
}
_HOP_MEANING: Final = {
    "feed_latency": "received -> published",
    "ring_latency": "published -> read",
    "send_latency": "published -> sent",
}
# Counters that say how much a process takes in and gives out, by role. The first that exists is shown.
_IN: Final = ("records_read", "bytes_received")
_OUT: Final = ("records_published", "records_sent", "records_applied", "records_stored", "bars_published")
_LOSSES: Final = (
    "records_lost",
    "messages_dropped",
    "records_conflated",
    "records_shed",
    "records_rejected",
    "decode_errors",
    "l1_no_room",
)
_OVERLOAD: Final = {1.0: "conflating", 2.0: "shedding"}  # gauge `overload` of fan-out
_SLOW_LAG: Final = 0.5  # of the ring's depth: half way to losing records


def frame(view: View) -> RenderableType:
    """Everything, top to bottom."""
    parts: list[RenderableType] = [_title(view), _processes(view)]
    if view.feeds:
        parts.append(_feeds(view))
    parts.append(_hops(view))
    parts.append(_rings(view))
    parts.append(_readers(view))
    parts.append(_reasons(view))
    return Group(*parts)


def _title(view: View) -> Text:
    word = view.health.verdict.word.upper() if view.alive else "STOPPED"
    style = _VERDICT_STYLE[view.health.verdict] if view.alive else "bold red"
    rate = view.rate(view.now.published, view.before.published)
    title = Text.assemble(("tickengine ", "bold"), (view.engine, "bold cyan"), "  ", (word, style), "  ")
    if view.stopping and view.alive:
        title.append("stopping  ", "yellow")
    if view.started_ns and view.alive:
        title.append(f"up {duration_text(view.now.now_ns - view.started_ns)}  ")
    title.append(f"{count_text(rate)} records/s  {count_text(view.now.published)} records  {view.now.symbols} symbols")
    if isinstance(view.facts.get("http"), str):
        title.append(f"  {view.facts['http']}", "dim")
    return title


def _table(*columns: str) -> Table:
    """A plain table; a column whose name starts with "<" is left-aligned, the others right."""
    table = Table(box=None, padding=(0, 1), header_style="bold", pad_edge=False)
    for name in columns:
        left = name.startswith("<")
        table.add_column(name.lstrip("<"), justify="left" if left else "right", no_wrap=True)
    return table


def _processes(view: View) -> Table:
    table = _table(
        "<PROCESS", "PID", "<STATE", "CORE", "CPU", "MEM", "BEAT", "IN/s", "OUT/s", "LOST", "RST", "<PLACEMENT"
    )
    for process in view.now.processes:
        earlier = view.before.process(process.label)
        usage = view.usage.get(process.label)
        table.add_row(
            process.label,
            str(process.pid),
            _state(process),
            str(process.core) if process.core >= 0 else "-",
            f"{usage.cpu_percent:.0f}%" if usage else "-",
            bytes_text(usage.resident_bytes) if usage else "-",
            _beat(view, process),
            _flow(view, process, earlier, _IN),
            _flow(view, process, earlier, _OUT),
            _lost(process, earlier),
            Text(str(process.restarts), "yellow" if process.restarts else "dim"),
            Text(process.placement, "dim"),
        )
    return table


def _state(process: ProcessView) -> Text:
    if not process.alive:
        in_order = process.state is ProcessState.STOPPED
        return Text("stopped" if in_order else "dead", "dim" if in_order else "bold red")
    if process.state is ProcessState.READY and process.gauges.get("overload") in _OVERLOAD:
        return Text(_OVERLOAD[process.gauges["overload"]], "bold red")
    return Text(process.state.name.lower(), "green" if process.state is ProcessState.READY else "yellow")


def _beat(view: View, process: ProcessView) -> Text:
    if not process.alive:
        return Text("-")
    age_ns = max(0, view.now.now_ns - process.heartbeat_ns)
    return Text(duration_text(age_ns), "bold red" if age_ns > 1e9 else "")


def _flow(view: View, process: ProcessView, earlier: ProcessView | None, names: tuple[str, ...]) -> str:
    name = next((name for name in names if name in process.counters), None)
    if name is None or (name.startswith("bytes") and not process.counters[name]):
        return "-"
    before = earlier.counters.get(name, 0) if earlier is not None else 0
    unit = "B" if name.startswith("bytes") else ""
    return count_text(view.rate(process.counters[name], before)) + unit


def _lost(process: ProcessView, earlier: ProcessView | None) -> Text:
    total = sum(process.counters.get(name, 0) for name in _LOSSES)
    before = sum(earlier.counters.get(name, 0) for name in _LOSSES) if earlier is not None else total
    return Text(count_text(total), "bold red" if total > before else "yellow" if total else "dim")


def _feeds(view: View) -> Table:
    table = _table("<FEED", "<PROCESS", "<STATE", "RECORDS/s", "RECORDS", "LAST", "ERRORS", "GAPS")
    for feed_id, (name, state) in view.feeds.items():
        counts = view.now.feeds[feed_id]
        earlier = view.before.feeds.get(feed_id, counts)
        age_ns = view.now.now_ns - counts.last_update_ns  # negative: it came while we looked
        age = "never" if not counts.last_update_ns else "now" if age_ns < 1e6 else duration_text(age_ns)
        table.add_row(
            name,
            counts.label,
            Text(state, _FEED_STYLE.get(state, "")),
            count_text(view.rate(counts.records, earlier.records)),
            count_text(counts.records),
            Text(age, "bold red" if state == "stale" else ""),
            _grown(counts.errors, earlier.errors),
            _grown(counts.gaps, earlier.gaps),
        )
    return table


def _grown(now: int, before: int) -> Text:
    return Text(count_text(now), "bold red" if now > before else "yellow" if now else "dim")


def _hops(view: View) -> Table:
    table = _table("<LATENCY", "<HOP", "TIMES/s", "P50", "P99", "P99.9", "MAX")
    for process in view.now.processes:
        for name in sorted(process.histograms, key=lambda name: (name not in HOPS, name)):
            earlier = view.before.process(process.label)
            window = process.histograms[name]
            if earlier is not None and name in earlier.histograms and view.before is not view.now:
                window -= earlier.histograms[name]
            figures = [duration_text(window.percentile(q)) if window.count else "-" for q in (50, 99, 99.9, 100)]
            slow = window.count > 0 and window.percentile(99) > 1e8
            rate = count_text(window.count / view.window_s) if view.before is not view.now else "-"
            p50, p99, p999, most = figures
            hop = _HOP_MEANING.get(name, name)
            table.add_row(process.label, Text(hop, "dim"), rate, p50, Text(p99, "bold red" if slow else ""), p999, most)
    return table


def _rings(view: View) -> Table:
    table = _table("<RING", "<WRITER", "<ROLE", "RECORDS/s", "PUBLISHED", "SLOTS", "EPOCH")
    for ring_id, ring in view.now.rings.items():
        entry = view.now.entries.get(ring_id)
        earlier = view.before.rings.get(ring_id, ring)
        writer: Any = entry.label if entry else f"pid {ring.writer_pid}"
        if not ring.writer_alive and ring.writer_pid:
            writer = Text(f"{writer} is dead", "bold red")
        table.add_row(
            f"r{ring_id}",
            writer,
            entry.role if entry else "",
            count_text(view.rate(ring.published, earlier.published)),
            count_text(ring.published),
            count_text(ring.depth_slots),
            str(ring.epoch),
        )
    return table


def _readers(view: View) -> Table:
    table = _table("<READER", "RING", "PID", "LAG", "OF RING", "LOST", "<KIND")
    for ring_id, readers in view.now.readers.items():
        depth = view.now.rings[ring_id].depth_slots
        before = {reader.index: reader for reader in view.before.readers.get(ring_id, ())}
        for reader in readers:
            earlier = before.get(reader.index)
            table.add_row(
                reader.label,
                f"r{ring_id}",
                str(reader.pid),
                count_text(reader.lag),
                Text(f"{100 * reader.lag / depth:.0f}%", "bold red" if reader.lag > _SLOW_LAG * depth else ""),
                _grown(reader.lost, earlier.lost if earlier is not None and earlier.pid == reader.pid else reader.lost),
                _kind(reader),
            )
    return table


def _kind(reader: ReaderInfo) -> Text:
    if not reader.alive:
        return Text("dead", "bold red")
    if reader.demoted:
        return Text("demoted: too slow to be reliable", "bold red")
    return Text("reliable" if reader.reliable else "", "dim")


def _reasons(view: View) -> Text:
    text = Text()
    for check in sorted(view.health.checks, key=lambda check: -check.verdict):
        if check.verdict > Verdict.HEALTHY:
            text.append(f"! {check.name}: {check.why}\n", _VERDICT_STYLE[check.verdict])
    for ring_id, readers in view.now.readers.items():
        depth = view.now.rings[ring_id].depth_slots
        for reader in readers:
            if reader.alive and reader.lag > _SLOW_LAG * depth:
                percent = 100 * reader.lag // depth
                text.append(
                    f"! {reader.label} is slow: {count_text(reader.lag)} records behind in ring {ring_id}, "
                    f"{percent}% of it\n",
                    "yellow",
                )
    text.rstrip()
    return text if text else Text("nothing slow, stale or losing", "green")
