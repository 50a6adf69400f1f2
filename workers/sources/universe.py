"""The instruments of the simulated market: well-known symbols first, then as many made-up ones as are asked for.

Called by workers/sources/simulated.py when a feed starts. Prices are only where a walk begins; nothing here is a quote
of the real thing. Knows no instrument ids and no records.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Listing:
    """One instrument: `price` is where its walk begins, `weight` its share of the activity, relative to the others."""

    symbol: str
    sector: int
    price: float
    ticks_per_unit: int
    beta: float
    weight: float


# A sector a row, in the order of activity; symbol:price.
_SECTORS: Final = (
    "AAPL:228 MSFT:442 NVDA:131 AVGO:172 ORCL:171 CRM:287 AMD:158 ADBE:548 CSCO:53 INTC:22",
    "GOOGL:168 META:561 NFLX:701 DIS:94 CMCSA:42 T:22 VZ:44 TMUS:214 EA:143 WBD:8",
    "AMZN:189 TSLA:221 HD:403 MCD:302 NKE:80 LOW:273 SBUX:96 BKNG:4210 TJX:115 F:10.6",
    "JPM:212 BAC:40 WFC:57 GS:505 MS:106 C:63 AXP:271 BLK:958 SCHW:68 V:281",
    "UNH:581 JNJ:162 LLY:908 PFE:29 MRK:110 ABBV:194 TMO:601 ABT:116 AMGN:322 BMY:51",
    "XOM:119 CVX:148 COP:107 SLB:42 EOG:124 MPC:158 PSX:130 VLO:134 OXY:52 KMI:24",
    "BA:155 CAT:390 GE:188 HON:210 UPS:134 RTX:124 LMT:603 DE:412 UNP:243 MMM:134",
    "PG:172 KO:70 PEP:173 WMT:80 COST:890 PM:121 MO:51 CL:102 MDLZ:71 TGT:153",
    "NEE:82 DUK:116 SO:90 AEP:101 EXC:40 D:58 SRE:83 XEL:64 PEG:87 ED:103",
    "LIN:478 SHW:371 APD:314 FCX:48 NEM:55 ECL:253 NUE:147 DOW:53 DD:85 CTVA:59",
    "SPY:573 QQQ:489 IWM:220 DIA:423 GLD:245 TLT:97 EEM:45 XLF:45 XLE:90 VXX:49",
)
_KNOWN: Final = {
    entry.split(":")[0]: (sector, float(entry.split(":")[1]))
    for sector, row in enumerate(_SECTORS)
    for entry in row.split()
}


def symbols(count: int) -> list[str]:
    """`count` symbols: the best-known of every sector first, and SIM001, SIM002, ... when they are used up."""
    rows = [row.split() for row in _SECTORS]
    known = [row[rank].split(":")[0] for rank in range(len(rows[0])) for row in rows]
    return known[:count] + [f"SIM{number:03d}" for number in range(1, count - len(known) + 1)]


def listings(names: list[str], seed: int) -> list[Listing]:
    """What is simulated for each symbol. A symbol's price, sector and beta depend on its name and the seed alone."""
    found = []
    for rank, symbol in enumerate(names):
        own = random.Random(f"{seed}:{symbol}")
        sector, price = _KNOWN.get(symbol, (own.randrange(len(_SECTORS)), round(5 * 60 ** own.random(), 2)))
        found.append(
            Listing(
                symbol=symbol,
                sector=sector,
                price=price,
                ticks_per_unit=100 if price >= 1 else 10_000,
                beta=own.uniform(0.6, 1.5),
                # Zipf-like: the first instrument is some 20 times as busy as the median of 200.
                weight=1.0 / (rank + 5) ** 0.9,
            )
        )
    return found
