"""The words of a FIX session: its states and events with their table, what comes in, what is to be done.

    IDLE --opened--> LOGON --logged on--> ACTIVE <--caught up, ahead--> GAP
      ^                |                    |                            |
      |                '---- leave ---------+--> LOGOUT -----------------'
      '-- closed ----- ENDED <-- logged out, broken, silent, from each of them

Spoken by workers/fix_session.py, which goes by the table, and workers/sources/fix.py, which does what is asked.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple


class State(enum.Enum):
    """See the module."""

    IDLE = "idle"
    LOGON = "logon"
    ACTIVE = "active"
    GAP = "gap"
    LOGOUT = "logout"
    ENDED = "ended"


class Event(enum.Enum):
    """What moves a session."""

    OPENED = "opened"
    LOGGED_ON = "logged on"
    AHEAD = "ahead"  # a number is too high, that of the logon too
    CAUGHT_UP = "caught up"
    LEAVE = "leave"
    LOGGED_OUT = "logged out"
    BROKEN = "broken"  # the venue broke the protocol: told it, and gone
    SILENT = "silent"
    CLOSED = "closed"  # the connection is gone


_OPEN: Final = (State.LOGON, State.ACTIVE, State.GAP, State.LOGOUT)
TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.IDLE, Event.OPENED): State.LOGON,
    (State.LOGON, Event.LOGGED_ON): State.ACTIVE,
    (State.ACTIVE, Event.AHEAD): State.GAP,
    (State.GAP, Event.CAUGHT_UP): State.ACTIVE,
    (State.LOGON, Event.LEAVE): State.LOGOUT,
    (State.ACTIVE, Event.LEAVE): State.LOGOUT,
    (State.GAP, Event.LEAVE): State.LOGOUT,
    **{(state, event): State.ENDED for state in _OPEN for event in (Event.LOGGED_OUT, Event.BROKEN)},
    (State.ACTIVE, Event.SILENT): State.ENDED,
    (State.GAP, Event.SILENT): State.ENDED,
    **{(state, Event.CLOSED): State.IDLE for state in State},
}


class Send(NamedTuple):
    """To the venue."""

    data: bytes


class Deliver(NamedTuple):
    """A message in its turn that is none of the session's own."""

    kind: str
    seq: int
    data: bytes
    ts_receive: int


class LoggedOn(NamedTuple):
    """Requests may be sent."""


class Missed(NamedTuple):
    """Messages [first, last) will not come."""

    first: int
    last: int
    reason: str


class End(NamedTuple):
    """The connection is of no more use. `lasting`: it will not pass by itself."""

    reason: str
    lasting: bool = False


Action = Send | Deliver | LoggedOn | Missed | End


class Message(NamedTuple):
    """What has come; `ts_receive` is when, by the host's clock. `done`: it was heeded before its turn."""

    kind: str
    seq: int  # 0 = it has no MsgSeqNum
    data: bytes
    ts_receive: int = 0
    possdup: bool = False
    done: bool = False
