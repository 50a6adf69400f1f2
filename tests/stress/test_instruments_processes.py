"""Four processes intern overlapping symbols at once: every symbol has one number, the same everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from shm.instruments import InstrumentTable

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 4

CHILD = """
import json, random, sys
from shm.instruments import InstrumentTable
engine, seed = sys.argv[1], int(sys.argv[2])
table = InstrumentTable.attach(engine, write=True)
chance = random.Random(seed)
print("ready", flush=True)
sys.stdin.readline()
mine = {}
for _ in range(4000):
    symbol = f"SYM{chance.randrange(2000)}"
    number = table.intern(symbol)
    assert mine.setdefault(symbol, number) == number
    assert table.symbol(number) == symbol
json.dump(mine, sys.stdout)
"""


def test_every_symbol_has_one_number_in_all_processes(engine_name: str) -> None:
    table = InstrumentTable.create(engine_name)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, engine_name, str(seed)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(PROCESSES)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    seen = [json.loads(child.communicate(timeout=90)[0]) for child in children]
    assert [child.returncode for child in children] == [0] * PROCESSES

    symbols = table.symbols()
    assert len(symbols) == len(set(symbols)) == len(set().union(*seen))
    for mine in seen:
        assert mine == {symbol: table.find(symbol) for symbol in mine}
        assert all(symbols[number] == symbol for symbol, number in mine.items())
