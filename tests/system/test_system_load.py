"""Much at once, and more than fits: all is answered, and nothing grows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from in_guest import Background, ask, over_both
from real_daemon import Daemon, running_daemon, wait_until

from arrakis import SandboxManager

pytestmark = pytest.mark.vm

MIB = 2**20


class Highest:
    """Follows the daemon's memory for the length of a block."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.before = self.highest = daemon.memory_mib()

    def _run(self) -> None:
        while not self._done.wait(0.05):
            self.highest = max(self.highest, self._daemon.memory_mib())

    def __enter__(self) -> Highest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def growth(self) -> float:
        """By how many MiB it was above what it was before."""
        return self.highest - self.before


def test_endless_output(manager: SandboxManager, daemon: Daemon) -> None:
    """Output goes through at its reader's pace, to the last byte, in bounded memory."""
    size = 96 * MIB
    with manager.start_sandbox("flood") as sandbox, Highest(daemon) as memory:
        received = 0
        process = sandbox.exec(f"yes | head -c {size}")
        for stream, data in process:
            assert stream == "stdout"
            received += len(data)
            if received < 4 * MIB:
                time.sleep(0.02)  # while the guest could write far more
        assert process.wait().exit_code == 0
        agent = ask(sandbox, "ps -o rss= -p $(systemctl show -p MainPID --value arrakis-agent)")
    assert received == size
    assert memory.growth < 24
    assert int(agent) < 64 * 1024


@over_both
def test_reader_that_stops(manager: SandboxManager, daemon: Daemon) -> None:
    """A reader that stops holds up its own command, and no other call into the same VM."""
    with (
        manager.start_sandbox("stalled") as sandbox,
        Highest(daemon) as memory,
        sandbox.exec(["yes"]) as stalled,
    ):
        next(iter(stalled))
        for number in range(5):
            assert ask(sandbox, f"echo {number}") == str(number)
        sandbox.files.write("/root/data", bytes(8 * MIB))
        assert len(sandbox.files.read("/root/data")) == 8 * MIB
        time.sleep(0.5)
    assert memory.growth < 24


@over_both
def test_many_clients(manager: SandboxManager, new_client: Callable[[], SandboxManager]) -> None:
    """Twenty clients at once ask and run commands in two VMs without an error."""
    names = ["even", "odd"]
    for name in names:
        manager.start_sandbox(name)

    def work(number: int) -> list[float]:
        times = []
        with new_client() as client:
            sandbox = client.get(names[number % 2])
            for turn in range(4):
                for _ in range(10):
                    began = time.monotonic()
                    assert client.health().vms["RUNNING"] == 2
                    times.append(time.monotonic() - began)
                assert sandbox.info()["status"] == "RUNNING"
                said = f"{number}-{turn}"
                assert sandbox.run(["echo", said], check=True).text == f"{said}\n"
        return times

    clients = [Background(lambda number=number: work(number)) for number in range(20)]
    times = sorted(t for client in clients for t in client.wait(120))
    # Not the 99th of 100: one moment in which the host does something else delays twenty of them.
    # The promise of 50 ms is the benchmark's.
    assert times[len(times) * 9 // 10] < 1


def test_many_starts(template_state: Path) -> None:
    """Twenty starts at once all come up; idle, they cost the daemon next to nothing."""
    with running_daemon(template_state) as daemon, SandboxManager(socket=daemon.socket) as manager:
        starts = [
            Background(lambda number=number: manager.start_sandbox(f"vm-{number}"))
            for number in range(20)
        ]
        sandboxes = [start.wait(120) for start in starts]
        assert len(daemon.vmm_pids()) == 20
        names = [sandbox.files.read_text("/etc/hostname").strip() for sandbox in sandboxes]
        assert names == [f"vm-{number}" for number in range(20)]
        assert daemon.memory_mib() < 150

        def is_idle() -> bool:
            before, began = daemon.cpu_seconds(), time.monotonic()
            time.sleep(2)
            return daemon.cpu_seconds() - before < 0.01 * (time.monotonic() - began)

        wait_until(is_idle, 30)
        began = time.monotonic()
        manager.destroy_all()
        assert time.monotonic() - began < 20  # one after the other they would take longer


def test_many_calls_on_one_vm(manager: SandboxManager) -> None:
    """More calls into one VM than the session has room for frames are all answered."""
    with manager.start_sandbox("popular") as sandbox:
        calls = [
            Background(lambda number=number: sandbox.run(["echo", "x" * 30_000, str(number)]))
            for number in range(40)
        ]
        for number, call in enumerate(calls):
            assert call.wait(120).text.split() == ["x" * 30_000, str(number)]
