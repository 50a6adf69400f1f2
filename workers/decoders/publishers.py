"""Databento publisher ids -> venue codes: a table of facts for the DBN decoder; imports nothing and is never hot.

Source: Databento, "Venues and publishers" (the enum `Publisher` of the dbn crate). An id that is not here has no venue.
"""

from __future__ import annotations

from typing import Final

# Index = publisher id - 1, twenty to a row.
_ROWS: Final = (
    "GLBX XNAS XBOS XPSX BATS BATY EDGA EDGX XNYS XCIS XASE XCHI XCIS XCIS MEMX EPRL FINN FINC FINY AMXO",
    "XBOX XCBO EMLD EDGO GMNI XISX MCRY XMIO ARCO OPRA MPRL XNDQ XBXO C2OX XPHL BATO MXOP IEXG XCHI XCIS",
    "IEXG EPRL ARCX XNYS XNYS XNAS XNAS XCHI XCIS IEXG EPRL XNAS XNYS FINN FINY FINC IFEU NDEX DBEQ EQUS",
    "SPHR XCHI XCIS IEXG EPRL XNAS XNYS FINN FINY FINC",
)
VENUES: Final = tuple(" ".join(_ROWS).split())


def venue_of(publisher_id: int) -> bytes:
    """Venue code of a publisher; b"" = not known here."""
    return VENUES[publisher_id - 1].encode() if 1 <= publisher_id <= len(VENUES) else b""
