"""The last resort against orphans: a tiny shell that ends what is left of the workers after the control process died.

A worker whose control process is gone sees the end of its standard input and stops by itself. One that hangs at that
moment would not, and nobody would be left to kill it. So the control process keeps a `sh` (about 1 MB, asleep in a
read) and tells it the workers' process ids on a pipe; when the pipe ends, however the control process ended, the shell
waits GRACE_S and kills those that still run, after a look at their command line, since process ids are reused.

After an orderly stop there is nothing left to kill, and `close` ends the shell at once.
"""

from __future__ import annotations

import subprocess
from typing import Final

GRACE_S: Final = 1

_SCRIPT: Final = f"""
pids=
while read -r line; do
    [ "$line" = done ] && exit 0
    pids=$line
done
sleep {GRACE_S}
for pid in $pids; do
    if [ -r "/proc/$pid/cmdline" ]; then
        command=$(tr '\\0' ' ' <"/proc/$pid/cmdline")
    else
        command=$(ps -o command= -p "$pid")
    fi
    case "$command" in *" -m workers."*) kill -9 "$pid" ;; esac
done 2>/dev/null
"""


class Reaper:
    """The shell and the pipe to it."""

    def __init__(self) -> None:
        """Start the shell, in a session of its own so that a Ctrl-C does not reach it."""
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, pids: list[int]) -> None:
        """The workers that run now."""
        self._write(" ".join(str(pid) for pid in pids))

    def close(self) -> None:
        """All workers have ended: so does the shell."""
        self._write("done")
        if self._shell.stdin is not None:
            self._shell.stdin.close()
        self._shell.wait()

    def _write(self, line: str) -> None:
        if self._shell.stdin is None or self._shell.poll() is not None:
            return  # someone killed the shell: the first line of defence is still there
        try:
            self._shell.stdin.write(line.encode() + b"\n")
            self._shell.stdin.flush()
        except BrokenPipeError:
            pass
