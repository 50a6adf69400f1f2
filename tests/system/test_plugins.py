"""Sources of other packages in a whole engine: one that works, and others that raise, block, crash or flood."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shm.consumer import attach
from shm.layout import RecordType
from tests.system.engine_process import ROOT, EngineProcess, wait_for

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "tests" / "plugin_example"
ODDITIES = """
import os, time
from workers.plugin import Plugin, Rows

class Raises(Plugin):
    def poll(self, out, now_ns):
        raise ValueError("the vendor's library is broken")

class Blocks(Plugin):
    def poll(self, out, now_ns):
        time.sleep(3600)

class Crashes(Plugin):
    def poll(self, out, now_ns):
        os.abort()

class Floods(Plugin):
    def poll(self, out, now_ns):
        rows = Rows(out, self.context, now_ns)
        while not rows.full:
            rows.trade("FLOOD", 1.0, 1)
        return rows.count

class Hungry(Plugin):
    def poll(self, out, now_ns):
        self.eaten = bytearray(1 << 33)
"""


def installed_example(folder: Path) -> Path:
    """The example package, installed by pip into a folder of the test's own."""
    target = folder / "site"
    source = folder / "source"  # pip builds where the sources are, and the checkout is not to be written to
    subprocess.run(["cp", "-r", str(EXAMPLE), str(source)], check=True)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)], check=True)
    return target


def with_oddities(target: Path) -> dict[str, str]:
    """The environment of an engine that finds both packages."""
    (target / "oddities.py").write_text(ODDITIES)
    info = target / "oddities-2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: oddities\nVersion: 2\n")
    names = ("Raises", "Blocks", "Crashes", "Floods", "Hungry")
    lines = [f"{name.lower()} = oddities:{name}" for name in names]
    (info / "entry_points.txt").write_text("[tickengine.sources]\n" + "\n".join(lines) + "\n")
    return {"PYTHONPATH": os.pathsep.join((str(ROOT), str(target)))}


def feed_section(name: str, source: str, **options: Any) -> str:
    words = ", ".join(f"{key} = {value}" for key, value in options.items())
    return f'[[feeds]]\nname = "{name}"\nsource = "{source}"\noptions = {{{words}}}\n'


def one(engine: EngineProcess, feed_id: str) -> dict[str, Any]:
    found: dict[str, Any] = engine.json(f"/feeds/{feed_id}")
    return found


def trades_from(engine: EngineProcess) -> list[str]:
    """Where the trades of ACME came from."""
    return [point["source"] for point in engine.json("/data/ACME?data_type=trade")["data"]]


def grows(engine: EngineProcess, feed_id: str) -> Callable[[], bool]:
    before = one(engine, feed_id)["message_count"]
    return lambda: one(engine, feed_id)["message_count"] > before


def test_a_package_s_source_goes_through_the_whole_engine(engine_name: str, tmp_path: Path) -> None:
    env = with_oddities(installed_example(tmp_path))
    file = tmp_path / "lines.csv"
    file.write_text("T,ACME,101.25,300\nQ,ACME,101.2,101.3,500,400\nnonsense\n")
    config = tmp_path / "tickengine.toml"
    config.write_text("[workers]\nplugins = 2\n" + feed_section("lines", "linetail", file=f'"{file}"'))
    data = ("--data-dir", str(tmp_path / "kept"))
    with EngineProcess(engine_name, tmp_path, "--config", str(config), *data, env=env) as engine:
        engine.wait_ready()
        live = wait_for("both records", lambda: (f := one(engine, "lines"))["state"] == "active" and f)
        assert (live["state"], live["data_source"], live["error_count"]) == ("active", "linetail", 1)
        wait_for("L1 has the trade", lambda: trades_from(engine) == ["linetail"])
        assert engine.json("/data/ACME?data_type=quote")["data"][0]["source"] == "linetail"
        tail = [sys.executable, "-m", "tools", "tail", "--name", engine_name, "--from", "oldest", "--json", "trade"]
        printed = subprocess.run([*tail, "--count", "1"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert '"source": "linetail"' in printed

        listed = subprocess.run(
            [sys.executable, "-m", "tools", "plugins", "--json"],
            cwd=ROOT,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert '{"name": "linetail", "package": "tickengine-linetail 1.0", "class": "linetail:LineTail"' in listed
        body = {"symbol": "ACME", "data_source": "linetail", "options": {"file": str(tmp_path / "later.csv")}}
        status, created = engine.send("POST", "/feeds", body)
        assert (status, created["feed_id"]) == (201, "feed_acme_001")
        wait_for("it says why", lambda: "later.csv: No such file" in one(engine, "feed_acme_001")["why"])
        (tmp_path / "later.csv").write_text("T,ACME,102.5,10\nT,OTHER,1,1\n")
        wait_for("the file is there", lambda: trades_from(engine) == ["linetail"] * 2)
        status, refused = engine.send("POST", "/feeds", {**body, "symbol": "B"})
        assert status == 409
        assert "raise [workers] plugins" in refused["detail"]
        assert engine.send("POST", "/feeds", {**body, "data_source": "linetial"})[0] == 422
        assert engine.send("PATCH", "/feeds/feed_acme_001", {"paused": True})[1]["state"] == "paused"
        assert engine.send("DELETE", "/feeds/feed_acme_001", {})[0] == 200
        assert engine.send("POST", "/feeds", body)[0] == 201, "its process is free again"
        wait_for("the file from its start", lambda: trades_from(engine) == ["linetail"] * 3)
        assert "source_linetail" not in engine.get("/metrics/prometheus")[2].decode()
        point = {"symbol": "ACME", "data_type": "trade", "source": "linetail", "data": {"price": 7.0, "size": 1}}
        assert engine.send("POST", "/data/ingest", {"data": [point]})[1]["count"] == 1
        assert engine.stop() == 0
    bare = tmp_path / "bare.toml"
    bare.write_text("[simulate]\nenabled = true\n")
    again = EngineProcess(engine_name, tmp_path, "--config", str(bare), *data, env=env, base=engine.base)
    with again:  # the feed that was added has a place, and what was recorded still bears the name
        again.wait_ready()
        wait_for("the added feed", lambda: one(again, "feed_acme_001")["state"] == "active")
        wait_for("those from the journal too", lambda: trades_from(again) == ["linetail"] * 5)
        assert again.stop() == 0


def test_a_plugin_that_misbehaves_harms_its_own_feed_only(engine_name: str, tmp_path: Path) -> None:
    env = with_oddities(installed_example(tmp_path))
    file = tmp_path / "lines.csv"
    file.write_text("T,ACME,101.25,300\n")
    config = tmp_path / "tickengine.toml"
    config.write_text(
        "[simulate]\nenabled = true\nrate = 500\ninstruments = 5\n"
        + feed_section("good", "linetail", file=f'"{file}"')
        + "".join(feed_section(name, name) for name in ("raises", "blocks", "crashes", "hungry"))
        + feed_section("floods", "floods", limits="{max_rate = 5000}")
    )
    with EngineProcess(engine_name, tmp_path, "--config", str(config), env=env) as engine:
        engine.wait_ready()
        steady = {label: pid for label, pid in engine.pids().items() if not label.startswith("plugin-")}

        def why(name: str) -> str:
            return str(one(engine, name)["why"])

        wait_for("the one that raises", lambda: "ValueError: the vendor's library is broken" in why("raises"))
        wait_for("the one that is hungry", lambda: "MemoryError" in why("hungry"))
        for name in ("blocks", "crashes"):
            told = f"{name} (oddities 2) blocked or crashed in poll(), and its process was ended, 3 times in a row"
            wait_for(f"{name} is given up for a while", lambda told=told, name=name: told in why(name))  # type: ignore[misc]
            assert one(engine, name)["state"] == "failed"
            assert one(engine, name)["retry_at"] is not None
        wait_for("the flood goes on", grows(engine, "floods"))
        wait_for("the simulation goes on", grows(engine, "simulated"))
        with file.open("a") as lines:
            lines.write("T,ACME,101.5,1\n")
        wait_for("the good one goes on", grows(engine, "good"))
        assert {label: pid for label, pid in engine.pids().items() if label in steady} == steady
        health = engine.json("/health")
        assert health["status"] == "degraded"
        floods = attach(engine_name).reader(start="oldest", label="test")
        rings = {ring.ring_id for ring, batch in _some(floods) if (batch["feed_id"] == 6).any() and ring.ring_id != 1}
        assert len(rings) == 1  # beside that of the bars
        assert engine.stop() == 0


def _some(readers: Any) -> Any:
    """What the rings hold now."""
    from shm import empty

    out = empty(4096)
    for reader in readers:
        for _ in range(64):
            count = reader.read(out)
            if not count:
                break
            keep = out[:count]
            yield reader, keep[keep["record_type"] != RecordType.STATUS]
