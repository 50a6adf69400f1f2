"""The benchmark runner: what it reports, when it refuses to report, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from perf.__main__ import BENCHMARKS, main, run_one
from perf.errors import BenchmarkFailed, PeerMissing, RoleFailed, Skipped
from perf.plot import write_histogram
from perf.process import Child, Pipe, scratch_engine
from perf.report import Row, Target, compare, figure
from perf.rounds import Plan, Series, alternate
from perf.ticks import check_ticks, ticks
from shm.ring import RingReader, RingWriter
from shm.segment import list_segments

PROMISED = {
    "publish_single",
    "publish_batch",
    "read_concurrent",
    "readers_slowdown",
    "latency_native",
    "latency_python",
    "fanout_raw",
    "fanout_batch",
    "fanout_latency",
    "replay_dbn",
    "replay_itch",
    "replay_iex",
    "replay_binance",
    "fix_decode",
    "memory_per_record",
    "control_rss",
    "start_time",
    "idle_cpu",
}
HIGHER = Target(100.0, "higher")
LOWER = Target(100.0, "lower")


def test_all_promised_benchmarks_are_there_and_can_be_called() -> None:
    assert set(BENCHMARKS) >= PROMISED
    for place in BENCHMARKS.values():
        module, function = place.split(":")
        assert callable(getattr(import_module(module), function)), place


def test_every_benchmark_module_states_its_question_topology_and_proof() -> None:
    for module in {place.split(":")[0] for place in BENCHMARKS.values()}:
        text = import_module(module).__doc__ or ""
        assert "?" in text.splitlines()[0], f"{module}: the first line asks the question"
        assert "-->" in text, f"{module}: the topology is drawn"
        assert "Verified" in text, f"{module}: says what is verified"


def test_json_row_has_exactly_the_promised_keys() -> None:
    row = Row("a", 1.0, "records/s", target=HIGHER, met=False)
    assert list(row.as_json()) == ["name", "value", "unit", "peer", "peer_value", "ratio", "runs", "note"]


@pytest.mark.parametrize(("target", "ours", "peer", "ratio"), [(HIGHER, 200.0, 50.0, 4.0), (LOWER, 50.0, 200.0, 4.0)])
def test_ratio_says_how_many_times_better_whatever_the_unit(
    target: Target, ours: float, peer: float, ratio: float
) -> None:
    row = compare("a", "x", Series([ours]), "peer", Series([peer]), target=target, note="")
    assert row.ratio == ratio
    assert row.met


def test_ratio_to_the_machine_can_meet_the_target_where_the_figure_does_not() -> None:
    row = compare("a", "x", Series([50.0]), "memcpy", Series([60.0]), target=HIGHER, note="", ratio_target=0.6)
    assert row.met
    row = compare("a", "x", Series([50.0]), "memcpy", Series([100.0]), target=HIGHER, note="", ratio_target=0.6)
    assert not row.met


def test_missing_peer_leaves_the_figure_and_says_why() -> None:
    row = compare("a", "x", Series([150.0]), "peer", Series(missing="not installed"), target=HIGHER, note="fast")
    assert (row.value, row.ratio, row.met) == (150.0, None, True)
    assert "not installed" in row.note


def test_alternate_throws_the_warm_up_away_and_measures_in_turn() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    ours, theirs = alternate(Plan(runs=2), lambda: measure("ours"), lambda: measure("theirs"))
    assert order == ["ours", "theirs"] * 3
    assert (ours.values, theirs.values) == ([3.0, 5.0], [4.0, 6.0])


def test_alternate_goes_on_without_a_peer_that_is_missing() -> None:
    def missing() -> float:
        raise PeerMissing("no such library")

    ours, theirs = alternate(Plan(runs=3), lambda: 1.0, missing)
    assert ours.values == [1.0] * 3
    assert (theirs.values, theirs.missing) == ([], "no such library")


def test_lost_data_becomes_a_failed_row_without_a_figure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lossy(_: Plan) -> Row:
        raise BenchmarkFailed("record 7 is missing")

    monkeypatch.setitem(BENCHMARKS, "publish_single", "perf.publish:single")
    monkeypatch.setattr("perf.publish.single", lossy)
    row = run_one("publish_single", Plan(runs=1))
    assert row.failed
    assert row.value is None
    assert "record 7 is missing" in row.note
    file = tmp_path / "rows.json"
    assert main(["--only", "publish_single", "--json", str(file)]) == 1
    assert json.loads(file.read_text())[0]["value"] is None


def test_benchmark_that_can_not_run_here_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def skipped(_: Plan) -> Row:
        raise Skipped("no compiler")

    monkeypatch.setattr("perf.publish.single", skipped)
    row = run_one("publish_single", Plan(runs=1))
    assert not row.failed
    assert "no compiler" in row.note


@pytest.mark.parametrize("break_it", ["lose", "swap", "tear"])
def test_check_of_records_finds_loss_disorder_and_torn_records(break_it: str) -> None:
    with scratch_engine() as engine, RingWriter.create(engine, 2, depth_slots=64) as writer:
        writer.publish_batch(ticks(8))
        writer.publish_batch(ticks(8))
        with RingReader.attach(engine, 2, start="oldest") as reader:
            held = np.zeros(16, dtype=reader.slots.dtype)
            assert reader.read(held) == 16
    check_ticks(held, 1, 8)
    if break_it == "lose":
        held = held[1:]
    elif break_it == "swap":
        held["source_sequence"][[3, 4]] = held["source_sequence"][[4, 3]]
    else:
        held["price"][5] = held["price"][6]
    with pytest.raises(BenchmarkFailed):
        check_ticks(held, 1, 8)


def _echo(pipe: Pipe, word: str) -> None:
    pipe.say(word + pipe.hear())


def _lose(_: Pipe) -> None:
    raise BenchmarkFailed("two records lost")


def _break(_: Pipe) -> None:
    raise ZeroDivisionError("broken role")


def test_role_runs_in_a_process_of_its_own_and_what_it_raises_is_raised_here() -> None:
    with Child(_echo, "tick") as echo, Child(_lose) as lossy, Child(_break) as broken:
        assert echo.pid != os.getpid()
        echo.tell("engine")
        assert echo.hear() == "tickengine"
        with pytest.raises(BenchmarkFailed, match="two records lost"):
            lossy.hear()
        with pytest.raises(RoleFailed, match="broken role"):
            broken.hear()


def test_scratch_engine_leaves_no_segment_behind_though_its_writer_is_still_open() -> None:
    with scratch_engine() as engine:
        RingWriter.create(engine, 0, depth_slots=16)
        assert list_segments(engine)
    assert not list_segments(engine)


def test_histogram_is_a_picture_of_each_subject(tmp_path: Path) -> None:
    path = tmp_path / "out" / "latency.svg"
    write_histogram(path, "a < b", {"native": np.array([100, 150, 9_000_000]), "peer": np.array([1900, -5])})
    root = ElementTree.parse(path).getroot()
    assert len(root.findall("{*}polyline")) == 2
    assert any("median 150 ns" in (text.text or "") for text in root.iter("{http://www.w3.org/2000/svg}text"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.5, "0.50"), (123.44, "123.4"), (64321.0, "64,321"), (12.3e6, "12.3 M"), (289e6, "289 M")],
)
def test_figures_are_short(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_command_line_runs_a_benchmark_end_to_end(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    command = [sys.executable, "-m", "perf", "--quick", "--runs", "1", "--only", "publish_batch", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text())
    assert row["name"] == "publish_batch"
    assert row["value"] > 0
    assert row["ratio"] == pytest.approx(row["value"] / row["peer_value"])
    assert "publish_batch" in done.stdout
    assert json.loads(file.with_suffix(".machine.json").read_text())["cores"] >= 1
