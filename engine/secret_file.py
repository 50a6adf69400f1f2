"""Secrets that stand in files: bearer tokens, the key that signs webhooks.

Called at start by engine/access.py and engine/webhook_secret.py. Errors say what for, never what.
"""

from __future__ import annotations

from pathlib import Path

from engine.errors import ConfigError


def read_secret(path: Path, what: str) -> str:
    """The text of a file without the blanks around it. ConfigError names the setting, `what`."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"{what}: {reason}") from None
