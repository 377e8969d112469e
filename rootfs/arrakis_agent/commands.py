"""``exec.run``: a command, from its start to its answer."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from arrakis_rpc.errors import InvalidParamsError
from arrakis_rpc.guest_api import ExecResult, ExecSpec

from .call import Call
from .poller import Poller, wake
from .process import Process
from .pumps import InputPump, OutputPump
from .spawn import Action, Spawner
from .streams import Streams, open_streams, set_size

_END_OF_TRANSMISSION = b"\x04"
_MAX_TERMINAL_SIDE = 10_000


class Commands:
    """Runs commands for calls."""

    def __init__(self, spawner: Spawner, poller: Poller) -> None:
        self._spawner = spawner
        self._poller = poller
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    async def run(self, call: Call, spec: ExecSpec) -> ExecResult:
        """Run a command; give how it ended. Cancelling kills its session."""
        if spec.background:
            return self._run_in_background(spec)
        command = self._start(call, spec)
        try:
            if command.input is None:
                await command.ended
            else:
                async with asyncio.TaskGroup() as tasks:
                    feeder = tasks.create_task(command.input.run())
                    await command.ended
                    feeder.cancel()
            return command.take_result()
        finally:
            command.close()

    def _start(self, call: Call, spec: ExecSpec) -> _Command:
        launch = self._spawner.prepare(spec)
        streams = open_streams(spec, self._null, launch.owner)
        started = time.monotonic()
        try:
            process = Process(self._spawner.spawn(launch, streams.actions), self._poller)
        except BaseException:
            streams.close()
            raise
        streams.close_child_input()
        return _Command(call, spec, process, started, streams, self._poller)

    def _run_in_background(self, spec: ExecSpec) -> ExecResult:
        if spec.stdin or spec.pty:
            raise InvalidParamsError("a command in the background has neither stdin nor pty")
        launch = self._spawner.prepare(spec)
        actions: list[Action] = [(os.POSIX_SPAWN_DUP2, self._null, fd) for fd in range(3)]
        process = Process(self._spawner.spawn(launch, actions), self._poller)
        if spec.timeout is not None:
            process.kill_after(spec.timeout)
        return ExecResult(process.pid)


class _Command:
    """A command that runs. ``ended`` is done when it and its output have come to their end."""

    def __init__(
        self,
        call: Call,
        spec: ExecSpec,
        process: Process,
        started: float,
        streams: Streams,
        poller: Poller,
    ) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.input: InputPump | None = None
        self._call = call
        self._terminal = streams.terminal
        self._process: Process | None = process
        self._started = started
        self._duration = 0.0
        self._pumps = [
            OutputPump(our_end, far_end, call, channel, poller, capacity=streams.capacity)
            for channel, our_end, far_end in streams.outputs
        ]
        if streams.input is not None:
            last = b"" if streams.terminal is None else _END_OF_TRANSMISSION
            self.input = InputPump(streams.input, call, "stdin", poller, last=last)
        self._running = 1 + len(self._pumps)
        process.on_exit = self._exited
        if spec.timeout is not None:
            process.kill_after(spec.timeout)
        for pump in self._pumps:
            pump.start(self._one_ended)
        call.listen(self._note)

    def take_result(self) -> ExecResult:
        """Reap the command, and tell how it ended."""
        assert self._process is not None
        process, self._process = self._process, None
        code = os.waitstatus_to_exitcode(process.reap())
        return ExecResult(
            process.pid,
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            timed_out=process.timed_out,
            duration=self._duration,
        )

    def close(self) -> None:
        """Let go of everything; kill the command if its result was not taken."""
        self._call.listen_no_more()
        for pump in self._pumps:
            pump.close()
        if self.input is not None:
            self.input.close()
        if self._terminal is not None:
            os.close(self._terminal)
        if self._process is not None:
            self._process.abandon()

    def _exited(self) -> None:
        self._duration = time.monotonic() - self._started
        self._one_ended()
        for pump in self._pumps:
            pump.finish()

    def _one_ended(self) -> None:
        self._running -= 1
        if not self._running:
            wake(self.ended)

    def _note(self, method: str, params: dict[str, Any]) -> None:
        """Act on a notification; one that makes no sense is ignored."""
        match method, params:
            case "exec.signal", {"signal": int(number)} if 0 < number < signal.NSIG:
                if self._process is not None:
                    self._process.signal_group(number)
            case "exec.resize", {"rows": int(rows), "cols": int(cols)}:
                sides = range(1, _MAX_TERMINAL_SIDE + 1)
                if self._terminal is not None and rows in sides and cols in sides:
                    set_size(self._terminal, rows, cols)
