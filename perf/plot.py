"""A histogram of latencies as an SVG file: logarithmic time, one outline a subject. Needs nothing but numpy."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

_WIDTH, _HEIGHT = 900, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 40, 50
_COLOURS = ("#1764ab", "#d9480f", "#2b8a3e", "#862e9c")
_FROM_NS, _TO_NS = 50.0, 1e6


def write_histogram(path: Path, title: str, subjects: dict[str, np.ndarray]) -> None:
    """Draw the distributions of `subjects` (name -> ns, any shape) into `path`; each is scaled to its own peak."""
    edges = np.geomspace(_FROM_NS, _TO_NS, 161)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-size="12">',
        "<style>text { font-family: sans-serif }</style>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="15">{escape(title)}</text>',
    ]
    base = _HEIGHT - _BOTTOM
    for label, value_ns in (("100 ns", 1e2), ("1 µs", 1e3), ("10 µs", 1e4), ("100 µs", 1e5), ("1 ms", 1e6)):
        x = _x(value_ns)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{base}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{label}</text>')
    parts.append(f'<line x1="{_LEFT}" y1="{base}" x2="{_WIDTH - _RIGHT}" y2="{base}" stroke="black"/>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle">one way, logarithmic</text>')
    for place, (name, taken_ns) in enumerate(subjects.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        counts, _ = np.histogram(np.clip(taken_ns, _FROM_NS, _TO_NS), bins=edges)
        heights = base - counts / max(1, counts.max()) * (base - _TOP)
        points = [f"{_x(edges[0]):.1f},{base}"]
        for left, right, y in zip(edges[:-1], edges[1:], heights, strict=True):
            points += [f"{_x(left):.1f},{y:.1f}", f"{_x(right):.1f},{y:.1f}"]
        points.append(f"{_x(edges[-1]):.1f},{base}")
        parts.append(f'<polyline points="{" ".join(points)}" fill="{colour}" fill-opacity="0.15" stroke="{colour}"/>')
        p50, p99, p999 = np.percentile(taken_ns, [50, 99, 99.9])
        legend = f"{name}: median {p50:,.0f} ns, p99 {p99:,.0f}, p99.9 {p999:,.0f} ({np.size(taken_ns):,} records)"
        y = _TOP + 16 + 18 * place
        parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{y}" text-anchor="end" fill="{colour}">{escape(legend)}</text>')
    parts.append("</svg>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _x(value_ns: float) -> float:
    share = np.log(value_ns / _FROM_NS) / np.log(_TO_NS / _FROM_NS)
    return float(_LEFT + share * (_WIDTH - _LEFT - _RIGHT))
