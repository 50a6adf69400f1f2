"""Patterns of `tickengine tail` against the plain glob: the fast choice, the slow one and the subscription agree."""

from __future__ import annotations

from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st

from shm.layout import TYPE_NAMES, empty
from tools.topic_filter import TopicFilter

SYMBOLS = ("AAPL", "AAPLW", "BRK.B", "BTC-USD", "A")
GLOBS = st.text("AP*?B.[", min_size=1, max_size=4)


@given(kind=st.sampled_from(TYPE_NAMES[1:]), symbol=st.sampled_from(SYMBOLS), glob=GLOBS)
def test_rings_and_wire_pass_exactly_what_the_glob_matches(kind: str, symbol: str, glob: str) -> None:
    wanted = TopicFilter([f"{kind}.{glob}"])
    record = empty(1)
    record["record_type"], record["instrument_id"] = TYPE_NAMES.index(kind), SYMBOLS.index(symbol)
    expected = fnmatchcase(symbol, glob)
    assert wanted.matches(kind, symbol) == expected
    assert wanted.select(record, SYMBOLS.__getitem__).tolist() == [expected]


@given(kind=st.sampled_from(TYPE_NAMES[1:-1]), symbol=st.sampled_from(SYMBOLS), glob=GLOBS)
def test_what_passes_has_been_subscribed_to(kind: str, symbol: str, glob: str) -> None:
    wanted = TopicFilter([f"{kind}.{glob}"])
    topic = f"marketdata.{kind}.{symbol}"
    subscribed = any(t == topic or (t.endswith("*") and topic.startswith(t[:-1])) for t in wanted.topics())
    assert subscribed or not wanted.matches(kind, symbol)
