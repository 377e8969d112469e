"""Programs for guests, and short ways to look at them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from real_daemon import SLACK, wait_until

from arrakis import Sandbox, SandboxManager
from arrakis_rpc.connection import CallNotified

# Of a test of what clients do: once by the Unix socket, once by a WebSocket.
over_both = pytest.mark.parametrize("transport", ["unix", "http"])

# Counts in memory, and writes each number down; so a gap or a repetition would show.
COUNTER = """
import itertools, os, time
with open("counter.pid", "w") as file:
    file.write(str(os.getpid()))
with open("counted", "a", buffering=1) as file:
    for number in itertools.count():
        file.write(f"{number}\\n")
        time.sleep(0.05)
"""


def start_counter(sandbox: Sandbox) -> int:
    """Start the counter in the background; give its pid in the guest."""
    sandbox.files.write("counter.py", COUNTER)
    sandbox.run_cmd("exec python3 -S counter.py", blocking=False)
    wait_until(lambda: sandbox.files.exists("counted"), 20)
    return int(sandbox.files.read_text("counter.pid"))


def counted(sandbox: Sandbox) -> list[int]:
    """Give all numbers that the counter has written."""
    return [int(line) for line in sandbox.files.read_text("counted").split("\n")[:-1]]


def ask(sandbox: Sandbox, command: str) -> str:
    """Run a command that must succeed; give its output without the line's end."""
    return sandbox.run(command, check=True).text.strip()


def clock_error(sandbox: Sandbox) -> float:
    """By how many seconds a guest's clock is off at least, beyond what asking it takes."""
    errors = []
    for _ in range(3):
        before = time.time()
        inside = float(ask(sandbox, "date +%s.%N"))
        errors.append(max(before - inside, inside - time.time(), 0))
    return min(errors)


def python(sandbox: Sandbox, program: str) -> Any:
    """Run a Python program in the guest; give what it prints as JSON."""
    return json.loads(sandbox.run(["python3", "-S", "-c", program], check=True).text)


class Watch:
    """What the daemon tells of VMs, from the moment of its making."""

    def __init__(self, manager: SandboxManager) -> None:
        self._call = manager._client.open("events.subscribe")
        self.seen: list[dict[str, Any]] = []

    def until(self, kind: str, vm: str) -> list[dict[str, Any]]:
        """Take events up to a certain one; give all of that VM since the beginning."""
        while not any(event["kind"] == kind and event["vm"] == vm for event in self.seen):
            item = self._call.take(SLACK * 10)
            assert isinstance(item, CallNotified)
            self.seen.append(item.params)
        return [event for event in self.seen if event["vm"] == vm]

    def kinds(self, kind: str, vm: str) -> list[str]:
        """Take events up to a certain one; give the kinds of all of that VM."""
        return [event["kind"] for event in self.until(kind, vm)]


@contextmanager
def watching(manager: SandboxManager) -> Iterator[Watch]:
    """Subscribe to events for the length of a block."""
    watch = Watch(manager)
    time.sleep(0.05)  # the subscription is on its way on a connection of its own
    try:
        yield watch
    finally:
        watch._call.close()


class Background:
    """A call that runs in a thread, whose result or error is wanted later."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._work()
        except Exception as error:  # noqa: BLE001 -- given to who asks for it
            self.error = error

    def wait(self, seconds: float = 30) -> Any:
        """Wait for the end; give the result, or raise the error."""
        self._thread.join(SLACK * seconds)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.result
