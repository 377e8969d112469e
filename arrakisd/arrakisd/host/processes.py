"""Child processes that have an owner: they end with their scope, and with the daemon."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

_KILL_DEADLINE = 5.0


class Child:
    """A running child process. It needs an owner; see `owned`."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._ended = trio.Event()
        self.pid = popen.pid

    async def wait(self) -> int:
        """Wait for the end; give the exit status, negative for a signal."""
        await self._ended.wait()
        return int(self._popen.returncode)

    def kill(self) -> None:
        """Kill the process; one that has ended is left alone."""
        self._popen.send_signal(signal.SIGKILL)

    async def reap(self) -> None:
        """Wait for the end and take the exit status, on behalf of all who `wait`."""
        if self._popen.poll() is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                while self._popen.poll() is None:
                    await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        self._ended.set()


def spawn(
    argv: Sequence[str],
    *,
    output: Path,
    pass_fds: Sequence[int] = (),
    identity: tuple[int, int] | None = None,
) -> Child:
    """Start a child that the kernel kills when the daemon dies.

    ``identity`` are the uid and gid it runs under. Its output goes to a file. This blocks
    for the one or two milliseconds of a vfork, and must run in the main thread: the death
    signal is bound to the thread that starts the child, and a worker thread ends when it
    has been idle. ``setpriv`` sets identity and death signal, because doing it between fork
    and exec would cost a real fork of the daemon.
    """
    prefix = ["setpriv", "--pdeathsig", "KILL", "--no-new-privs"]
    if identity is not None:
        uid, gid = identity
        prefix += [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    with output.open("ab") as log:
        popen = subprocess.Popen(
            [*prefix, "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=pass_fds,
            process_group=0,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
        )
    return Child(popen)


@asynccontextmanager
async def owned(child: Child) -> AsyncIterator[Child]:
    """Keep a child for the length of a block; at its end the child is killed and reaped."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.reap)
            yield child
            nursery.cancel_scope.cancel()
    finally:
        child.kill()
        with trio.move_on_after(_KILL_DEADLINE, shield=True):
            await child.reap()
