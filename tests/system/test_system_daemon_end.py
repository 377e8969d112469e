"""The daemon's own end, orderly and otherwise, and its next beginning."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from in_guest import Background, ask, counted, start_counter
from real_daemon import (
    Daemon,
    end_daemon,
    files_below,
    is_running,
    passable_directory,
    processes_naming,
    refused_daemon,
    running_daemon,
    started_daemon,
    wait_until,
    write_config,
)

from arrakis import ArrakisError, ConnectionLostError, NotFoundError, SandboxManager

pytestmark = pytest.mark.vm


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for daemons that run no VM."""
    with passable_directory() as directory:
        yield directory


@contextmanager
def managed(state: Path) -> Iterator[tuple[Daemon, SandboxManager]]:
    """A daemon that may end as it likes, and a manager for it."""
    with started_daemon(state) as daemon, SandboxManager(socket=daemon.socket) as manager:
        yield daemon, manager


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal(template_state: Path, number: signal.Signals) -> None:
    """On a signal every VM ends, busy, paused or watched, in less than ten seconds."""
    with managed(template_state) as (daemon, manager):
        busy, paused, idle = (manager.start_sandbox(name) for name in ("busy", "paused", "idle"))
        paused.pause()
        busy.snapshot("kept")
        stream = Background(lambda: busy.run("while :; do echo x; done"))
        events = manager.events()
        following = Background(lambda: list(events))
        idle.run_cmd("sleep 1000", blocking=False)
        time.sleep(0.2)
        pids = daemon.vmm_pids()
        assert len(pids) == 3
        assert end_daemon(daemon, number) < 10
        assert not any(is_running(pid) for pid in pids)
        for call in (stream, following):
            with pytest.raises(ArrakisError):
                call.wait(5)
        with pytest.raises(ConnectionLostError):
            manager.health()
        kept = files_below(template_state, "snapshots")
        assert any("kept" in path for path in kept)


def test_signal_while_booting(template_state: Path) -> None:
    """A daemon that is told to end while a template boots ends at once, and keeps nothing of it."""
    with managed(template_state) as (daemon, manager):
        boot = Background(lambda: manager.templates.build(memory_mib=256))
        wait_until(lambda: daemon.vmm_pids(), 10)
        layers = files_below(template_state, "layers", "templates")
        assert end_daemon(daemon, signal.SIGTERM) < 10
        with pytest.raises(ArrakisError):
            boot.wait(5)
        assert files_below(template_state, "layers", "templates") == layers


def test_two_signals(template_state: Path) -> None:
    """A second signal during the end does no harm."""
    with managed(template_state) as (daemon, manager):
        sandbox = manager.start_sandbox("one")
        call = Background(lambda: sandbox.run("sleep 100"))  # which the daemon waits for a while
        wait_until(lambda: "sleep 100" in ask(sandbox, "ps -ef"), 10)
        daemon.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
        assert end_daemon(daemon, signal.SIGTERM) < 10
        with pytest.raises(ArrakisError):
            call.wait(5)


def test_killed(template_state: Path) -> None:
    """A killed daemon takes its VMMs along; the next one sweeps, and wakes the snapshots."""
    with managed(template_state) as (daemon, manager):
        first = manager.start_sandbox("first")
        start_counter(first)
        manager.start_sandbox("second").pause()
        first.snapshot("kept")
        pids = daemon.vmm_pids()
        daemon.process.kill()
        daemon.process.wait()
        wait_until(lambda: not any(is_running(pid) for pid in pids), 5)
        assert files_below(template_state, "vms")
        assert daemon.socket.exists()
    with running_daemon(template_state) as daemon, SandboxManager(socket=daemon.socket) as manager:
        assert manager.list_all() == []
        assert files_below(template_state, "vms", "scratch") == set()
        with manager.restore("first", "kept") as again:
            numbers = counted(again)
            assert numbers == list(range(len(numbers)))


def test_killed_at_work(template_state: Path) -> None:
    """Killed at any moment of starts and snapshots, a daemon leaves what the next one can use."""
    for number in range(5):
        with managed(template_state) as (daemon, manager):
            known = {one.id for one in manager.snapshots.list()}
            assert processes_naming(template_state) == {daemon.pid}
            assert files_below(template_state, "vms", "scratch") == set()
            for snapshot in sorted(known)[-1:]:
                with manager.restore("check", snapshot) as check:
                    assert check.files.read_text("/root/mark") == snapshot
            sandbox = manager.start_sandbox("worker")
            sandbox.files.write("/root/mark", f"at-{number}")
            work = [
                Background(lambda: sandbox.snapshot(f"at-{number}")),  # noqa: B023
                Background(lambda: manager.start_sandbox("other")),
            ]
            time.sleep(0.05 * number)
            daemon.process.kill()
            daemon.process.wait()
            for one in work:
                one._thread.join()
            wait_until(lambda: processes_naming(template_state) == set(), 5)
    with running_daemon(template_state) as daemon, SandboxManager(socket=daemon.socket) as manager:
        for snapshot in manager.snapshots.list():
            with manager.restore("last", snapshot.id) as last:
                assert last.files.read_text("/root/mark") == snapshot.id


def test_second_daemon(manager: SandboxManager, daemon: Daemon, place: Path) -> None:
    """A second daemon on the same state, or on the same socket, refuses and disturbs nothing."""
    with manager.start_sandbox("undisturbed") as sandbox:
        said = refused_daemon(place, f"--state={daemon.state}", f"--socket={place}/other.sock")
        assert str(daemon.state) in said
        said = refused_daemon(place, f"--state={place}/state", f"--socket={daemon.socket}")
        assert str(daemon.socket) in said
        assert sandbox.run_cmd("echo fine")["output"] == "fine\n"
    with SandboxManager(socket=daemon.socket) as newcomer:
        assert newcomer.health().status == "healthy"


@pytest.mark.parametrize("what", ["file", "directory"])
def test_socket_path_in_use(place: Path, what: str) -> None:
    """A file that is no socket is not replaced by one."""
    path = place / "precious"
    if what == "file":
        path.write_text("precious")
    else:
        path.mkdir()
    said = refused_daemon(place, f"--state={place}/state", f"--socket={path}")
    assert str(path) in said
    assert path.is_dir() or path.read_text() == "precious"


def test_unusable_places(place: Path) -> None:
    """A state directory or socket that cannot be made is named in a clear refusal."""
    (place / "file").write_text("")
    said = refused_daemon(place, f"--state={place}/file/state", f"--socket={place}/s")
    assert f"{place}/file/state" in said
    long = place / ("x" * 120)
    said = refused_daemon(place, f"--state={place}/state", f"--socket={long}")
    assert str(long) in said


def test_socket_of_the_dead(place: Path) -> None:
    """The socket that a killed daemon left is replaced; it is closed to strangers."""
    state = place / "state"
    with managed(state) as (daemon, _):
        daemon.process.kill()
        daemon.process.wait()
        assert daemon.socket.exists()
    with running_daemon(state) as daemon:
        mode = daemon.socket.stat()
        assert stat.S_ISSOCK(mode.st_mode)
        assert stat.S_IMODE(mode.st_mode) == 0o660
    assert not daemon.socket.exists()


def test_readiness(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd is told READY when the socket answers, and STOPPING when the end begins."""
    path = place / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(120)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        with subprocess.Popen(
            [
                *(sys.executable, "-m", "arrakisd", f"--config={write_config(place / 'state')}"),
                *(f"--state={place}/s", f"--socket={place}/a"),
            ],
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                assert "READY=1" in listener.recv(4096).decode().split("\n")
                with SandboxManager(socket=place / "a") as manager:
                    assert manager.health().status == "healthy"
                process.send_signal(signal.SIGTERM)
                assert "STOPPING=1" in listener.recv(4096).decode().split("\n")
                assert process.wait(60) == 0
            finally:
                process.kill()


def test_nothing_inherited(daemon: Daemon, manager: SandboxManager) -> None:
    """A VMM inherits no descriptor of the daemon's clients, files or other VMs."""
    with manager.start_sandbox("first"), manager.start_sandbox("second") as second:
        fds = Path(f"/proc/{second.info()['pid']}/fd")
        links = {entry.name: str(entry.readlink()) for entry in fds.iterdir()}
        assert links["1"] == links["2"]  # what it has to say
        sockets = {link for link in links.values() if link.startswith("socket:")}
        assert len(sockets) == 4
        assert not any("/vms/first/" in one or one.endswith("lock") for one in links.values())


def test_unknown_names(manager: SandboxManager) -> None:
    """What is not there is said not to be, with a hint about what is."""
    with pytest.raises(NotFoundError, match="ghost") as caught:
        manager.get("ghost")
    assert "start one" in (caught.value.hint or "")
    with manager.start_sandbox("present"):
        with pytest.raises(NotFoundError) as caught:
            manager.get("ghost")
        assert "present" in (caught.value.hint or "")
