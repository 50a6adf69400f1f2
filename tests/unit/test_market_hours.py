"""Hours of markets: the built-in calendar, and any that exchange_calendars knows."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from workers.errors import SettingsError
from workers.sources.market_hours import ExchangeHours, MarketHours, market_hours

LOADS_S = 100


def at(text: str) -> int:
    return int(np.datetime64(text, "ns").astype(np.int64))


def loaded(name: str, day: str) -> ExchangeHours:
    pytest.importorskip("exchange_calendars")
    hours = ExchangeHours("feed", name, clock=lambda: at(day))
    hours.wait(LOADS_S)
    return hours


def answers(hours: MarketHours, expected: dict[str, bool]) -> None:
    assert {text: hours.is_open(at(text)) for text in expected} == expected


def test_us_equities_are_the_built_in_ones() -> None:
    hours = market_hours("feed", "us-equities")
    assert hours is not None
    answers(hours, {"2024-07-03T08:00": True, "2024-07-03T20:59": True, "2024-07-03T21:01": False})
    answers(hours, {"2024-07-04T15:00": False, "2024-07-05T15:00": True, "2024-07-03T08:00": True})


def test_london_closes_on_its_own_holidays_and_at_its_own_hours() -> None:
    answers(
        loaded("XLON", "2024-05-03"),
        {
            "2024-05-03T06:59": False,
            "2024-05-03T07:00": True,
            "2024-05-03T15:29": True,
            "2024-05-03T15:30": False,
            "2024-05-06T10:00": False,  # early May bank holiday
            "2024-05-07T10:00": True,
        },
    )


def test_a_lunch_break_is_no_trading() -> None:
    answers(
        loaded("XHKG", "2024-05-03"),
        {"2024-05-03T03:59": True, "2024-05-03T04:30": False, "2024-05-03T05:00": True, "2024-05-03T08:01": False},
    )


def test_a_market_that_never_closes_has_no_seams() -> None:
    hours = loaded("24/5", "2024-05-01")
    answers(hours, {"2024-05-02T00:00": True, "2024-05-03T23:59": True, "2024-05-04T12:00": False})


def test_a_market_that_is_none_is_said_when_it_is_known() -> None:
    hours = loaded("XLOM", "2024-05-03")
    with pytest.raises(SettingsError, match="no such market; did you mean 'XLON'"):
        hours.is_open(at("2024-05-03T12:00"))
    with pytest.raises(SettingsError, match="or the MIC of a market"):
        market_hours("feed", "london")


def test_the_library_is_imported_in_a_thread_and_only_for_a_market_of_its_own() -> None:
    pytest.importorskip("exchange_calendars")
    program = """
import sys
from workers.sources.market_hours import market_hours
assert market_hours("feed", "always") is None
market_hours("feed", "us-equities").is_open(0)
assert "pandas" not in sys.modules and "exchange_calendars" not in sys.modules
hours = market_hours("feed", "XLON")
print(hours.is_open(0), hours.loading)
hours.wait(100)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"
