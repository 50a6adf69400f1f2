"""The host of plug-ins: what a good one delivers, and that whatever a bad one does ends in a report, not in a raise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import Flag, RecordType, Side, StatusCode, concatenate, empty
from workers import plugins
from workers.errors import SettingsError
from workers.source import SourceContext, open_source
from workers.sources import hosted
from workers.sources.hosted import HostedSource
from workers.spec import FeedSpec

DEADLINE_S = 60
START_NS = 1_700_000_000_000_000_000
MODULE = """
import numpy as np
from workers.plugin import *

class Good(Plugin):
    def poll(self, out, now_ns):
        rows = Rows(out, self.context, now_ns)
        rows.trade("ACME", 10.5, 3, trade_id=7, side=Side.BUY, venue="XTST")
        rows.quote("ACME", 10, 11, bid_size=1, ask_size=2)
        rows.bar("ACME", first=1, high=4, low=1, last=2, interval_s=60, start_ns=now_ns)
        rows.level("ACME", Side.SELL, 11, 5, action=Action.ADD)
        rows.news("ACME", "A headline that is longer than what one record of the engine holds in its body")
        rows.gap(5, 9, "ACME", "lost")
        self.next_due_ns = now_ns + 1_000_000_000
        return rows.count

class Options(Plugin):
    def __init__(self, context):
        import msgspec
        super().__init__(context)
        read_options(context.spec, msgspec.defstruct("O", [("path", str)]))

class RaisesOnce(Good):
    raised = 0
    def poll(self, out, now_ns):
        if not RaisesOnce.raised:
            RaisesOnce.raised = 1
            raise KeyError("nonsense")
        return super().poll(out, now_ns)

class Exits(Plugin):
    def __init__(self, context):
        raise SystemExit(3)

class TooMany(Plugin):
    def poll(self, out, now_ns):
        return len(out) + 1

class Textual(Plugin):
    def poll(self, out, now_ns):
        return "three"

class Ends(Good):
    def poll(self, out, now_ns):
        count = super().poll(out, now_ns)
        self.next_due_ns = None
        return count

class BadDue(Good):
    def poll(self, out, now_ns):
        count = super().poll(out, now_ns)
        self.next_due_ns = "soon"
        return count

class Floods(Plugin):
    def poll(self, out, now_ns):
        rows = Rows(out, self.context, now_ns)
        while not rows.full:
            rows.trade("ACME", 1.0, 1)
        return rows.count

class ManySymbols(Plugin):
    n = 0
    def poll(self, out, now_ns):
        rows = Rows(out, self.context, now_ns)
        ManySymbols.n += 1
        rows.trade(f"S{ManySymbols.n}", 1.0, 1)
        return rows.count

class Wrong(Plugin):
    def poll(self, out, now_ns):
        rows = Rows(out, self.context, now_ns)
        for _ in range(12):
            rows.trade("ACME", 10.0, 1)
        rows.quote("ACME", 1, 2)
        rows.bar("ACME", first=1, high=1, low=1, last=1, interval_s=60, start_ns=now_ns)
        out["price"][0] = np.nan
        out["instrument_id"][1] = 4000
        out["record_type"][2] = 9
        out["ts_event"][3] = now_ns // 1_000_000_000
        out["ts_event"][4] = now_ns + 10 * 86_400_000_000_000
        out["side"][5] = 7
        out["record_type"][6] = 7
        out["price"][7] = np.inf
        out["bid"][12] = out["ask"][12] = np.nan
        out["interval_s"][13] = 0
        self.next_due_ns = now_ns + 1_000_000_000
        return rows.count

class NoPoll:
    def __init__(self, context):
        pass

not_a_class = 5
"""


class Feed:
    """A hosted plug-in, the clock that it is polled by, and all that came of it."""

    def __init__(self, name: str, counter: Callable[[str], Any] | None = None, **options: Any) -> None:
        self.ids: dict[str, int] = {}
        spec = FeedSpec(feed_id=9, name="mine", source=name, source_code=70, options=options)
        intern = lambda symbol: self.ids.setdefault(symbol, len(self.ids) + 40)  # noqa: E731
        source = open_source(SourceContext(spec, intern, counter=counter))
        assert isinstance(source, HostedSource)
        self.source = source
        self.now_ns = START_NS
        self._batches = [empty(0)]

    def poll(self, room: int = 512) -> np.ndarray:
        out = empty(room)
        count = self.source.poll(out, self.now_ns)
        self._batches.append(out[:count])
        return self._batches[-1]

    def until(self, condition: Callable[[], Any]) -> Any:
        """Poll when it is due, by a clock that jumps there; the import of a module takes real time."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            self.poll()
            if found := condition():
                return found
            importing = self.source._importing
            if importing is not None:
                importing.join(DEADLINE_S)
            due_ns = self.source.next_due_ns
            self.now_ns = max(self.now_ns + 1, self.now_ns if due_ns is None else due_ns)
        raise AssertionError(f"in vain; {self.source.report}")

    @property
    def records(self) -> np.ndarray:
        return concatenate(self._batches)

    @property
    def market(self) -> np.ndarray:
        rows = self.records
        keep = (rows["record_type"] != RecordType.STATUS) | (rows["code"] == StatusCode.GAP)
        return rows.view(np.uint8).reshape(len(rows), 128)[keep].reshape(-1).view(rows.dtype)

    @property
    def said(self) -> list[tuple[StatusCode, str]]:
        rows = self.records
        return [
            (StatusCode(row["code"]), row["text"].decode()) for row in rows if row["record_type"] == RecordType.STATUS
        ]

    @property
    def why(self) -> str:
        return self.source.report.why

    @property
    def state(self) -> str:
        return self.source.report.state


class Counters:
    """Counters that outlive a source, as those of the status block do."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def __call__(self, name: str) -> Any:
        return self.found.setdefault(name, hosted._Uncounted())

    def __getitem__(self, name: str) -> int:
        return int(self.found[f"plugin.9.{name}"].value)


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package on the path whose entry points are the classes above."""
    names = [line.split("(")[0].removeprefix("class ").rstrip(":") for line in MODULE.splitlines() if "class " in line]
    entries = [f"{name.lower()} = oddities:{name}" for name in names if name]
    entries += ["gone = oddities:Nobody", "absent = no_such_module:X", "number = oddities:not_a_class"]
    entries += ["websocket = oddities:Good", "mock = oddities:Good", "Good = oddities:Good"]
    _package(tmp_path, "oddities-package", "oddities", MODULE, entries)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("oddities", None)


def _package(folder: Path, package: str, module: str, text: str, entries: list[str]) -> None:
    (folder / f"{module}.py").write_text(text)
    info = folder / f"{package.replace('-', '_')}-2.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text("[tickengine.sources]\n" + "\n".join(entries) + "\n")


def test_every_kind_of_record_that_an_author_can_make_arrives() -> None:
    feed = Feed("good")
    feed.until(lambda: feed.state == "live")
    rows = feed.market
    assert rows["record_type"].tolist() == [4, 2, 3, 5, 6, 6, 7]
    assert set(rows["feed_id"].tolist()) == {9}
    assert set(rows["source"].tolist()) == {70}
    assert set(rows["instrument_id"].tolist()) == {feed.ids["ACME"]}
    trade, quote, bar, level, first, last, gap = rows
    assert (trade["price"], trade["size"], trade["trade_id"], trade["side"], trade["venue"]) == (
        10.5,
        3.0,
        7,
        Side.BUY,
        b"XTST",
    )
    assert (quote["mid"], quote["spread"]) == (10.5, 1.0)
    assert (bar["high"], bar["interval_s"]) == (4.0, 60)
    assert np.isnan(bar["vwap"])
    assert (level["side"], level["level"], level["action"]) == (Side.SELL, 65535, 1)
    assert first["flags"] & Flag.CONTINUES
    assert not last["flags"] & Flag.CONTINUES
    assert (gap["from_sequence"], gap["to_sequence"]) == (5, 9)
    assert [code for code, _ in feed.said] == [StatusCode.GAP, StatusCode.FEED_UP]
    assert feed.source.report.health_score == 1.0


def test_what_a_plugin_raises_is_told_and_it_is_made_anew() -> None:
    feed = Feed("raisesonce")
    feed.until(lambda: feed.state == "live")
    assert feed.said[0] == (StatusCode.FEED_DOWN, "raisesonce (oddities-package 2.1): poll(")
    assert feed.source.errors == 1
    assert feed.source.report.reconnects == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("exits", "its constructor: SystemExit: 3"),
        ("toomany", "poll() returned"),
        ("textual", "poll() returned str, not a number"),
        ("baddue", "next_due_ns is 'soon'"),
        ("nopoll", "NoPoll has no poll()"),
        ("gone", "can't be imported: AttributeError"),
        ("absent", "can't be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("number", "is no class"),
        ("options", "Object missing required field `path`"),
    ],
)
def test_nonsense_ends_the_plugin_s_session_with_a_reason_that_names_it(name: str, why: str) -> None:
    feed = Feed(name)
    feed.until(lambda: feed.state in ("recovering", "failed"))
    assert why in feed.why
    assert name in feed.why
    assert "oddities-package 2.1" in feed.why or name == "options"
    assert feed.source.errors >= 1


def test_settings_that_can_not_work_rest_long() -> None:
    feed = Feed("options")
    feed.until(lambda: feed.state == "failed")
    assert feed.source.report.retry_at_ns - feed.now_ns > 30e9


def test_a_plugin_that_has_no_more_ends() -> None:
    feed = Feed("ends")
    feed.until(lambda: feed.source.next_due_ns is None)
    assert len(feed.market) == 7


def test_wrong_records_are_left_out_counted_and_named_by_field() -> None:
    counters = Counters()
    feed = Feed("wrong", counters)
    feed.until(lambda: feed.state == "live")
    assert feed.market["record_type"].tolist() == [4] * 4
    assert feed.source.errors == counters["refused"] == 10
    (text,) = (text for code, text in feed.said if code is StatusCode.REJECTED)
    assert text.startswith("record_type is 9: ")
    assert "10 records left out: wrong (oddities-package 2.1): record_type is 9" in feed.why
    assert feed.source.report.degraded


def test_a_flood_is_held_back_to_the_rate_and_nothing_of_it_is_dropped() -> None:
    counters = Counters()
    feed = Feed("floods", counters, limits={"max_rate": 1000})
    feed.until(lambda: len(feed.market))
    begun_ns, before = feed.now_ns, len(feed.market)
    feed.until(lambda: feed.now_ns - begun_ns > 2e9)
    assert 1900 <= len(feed.market) - before <= 2200
    assert counters["held_back"] > 0


def test_symbols_are_bounded() -> None:
    feed = Feed("manysymbols", limits={"max_symbols": 5})
    feed.until(lambda: feed.state == "recovering")
    assert "more than limits.max_symbols, 5" in feed.why
    assert len(feed.ids) == 5


def test_a_process_that_ended_within_the_plugin_is_told_and_the_third_time_it_rests() -> None:
    counters = Counters()
    for times in (1, 2, 3):
        counters("plugin.9.inside").set(hosted.DOING.index("poll()"))
        feed = Feed("good", counters)
        feed.poll()
        assert "blocked or crashed in poll()" in feed.why
        assert (counters["blocked"], counters["blocked_in_a_row"]) == (times, times)
        assert feed.state == ("failed" if times == 3 else "recovering")
        assert feed.said == [(StatusCode.FEED_DOWN, feed.said[0][1])]
    assert feed.source.report.retry_at_ns - feed.now_ns >= 60e9
    feed.until(lambda: feed.state == "live")
    assert counters["inside"] == 0
    feed.until(lambda: counters["blocked_in_a_row"] == 0)


def test_names_are_looked_up_and_conflicts_refused() -> None:
    found = {plugin.name: plugin for plugin in plugins.installed()}
    assert found["good"].package == "oddities-package 2.1"
    assert not found["good"].refused
    assert "the engine's own" in found["websocket"].refused
    assert "the engine's own" in found["mock"].refused
    assert "is no name for a source" in found["Good"].refused
    assert plugins.find("websocket") is None
    with pytest.raises(SettingsError, match="did you mean 'floods'"):
        Feed("flods")
    with pytest.raises(SettingsError, match="the engine's own"):
        Feed("mock")
    with pytest.raises(SettingsError, match=r"no option limits\.max_rat; did you mean 'max_rate'"):
        Feed("good", limits={"max_rat": 1})
    with pytest.raises(SettingsError, match=r"options\.limits"):
        Feed("good", limits=5)


def test_two_packages_with_one_name_are_refused_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    _package(other, "second-package", "second", MODULE, ["good = second:Good"])
    monkeypatch.syspath_prepend(str(other))
    with pytest.raises(SettingsError, match=r"oddities-package 2.1 and second-package 2.1 both bring a source 'good'"):
        Feed("good")


def test_without_a_plugin_nothing_installed_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(**_: Any) -> None:
        raise AssertionError("entry points were looked at")

    monkeypatch.setattr(plugins, "entry_points", never)
    open_source(SourceContext(FeedSpec(feed_id=1, name="s", source="simulated"), lambda _: 1)).close()
