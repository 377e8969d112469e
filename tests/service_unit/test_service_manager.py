"""The daemon and a service manager, without one: descriptors, variables and datagrams."""

from __future__ import annotations

import contextlib
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from real_daemon import passable_directory, wait_until, write_config

from arrakis import SandboxManager
from arrakisd.upkeep.self_check import feed_watchdog

_DEADLINE = 60.0


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for a daemon that runs no VM."""
    with passable_directory() as directory:
        yield directory


@pytest.fixture
def told(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where the daemon's messages to its service manager arrive."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(place / "notify"))
        listener.settimeout(_DEADLINE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(place / "notify"))
        yield listener


@contextlib.contextmanager
def handed_a_socket(place: Path, listening: socket.socket) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon that is handed a listening socket, as systemd does it."""
    # The pid is the shell's, which becomes the daemon.
    handing = 'exec 3<&"$1"; shift; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
    number = listening.fileno()
    command = [sys.executable, "-m", "arrakisd", f"--config={write_config(place / 'state')}"]
    with subprocess.Popen(
        ["bash", "-c", handing, "bash", str(number), *command, f"--state={place}/state"],
        pass_fds=[number],
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_handed_socket(place: Path) -> None:
    """A daemon serves on the socket that it is handed, and leaves its file and its mode alone."""
    path = place / "handed"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen()
        with handed_a_socket(place, listening) as process:
            with SandboxManager(socket=path) as manager:
                assert manager.health().status == "healthy"
                process.send_signal(signal.SIGTERM)
            assert process.wait(_DEADLINE) == 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_sign_of_life(place: Path, told: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that is watched says READY once, and then again and again that it is alive."""
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    with running(place) as process:
        messages = [told.recv(4096).decode() for _ in range(4)]
        assert sorted(set(messages)) == ["READY=1", "WATCHDOG=1"]
        assert messages.count("READY=1") == 1
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: told.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC="), _DEADLINE)
        wait_until(lambda: told.recv(4096) == b"READY=1", _DEADLINE)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: told.recv(4096) == b"STOPPING=1", _DEADLINE)
        assert process.wait(_DEADLINE) == 0


async def test_no_sign_of_life(place: Path, told: socket.socket) -> None:
    """Of a daemon whose socket takes connections, but gives no answer, no sign of life is sent."""
    told.setblocking(False)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place / "deaf"))
        listening.listen()
        with trio.move_on_after(1.0):
            await feed_watchdog(place / "deaf", every=0.2)
    with pytest.raises(BlockingIOError):
        told.recv(4096)


@contextlib.contextmanager
def running(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon with what this process has in its environment."""
    config = write_config(place / "state")
    command = [sys.executable, "-m", "arrakisd", f"--config={config}"]
    with subprocess.Popen(
        [*command, f"--state={place}/state", f"--socket={place}/socket"],
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
