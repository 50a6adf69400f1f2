"""Where an engine keeps its files and its sockets: folders and names that follow from the configuration.

Called by the plan, the control process and commands that look at what is recorded. It names places; it makes, opens and
removes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from engine.settings import Config


def runtime_dir(env: Mapping[str, str], engine: str) -> Path:
    """Folder for this engine's sockets: under systemd's runtime directory, the user's, or a private one in /tmp."""
    if env.get("RUNTIME_DIRECTORY"):
        return Path(env["RUNTIME_DIRECTORY"].split(":")[0]) / engine
    if env.get("XDG_RUNTIME_DIR"):
        return Path(env["XDG_RUNTIME_DIR"]) / "tickengine" / engine
    return Path(env.get("TMPDIR", "/tmp")) / f"tickengine-{os.getuid()}" / engine


def data_folder(config: Config) -> Path:
    """Where an engine keeps what must outlive it: a folder of its own name, so that engines side by side share none."""
    return Path(os.path.expanduser(config.engine.data_dir)).absolute() / config.engine.name


def ledger_path(config: Config) -> Path:
    """The file in which the webhooks worker keeps positions and counts (shm/ledger.py)."""
    return data_folder(config) / "webhooks.ledger"
