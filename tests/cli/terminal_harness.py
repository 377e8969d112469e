"""The command line on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = [sys.executable, "-c", "from arrakis.cli.main import main; main()"]


class OnTerminal:
    """The command line with a terminal of its own, as its user sees it."""

    def __init__(self, socket: Path, *arguments: str) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(30, 90)
        self.mode = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [*PROGRAM, "--socket", str(socket), *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "vt100"},
        )
        self.seen = b""

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, cols, 0, 0))

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def expect(self, text: bytes) -> None:
        until = time.monotonic() + 60
        while text not in self.seen:
            assert time.monotonic() < until, self.seen
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096)

    def end(self) -> int:
        code = self.process.wait(60)
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 4096)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Callable[..., OnTerminal]]:
    made: list[OnTerminal] = []

    def make(*arguments: Any) -> OnTerminal:
        made.append(OnTerminal(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()
