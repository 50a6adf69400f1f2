"""Real databases for tests: redis-server and PostgreSQL, started on free loopback ports, killed by their own handles.

Where they are not installed the tests that need them are skipped, and counted in the last line of the run.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.children import wait_until
from tests.ports import free_port


def postgres_bin(*, timescale: bool = False) -> Path | None:
    """Folder of PostgreSQL's programs, with TimescaleDB among its libraries if asked for; None if there is none.

    $TICKENGINE_POSTGRES_BIN names one that is not where Debian has it.
    """
    found = os.environ.get("TICKENGINE_POSTGRES_BIN") or shutil.which("initdb")
    folders = [Path(found).parent if found.endswith("initdb") else Path(found)] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next(
        (
            folder
            for folder in folders
            if (folder / "initdb").exists() and (not timescale or (folder.parent / "lib" / "timescaledb.so").exists())
        ),
        None,
    )


class Server:
    """A database server in a folder of its own; `start` again after a `kill` finds what it had."""

    def __init__(self, prefix: str) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=prefix))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """What the engine is configured with."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """How it is started."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it takes connections."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log = (self.folder / "log").open("ab")

        def up() -> bool:
            if self.process is None or self.process.poll() is not None:  # what a kill left behind may be in its way
                self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, cwd=self.folder, **self.owner())
            return self.answers()

        with log:
            wait_until(up, f"{self.command()[0]} answers; see {self.folder}/log")

    def owner(self) -> dict[str, Any]:
        """Who it runs as."""
        return {}

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def pause(self) -> None:
        """It stands still: connections stay, nothing is answered."""
        self.signal_all(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `pause`."""
        self.signal_all(signal.SIGCONT)

    def signal_all(self, number: signal.Signals) -> None:
        """To every process of it."""
        assert self.process is not None
        self.process.send_signal(number)

    def close(self) -> None:
        """End it and remove its folder."""
        if self.process is not None:
            self.signal_all(signal.SIGCONT)
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


class RedisServer(Server):
    """redis-server that writes an append-only file, so that a kill loses nothing that it has answered."""

    def __init__(self, *options: str) -> None:
        if shutil.which("redis-server") is None:
            pytest.skip("redis-server is not installed")
        pytest.importorskip("redis", reason="redis-py is not installed")
        super().__init__("tkredis")
        self.options = options

    @property
    def address(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        fixed = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]
        return ["redis-server", *fixed, "--appendfsync", "always", "--dir", str(self.folder), *self.options]

    def answers(self) -> bool:
        import redis

        try:
            with redis.Redis(port=self.port, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False

    def client(self) -> Any:
        """A client to look in with."""
        import redis

        return redis.Redis(port=self.port)


class PostgresServer(Server):
    """PostgreSQL; as root it runs as the user postgres, because it refuses root."""

    def __init__(self, *, timescale: bool = False) -> None:
        programs = postgres_bin(timescale=timescale)
        if programs is None:
            pytest.skip("TimescaleDB is not installed" if timescale else "PostgreSQL is not installed")
        self.timescale = timescale
        pytest.importorskip("psycopg", reason="psycopg is not installed")
        self.programs = programs
        super().__init__("tkpg")
        self.data = self.folder / "data"
        if not os.geteuid():
            user = pwd.getpwnam("postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        options = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale", "C", "--no-sync"]
        subprocess.run(
            [str(programs / "initdb"), "-D", str(self.data), *options],
            check=True,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            **self.owner(),
        )

    @property
    def address(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"

    def owner(self) -> dict[str, Any]:
        return {} if os.geteuid() else {"user": "postgres", "group": "postgres", "extra_groups": []}

    def command(self) -> list[str]:
        options = ["-p", str(self.port), "-k", str(self.folder), "-c", "listen_addresses=127.0.0.1"]
        if self.timescale:
            options += ["-c", "shared_preload_libraries=timescaledb", "-c", "timescaledb.telemetry_level=off"]
        return [str(self.programs / "postgres"), "-D", str(self.data), *options]

    def answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.address, connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True

    def signal_all(self, number: signal.Signals) -> None:
        import psutil

        assert self.process is not None
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                child.send_signal(number)
            except psutil.NoSuchProcess:
                pass
        self.process.send_signal(number)

    def query(self, statement: str, *values: Any) -> list[Any]:
        """Rows of one statement."""
        import psycopg

        with psycopg.connect(self.address, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []
