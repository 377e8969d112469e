"""Fixtures for all suites: a real daemon on this machine, and what it must not leave behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from arrakis import SandboxManager

_READY_DEADLINE = 60.0
_STOP_DEADLINE = 15.0


@frozen
class Daemon:
    """A running arrakisd."""

    pid: int
    state: Path
    socket: Path
    log: Path

    def vmm_pids(self) -> set[int]:
        """Pids of the VMM processes that this daemon started."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return {int(pid) for pid in children}

    def open_files(self) -> int:
        """Number of file descriptors that the daemon holds."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def state_files(self) -> set[str]:
        """Everything that belongs to VMs or is half done, relative to the state directory."""
        return {
            str(path.relative_to(self.state))
            for part in ("vms", "scratch")
            for path in (self.state / part).rglob("*")
        }


@contextlib.contextmanager
def running_daemon(state: Path, *flags: str) -> Iterator[Daemon]:
    """Run a daemon with a state directory of its own; it must end cleanly and leave nothing."""
    socket = state / "arrakisd.sock"
    log = state.parent / f"{state.name}.log"
    state.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "arrakisd", f"--state={state}", f"--socket={socket}", *flags],
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: socket.exists() or process.poll() is not None, _READY_DEADLINE)
        if process.poll() is not None:
            pytest.fail(f"arrakisd did not start:\n{log.read_text()[-4000:]}")
        yield Daemon(process.pid, state, socket, log)
        assert process.poll() is None, f"arrakisd ended:\n{log.read_text()[-4000:]}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(_STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail("arrakisd did not end on SIGTERM")
    assert status == 0, log.read_text()[-4000:]
    assert not socket.exists()


def wait_until(condition: object, deadline: float) -> None:
    """Poll a condition; fail the test if it does not come true in time."""
    assert callable(condition)
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "condition did not come true in time"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's state directory: its template is booted once."""
    directory = tmp_path_factory.mktemp("arrakis") / "state"
    for parent in directory.parents:
        if parent.is_relative_to("/tmp"):
            with contextlib.suppress(PermissionError):
                parent.chmod(parent.stat().st_mode | 0o011)
    return directory


@pytest.fixture(scope="session")
def daemon(state_dir: Path) -> Iterator[Daemon]:
    """One daemon for the whole session."""
    with running_daemon(state_dir) as running:
        yield running


@pytest.fixture
def manager(daemon: Daemon) -> Iterator[SandboxManager]:
    """An SDK manager; whatever a test started is destroyed, and nothing may be left of it."""
    files_before = daemon.state_files()
    with SandboxManager(socket=str(daemon.socket)) as manager:
        yield manager
        manager.destroy_all()
    assert daemon.vmm_pids() == set()
    assert daemon.state_files() == files_before
