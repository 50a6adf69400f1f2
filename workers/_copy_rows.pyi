from typing import Any

ROW_MAX_BYTES: int
TEXT_MAX_BYTES: int

def put_rows(
    out: Any,
    records: Any,
    order: Any,
    symbols: Any,
    symbol_ends: Any,
    types: Any,
    type_ends: Any,
    sources: Any,
    source_ends: Any,
    opening: Any,
) -> int: ...
