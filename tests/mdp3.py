"""CME MDP 3.0 packets and messages made by hand, field by field, for tests of the decoder."""

from __future__ import annotations

import struct

NULL_PRICE = 2**63 - 1
NULL_I32 = 2**31 - 1
NULL_U64 = 2**64 - 1
LAST_QUOTE, END = 0x04, 0x80
TIME_NS = 1_536_760_535_000_000_000  # 2018-09-12T13:55:35Z


def packet(number: int, *messages: bytes, sent_ns: int | None = None) -> bytes:
    """`sent_ns` None: later with each number."""
    return struct.pack("<IQ", number, TIME_NS + number if sent_ns is None else sent_ns) + b"".join(messages)


def message(template: int, root: bytes, tail: bytes = b"", *, schema: int = 1, version: int = 9) -> bytes:
    """The root as long as it is given; `tail`: its groups."""
    return struct.pack("<HHHHH", 10 + len(root) + len(tail), len(root), template, schema, version) + root + tail


def group(entries: list[bytes], *, wide: bool = False, length: int = 0) -> bytes:
    """`wide`: with the 8-byte head. `length`: of an entry, where there is none."""
    size = len(entries[0]) if entries else length
    head = struct.pack("<H5xB" if wide else "<HB", size, len(entries))
    return head + b"".join(entries)


def root(indicator: int = END, time_ns: int = TIME_NS) -> bytes:
    """Of incremental messages."""
    return struct.pack("<QBxx", time_ns, indicator)


def level(
    security: int,
    price: int,
    size: int,
    *,
    kind: bytes = b"0",
    action: int = 0,
    rank: int = 1,
    report: int = 1,
    orders: int = 1,
    long: bool = False,
) -> bytes:
    """An entry of templates 32 and 46, or 64 (`long`). `price` is the wire's integer."""
    if long:
        return struct.pack("<qQiIiBBcx", price, size, security, report, orders, rank, action, kind)
    return struct.pack("<qiiIiBBc5x", price, size, security, report, orders, rank, action, kind)


def book(*entries: bytes, indicator: int = END, template: int = 46, orders: list[bytes] | None = None) -> bytes:
    """Templates 32, 46 and 64."""
    tail = group(list(entries), length=32) + group(orders or [], wide=True, length=24)
    return message(template, root(indicator), tail)


def book_order(order: int, quantity: int, entry: int, action: int = 0) -> bytes:
    """An order behind entry number `entry` (from 1) of a book message."""
    return struct.pack("<QQiBBxx", order, 0, quantity, entry, action)


def trade(
    security: int,
    price: int,
    size: int,
    *,
    trade_id: int = 7,
    aggressor: int = 1,
    action: int = 0,
    report: int = 1,
    long: bool = False,
) -> bytes:
    """An entry of templates 42 and 48, or 65 (`long`)."""
    if long:
        return struct.pack("<qQiIiIBB6x", price, size, security, report, 2, trade_id, aggressor, action)
    return struct.pack("<qiiIiBBIxx", price, size, security, report, 2, aggressor, action, trade_id)


def trades(*entries: bytes, indicator: int = END, template: int = 48) -> bytes:
    """Templates 42, 48 and 65, with one order behind them."""
    order = struct.pack("<Qi4x", 99, 1)
    return message(template, root(indicator), group(list(entries), length=32) + group([order], wide=True))


def order(security: int, order_id: int, price: int, quantity: int, *, kind: bytes = b"0", action: int = 0) -> bytes:
    """An entry of templates 43 and 47."""
    return struct.pack("<QQqiiBc6x", order_id, 0, price, quantity, security, action, kind)


def orders(*entries: bytes, indicator: int = END, template: int = 47) -> bytes:
    """Templates 43 and 47."""
    return message(template, root(indicator), group(list(entries), length=40))


def snapshot_level(price: int, size: int, kind: bytes, rank: int, *, orders: int = 3, long: bool = False) -> bytes:
    """An entry of templates 38 and 52, or 69 (`long`)."""
    if long:
        return struct.pack("<qQiBBc", price, size, orders, rank, 255, kind)
    return struct.pack("<qiibHBBc", price, size, orders, rank, 0xFFFF, 255, 0, kind)


def snapshot(security: int, report: int, *entries: bytes, template: int = 52) -> bytes:
    """Templates 38, 52 and 69."""
    head = struct.pack("<IIiIQQHBqqq", 5, 1, security, report, TIME_NS, TIME_NS, 17786, 17, *[NULL_PRICE] * 3)
    return message(template, head, group(list(entries), length=22))


def order_snapshot(security: int, chunk: int, chunks: int, *entries: bytes, template: int = 53) -> bytes:
    """Templates 44 and 53."""
    head = struct.pack("<IIiIIQ", 5, 1, security, chunks, chunk, TIME_NS)
    return message(template, head, group(list(entries), length=29))


def snapshot_order(order_id: int, price: int, quantity: int, kind: bytes = b"0") -> bytes:
    """An entry of templates 44 and 53."""
    return struct.pack("<QQqic", order_id, 0, price, quantity, kind)


def definition(template: int, security: int, symbol: str, depth: int = 10, *, bytes_of_root: int = 216) -> bytes:
    """Templates 27, 29, 41, 54 to 58 and 63: the part that all of them share, then zeros."""
    head = struct.pack(
        "<BIcQBhBB4s6s6s20si", END, 1, b"A", TIME_NS, 17, 310, 64, 5, b"XCME", b"ES", b"ES", symbol.encode(), security
    )
    events = [struct.pack("<BQ", 5, TIME_NS)] * 2
    feeds = [struct.pack("<3sb", b"GBI", 2), struct.pack("<3sb", b"GBX", depth)]
    return message(
        template, head.ljust(bytes_of_root, b"\0"), group(events) + group(feeds) + group([bytes(4)]) + group([bytes(5)])
    )


def statistics(template: int, security: int, report: int) -> bytes:
    """Templates that carry a report number and make no record: 33 to 35, 37, 49 to 51, 66, 67."""
    at = {33: 12, 49: 12, 34: 24, 50: 24, 35: 8, 51: 8, 37: 4, 66: 8, 67: 16}[template]
    return message(template, root(), group([(bytes(at) + struct.pack("<iI", security, report)).ljust(32, b"\0")]))


def reset() -> bytes:
    """Channel reset."""
    return message(4, struct.pack("<QB", TIME_NS, END), group([struct.pack("<h", 310)]))


def status(
    code: int,
    security: int = NULL_I32,
    *,
    group: bytes = b"ES",
    asset: bytes = b"",
    reason: int = 1,
    event: int = 0,
) -> bytes:
    """Security status, of an instrument or of a group."""
    return message(30, struct.pack("<Q6s6siHBBBB", TIME_NS, group, asset, security, 19_000, END, code, reason, event))


def heartbeat() -> bytes:
    """Admin heartbeat."""
    return message(12, b"")


def one_of_each() -> list[bytes]:
    """A packet of every template that makes records or changes what is known."""
    bids = [level(5, 100_000_000_000 - n * 10**9, 3, rank=n + 1) for n in range(4)]
    bids += [level(5, 0, 0, action=3), level(5, 0, 0, action=4, rank=2), level(5, 10**9, 2, action=5, rank=1)]
    messages = [
        book(*bids, orders=[book_order(9, 2, 1), book_order(9, 2, 7, 2)]),
        book(level(6, 10**9, 2), template=32),
        book(level(7, 10**9, 2, long=True), level(7, 0, 0, kind=b"J", long=True), template=64),
        trades(trade(5, 10**9, 2)),
        trades(trade(5, 10**7, 2), template=42),
        trades(trade(5, 10**9, 2, long=True), template=65),
        orders(order(5, 1, 10**9, 2), order(8, 1, 10**9, 2, action=2)),
        orders(order(5, 1, 10**7, 2), template=43),
        snapshot(5, 9, snapshot_level(10**9, 2, b"0", 1), snapshot_level(2 * 10**9, 2, b"1", 1)),
        snapshot(9, 9, snapshot_level(10**7, 2, b"0", 1), template=38),
        snapshot(9, 10, snapshot_level(10**9, 2, b"0", 1, long=True), template=69),
        order_snapshot(5, 1, 1, snapshot_order(1, 10**9, 2)),
        order_snapshot(5, 1, 2, snapshot_order(1, 10**7, 2), template=44),
        *(definition(template, template, "ESU8") for template in (27, 29, 41, 54, 55, 56, 57, 58, 63)),
        *(statistics(template, 5, 40) for template in (33, 34, 35, 37, 49, 50, 51, 66, 67)),
        status(2, 5),
        status(21),
        reset(),
        heartbeat(),
    ]
    return [packet(number, one) for number, one in enumerate(messages, 1)] + [packet(90, *messages)]
