"""Who replays a long file in a terminal sees how far it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.system.engine_process import EngineProcess, wait_for

pytestmark = pytest.mark.slow


def test_a_long_replay_tells_how_far_it_is(engine_name: str, tmp_path: Path, samples: Path) -> None:
    capture = samples / "websocket" / "COINBASE.jsonl.zst"
    with EngineProcess(engine_name, tmp_path, "--replay", str(capture), "--speed", "1") as engine:
        line = wait_for(
            "a bar", lambda: re.search(r"ingest-0 .*COINBASE \[[#-]{30}\] (\d+) %, [\d,]+ records", engine.output)
        )
        assert 0 <= int(line.group(1)) < 100
        assert engine.stop() == 0
