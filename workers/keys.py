"""Keys of ZeroMQ's CURVE, in files: a secret of one's own, public ones of others, and the list of who may connect.

    server.key      the secret key, one line of 40 characters (Z85), readable by its owner alone
    server.pub      "PUBLIC NAME": the public key, and who that is
    clients/        a folder of .pub files, or one file with a line "PUBLIC NAME" for each client; # begins a comment

A secret key is all that a side needs of its own: the public one follows from it. `tickengine keys` makes such files
(tools/keys.py); fan-out reads server's key and list (workers/gate.py), subscribers their own (`CurveKeys.read`). It
never prints a secret, and puts none into an error.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

import zmq
from zmq.utils import z85

from workers.errors import SettingsError

KEY_CHARS: Final = 40
MAX_CLIENTS: Final = 10_000
_WHAT: Final = f"{KEY_CHARS} characters of Z85, as `tickengine keys` writes them"


def read_secret(path: str | Path) -> bytes:
    """The secret key in a file. SettingsError names the file, and what is wrong with it."""
    path = Path(path).expanduser()
    key = _read(path).strip().encode()
    if os.stat(path).st_mode & stat.S_IRWXO:
        raise SettingsError(f"{path}: everybody on this host may open this secret key: chmod 600 {path}")
    public_of(key, str(path))
    return key


def public_of(secret: bytes, where: str = "secret key") -> bytes:
    """The public key of a secret one. SettingsError if it is none."""
    if _is_key(secret):
        try:
            return zmq.curve_public(secret)
        except zmq.ZMQError:
            pass
    raise SettingsError(f"{where}: must be one secret key, {_WHAT}")


def read_public(given: str | bytes | Path) -> bytes:
    """A public key, given itself or by its file. SettingsError if it is none."""
    if isinstance(given, bytes):
        given = given.decode("ascii", "replace")
    if isinstance(given, str) and _is_key(given.encode()):
        return given.encode()
    path = Path(given).expanduser()
    keys = _parse(_read(path), str(path))
    if len(keys) != 1:
        raise SettingsError(f"{path}: has {len(keys)} public keys, must have one")
    return next(iter(keys))


def make_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a key pair: (file of the secret key, mode 0600; file of the public one). Replaces nothing.

    SettingsError for a name that no list can carry; FileExistsError and other OSErrors.
    """
    if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
        raise SettingsError(f"name is {name!r}: must be letters, digits, '-', '_' and '.'")
    public, secret = zmq.curve_keypair()
    paths = folder / f"{name}.key", folder / f"{name}.pub"
    contents = (secret + b"\n", 0o600), (b"%s %s\n" % (public, name.encode()), 0o644)
    if paths[1].exists():
        raise FileExistsError(17, os.strerror(17), str(paths[1]))
    for path, (text, mode) in zip(paths, contents, strict=True):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            os.write(fd, text)
        finally:
            os.close(fd)
    return paths


class CurveKeys(NamedTuple):
    """What a client needs to talk to an engine that has keys: its own secret, the engine's public key."""

    secret: bytes
    server: bytes

    @classmethod
    def read(cls, secret_file: str | Path, server: str | bytes | Path) -> CurveKeys:
        """From files; `server` may be the key itself. SettingsError names the file and what is wrong."""
        return cls(read_secret(secret_file), read_public(server))

    def apply(self, socket: zmq.Socket[bytes]) -> None:
        """Use them on a socket; before it connects."""
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.secret)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, zmq.curve_public(self.secret))
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.server)


class AllowList:
    """Who may connect: public keys with names, read again when the files change.

    Attributes:
        names: public key -> name.
    """

    def __init__(self, path: str | Path) -> None:
        """Read it. SettingsError names file and line of what is no key, or says that there is no key at all."""
        self._path = Path(path).expanduser()
        self._seen = self._look()
        self.names = self._load()

    def changed(self) -> bool:
        """Look at the files, and take the list in again if they differ: whether it was.

        SettingsError, once, if it can't be used; then the list of before stays in force.
        """
        seen = self._look()
        if seen == self._seen:
            return False
        self._seen = seen
        self.names = self._load()
        return True

    def _files(self) -> list[Path]:
        return sorted(self._path.glob("*.pub")) if self._path.is_dir() else [self._path]

    def _look(self) -> list[tuple[str, int, int, int]]:
        found = []
        for path in self._files():
            try:
                facts = path.stat()
            except OSError:
                continue
            found.append((path.name, facts.st_mtime_ns, facts.st_size, facts.st_ino))
        return found

    def _load(self) -> dict[bytes, str]:
        names: dict[bytes, str] = {}
        for path in self._files():
            names |= _parse(_read(path), str(path), path.stem)
        if not names and not self._path.is_dir():
            raise SettingsError(f"{self._path}: has no public key")
        if len(names) > MAX_CLIENTS:
            raise SettingsError(f"{self._path}: has {len(names)} public keys, at most {MAX_CLIENTS} are taken")
        return names


def _is_key(text: bytes) -> bool:
    if len(text) != KEY_CHARS:
        return False
    try:
        return len(z85.decode(text)) == 32
    except (KeyError, ValueError):
        return False


def _parse(text: str, where: str, name: str = "") -> dict[bytes, str]:
    names: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        # A key may have a # in it: a comment begins at the line's start.
        if not words or (words[0].startswith("#") and not _is_key(words[0].encode())):
            continue
        if not _is_key(words[0].encode()):
            raise SettingsError(f"{where}, line {number}: must begin with a public key, {_WHAT}")
        names[words[0].encode()] = " ".join(words[1:]) or name or f"client-{len(names) + 1}"
    return names


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: is not text") from None
