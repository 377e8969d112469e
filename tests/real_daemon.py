"""A real daemon as a process of its own, and proof that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from attrs import evolve, frozen

from arrakis import SandboxManager
from arrakisd.host.cgroups import sweep

# Deadlines of tests are generous for an idle machine. One that does much else at the same time
# gets so many times as long; that nobody waits in vain for is not slower for it.
SLACK = 6
_ATTEMPTS = 3
_READY_DEADLINE = 30.0
_STOP_DEADLINE = 15.0
_SETTLE_DEADLINE = 5.0
# How many questions a guest may ask the name server is counted per address, for a minute.
_ENTRIES_THAT_EXPIRE = re.compile(r"set asking \{.*?\n\t\}", re.DOTALL)
_EMPTY_NETWORK = {"network/addresses", "network/ports"}


@frozen
class Footprint:
    """All that a VM takes of the host; what is stored (layers, snapshots) apart."""

    processes: frozenset[int]
    open_files: tuple[str, ...]
    files: frozenset[str]
    stored: frozenset[str]
    links: int
    rules: str
    groups: frozenset[str]

    def is_within(self, before: Footprint) -> bool:
        """Whether nothing has changed, but that connections to earlier clients have ended."""
        return evolve(self, open_files=()) == evolve(before, open_files=()) and (
            len(self.open_files) <= len(before.open_files)
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
        return {int(pid) for pid in children if "qemu-system" in _program(pid)}

    def open_files(self) -> tuple[str, ...]:
        """What the file descriptors that the daemon holds lead to, or are of."""
        found = []
        for fd in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                found.append(str(fd.readlink()))
        return tuple(sorted(found))

    def memory_mib(self) -> float:
        """Resident memory of the daemon itself."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def cpu_seconds(self) -> float:
        """CPU time that the daemon itself has used, with all threads that it had."""
        return time.clock_gettime((~self.pid << 3) | 2)  # as clock_getcpuclockid(3) makes it

    def log_text(self) -> str:
        """What the daemon has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def footprint(self) -> Footprint:
        """What there is at this moment."""
        return Footprint(
            processes=frozenset(processes_naming(self.state) - {self.pid}),
            open_files=self.open_files(),
            files=frozenset(files_below(self.state, "vms", "scratch", "network")),
            stored=frozenset(self.stored_files()),
            links=self.inside("ip", "-o", "link").count("\n"),
            rules=_ENTRIES_THAT_EXPIRE.sub("", self.inside("nft", "list", "ruleset")),
            groups=frozenset(str(one) for top in self.group_tops() for one in top.glob("*/")),
        )

    def group_tops(self) -> list[Path]:
        """Where this daemon's control groups are, in each tree."""
        note = self.state / "groups"
        return [Path(line) for line in note.read_text().splitlines()] if note.exists() else []

    def inside(self, *command: str) -> str:
        """Run a command in the daemon's network namespace."""
        argv = ["ip", "netns", "exec", namespace_of(self.state), *command]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    def stored_files(self) -> set[str]:
        """The files of snapshots, and of layers that belong to no template."""
        templates = [
            json.loads(manifest.read_text())
            for manifest in self.state.glob("templates/*/manifest.json")
        ]
        kept = {f"layers/{layer['id']}" for one in templates for layer in one["layers"]}
        stored = files_below(self.state, "layers", "snapshots", "suspended")
        return {path for path in stored if not path.startswith(tuple(kept))}

    @contextlib.contextmanager
    def leaves_nothing(self) -> Iterator[None]:
        """Prove that after a block everything is as before it."""
        before = after = self.footprint()

        def is_settled() -> bool:
            nonlocal after
            after = self.footprint()
            return after.is_within(before)

        yield
        with contextlib.suppress(AssertionError):  # to say below what is different
            wait_until(is_settled, _SETTLE_DEADLINE)
        # Not looked at once more: it could be the moment in which the rules are.
        assert after.is_within(before), f"before: {before}\nafter: {after}"


def files_below(state: Path, *parts: str) -> set[str]:
    """Every file and directory in parts of a state directory."""
    # Not by rglob, which fails at a directory that is removed meanwhile.
    return {
        str(Path(top, name).relative_to(state))
        for part in parts
        for top, directories, files in os.walk(state / part)
        for name in (*directories, *files)
    }


def _program(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


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


def shortest(measure: Callable[[], float], bound: float) -> float:
    """Give the shortest of some times, of which the first below a bound is enough.

    A busy machine delays one or another, a defect all of them.
    """
    times = [measure()]
    while times[-1] >= bound and len(times) < _ATTEMPTS:
        times.append(measure())
    return min(times)


def wait_until(condition: Callable[[], object], deadline: float) -> None:
    """Poll a condition; fail the test if it does not come true in time, on a busy machine too."""
    end = time.monotonic() + SLACK * deadline
    while not condition():
        assert time.monotonic() < end, "condition did not come true in time"
        time.sleep(0.01)


def _share(whole: range) -> range:
    """The part of a range that is this worker's, where tests run in several at once."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = len(whole) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return whole[worker * size : (worker + 1) * size]


# Below those that the system gives to whoever wants any, and that daemons lead into guests.
_ports = itertools.cycle(_share(range(6000, 10_000)))


def free_port() -> int:
    """Give a port that nobody listens on, and nobody is given before it is used."""
    for port in _ports:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError


_host_ports: dict[Path, range] = {}


def _host_ports_of(state: Path) -> range:
    """The ports of the host that are a daemon's own: the loopback is shared by all tests."""
    firsts = _share(range(10_000, 31_800, 200))
    first = firsts[len(_host_ports) % len(firsts)]
    return _host_ports.setdefault(state, range(first, first + 200))


@contextlib.contextmanager
def started_daemon(state: Path, *flags: str, prefix: Sequence[str] = ()) -> Iterator[Daemon]:
    """Run a daemon with a state directory of its own; how it ends is the caller's business."""
    path = state / "arrakisd.sock"
    log = state.parent / f"{state.name}.log"
    state.mkdir(parents=True, exist_ok=True)
    if not any(flag.startswith("--config") for flag in flags):
        flags = (*flags, f"--config={write_config(state)}")
    with log.open("ab") as output:
        begins = output.tell()
        process = subprocess.Popen(
            [
                *(*prefix, sys.executable, "-m", "arrakisd"),
                *(f"--state={state}", f"--socket={path}", *flags),
            ],
            stdout=output,
            stderr=output,
        )
    daemon = Daemon(process, state, path, log)

    def is_ready() -> bool:
        # Not when the socket answers, which it does while the rest is still being opened.
        return b'"event": "ready"' in log.read_bytes()[begins:]

    try:
        wait_until(lambda: is_ready() or process.poll() is not None, _READY_DEADLINE)
        if process.poll() is not None:
            pytest.fail(f"arrakisd did not start:\n{daemon.log_text()[-4000:]}")
        yield daemon
    finally:
        process.kill()
        process.wait()
        made = state / "network" / "namespace"
        if made.exists():  # the daemon did not end by itself
            subprocess.run(["ip", "netns", "delete", made.read_text()], check=True)
        for top in daemon.group_tops():
            sweep(top)


def refused_daemon(place: Path, *flags: str, prefix: Sequence[str] = ()) -> str:
    """Run a daemon that must refuse to start, and say in a hint what to do; give what it says."""
    if not any(flag.startswith("--config") for flag in flags):
        flags = (*flags, f"--config={write_config(place / 'state')}")
    ended = subprocess.run(
        [*prefix, sys.executable, "-m", "arrakisd", *flags],
        capture_output=True,
        text=True,
        timeout=SLACK * _READY_DEADLINE,
        check=False,
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "hint: " in ended.stderr
    return ended.stderr


def namespace_of(state: Path) -> str:
    """Name of the network namespace of a state directory's daemon."""
    return f"arrakis-test-{zlib.crc32(bytes(state)):08x}"


def write_config(
    state: Path, settings: str = "", network: str = "", standby: int = 0, warm: int = 0
) -> Path:
    """Write a configuration that keeps the network to a namespace which goes with the daemon.

    No VMM is launched ahead unless asked for, so that tests can count processes.
    """
    file = state.parent / f"{state.name}.toml"
    if "host_ports" not in network:
        ports = _host_ports_of(state)
        network = f'host_ports = "{ports[0]}-{ports[-1]}"\n{network}'
    table = f'[network]\nnamespace = "{namespace_of(state)}"\n{network}\n'
    file.write_text(f"{settings}\n{table}\n[pool]\nstandby = {standby}\nwarm = {warm}\n")
    return file


@contextlib.contextmanager
def running_daemon(state: Path, *flags: str, prefix: Sequence[str] = ()) -> Iterator[Daemon]:
    """Run a daemon that must live on, end cleanly on SIGTERM, and leave nothing."""
    with started_daemon(state, *flags, prefix=prefix) as daemon:
        yield daemon
        assert daemon.process.poll() is None, f"arrakisd ended:\n{daemon.log_text()[-4000:]}"
        end_daemon(daemon, signal.SIGTERM)


def end_daemon(daemon: Daemon, number: signal.Signals) -> float:
    """End a daemon by a signal, as an administrator would; give how many seconds it took."""
    began, groups = time.monotonic(), daemon.group_tops()
    daemon.process.send_signal(number)
    try:
        status = daemon.process.wait(SLACK * _STOP_DEADLINE)
    except subprocess.TimeoutExpired:
        pytest.fail(f"arrakisd did not end on {number.name}:\n{daemon.log_text()[-4000:]}")
    took = time.monotonic() - began
    assert status == 0, daemon.log_text()[-4000:]
    assert not daemon.socket.exists()
    assert not [group for group in groups if group.exists()]
    assert processes_naming(daemon.state) == set()
    assert files_below(daemon.state, "vms", "scratch", "network") <= _EMPTY_NETWORK
    assert not Path("/run/netns", namespace_of(daemon.state)).exists()
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
    """Give a new state directory the base templates of another one, so that it need not boot."""
    target.mkdir()
    for part in ("templates", "layers"):
        copy = ["cp", "-a", "--sparse=always", "--reflink=auto", source / part, target / part]
        subprocess.run(copy, check=True)
    for manifest in target.glob("templates/*/manifest.json"):
        if json.loads(manifest.read_text())["shape"]["image"] != "base":
            shutil.rmtree(manifest.parent)


def booted_once(place: Path) -> Path:
    """Give a directory with the default shape's template, booted once for all who name a place."""
    kept = place / "booted"
    with (place / "booted.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            with passable_directory() as directory:
                state = directory / "state"
                with (
                    running_daemon(state) as daemon,
                    SandboxManager(socket=daemon.socket) as manager,
                ):
                    manager.templates.build()
                copy_templates(state, place / "booted.part")
            (place / "booted.part").rename(kept)
    return kept
