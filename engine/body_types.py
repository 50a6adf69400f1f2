"""Types that the bodies of several HTTP calls share, as the schema at /schema shows them. Types only."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=0)]
Time = Annotated[str, Meta(description="ISO 8601 UTC with microseconds and Z")]
