"""A real daemon as a process of its own, and proof that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve, frozen

_READY_DEADLINE = 60.0
_STOP_DEADLINE = 15.0
_SETTLE_DEADLINE = 5.0


@frozen
class Footprint:
    """All that a VM takes of the host; what is stored (layers, snapshots) apart."""

    processes: frozenset[int]
    open_files: int
    files: frozenset[str]
    stored: frozenset[str]

    def is_within(self, before: Footprint) -> bool:
        """Whether nothing has changed, but that connections to earlier clients have ended."""
        return evolve(self, open_files=0) == evolve(before, open_files=0) and (
            self.open_files <= before.open_files
        )


@frozen
class Daemon:
    """A running arrakisd."""

    process: subprocess.Popen[bytes]
    state: Path
    socket: Path
    log: Path

    @property
    def pid(self) -> int:
        """Pid of the daemon itself."""
        return self.process.pid

    def vmm_pids(self) -> set[int]:
        """Pids of the VMM processes that this daemon started."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return {int(pid) for pid in children}

    def open_files(self) -> int:
        """Number of file descriptors that the daemon holds."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def memory_mib(self) -> float:
        """Resident memory of the daemon itself."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def log_text(self) -> str:
        """What the daemon has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def footprint(self) -> Footprint:
        """What there is at this moment."""
        return Footprint(
            processes=frozenset(processes_naming(self.state) - {self.pid}),
            open_files=self.open_files(),
            files=frozenset(files_below(self.state, "vms", "scratch")),
            stored=frozenset(self.stored_files()),
        )

    def stored_files(self) -> set[str]:
        """The files of snapshots, and of layers that belong to no template."""
        templates = [
            json.loads(manifest.read_text())
            for manifest in self.state.glob("templates/*/manifest.json")
        ]
        kept = {f"layers/{layer['id']}" for one in templates for layer in one["layers"]}
        stored = files_below(self.state, "layers", "snapshots")
        return {path for path in stored if not path.startswith(tuple(kept))}

    @contextlib.contextmanager
    def leaves_nothing(self) -> Iterator[None]:
        """Prove that after a block everything is as before it."""
        before = self.footprint()
        yield
        with contextlib.suppress(AssertionError):  # to say below what is different
            wait_until(lambda: self.footprint().is_within(before), _SETTLE_DEADLINE)
        after = self.footprint()
        assert after.is_within(before), f"before: {before}\nafter: {after}"


def files_below(state: Path, *parts: str) -> set[str]:
    """Every file and directory in parts of a state directory."""
    return {str(path.relative_to(state)) for part in parts for path in (state / part).rglob("*")}


def processes_naming(path: Path) -> set[int]:
    """Pids of all processes of this host whose command line names a path, but ours."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if f"{path}/" in (entry / "cmdline").read_bytes().decode(errors="replace"):
                    found.add(int(entry.name))
    return found


def is_running(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], object], deadline: float) -> None:
    """Poll a condition; fail the test if it does not come true in time."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "condition did not come true in time"
        time.sleep(0.01)


@contextlib.contextmanager
def started_daemon(state: Path, *flags: str) -> Iterator[Daemon]:
    """Run a daemon with a state directory of its own; how it ends is the caller's business."""
    path = state / "arrakisd.sock"
    log = state.parent / f"{state.name}.log"
    state.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "arrakisd", f"--state={state}", f"--socket={path}", *flags],
            stdout=output,
            stderr=output,
        )
    daemon = Daemon(process, state, path, log)
    try:
        wait_until(lambda: _answers(path) or process.poll() is not None, _READY_DEADLINE)
        if process.poll() is not None:
            pytest.fail(f"arrakisd did not start:\n{daemon.log_text()[-4000:]}")
        yield daemon
    finally:
        process.kill()
        process.wait()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@contextlib.contextmanager
def running_daemon(state: Path, *flags: str) -> Iterator[Daemon]:
    """Run a daemon that must live on, end cleanly on SIGTERM, and leave nothing."""
    with started_daemon(state, *flags) as daemon:
        yield daemon
        assert daemon.process.poll() is None, f"arrakisd ended:\n{daemon.log_text()[-4000:]}"
        end_daemon(daemon, signal.SIGTERM)


def end_daemon(daemon: Daemon, number: signal.Signals) -> float:
    """End a daemon by a signal, as an administrator would; give how many seconds it took."""
    began = time.monotonic()
    daemon.process.send_signal(number)
    try:
        status = daemon.process.wait(_STOP_DEADLINE)
    except subprocess.TimeoutExpired:
        pytest.fail(f"arrakisd did not end on {number.name}:\n{daemon.log_text()[-4000:]}")
    took = time.monotonic() - began
    assert status == 0, daemon.log_text()[-4000:]
    assert not daemon.socket.exists()
    assert processes_naming(daemon.state) == set()
    assert files_below(daemon.state, "vms", "scratch") == set()
    return took


@contextlib.contextmanager
def passable_directory() -> Iterator[Path]:
    """Make a temporary directory that VMMs, which run as a user of their own, get through.

    pytest's own ones are closed to others, and closed again whenever another run begins.
    """
    with tempfile.TemporaryDirectory(prefix="arrakis-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def copy_templates(source: Path, target: Path) -> None:
    """Give a new state directory the templates of another one, so that it need not boot."""
    target.mkdir()
    for part in ("templates", "layers"):
        copy = ["cp", "-a", "--sparse=always", "--reflink=auto", source / part, target / part]
        subprocess.run(copy, check=True)
