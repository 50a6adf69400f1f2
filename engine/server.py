"""uvicorn inside the control process's own event loop: a socket bound early, an application served late.

Binding comes first, before any process is spawned, so that a busy port ends the start with a clear error. uvicorn's
signal handling, logging and ten turns a second are left out: the control process has its own of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from engine.errors import ConfigError, PortBusy

if TYPE_CHECKING:
    from engine.audit import Audited

_BACKLOG = 128
_MAX_CONNECTIONS = 256
_STOP_S = 0.3


def bind(host: str, port: int, what: str) -> socket.socket:
    """A listening TCP socket.

    Raises:
        PortBusy: something else listens there, or the port is reserved.
        ConfigError: no such address on this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortBusy(
                f"{what} {host}:{port} is taken by another process; stop it or choose another port"
            ) from None
        if error.errno == errno.EACCES:
            raise PortBusy(f"{what} {host}:{port}: this user may not listen there; take a port above 1023") from None
        reason = error.strerror or str(error)
        raise ConfigError(f"{what} {host}:{port}: {reason}") from error
    return listener


def check_free(host: str, port: int, what: str) -> None:
    """Raise PortBusy if nobody else could bind that port now; workers that bind it come later."""
    bind(host, port, what).close()


class HttpServer:
    """One uvicorn server on a socket that is bound already."""

    def __init__(self, app: Audited, listener: socket.socket) -> None:
        """Nothing is served yet."""
        import uvicorn

        class Quiet(uvicorn.Server):
            """uvicorn without its signal handlers and without its ten turns a second."""

            ended = asyncio.Event()

            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

            async def main_loop(self) -> None:
                while not self.should_exit:
                    await self.on_tick(0)  # renews the Date header
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.ended.wait(), 1.0)

        config: Any = uvicorn.Config(
            app,
            lifespan="off",
            http="httptools",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=1,
        )
        self._server = Quiet(config)
        self._listener = listener
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve from now on."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Answer what is being answered, for a moment, and close."""
        if self._serving is None:
            return
        self._server.should_exit = True
        self._server.ended.set()
        done, _ = await asyncio.wait([self._serving], timeout=_STOP_S)
        if not done:
            self._server.force_exit = True
            await asyncio.wait([self._serving], timeout=_STOP_S)
            self._serving.cancel()
