"""How a capture is shown: every connection with what it does, losses in plain sight, names as they are."""

from __future__ import annotations

from rich.console import Console

from tools.capture_frame import CaptureView, ConnectionView, frame, line

UP = ConnectionView("binance", "0", "up", 12_345, 3 << 20, 250.0, 2, 120_000_000)
DOWN = ConnectionView("[b]kraken", "1", "down", 7, 900, 0.0, 1, None, "the connection broke off")
HTTP = ConnectionView("binance", "http", "-", 3, 9_000, 0.0, 3, 10**9)


def view(**changes: object) -> CaptureView:
    values: dict[str, object] = {
        "seconds": 12.0,
        "of_seconds": 60.0,
        "written_bytes": 400_000,
        "waiting_bytes": 512,
        "files": 2,
        "dropped": 0,
        "records": 1,
        "connections": [UP, HTTP, DOWN],
    }
    return CaptureView(**{**values, **changes})  # type: ignore[arg-type]


def shown(one: CaptureView, *, ended: bool = False) -> str:
    console = Console(width=140, no_color=True)
    with console.capture() as capture:
        console.print(frame(one, ended=ended))
    return capture.get()


def test_the_table_has_a_row_for_each_connection_and_the_sum_below() -> None:
    text = shown(view())
    rows = [row.split() for row in text.splitlines()]
    assert rows[1] == ["binance", "0", "up", "12.3k", "250/s", "3.0", "MiB", "2", "120ms"]
    assert rows[3][:3] == ["[b]kraken", "1", "down"]
    assert "the connection broke off" in text
    assert "12s of 1m00s   12,355 messages, 3.0 MiB   391 KiB in 2 files   512 B waiting   0 dropped" in text
    assert "Ctrl-C ends it" in text
    assert "Ctrl-C" not in shown(view(), ended=True)


def test_the_line_says_who_is_down_and_why() -> None:
    text = line(view(dropped=1_234))
    assert text == (
        "capture: 12s: 12,355 messages, 3.0 MiB, 1 of 2 connections up, 391 KiB in 2 files, 1,234 dropped; "
        "[b]kraken: the connection broke off"
    )
    assert line(view(connections=[UP, HTTP])).endswith("1 of 1 connections up, 391 KiB in 2 files, 0 dropped")
