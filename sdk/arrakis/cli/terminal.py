"""Our standard streams joined to those of a command in a machine."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from types import FrameType, TracebackType
from typing import Any

from arrakis import Completed, Process, Pty

from .output import write_bytes

_CHUNK = 64 * 1024


class Terminal:
    """This terminal in raw mode, for the length of a block; put right again whatever happens."""

    def __init__(self) -> None:
        self._input = sys.stdin.fileno()
        self._output = sys.stdout.fileno()

    def describe(self) -> Pty:
        """Give its size and type."""
        rows, cols = self.size()
        return Pty(rows, cols, os.environ.get("TERM") or "xterm-256color")

    def size(self) -> tuple[int, int]:
        """Give rows and columns; a terminal that does not know says 0."""
        size = os.get_terminal_size(self._output)
        return size.lines or 24, size.columns or 80

    def changes(self) -> int:
        """Give a descriptor that becomes readable when the size changes."""
        return self._changes

    def __enter__(self) -> Terminal:
        self._mode = termios.tcgetattr(self._input)
        self._changes, self._alarm = os.pipe()
        os.set_blocking(self._alarm, False)
        os.set_blocking(self._changes, False)
        self._wakeup = signal.set_wakeup_fd(self._alarm, warn_on_full_buffer=False)
        self._handlers: dict[int, Any] = {
            signal.SIGWINCH: signal.signal(signal.SIGWINCH, _ignore),
            # Not to die of these with the terminal in raw mode.
            signal.SIGTERM: signal.signal(signal.SIGTERM, _leave),
            signal.SIGHUP: signal.signal(signal.SIGHUP, _leave),
        }
        tty.setraw(self._input, termios.TCSADRAIN)  # what was typed ahead is meant for the shell
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        termios.tcsetattr(self._input, termios.TCSADRAIN, self._mode)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._changes)
        os.close(self._alarm)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Let the signal do no more than wake the loop through its descriptor."""


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def relay(
    process: Process, *, forward: bool = False, terminal: Terminal | None = None
) -> Completed:
    """Pass output, and with ``forward`` our stdin, until the command ends."""
    source = sys.stdin.fileno() if forward else None
    while True:
        for stream, data in process.pump():
            write_bytes(stream, data)
        if not process.is_running:
            return process.wait()
        ready = _wait(process, source, terminal)
        if source is not None and source in ready:
            data = os.read(source, min(_CHUNK, process.stdin.room))
            if data:
                process.stdin.write(data)
            else:
                process.stdin.close()
                source = None
        if terminal is not None and terminal.changes() in ready:
            os.read(terminal.changes(), _CHUNK)
            process.resize(*terminal.size())


def _wait(process: Process, source: int | None, terminal: Terminal | None) -> set[int]:
    poll = select.poll()
    poll.register(process.fileno(), select.POLLIN)
    if source is not None and process.stdin.room:
        poll.register(source, select.POLLIN)
    if terminal is not None:
        poll.register(terminal.changes(), select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll()}
