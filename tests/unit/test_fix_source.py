"""FIX feeds against a local acceptor over real sockets, which loses, repeats, garbles, stalls and refuses."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import Action, Flag, RecordType, Side, StatusCode, empty
from tests.fix_server import Act, FixServer, Out, captured, trades
from tests.unit.test_websocket_source import Feed as LiveFeed
from tests.unit.test_websocket_source import of
from workers.errors import SettingsError, SourceError
from workers.resume import Newest
from workers.source import SourceContext, open_source
from workers.sources import fix_options
from workers.sources.fix import FixSource
from workers.spec import FeedSpec


class Feed(LiveFeed):
    """A source and all that it has delivered."""

    def __init__(self, server: FixServer, symbols: tuple[str, ...], types: tuple[str, ...], **options: Any) -> None:
        self.names: dict[str, int] = options.pop("names", {})
        folder = str(options.pop("folder", ""))
        newest = options.pop("newest", None)
        log_of = options.pop("log_of", None)
        chosen = {"host": "127.0.0.1", "port": server.port, "sender": "CLIENT", "target": "VENUE", **options}
        spec = FeedSpec(feed_id=5, name="fix", source="fix", symbols=symbols, data_types=types, options=chosen)
        context = SourceContext(
            spec,
            lambda name: self.names.setdefault(name, len(self.names)),
            folder=folder,
            newest=newest,
            wire=log_of(spec) if log_of is not None else None,
        )
        source = open_source(context)
        assert isinstance(source, FixSource)
        self.source = source  # type: ignore[assignment]
        self._batches = [empty(0)]
        self.out = empty(512)

    @property
    def ids(self) -> list[int]:
        """Ids of the trades, in order."""
        records = self.records
        found: list[int] = of(records, records["record_type"] == RecordType.TRADE)["trade_id"].tolist()
        return found

    def gaps(self) -> list[tuple[int, int]]:
        """The ranges of the gaps in the venue's numbers."""
        rows = of(self.records, (self.records["record_type"] == RecordType.STATUS) & (self.records["code"] == 4))
        return [(int(row["from_sequence"]), int(row["to_sequence"])) for row in rows if row["to_sequence"]]


@pytest.fixture
def feeds() -> Iterator[Callable[..., Feed]]:
    made: list[Feed] = []

    def make(*args: Any, **options: Any) -> Feed:
        made.append(Feed(*args, **options))
        return made[-1]

    yield make
    for feed in made:
        feed.source.close()


def text(message: Any, tag: int) -> str:
    value = message.get(tag)
    return value.decode() if value is not None else ""


def test_a_session_logs_on_subscribes_and_delivers(feeds: Callable[..., Feed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKENGINE_FIX_PRIME_USERNAME", "trader")
    monkeypatch.setenv("TICKENGINE_FIX_PRIME_PASSWORD", "secret")
    with FixServer([Act(trades("EUR/USD", 100))]) as venue:
        feed = feeds(venue, ("EUR/USD",), ("trade",), login="prime", heartbeat_s=7)
        feed.until(lambda: len(feed.ids) == 100, "every trade")
        assert feed.ids == list(range(1, 101))
        logon = venue.asked("A")[0]
        assert [text(logon, tag) for tag in (34, 49, 56, 98, 108, 553, 554, 141)] == [
            "1", "CLIENT", "VENUE", "0", "7", "trader", "secret", "",
        ]  # fmt: skip
        request = venue.asked("V")[0]
        assert [text(request, tag) for tag in (262, 263, 264, 265, 267, 269, 146, 55)] == [
            "1", "1", "1", "1", "1", "2", "1", "EUR/USD",
        ]  # fmt: skip
        assert feed.said == [(StatusCode.FEED_UP, "VENUE delivers")]
        assert (feed.market["source"] == 8).all()
        assert feed.market["source_sequence"].tolist() == list(range(2, 102))
        feed.until(lambda: feed.source.report.health_score == 1.0, "the report")
        assert (feed.source.report.state, feed.source.gaps, feed.source.errors) == ("live", 0, 0)


def books(records: np.ndarray) -> dict[int, dict[tuple[int, float], float]]:
    """The books that level2 records leave behind."""
    found: dict[int, dict[tuple[int, float], float]] = {}
    for row in of(records, records["record_type"] == RecordType.LEVEL2):
        book = found.setdefault(int(row["instrument_id"]), {})
        if row["action"] == Action.CLEAR:
            book.clear()
        elif row["action"] == Action.DELETE:
            book.pop((int(row["side"]), float(row["price"])), None)
        else:
            book[int(row["side"]), float(row["price"])] = float(row["size"])
    return found


def test_captured_snapshots_and_refreshes_make_books_and_quotes(samples: Path, feeds: Callable[..., Feed]) -> None:
    snapshot = captured(samples, "W")[3]
    change = captured(samples, "X")[0]
    with FixServer([Act([snapshot, change])]) as venue:
        feed = feeds(venue, ("BTC-PERPETUAL",), ("quote", "level2"))
        feed.until(lambda: (feed.market["record_type"] == RecordType.QUOTE).sum() == 2, "both quotes")
        book = books(feed.records)[feed.names["BTC-PERPETUAL"]]
        assert book[Side.BUY, 25709.5] == 12987.0
        assert len(book) == 10
        quotes = of(feed.market, feed.market["record_type"] == RecordType.QUOTE)
        assert quotes[["bid", "bid_size", "ask", "ask_size"]].tolist() == [
            (25709.5, 12998.0, 25710.0, 10.0),
            (25709.5, 12987.0, 25710.0, 10.0),
        ]
        assert (feed.market["venue"] == b"deribit").all()


def test_mass_quotes_are_told_by_their_request_and_acknowledged(samples: Path, feeds: Callable[..., Feed]) -> None:
    quote = captured(samples, "i")[1]
    body = [(tag, "2" if tag == 302 else value) for tag, value in quote.body]
    with FixServer([Act([Out("i", body)], subscriptions=2)]) as venue:
        feed = feeds(venue, ("EUR/USD", "GBP/USD"), ("quote",), rename={"GBP/USD": "GBPUSD"})
        feed.until(lambda: len(feed.market), "the quote")
        feed.until(lambda: venue.asked("b"), "the acknowledgement")
        assert feed.market[["instrument_id", "bid", "ask"]].tolist() == [(feed.names["GBPUSD"], 1.51218, 1.51223)]
        assert text(venue.asked("b")[0], 117) == "1"


def test_a_lost_message_is_asked_for_and_delivered_in_its_place(feeds: Callable[..., Feed]) -> None:
    messages = trades("X", 60)
    for lost in (10, 11, 30):
        messages[lost] = Out("X", messages[lost].body, lost=True)
    with FixServer([Act(messages)]) as venue:
        feed = feeds(venue, ("X",), ("trade",))
        feed.until(lambda: len(feed.ids) == 60, "every trade")
        assert feed.ids == list(range(1, 61))
        asked = [(text(one, 7), text(one, 16)) for one in venue.asked("2")]
        assert asked[0] == ("12", "13")
        assert ("32", "32") in asked
        late = of(feed.market, feed.market["flags"] & np.uint16(Flag.BACKFILLED) != 0)
        assert late["trade_id"].tolist() == [11, 12, 31]
        assert feed.gaps() == []


def test_a_gap_that_is_filled_is_told_with_its_numbers_and_books_begin_anew(feeds: Callable[..., Feed]) -> None:
    messages = trades("X", 20)
    messages[4] = Out("X", messages[4].body, lost=True)
    with FixServer([Act(messages, fills=True)]) as venue:
        feed = feeds(venue, ("X",), ("trade",))
        feed.until(lambda: len(feed.ids) == 19, "the others")
        assert feed.ids == [number for number in range(1, 21) if number != 5]
        assert feed.gaps() == [(6, 7)]
        after = of(feed.market, feed.market["trade_id"] == 6)
        assert after["flags"][0] & Flag.GAP_BEFORE
        feed.until(lambda: len(venue.asked("V")) == 3, "unsubscribed, and subscribed again")
        assert [text(one, 263) for one in venue.asked("V")] == ["1", "2", "1"]


def test_a_halt_is_a_record_and_neither_a_gap_nor_the_record_after_one(feeds: Callable[..., Feed]) -> None:
    halt = Out("f", [(55, "X"), (326, "2"), (327, "P")])
    messages = trades("X", 20)
    messages[4] = Out("X", messages[4].body, lost=True)
    messages[5] = halt
    with FixServer([Act(messages, fills=True)]) as venue:
        feed = feeds(venue, ("X",), ("trade",))
        feed.until(lambda: len(feed.ids) == 18, "the others")
        assert feed.gaps() == [(6, 7)]
        told = of(feed.records, feed.records["code"] == StatusCode.TRADING_STATUS)
        told = of(told, told["record_type"] == RecordType.STATUS)
        assert told["text"].tolist() == [b"halted: FIX 2, reason P"]
        assert (told["source_sequence"].tolist(), told["instrument_id"].tolist()) == ([7], [feed.names["X"]])
        assert not told["flags"][0] & Flag.GAP_BEFORE
        after = of(feed.market, feed.market["trade_id"] == 7)
        assert after["flags"][0] & Flag.GAP_BEFORE
        assert feed.source.gaps == 1


def test_a_gap_that_nobody_answers_is_given_up_and_told(feeds: Callable[..., Feed]) -> None:
    messages = trades("X", 20)
    messages[4] = Out("X", messages[4].body, lost=True)
    with FixServer([Act(messages, deaf=True)]) as venue:
        feed = feeds(venue, ("X",), ("trade",), resend_s=0.05)
        feed.until(lambda: len(feed.ids) == 19, "the others")
        assert feed.gaps() == [(6, 7)]
        assert len(venue.asked("2")) == 3


def test_garbled_messages_are_counted_and_asked_for_again(feeds: Callable[..., Feed]) -> None:
    """A wrong checksum, a wrong length, half a message, noise: none counts as had, and all comes again."""
    messages: list[Out | bytes] = list(trades("X", 40))
    with FixServer([Act(messages)]) as venue:
        wire = venue.encode(trades("X", 1, 99)[0], 500)
        wrong_sum = wire[:-4] + bytes([48 + (wire[-4] - 47) % 10]) + wire[-3:]
        wrong_length = wire.replace(b"\x019=", b"\x019=9")
        noise = [b"\0\xff noise \x018=FIX", b"8=FIX.4.4\x019=x\x01"]
        lost = messages[20]
        assert isinstance(lost, Out)
        messages[20] = Out("X", lost.body, lost=True)
        for place, bad in enumerate([wrong_sum, wrong_length, wire[: len(wire) // 2], *noise]):
            messages.insert(5 * (place + 1), bad)
        feed = feeds(venue, ("X",), ("trade",))
        feed.until(lambda: len(feed.ids) == 40, "every trade")
        assert feed.ids == list(range(1, 41))
        assert feed.source._reader.garbled >= 4
        assert feed.source.errors >= 4
        assert venue.connections == 1


def test_what_is_sent_twice_as_a_possible_duplicate_is_dropped(feeds: Callable[..., Feed]) -> None:
    with FixServer([Act(trades("X", 10), end="hold")]) as venue:
        feed = feeds(venue, ("X",), ("trade",))
        again = [venue.encode(trades("X", 1, number)[0], 1 + number, again=True) for number in (3, 9)]
        venue.acts[0] = Act([*trades("X", 10), *again, *trades("X", 5, 11)])
        feed.until(lambda: len(feed.ids) == 15, "every trade")
        assert feed.ids == list(range(1, 16))
        assert feed.source._fix.duplicates == 2


@pytest.mark.parametrize("end", ["logout", "close", "abort"])
def test_a_lost_connection_goes_on_with_its_numbers(feeds: Callable[..., Feed], end: str) -> None:
    with FixServer([Act(trades("X", 50), end=end), Act(trades("X", 50, 51))]) as venue:
        feed = feeds(venue, ("X",), ("trade",))
        feed.until(lambda: len(feed.ids) == 100, "all of both connections")
        assert feed.ids == list(range(1, 101))
        codes = [code for code, _ in feed.said]
        assert codes[:3] == [StatusCode.FEED_UP, StatusCode.FEED_DOWN, StatusCode.GAP]
        down = feed.said[1][1]
        words = {
            "logout": "logged out by the venue: end of day",
            "close": "closed the connection",
            "abort": "broke off",
        }
        assert words[end] in down
        assert (venue.too_low, venue.ahead) == ([], [])
        assert int(text(venue.asked("A", 1)[0], 34)) > 1
        feed.until(lambda: feed.source.report.reconnects == 1, "the report")


def test_a_refused_logon_opens_the_breaker_at_once(feeds: Callable[..., Feed]) -> None:
    with FixServer([Act(refuse="invalid password")]) as venue:
        feed = feeds(venue, ("X",), ("trade",))
        feed.until(lambda: feed.source.report.state == "failed", "the breaker")
        assert feed.source.report.why == "the venue refuses the logon: invalid password"
        assert feed.source.report.breaker == "open"
        assert venue.connections == 1


def test_a_refused_symbol_is_told_and_the_rest_goes_on(feeds: Callable[..., Feed]) -> None:
    with FixServer([Act(trades("X", 10), subscriptions=2, unknown=frozenset({"NOPE"}))]) as venue:
        feed = feeds(venue, ("NOPE", "X"), ("trade",))
        feed.until(lambda: len(feed.ids) == 10, "the other symbol")
        feed.until(lambda: "refused" in feed.source.report.why, "the report")
        assert feed.source.report.why == "delivers; refused: NOPE: symbol not found"
        assert (feed.source.report.state, feed.source.report.degraded) == ("live", True)


def test_all_symbols_refused_fails_the_feed_in_the_venues_words(feeds: Callable[..., Feed]) -> None:
    with FixServer([Act(unknown=frozenset({"NOPE"}))]) as venue:
        feed = feeds(venue, ("NOPE",), ("trade",))
        feed.until(lambda: feed.source.report.state == "failed", "the breaker")
        assert feed.source.report.why == "refused by the venue: NOPE: symbol not found"


def test_a_number_too_low_ends_the_session_with_a_clear_error(feeds: Callable[..., Feed]) -> None:
    with FixServer([Act()]) as venue:
        feed = feeds(venue, ("X",), ("trade",))
        venue.acts[0] = Act([*trades("X", 5), venue.encode(trades("X", 1, 9)[0], 2)])
        feed.until(lambda: feed.source.report.state == "failed", "the end")
        assert feed.source.report.why == "MsgSeqNum too low, expecting 7 but received 2"
        feed.until(lambda: venue.asked("5", 0), "the logout")
        assert text(venue.asked("5", 0)[0], 58) == "MsgSeqNum too low, expecting 7 but received 2"
        assert feed.ids == [1, 2, 3, 4, 5]


def test_a_stalled_venue_is_tested_and_given_up(feeds: Callable[..., Feed]) -> None:
    with FixServer([Act(mute=True), Act(trades("X", 3))]) as venue:
        feed = feeds(venue, ("X",), ("trade",), heartbeat_s=1)
        feed.until(lambda: len(feed.ids) == 3, "the second connection")
        assert text(venue.asked("1", 0)[0], 112) == "TEST1"
        assert venue.asked("0", 0)


def test_a_test_request_is_answered_and_a_quiet_line_has_heartbeats(feeds: Callable[..., Feed]) -> None:
    with FixServer([Act([*trades("X", 1), Out("1", [(112, "are you there")])])]) as venue:
        feed = feeds(venue, ("X",), ("trade",), heartbeat_s=1)
        feed.until(lambda: len(venue.asked("0")) >= 2, "heartbeats")
        assert "are you there" in [text(one, 112) for one in venue.asked("0")]
        feed.until(lambda: venue.asked("1"), "our own test request")
        feed.until(lambda: feed.source._fix.expected >= 5, "its answer")
        assert venue.connections == 1


def test_a_resend_request_is_answered_by_the_requests_and_gap_fills(feeds: Callable[..., Feed]) -> None:
    with FixServer([Act([*trades("X", 1), Out("2", [(7, "1"), (16, "0")])])]) as venue:
        feed = feeds(venue, ("X",), ("trade",))
        feed.until(lambda: len(venue.asked("V")) == 2, "the request again")
        again = venue.asked("V")[1]
        assert (text(again, 43), text(again, 34)) == ("Y", text(venue.asked("V")[0], 34))
        fill = venue.asked("4")[0]
        assert [text(fill, tag) for tag in (34, 43, 123, 36)] == ["1", "Y", "Y", "2"]
        assert text(again, 262) == text(venue.asked("V")[0], 262)


def test_sequence_resets_move_the_numbers(feeds: Callable[..., Feed]) -> None:
    with FixServer([Act()]) as venue:
        feed = feeds(venue, ("X",), ("trade",))
        hard = venue.encode(Out("4", [(36, "50")]), 1)
        backwards = venue.encode(Out("4", [(36, "3")]), 1)
        ahead = [venue.encode(one, seq) for seq, one in enumerate(trades("X", 2, 8), 50)]
        fill = venue.encode(Out("4", [(123, "Y"), (36, "60")]), 52)
        last = venue.encode(trades("X", 1, 10)[0], 60)
        venue.acts[0] = Act([*trades("X", 2), hard, backwards, *ahead, fill, last])
        feed.until(lambda: len(feed.ids) == 5, "every trade")
        assert feed.ids == [1, 2, 8, 9, 10]
        assert feed.gaps() == [(4, 50)]
        feed.until(lambda: venue.asked("3"), "the reject")
        assert "must not be below 50" in text(venue.asked("3")[0], 58)


def test_numbers_begin_anew_where_the_session_resets_them(feeds: Callable[..., Feed]) -> None:
    with FixServer([Act(trades("X", 5), end="close"), Act(trades("X", 5, 6))]) as venue:
        feed = feeds(venue, ("X",), ("trade",), reset_seq_num=True)
        feed.until(lambda: len(feed.ids) == 10, "both connections")
        assert [text(venue.asked("A", number)[0], 34) for number in (0, 1)] == ["1", "1"]
        assert text(venue.asked("A", 1)[0], 141) == "Y"
        assert feed.market["source_sequence"].tolist() == [*range(2, 7), *range(2, 7)]


def test_a_successor_asks_for_what_was_not_published(feeds: Callable[..., Feed], tmp_path: Path) -> None:
    """The first worker is gone, in the middle of things: the ring says what it had published."""
    with FixServer([Act(trades("X", 50)), Act(trades("X", 10, 51))]) as venue:
        first = feeds(venue, ("X",), ("trade",), folder=tmp_path)
        first.out = empty(7)
        first.until(lambda: len(first.ids) >= 21, "some trades")
        published = first.ids
        first.source._numbers.close()  # as a kill does: nothing is settled, nothing is said
        first.source._numbers.path = None
        newest = Newest(1 + published[-1], 1, True)
        second = feeds(venue, ("X",), ("trade",), folder=tmp_path, names=first.names, newest=lambda *_: newest)
        second.until(lambda: len(second.ids) + len(published) == 60, "the rest")
        assert published + second.ids == list(range(1, 61))
        assert text(venue.asked("2", 1)[0], 7) == str(2 + published[-1])
        assert (venue.too_low, venue.ahead) == ([], [])


def test_a_message_published_in_part_is_completed(feeds: Callable[..., Feed], tmp_path: Path) -> None:
    entries = [(tag, value) for one in trades("X", 4) for tag, value in one.body[1:]]
    four = Out("X", [(268, "4"), *entries])
    with FixServer([Act([four]), Act(trades("X", 1, 5))]) as venue:
        first = feeds(venue, ("X",), ("trade",), folder=tmp_path)
        first.until(lambda: len(first.ids) == 4, "all four")
        first.source._numbers.close()
        first.source._numbers.path = None
        second = feeds(
            venue, ("X",), ("trade",), folder=tmp_path, names=first.names, newest=lambda *_: Newest(2, 3, False)
        )
        second.out = empty(1)
        second.until(lambda: len(second.ids) == 2, "what was left of it, and the next")
        assert second.ids == [4, 5]


def test_tls_is_verified_unless_the_feed_says_otherwise(feeds: Callable[..., Feed], tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
    made = ["req", "-x509", "-newkey", "rsa:2048", "-keyout", str(key), "-out", str(certificate), *subject]
    subprocess.run([openssl, *made], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with FixServer([Act(trades("X", 5))], tls=context) as venue:
        refused = feeds(venue, ("X",), ("trade",), tls=True)
        refused.until(lambda: refused.source.report.state == "failed", "the breaker")
        assert "certificate is not trusted" in refused.source.report.why
        assert all(not came for came in venue.received)
        trusted = feeds(venue, ("X",), ("trade",), tls=True, ca_file=str(certificate))
        trusted.until(lambda: len(trusted.ids) == 5, "every trade")


def test_a_venue_that_is_not_there_is_tried_again(feeds: Callable[..., Feed]) -> None:
    with FixServer([Act()]) as venue:
        pass
    feed = feeds(venue, ("X",), ("trade",))
    report = feed.until(lambda: feed.source.report if feed.source.report.retry_at_ns else None, "the report")
    assert report.state in ("recovering", "failed")
    assert f"Connect call failed ('127.0.0.1', {venue.port})" in report.why


def test_two_feeds_can_not_have_one_session(feeds: Callable[..., Feed], tmp_path: Path) -> None:
    with FixServer([Act()]) as venue:
        feeds(venue, ("X",), ("trade",), folder=tmp_path)
        with pytest.raises(SourceError, match="another feed has this FIX session open"):
            Feed(venue, ("X",), ("trade",), folder=tmp_path)


def test_what_the_caller_has_no_room_for_waits(feeds: Callable[..., Feed]) -> None:
    with FixServer([Act(trades("X", 500))]) as venue:
        feed = feeds(venue, ("X",), ("trade",))
        feed.out = empty(3)
        feed.until(lambda: len(feed.ids) == 500, "every trade, three at a time")
        assert feed.ids == list(range(1, 501))


def test_a_host_without_simplefix_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fix_options, "find_spec", lambda _: None)
    with FixServer([Act()]) as venue, pytest.raises(SettingsError, match=r"pip install 'tickengine\[fix\]'"):
        Feed(venue, ("A",), ("trade",))


def test_a_ring_that_can_not_be_read_does_not_keep_the_session(feeds: Callable[..., Feed], tmp_path: Path) -> None:
    def broken(*_: int) -> Newest:
        raise SourceError("no ring")

    with FixServer([Act(trades("X", 1))]) as venue:
        with pytest.raises(SourceError, match="no ring"):
            Feed(venue, ("X",), ("trade",), folder=tmp_path, newest=broken)
        feed = feeds(venue, ("X",), ("trade",), folder=tmp_path)
        feed.until(lambda: feed.ids == [1], "the trade")


@pytest.mark.parametrize(
    ("symbols", "types", "options", "words"),
    [
        (("A",), (), {"prt": 1}, "no option 'prt' for source 'fix'; did you mean 'port'?"),
        (("A",), (), {"version": "FIX.5.0"}, "version"),
        (("A",), (), {"sender": ""}, "sender"),
        (("A",), ("bar",), {}, "data type 'bar' is not to be had over FIX"),
        ((), (), {}, "symbols: name those"),
        (("A" * 40,), (), {}, "longer than 32 bytes"),
        (("A",), (), {"login": "nobody"}, "set TICKENGINE_FIX_NOBODY_USERNAME and TICKENGINE_FIX_NOBODY_PASSWORD"),
        (("A",), (), {"tls": True, "ca_file": "/nowhere"}, "options.ca_file '/nowhere'"),
    ],
)
def test_settings_that_can_not_work_are_refused_by_name(
    symbols: tuple[str, ...], types: tuple[str, ...], options: dict[str, Any], words: str
) -> None:
    with FixServer([Act()]) as venue, pytest.raises(SettingsError) as error:
        Feed(venue, symbols, types, **options)
    assert words in str(error.value)
