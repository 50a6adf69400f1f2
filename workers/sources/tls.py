"""TLS of a feed's connections: verified unless its options say otherwise. Used by live sources; opens no connection."""

from __future__ import annotations

import logging
import ssl

from workers.errors import SettingsError

log = logging.getLogger("tls")


def tls_context(name: str, *, verify: bool, ca_file: str) -> ssl.SSLContext | None:
    """What feed `name` trusts: `ca_file` or, None, the system's certificates. SettingsError if the file is no use."""
    if verify and not ca_file:
        return None
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"feed {name}: options.ca_file {ca_file!r}: {error}") from None
    if not verify:
        log.warning("feed %s: TLS certificates are not verified (tls_verify = false)", name)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
