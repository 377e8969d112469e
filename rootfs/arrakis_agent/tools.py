"""Running the few system programs that the agent itself needs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from arrakis_rpc.guest_api import ExecSpec

from .poller import Poller, wake
from .process import Process
from .spawn import Action, Spawner

RunTool = Callable[[Sequence[str], bytes], Awaitable[tuple[int, bytes]]]

_LONGEST_OUTPUT = 64 * 1024


class Tools:
    """Runs programs to their end."""

    def __init__(self, spawner: Spawner, poller: Poller) -> None:
        self._spawner = spawner
        self._poller = poller

    async def run(self, argv: Sequence[str], stdin: bytes) -> tuple[int, bytes]:
        """Give the exit code (negative: the signal) and what it wrote, errors included.

        Input and output are files in memory: nobody has to feed or drain them meanwhile.
        """
        source = os.memfd_create("input")
        target = os.memfd_create("output")
        try:
            os.write(source, stdin)
            os.lseek(source, 0, os.SEEK_SET)
            actions: list[Action] = [
                (os.POSIX_SPAWN_DUP2, source, 0),
                (os.POSIX_SPAWN_DUP2, target, 1),
                (os.POSIX_SPAWN_DUP2, target, 2),
            ]
            launch = self._spawner.prepare(ExecSpec(argv=list(argv), cwd="/"))
            process = Process(self._spawner.spawn(launch, actions), self._poller)
            status = await _wait(process)
            return os.waitstatus_to_exitcode(status), os.pread(target, _LONGEST_OUTPUT, 0)
        finally:
            os.close(source)
            os.close(target)


async def _wait(process: Process) -> int:
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    process.on_exit = partial(wake, ended)
    try:
        await ended
    except asyncio.CancelledError:
        process.abandon()
        raise
    return process.reap()
