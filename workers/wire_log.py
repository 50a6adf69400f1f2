"""What a live source says to whoever writes down its wire: `SourceContext.wire`, and how secrets stay out of it.

    source --connected, sent, received, asked, answered, noted, packets, lost--> WireLog --> files (capture_log.py)

A source calls these at the moment things happen, in the order in which they do, and goes on at once: a WireLog never
waits, never raises, and never holds a feed up. Everything is optional: no `wire`, no cost. `hide` is told of each
secret before anything else is; what is hidden is written nowhere, whichever message brings it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Any, Final, Protocol
from urllib.parse import quote, urlsplit, urlunsplit

REDACTED: Final = "[redacted]"
_SECRET_WORD: Final = re.compile(r"key|token|secret|sign|passw|passphrase|auth|credential|cookie|login", re.IGNORECASE)
_QUERY_PART: Final = re.compile(r"([?&;#])([^=&;#]+)=([^&;#]*)")
_SHORTEST: Final = 6  # characters of a secret that is looked for: shorter ones would blank out data as well
# Options whose keys are the venue's own words, symbols among them: no secrets, and a replay needs them as they are.
_WORDS: Final = ("rename", "channels", "messages", "acknowledged", "refused", "alive", "logged_in")
_SCHEMES: Final = ("basic ", "bearer ", "token ")


class WireLog(Protocol):
    """What a source may tell; times are ns since the epoch. `connection` names one of a feed's, as text."""

    def hide(self, secret: str) -> None:
        """This text must never be written. To be called before anything that may contain it.

        Less than six characters are not looked for in messages: send those with `secret`.
        """

    def connected(self, connection: str, at_ns: int, *, url: str = "", again: bool = False) -> None:
        """A connection was made. `again`: after one that had delivered, so that something was missed between."""

    def sent(self, connection: str, data: bytes, at_ns: int, *, secret: bool = False) -> None:
        """A message went out. `secret`: of a login or the like; that it was sent is written, and not what."""

    def received(self, connection: str, data: bytes, at_ns: int) -> None:
        """A whole message came in, as it was."""

    def asked(self, connection: str, url: str, at_ns: int) -> None:
        """A request over HTTP."""

    def answered(self, connection: str, url: str, status: int, body: bytes, at_ns: int) -> None:
        """Its answer; `status` 0 = there was none, and `body` says why."""

    def noted(self, connection: str, text: str, at_ns: int) -> None:
        """What a replay must know beside the messages: JSON, in the source's own words, in its place among them.

        Notes of a connection with the same text under `of` follow one another: the newest stands until the connection
        is lost, or until one has `over`, and is told again at the begin of each part. The source bounds how many stand.
        """

    def packets(self, connection: str, records: bytes, count: int) -> None:
        """Packets as records of a pcap file (little-endian, ns, raw IP), one behind the other; none = it listens."""

    def lost(self, connection: str, at_ns: int, why: str = "") -> None:
        """A connection, or the attempt to make it, is over."""


class Hidden:
    """The secrets of one feed, in every form in which a message may bring them."""

    def __init__(self) -> None:
        """Nothing is secret yet."""
        self._forms: tuple[bytes, ...] = ()

    def add(self, secret: str) -> None:
        """One more; also as it stands in JSON, in a URL, in Base64, and without the scheme of a header."""
        found = set(self._forms)
        for text in (secret, _without_scheme(secret)):
            if len(text) < _SHORTEST:
                continue
            raw = text.encode()
            found |= {raw, json.dumps(text)[1:-1].encode(), quote(text, safe="").encode(), base64.b64encode(raw)}
        self._forms = tuple(sorted(found, key=len, reverse=True))  # the longer first: one may contain another

    def clean(self, data: bytes) -> bytes:
        """`data` without them."""
        for form in self._forms:
            if form in data:
                data = data.replace(form, REDACTED.encode())
        return data

    def blank(self, data: bytes) -> bytes:
        """`data` with a `*` for each of their bytes, so that what states its length still does."""
        for form in self._forms:
            if form in data:
                data = data.replace(form, b"*" * len(form))
        return data


def clean_url(url: str) -> str:
    """A URL without user and password, and without the values of parameters that sound secret."""
    try:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            url = urlunsplit(parts._replace(netloc=f"{REDACTED}@{parts.netloc.rpartition('@')[2]}"))
    except ValueError:
        return REDACTED

    def value(found: re.Match[str]) -> str:
        return f"{found[1]}{found[2]}={REDACTED if _SECRET_WORD.search(found[2]) else found[3]}"

    return _QUERY_PART.sub(value, url)


def secrets_of(url: str, headers: Iterable[str]) -> list[str]:
    """What of a connection's settings is secret: values of headers, and of the URL what `clean_url` leaves out."""
    found = [value for value in headers if value]
    found += [part[3] for part in _QUERY_PART.finditer(url) if part[3] and _SECRET_WORD.search(part[2])]
    try:
        user, password = urlsplit(url).username, urlsplit(url).password
    except ValueError:
        return found
    return [*found, *(word for word in (user, password) if word)]


def clean_options(value: Any, name: str = "") -> Any:
    """A feed's options for the head of a capture: without login, values of headers, and whatever sounds secret."""
    if name == "headers" and isinstance(value, dict):
        return dict.fromkeys(value, REDACTED)
    if name == "login":
        return []
    if name in _WORDS:
        return value
    if isinstance(value, dict):
        return {key: clean_options(one, str(key)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [clean_options(one, name) for one in value]
    if isinstance(value, str) and _SECRET_WORD.search(name):
        return REDACTED
    return clean_url(value) if isinstance(value, str) and "://" in value else value


def _without_scheme(secret: str) -> str:
    lowered = secret.lower()
    return next((secret[len(scheme) :] for scheme in _SCHEMES if lowered.startswith(scheme)), "")
