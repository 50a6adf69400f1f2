"""A vendor's API key: found in the environment, and kept out of everything that is shown.

Keys are never written in options: those are stored, listed and logged. The control process turns systemd credentials
called `fred_api_key` into the environment of its workers (engine/process.py), so here there is one place to look.
Used by the polled sources.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Final
from urllib.parse import quote, quote_plus

from msgspec import Meta

from workers.errors import SettingsError
from workers.spec import FeedSpec

HIDDEN: Final = "***"

# Only what is called so may be named: whoever may add feeds shall not have other secrets sent to an address of theirs.
KeyVariable = Annotated[str, Meta(pattern=r"^[A-Z][A-Z0-9_]*_API_KEY(_[A-Z0-9_]+)?$", max_length=64)]


class ApiKey:
    """One key. Its text is `value`; repr and str do not show it."""

    def __init__(self, variable: str, value: str) -> None:
        """`variable` is where it comes from, for people."""
        self.variable = variable
        self.value = value

    def __repr__(self) -> str:
        return f"ApiKey({self.variable})"

    def redact(self, text: str) -> str:
        """The text without the key, in whatever way a URL or an answer of the vendor's writes it."""
        if not self.value:
            return text
        for form in {self.value, quote(self.value, safe=""), quote_plus(self.value)}:
            text = text.replace(form, HIDDEN)
        return text


def find_key(spec: FeedSpec, variable: str, where: str, env: Mapping[str, str] = os.environ) -> ApiKey:
    """The key in the environment's `variable`; SettingsError says what to do if there is none.

    `where` is the page on which the vendor gives keys out.
    """
    value = env.get(variable, "").strip()
    if not value:
        raise SettingsError(
            f"feed {spec.name}: source {spec.source!r} needs an API key: set {variable} in the environment of the "
            f"engine, or give its service a systemd credential {variable.lower()}, and start it again; keys: {where}"
        )
    if not value.isascii() or any(c.isspace() for c in value):
        raise SettingsError(f"feed {spec.name}: the key in {variable} has blanks or letters that no key has")
    return ApiKey(variable, value)
