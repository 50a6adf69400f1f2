"""The FIX session's table and numbers: given messages and times, no sockets."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import simplefix

from workers.decoders.fix_log import HEAD
from workers.errors import DecodeError, SourceError
from workers.fix_messages import Identity, Received, encode, timestamp
from workers.fix_numbers import Numbers, numbers_path
from workers.fix_protocol import (
    TRANSITIONS,
    Action,
    Deliver,
    End,
    Event,
    LoggedOn,
    Message,
    Missed,
    Send,
    State,
)
from workers.fix_requests import Requests, acknowledgement
from workers.fix_session import FixSession, Terms

S = 1_000_000_000
T0 = 1_700_000_000 * S
US = Identity("FIX.4.4", "CLIENT", "VENUE")
VENUE = Identity("FIX.4.4", "VENUE", "CLIENT")


def came(
    session: FixSession, kind: str, seq: int, *body: tuple[int, str | int], at: int = T0, **more: bool
) -> list[Action]:
    """The venue sends a message."""
    again = T0 if more.get("possdup") else None
    data = encode(VENUE, kind, seq, at, body, first_sent_ns=again)
    return session.receive(Message(kind, seq, data, at, bool(again)), at)


def sent(actions: list[Action]) -> list[simplefix.FixMessage]:
    found = []
    for action in actions:
        if isinstance(action, Send):
            parser = simplefix.FixParser()
            parser.append_buffer(action.data)
            found.append(parser.get_message())
    return found


def text(message: simplefix.FixMessage, *tags: int) -> list[str]:
    return [(message.get(tag) or b"").decode() for tag in tags]


def active(numbers: Numbers | None = None, **terms: object) -> FixSession:
    session = FixSession(US, numbers or Numbers(), Terms(**terms))  # type: ignore[arg-type]
    session.opened(T0)
    assert LoggedOn() in came(session, "A", session.expected, (98, 0), (108, 30))
    assert session.state is State.ACTIVE
    return session


def in_state(state: State) -> FixSession:
    """A session that has got there by itself."""
    session = FixSession(US, Numbers(), Terms())
    if state is State.IDLE:
        return session
    session.opened(T0)
    if state is State.LOGON:
        return session
    came(session, "A", 1, (98, 0), (108, 30))
    if state is State.GAP:
        came(session, "0", 5)
    elif state is State.LOGOUT:
        session.leave("bye", T0)
    elif state is State.ENDED:
        came(session, "5", 2)
    assert session.state is state
    return session


CAUSES = {
    Event.OPENED: lambda one: one.opened(T0),
    Event.LOGGED_ON: lambda one: came(one, "A", one.expected, (98, 0), (108, 30)),
    Event.AHEAD: lambda one: came(one, "0", one.expected + 7),
    Event.CAUGHT_UP: lambda one: came(one, "4", one.expected, (123, "Y"), (36, 6), possdup=True),
    Event.LEAVE: lambda one: one.leave("bye", T0),
    Event.LOGGED_OUT: lambda one: came(one, "5", one.expected),
    Event.BROKEN: lambda one: came(one, "0", 0),
    Event.SILENT: lambda one: (one.tick(T0 + 36 * S), one.tick(T0 + 72 * S)),
    Event.CLOSED: lambda one: one.closed(),
}


@pytest.mark.parametrize(("state", "event"), list(TRANSITIONS), ids=lambda value: value.value)
def test_every_transition_of_the_table_is_taken(state: State, event: Event) -> None:
    session = in_state(state)
    CAUSES[event](session)
    assert session.state is TRANSITIONS[state, event]


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (state, event)
        for state, event in itertools.product(State, Event)
        if (state, event) not in TRANSITIONS
        and event not in (Event.OPENED, Event.CAUGHT_UP)
        and (state, event) != (State.LOGON, Event.AHEAD)  # anything but a logon breaks it
    ],
    ids=lambda value: value.value,
)
def test_what_the_table_does_not_have_leaves_the_state(state: State, event: Event) -> None:
    session = in_state(state)
    CAUSES[event](session)
    assert session.state is state


def test_a_logon_states_its_terms_and_may_reset() -> None:
    session = FixSession(US, Numbers(), Terms(heartbeat_s=20, reset=True, login=lambda: ("me", "secret")))
    (logon,) = sent(session.opened(T0))
    assert text(logon, 35, 34, 49, 56, 98, 108, 141, 553, 554) == [
        "A", "1", "CLIENT", "VENUE", "0", "20", "Y", "me", "secret",
    ]  # fmt: skip
    assert text(logon, 52) == [timestamp(T0)] == ["20231114-22:13:20.000"]


def test_messages_in_turn_are_delivered_and_market_data_is_taken_in_runs() -> None:
    session = active()
    heads = np.zeros(6, HEAD)
    heads["seq"] = [2, 3, 4, 5, 7, 8]
    heads["type"] = [ord("X"), ord("W"), ord("i"), ord("X"), ord("X"), ord("X")]
    assert session.take(heads, 0, T0) == 4
    assert session.expected == 6
    assert session.take(heads, 4, T0) == 0
    heads["seq"][4:] = [6, 7]
    heads["possdup"][5] = 1
    assert session.take(heads, 4, T0) == 1
    (delivered,) = came(session, "Y", 7, (262, "1"))
    assert isinstance(delivered, Deliver)
    assert (delivered.kind, delivered.seq) == ("Y", 7)


def test_what_lies_between_is_asked_for_and_delivered_in_order() -> None:
    session = active()
    actions = came(session, "X", 5)
    assert text(sent(actions)[0], 35, 7, 16) == ["2", "2", "4"]
    assert came(session, "X", 6) == []
    assert session.held == 2
    order = [a.seq for seq in (2, 3, 4) for a in came(session, "X", seq, possdup=True) if isinstance(a, Deliver)]
    assert order == [2, 3, 4, 5, 6]
    assert (session.state, session.expected, session.held) == (State.ACTIVE, 7, 0)


def test_a_second_hole_behind_the_first_is_asked_for_too() -> None:
    session = active()
    came(session, "X", 4)
    came(session, "X", 8)
    actions = came(session, "4", 2, (123, "Y"), (36, 4), possdup=True)
    assert Missed(2, 4, "the venue does not send it again") in actions
    assert [a.seq for a in actions if isinstance(a, Deliver)] == [4]
    assert text(sent(actions)[0], 7, 16) == ["5", "7"]


def test_what_is_held_is_bounded_and_asked_for_again() -> None:
    session = active(max_held=3)
    for seq in range(4, 12):
        came(session, "X", seq)
    assert (session.held, session.overflows) == (3, 5)
    came(session, "X", 2, possdup=True)
    actions = came(session, "X", 3, possdup=True)
    assert [a.seq for a in actions if isinstance(a, Deliver)] == [3, 4, 5, 6]
    assert text(sent(actions)[0], 7, 16) == ["7", "11"]


def test_a_gap_is_given_up_after_three_requests() -> None:
    session = active(resend_s=5.0)
    came(session, "X", 4)
    requests, now = 1, T0
    for _ in range(3):
        now += 5 * S
        actions = session.tick(now)
        requests += sum(text(one, 35) == ["2"] for one in sent(actions))
    assert requests == 3
    assert Missed(2, 4, "not sent again, asked for 3 times") in actions
    assert [a.seq for a in actions if isinstance(a, Deliver)] == [4]
    assert session.state is State.ACTIVE


def test_a_resend_that_takes_long_is_not_given_up_while_it_comes() -> None:
    session = active(resend_s=5.0)
    came(session, "X", 30)
    for seq in range(2, 30):
        at = T0 + (seq - 1) * 4 * S
        assert session.due_ns <= at + S
        assert not any(text(one, 35) == ["2"] for one in sent(session.tick(at)))
        came(session, "X", seq, possdup=True, at=at)
    assert (session.state, session.expected, session.resends_asked) == (State.ACTIVE, 31, 1)


def test_a_number_too_low_ends_it_and_a_possible_duplicate_does_not() -> None:
    session = active()
    came(session, "X", 2)
    assert came(session, "X", 2, possdup=True) == []
    assert session.duplicates == 1
    actions = came(session, "X", 2)
    assert actions[-1] == End("MsgSeqNum too low, expecting 3 but received 2", lasting=True)
    assert text(sent(actions)[0], 35, 58) == ["5", "MsgSeqNum too low, expecting 3 but received 2"]


def test_a_logon_ahead_is_answered_by_a_resend_request_before_anything_else() -> None:
    numbers = Numbers()
    numbers.settle(10, T0)
    numbers.next_out = 4
    session = FixSession(US, numbers, Terms())
    assert text(sent(session.opened(T0))[0], 34) == ["4"]
    actions = came(session, "A", 15, (98, 0), (108, 30))
    assert text(sent(actions)[0], 35, 7, 16) == ["2", "10", "14"]
    assert actions[-1] == LoggedOn()
    came(session, "4", 10, (123, "Y"), (36, 15), possdup=True)
    assert (session.state, session.expected) == (State.ACTIVE, 16)


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        (Identity("FIX.4.2", "VENUE", "CLIENT"), "8='FIX.4.2', not 'FIX.4.4'"),
        (Identity("FIX.4.4", "OTHER", "CLIENT"), "49='OTHER', not 'VENUE'"),
        (Identity("FIX.4.4", "VENUE", "OTHER"), "56='OTHER', not 'CLIENT'"),
    ],
)
def test_a_logon_of_somebody_else_is_refused(identity: Identity, words: str) -> None:
    session = FixSession(US, Numbers(), Terms())
    session.opened(T0)
    actions = session.receive(Message("A", 1, encode(identity, "A", 1, T0, [(98, 0), (108, 30)])), T0)
    assert isinstance(actions[-1], End)
    assert words in actions[-1].reason


def test_numbers_that_a_power_cut_took_back_are_learned_from_the_venue() -> None:
    numbers = Numbers()
    session = FixSession(US, numbers, Terms())
    session.opened(T0)
    actions = came(session, "5", 1, (58, "MsgSeqNum too low, expecting 17 but received 1"))
    assert actions[-1] == End(
        "the venue refuses the logon: MsgSeqNum too low, expecting 17 but received 1; goes on from there"
    )
    session.closed()
    assert text(sent(session.opened(T0))[0], 34) == ["17"]


def test_resends_are_gap_fills_but_for_requests() -> None:
    session = active()
    session.request("V", [(262, "1")], T0)
    session.request("V", [(262, "2")], T0)
    session.tick(T0 + 30 * S)  # a heartbeat, number 4
    answer = sent(came(session, "2", 2, (7, 1), (16, 0), at=T0 + 31 * S))
    assert [text(one, 35, 34, 43, 36) for one in answer] == [
        ["4", "1", "Y", "2"],
        ["V", "2", "Y", ""],
        ["V", "3", "Y", ""],
        ["4", "4", "Y", "5"],
    ]
    assert text(answer[1], 122, 52) == [timestamp(T0), timestamp(T0 + 31 * S)]
    (refused,) = sent(came(session, "2", 3, (7, 9), (16, 3), at=T0 + 31 * S))
    assert text(refused, 35, 45) == ["3", "3"]


def test_a_resend_request_that_is_ahead_is_answered_at_once_and_once() -> None:
    session = active()
    actions = came(session, "2", 4, (7, 1), (16, 0))
    assert [text(one, 35)[0] for one in sent(actions)] == ["4", "2"]
    again = came(session, "4", 2, (123, "Y"), (36, 4), possdup=True)
    assert sent(again) == []
    assert session.expected == 5


def test_heartbeats_and_tests_by_the_clock() -> None:
    session = active()
    assert session.tick(T0 + 30 * S - 1) == []
    assert [text(one, 35) for one in sent(session.tick(T0 + 30 * S))] == [["0"]]
    assert [text(one, 35, 112) for one in sent(session.tick(T0 + 36 * S))] == [["1", "TEST1"]]
    came(session, "0", 2, (112, "TEST1"), at=T0 + 40 * S)
    assert session.tick(T0 + 72 * S)[:1] != [End("")]
    assert session.state is State.ACTIVE
    (answer,) = sent(came(session, "1", 3, (112, "who"), at=T0 + 73 * S))
    assert text(answer, 35, 112) == ["0", "who"]


def test_a_message_that_can_not_be_read_is_rejected_and_its_number_is_had() -> None:
    session = active()
    actions = session.receive(Message("1", 2, b"8=FIX.4.4\x01x=1\x01", T0), T0)
    assert text(sent(actions)[0], 35, 45) == ["3", "2"]
    assert session.expected == 3
    with pytest.raises(DecodeError):
        Received(b"8=FIX.4.4\x01")


def test_numbers_survive_their_process(tmp_path: Path) -> None:
    path = numbers_path(str(tmp_path), "FIX.4.4", "A/B", "C")
    assert path is not None
    assert path.name == "FIX.4.4-A_2f_B-C.seq"
    first = Numbers(path, T0)
    assert first.settled_ns == T0
    session = active(first)
    session.request("V", [(262, "1")], T0)
    first.settle(2, T0 + 1)
    with pytest.raises(SourceError, match="another feed has this FIX session open"):
        Numbers(path)
    first.close()
    first.close()
    second = Numbers(path)
    assert (second.next_in, second.next_out, second.reset_ns, second.settled_ns) == (2, 3, 0, T0 + 1)
    second.reset(T0)
    assert (second.next_in, second.next_out, second.reset_ns) == (1, 1, T0)
    second.close()
    path.write_bytes(b"x" * 64)
    with pytest.raises(SourceError, match=r"is damaged or of another version; remove it"):
        Numbers(path)
    path.write_bytes(b"")
    third = Numbers(path)
    assert (third.next_in, third.next_out) == (1, 1)
    third.close()


def test_requests_are_one_a_symbol_and_refusals_find_theirs() -> None:
    requests = Requests(("A", "B", "C"), ("trade", "level2"), depth=0, incremental=True, exchange="XLON")
    made = requests.subscribe()
    assert [one.number for one in made] == ["1", "2", "3"]
    assert made[0].body == (
        (262, "1"), (263, "1"), (264, 0), (265, 1), (267, 3), (269, "0"), (269, "1"), (269, "2"), (146, 1), (55, "A"),
        (207, "XLON"),
    )  # fmt: skip
    requests.sent("2", 17)
    refused = encode(VENUE, "Y", 4, T0, [(262, "1"), (281, 0)])
    assert requests.refused("Y", Received(refused)) == ("A", "unknown symbol")
    rejected = encode(VENUE, "3", 5, T0, [(45, 17), (58, "no such field")])
    assert requests.refused("3", Received(rejected)) == ("B", "no such field")
    assert requests.refused("j", Received(encode(VENUE, "j", 6, T0, [(45, 99), (58, "?")]))) is None
    assert requests.subscribed == 1
    assert [one.body[1] for one in requests.unsubscribe()] == [(263, "2")]


def test_a_mass_quote_is_acknowledged_if_it_has_an_id() -> None:
    assert acknowledgement(encode(VENUE, "i", 2, T0, [(117, "q7"), (296, 0)])) == ((117, "q7"), (297, 0))
    assert acknowledgement(encode(VENUE, "i", 2, T0, [(296, 0)])) is None
    assert acknowledgement(encode(VENUE, "i", 2, T0, [(117, "q7"), (301, 0), (296, 0)])) is None
