"""What the benchmarks found: rows, the table that people read, the JSON that programs read.

`ratio` always says how many times better than its peer our figure is: our rate by the peer's rate, or the peer's time
by our time. 2.0 is twice as good, 0.8 is a fifth worse, whatever the unit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from perf.rounds import Series

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Target:
    """What a figure should be: at least (`better="higher"`) or at most `value`, in the row's unit."""

    value: float
    better: Better

    def met_by(self, value: float) -> bool:
        """Whether `value` is good enough."""
        return value >= self.value if self.better == "higher" else value <= self.value


@dataclass(frozen=True)
class Row:
    """One line of the report. `value` None: nothing was measured, `note` says why; `failed`: data was lost or wrong."""

    name: str
    value: float | None
    unit: str
    peer: str = ""
    peer_value: float | None = None
    ratio: float | None = None
    runs: int = 0
    note: str = ""
    target: Target | None = None
    met: bool | None = None  # None: no target, or no value
    failed: bool = False

    def as_json(self) -> dict[str, Any]:
        """The row as the JSON file holds it."""
        keys = ("name", "value", "unit", "peer", "peer_value", "ratio", "runs", "note")
        return {key: getattr(self, key) for key in keys}


def compare(
    name: str,
    unit: str,
    ours: Series,
    peer: str,
    theirs: Series | None,
    *,
    target: Target,
    note: str,
    ratio_target: float | None = None,
) -> Row:
    """A row from two Series measured in turn. Reaching `ratio_target`, if given, meets the target too."""
    value = ours.median
    peer_value = ratio = None
    if theirs is not None and theirs.missing:
        note = f"{note}; no peer: {theirs.missing}"
    elif theirs is not None:
        peer_value = theirs.median
        ratio = value / peer_value if target.better == "higher" else peer_value / value
    met = target.met_by(value) or (ratio_target is not None and ratio is not None and ratio >= ratio_target)
    return Row(name, value, unit, peer, peer_value, ratio, len(ours.values), note, target, met)


def figure(value: float | None) -> str:
    """A number with three or four digits that matter; millions as `12.3 M`."""
    if value is None:
        return "-"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:,.{0 if size >= 1e8 else 1}f} M"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}"


def print_table(rows: Iterable[Row], title: str, console: Console | None = None) -> None:
    """The rows as a table on the terminal, and their notes below it."""
    console = console or Console()
    if not console.is_terminal:
        console.width = 120
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("benchmark", no_wrap=True)
    table.add_column("figure", justify="right", no_wrap=True)
    table.add_column("target", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("to peer")
    rows = list(rows)
    for row in rows:
        target = ""
        if row.target is not None:
            sign = ">=" if row.target.better == "higher" else "<="
            target = f"{'met' if row.met else 'missed'}, {sign} {figure(row.target.value)}"
        table.add_row(
            row.name,
            "-" if row.value is None else f"{figure(row.value)} {row.unit}",
            "FAILED" if row.failed else target,
            figure(row.ratio),
            row.peer if row.peer_value is None else f"{row.peer}: {figure(row.peer_value)}",
        )
    console.print(title, markup=False, highlight=False)
    console.print(table)
    for row in rows:
        runs = f" (median of {row.runs})" if row.runs else ""
        console.print(f"{row.name}{runs}: {row.note}", markup=False, highlight=False, soft_wrap=True)


def write_json(rows: Iterable[Row], path: Path) -> None:
    """The rows as a JSON list of objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n")
