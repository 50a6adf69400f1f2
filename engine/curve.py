"""The ZeroMQ sockets' keys as they are configured: which files, and whether they will do.

Called once by engine/control.py, before anything starts. A secret key comes from a file or a systemd credential and
never appears in logs, answers or errors; fan-out reads it itself (workers/gate.py), so that it goes through no pipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq

from engine.config import is_loopback
from engine.errors import ConfigError
from engine.settings import Config

CREDENTIAL: Final = "zmq_server_key"
_HELP: Final = "`tickengine keys` makes them"


@dataclass(frozen=True)
class CurveFiles:
    """Where fan-out finds its keys; all empty where there are none.

    Attributes:
        server_key_file: this engine's secret key.
        client_keys: file or folder of the public keys of who may connect.
        public: the public key that belongs to the secret one, for clients.
    """

    server_key_file: str = ""
    client_keys: str = ""
    public: str = ""


def find_keys(config: Config, env: Mapping[str, str]) -> CurveFiles:
    """The keys that the configuration names, or none.

    Raises:
        ConfigError: a file that can't be used, one of the two without the other, or an address beyond loopback without
            keys.
    """
    zmq_section = config.zmq
    credential = Path(env["CREDENTIALS_DIRECTORY"]) / CREDENTIAL if env.get("CREDENTIALS_DIRECTORY") else None
    if zmq_section.server_key_file:
        where = f"[zmq] server_key_file = {zmq_section.server_key_file!r}"
        server_key_file = Path(zmq_section.server_key_file).expanduser().absolute()
    elif credential is not None and credential.exists():
        where, server_key_file = f"credential {CREDENTIAL}", credential
    elif zmq_section.client_keys:
        raise ConfigError(
            f"[zmq] client_keys = {zmq_section.client_keys!r}: is of no use without a server key: set [zmq] "
            f"server_key_file or the systemd credential {CREDENTIAL}; {_HELP}"
        )
    elif not is_loopback(zmq_section.host):
        raise ConfigError(
            f"[zmq] host = {zmq_section.host!r} is reachable from other machines, so CURVE keys are needed: set [zmq] "
            f"server_key_file (or the systemd credential {CREDENTIAL}) and client_keys; {_HELP}; or use 127.0.0.1"
        )
    else:
        return CurveFiles()
    if not zmq_section.client_keys:
        raise ConfigError(f"{where}: set [zmq] client_keys too, the file or folder that says who may connect; {_HELP}")
    client_keys = Path(zmq_section.client_keys).expanduser().absolute()
    if not client_keys.exists():
        raise ConfigError(f"[zmq] client_keys = {zmq_section.client_keys!r}: no such file or folder; {_HELP}")
    return CurveFiles(str(server_key_file), str(client_keys), _public(server_key_file, where))


def _public(path: Path, where: str) -> str:
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}") from None
    try:
        if len(secret) == 40:
            return zmq.curve_public(secret).decode()
    except zmq.ZMQError:
        pass
    raise ConfigError(f"{where}: must be a secret key, 40 characters of Z85; {_HELP}")
