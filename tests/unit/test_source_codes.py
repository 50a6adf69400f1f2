"""Codes of plug-in sources: one a name, for ever, and known to whoever turns records into words."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import load
from engine.errors import ConfigError
from engine.feed_settings import FeedSection
from engine.plan import make_plan
from engine.source_codes import SourceCodes
from engine.store import Store
from shm import source_names
from shm.message import source_name
from shm.source_names import FIRST_CODE, LAST_CODE, SourceNames
from shm.status import StatusBlock
from workers.spec import IngestSettings


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that brings `first`, `second` and, against the rules, `replay`."""
    info = tmp_path / "some_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-package\nVersion: 1\n")
    names = ("first", "second", "replay")
    lines = "".join(f"{name} = nowhere:{name}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[tickengine.sources]\n{lines}")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_name_keeps_its_code_over_restarts(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    codes = SourceCodes(store)
    told: dict[str, int] = {}
    assert codes.for_start(["second", "simulated", "replay", "not-installed"]) == {"second": FIRST_CODE}
    codes.tell(told.__setitem__)
    assert codes.code_of("first") == FIRST_CODE + 1
    assert told == {"second": FIRST_CODE, "first": FIRST_CODE + 1}
    store.close()
    again = SourceCodes(Store(tmp_path / "data"))
    assert again.code_of("second") == FIRST_CODE
    assert again.for_start(["first"]) == {"first": FIRST_CODE + 1}


def test_nothing_is_written_where_no_plugin_is_used(tmp_path: Path) -> None:
    SourceCodes(Store(tmp_path / "data")).for_start(["simulated", "replay", "mock", "typo"])
    assert not (tmp_path / "data").exists()


def test_when_all_codes_are_given_the_next_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "data")
    for code in range(FIRST_CODE, LAST_CODE + 1):
        store.put_source_code(f"old-{code}", code)
    with pytest.raises(ConfigError, match="all 192 codes"):
        SourceCodes(store).for_start(["first"])


def test_readers_learn_names_from_the_status_block_and_look_again_once_a_second(engine_name: str) -> None:
    block = StatusBlock.create(engine_name, process_slots=2)
    control = block.register("control", "control")
    now_s = 100.0
    names = SourceNames(StatusBlock.attach(engine_name), clock=lambda: now_s)
    assert source_name(64, names) == "plugin_0"
    source_names.tell(control, "first", 64)
    assert source_name(64, names) == "plugin_0", "it has looked a moment ago"
    now_s += 1.0
    assert source_name(64, names) == "first"
    assert source_name(10, names) == "replay"
    assert 65 not in names
    block.close()


def test_each_plugin_feed_has_a_process_and_a_ring_and_more_are_kept_free(tmp_path: Path) -> None:
    config = load(None, {}, {"workers.plugins": 3, "simulate.enabled": True})
    feeds = tuple(FeedSection(name=f"f-{source}", source=source) for source in ("second", "first"))
    config = type(config)(**{name: getattr(config, name) for name in config.__struct_fields__} | {"feeds": feeds})
    plan = make_plan(config, tmp_path, source_codes={"first": 64, "second": 65})
    found = {w.label: w.settings for w in plan.workers if isinstance(w.settings, IngestSettings)}
    assert list(found) == ["ingest-0", "plugin-0", "plugin-1", "plugin-2"]
    assert [[feed.source for feed in worker.feeds] for worker in found.values()] == [
        ["simulated"],
        ["second"],
        ["first"],
        [],
    ]
    assert [worker.ring_id for worker in found.values()] == [2, 3, 4, 5]
    assert [worker.isolated for worker in found.values()] == [False, True, True, True]
    assert [feed.source_code for feed in plan.feeds] == [65, 64, 0]
    (cache,) = (w.settings for w in plan.workers if w.label == "cache")
    assert cache.rings == (0, 2, 3, 4, 5)  # type: ignore[attr-defined]


def test_more_processes_than_rings_are_refused(tmp_path: Path) -> None:
    config = load(None, {}, {"workers.plugins": 13, "workers.ingest": 2})
    feeds = tuple(FeedSection(name=f"f-{n}", source="simulated") for n in range(2))
    config = type(config)(**{name: getattr(config, name) for name in config.__struct_fields__} | {"feeds": feeds})
    with pytest.raises(ConfigError, match="more than the 14 that have a ring"):
        make_plan(config, tmp_path)
