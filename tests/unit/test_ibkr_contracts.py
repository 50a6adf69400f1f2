"""Which contract a symbol means, which of TWS's answers is it, and when it trades."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from ib_async import Contract, ContractDetails
from ib_async.decoder import Decoder

from workers.errors import SettingsError
from workers.sources.ibkr_contracts import Ambiguous, Description, Hours, choose, describe, describe_all

NEW_YORK = ZoneInfo("America/New_York")


@pytest.mark.parametrize(
    ("symbol", "meant"),
    [
        ("AAPL", Description(symbol="AAPL", currency="USD")),
        ("BRK B", None),
        ("BRK.B", Description(symbol="BRK.B", currency="USD")),
        ("AAPL:CAD", Description(symbol="AAPL", currency="CAD")),
        ("AAPL@SMART:USD", Description(symbol="AAPL", currency="USD")),
        ("AAPL@SMART/NASDAQ", Description(symbol="AAPL", primary_exchange="NASDAQ", currency="USD")),
        ("SAP@IBIS:EUR", Description(symbol="SAP", exchange="IBIS", currency="EUR")),
        ("ESU4@CME", Description(local_symbol="ESU4", sec_type="FUT", exchange="CME")),
        ("ESU24@CME:USD", Description(local_symbol="ESU24", sec_type="FUT", exchange="CME", currency="USD")),
        ("EUR.USD@IDEALPRO", Description(symbol="EUR", sec_type="CASH", exchange="IDEALPRO", currency="USD")),
        ("BTC.USD@PAXOS", Description(symbol="BTC", sec_type="CRYPTO", exchange="PAXOS", currency="USD")),
        ("EUR.USD@IDEALPRO:GBP", None),
        ("EURUSD@IDEALPRO", None),
        ("ES@CME", None),
        ("AAPL@", None),
        ("@SMART", None),
        ("AAPL@smart", None),
        ("A@B@C", None),
    ],
)
def test_symbols_say_what_they_mean(symbol: str, meant: Description | None) -> None:
    if meant is None:
        with pytest.raises(SettingsError, match="feed ib: symbol"):
            describe_all("ib", [symbol], {})
    else:
        assert describe(symbol, {}) == meant


def test_a_table_goes_before_the_form_and_every_field_reaches_ib_async() -> None:
    table = Description(
        symbol="SPY", sec_type="OPT", exchange="CBOE", currency="USD", expiry="20240920", strike=500.0, right="C",
        multiplier="100", trading_class="SPYW", local_symbol="X", primary_exchange="P", con_id=5,
    )  # fmt: skip
    assert describe_all("ib", ["ES@CME"], {"ES@CME": table}) == {"ES@CME": table}
    assert table.contract() == Contract(
        secType="OPT", conId=5, symbol="SPY", lastTradeDateOrContractMonth="20240920", strike=500.0, right="C",
        multiplier="100", exchange="CBOE", primaryExchange="P", currency="USD", localSymbol="X", tradingClass="SPYW",
    )  # fmt: skip
    by_isin = Description(sec_id_type="ISIN", sec_id="US0378331005").contract()
    assert (by_isin.secIdType, by_isin.secId) == ("ISIN", "US0378331005")
    with pytest.raises(SettingsError, match="sec_id and sec_id_type go together"):
        describe_all("ib", ["A"], {"A": Description(sec_id="US0378331005")})


def details(**fields: Any) -> ContractDetails:
    return ContractDetails(contract=Contract(**{"conId": 1, "symbol": "X", "exchange": "SMART", **fields}))


def test_the_same_contract_on_several_exchanges_is_one_and_the_asked_exchange_counts() -> None:
    meant = Description(symbol="X", exchange="SMART")
    found = choose(meant, [details(exchange="AMEX"), details(exchange="SMART"), details(exchange="ARCA")])
    assert found.contract.exchange == "SMART"
    assert choose(meant, [details(), details()]).contract.conId == 1


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([], "there is no contract with symbol X, sec_type STK, exchange SMART"),
        ([details(conId=0)], "there is no contract"),
        ([details(currency="USD"), details(conId=2, currency="CAD")], "set currency in options.contracts: CAD, USD"),
        (
            [details(conId=n, lastTradeDateOrContractMonth=str(n)) for n in range(1, 8)],
            "7 contracts have symbol X, sec_type STK, exchange SMART; set expiry in options.contracts: 1, 2, 3, 4",
        ),
        ([details(conId=n, strike=float(n)) for n in (1, 2)], "set strike in options.contracts: 1.0, 2.0"),
        ([details(conId=n) for n in (8, 9)], "set con_id in options.contracts: 8, 9"),
    ],
)  # fmt: skip
def test_none_or_several_name_the_field_to_set(answers: list[Any], words: str) -> None:
    with pytest.raises(Ambiguous) as failure:
        choose(Description(symbol="X"), answers)
    assert words in str(failure.value)


def ns(*when: int) -> int:
    return int(datetime(*when, tzinfo=NEW_YORK).timestamp()) * 10**9  # type: ignore[arg-type, misc]


class Collector:
    """What ib_async's decoder gives its wrapper."""

    def __init__(self) -> None:
        self.details: list[Any] = []

    def contractDetails(self, _: int, details: Any) -> None:  # noqa: N802
        self.details.append(details)


def test_captured_hours_say_when_a_market_is_open(samples: Path) -> None:
    rows = [row for row in (samples / "vendor/ibkr/wire-fields.txt").read_text().splitlines() if row.startswith("10|")]
    collector = Collector()
    decoder = Decoder(collector, 176)  # type: ignore[arg-type]
    for row in rows:
        decoder.interpret(row.split("|")[:-1])  # type: ignore[no-untyped-call]
    chosen = choose(Description(symbol="TSLA", currency="USD"), collector.details)
    assert (chosen.contract.conId, chosen.contract.exchange) == (76792991, "SMART")
    hours = Hours(chosen.tradingHours, chosen.timeZoneId)
    assert not hours.is_open(ns(2022, 12, 29, 3, 59))
    assert hours.is_open(ns(2022, 12, 29, 4))
    assert hours.is_open(ns(2022, 12, 29, 19, 59))
    assert not hours.is_open(ns(2022, 12, 29, 20))
    assert not hours.is_open(ns(2022, 12, 31, 12))  # a Saturday
    assert not hours.is_open(ns(2023, 1, 2, 12))  # a holiday
    assert hours.is_open(ns(2023, 1, 3, 5))
    assert hours.is_open(ns(2022, 12, 1, 3))  # before what is known
    assert hours.is_open(ns(2023, 1, 7, 12))  # and after it


@pytest.mark.parametrize(
    ("text", "zone"),
    [("", "US/Eastern"), ("nonsense", "US/Eastern"), ("20230103:0400-20230103:2000", "Nowhere/At all")],
)
def test_hours_that_can_not_be_read_are_always_open(text: str, zone: str) -> None:
    hours = Hours(text, zone)
    assert all(hours.is_open(ns(2023, 1, 3, hour)) for hour in range(24))


def test_two_sessions_of_a_day() -> None:
    hours = Hours("20230103:0900-20230103:1200,20230103:1300-20230103:1700;20230104:CLOSED", "America/New_York")
    found = [hour for hour in range(24) if hours.is_open(ns(2023, 1, 3, hour))]
    assert found == [9, 10, 11, 13, 14, 15, 16]
    assert not hours.is_open(ns(2023, 1, 4, 23))
