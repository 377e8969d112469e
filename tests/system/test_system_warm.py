"""Guests that were woken ahead of the starts that take them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_guest import ask, clock_error, counted, start_counter
from real_daemon import Daemon, is_running, running_daemon, wait_until, write_config

from arrakis import SandboxManager

pytestmark = pytest.mark.vm


class Ahead:
    """A daemon that keeps a warm guest ready."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def wait(self) -> int:
        """Wait for a guest to be ready that nobody has taken; give the pid of its process."""
        wait_until(self._ready, 30)
        return self._ready()[-1]

    def _ready(self) -> list[int]:
        taken = self._pids("warm guest taken")
        return [pid for pid in self._pids("woken ahead") if pid not in taken and is_running(pid)]

    def _pids(self, event: str) -> list[int]:
        whole = self.daemon.log_text().split("\n")[:-1]
        return [json.loads(line)["pid"] for line in whole if event in line]


@pytest.fixture
def ahead(template_state: Path) -> Iterator[Ahead]:
    """A daemon that wakes one guest ahead."""
    config = write_config(template_state, warm=1)
    with running_daemon(template_state, f"--config={config}") as daemon:
        yield Ahead(daemon)


@pytest.fixture
def visitor(ahead: Ahead) -> Iterator[SandboxManager]:
    """A manager for that daemon."""
    with SandboxManager(socket=ahead.daemon.socket) as manager:
        yield manager
        manager.destroy_all()


def test_starts(ahead: Ahead, visitor: SandboxManager) -> None:
    """A start takes it, and it is a machine of its own, connected and on time."""
    pid = ahead.wait()
    time.sleep(2)  # its clock stands meanwhile
    first = visitor.start_sandbox("first")
    assert first.info()["pid"] == pid
    assert clock_error(first) < 2
    assert ask(first, "hostname") == "first"
    address = first.info()["ip"].partition("/")[0]
    assert address in ask(first, "ip -4 -o addr show")
    assert ask(first, "ip -4 -o addr show scope global | wc -l") == "1"

    pid = ahead.wait()
    second = visitor.start_sandbox("second")
    assert second.info()["pid"] == pid
    whole = ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub")
    assert all(ask(first, f"cat {path}") != ask(second, f"cat {path}") for path in whole)
    assert ask(first, "od -An -tx1 -N8 /dev/urandom") != ask(second, "od -An -tx1 -N8 /dev/urandom")


def test_its_later_life(ahead: Ahead, visitor: SandboxManager) -> None:
    """It is snapshotted, rolled back, restored and forked like any other, under its name."""
    pid = ahead.wait()
    sandbox = visitor.start_sandbox("box")
    assert sandbox.info()["pid"] == pid
    start_counter(sandbox)
    before = counted(sandbox)
    snapshot = sandbox.snapshot("kept")
    sandbox.files.write("/root/later", b"gone soon")
    (sibling,) = sandbox.fork(1)
    assert ask(sibling, "cat /root/later") == "gone soon"
    sandbox.rollback(snapshot)
    assert not sandbox.files.exists("/root/later")
    wait_until(lambda: counted(sandbox) > before, 10)
    assert ask(sandbox, "hostname") == "box"
    restored = visitor.restore("other", snapshot)
    assert ask(restored, "hostname") == "other"
    wait_until(lambda: counted(restored) > before, 10)


def test_killed(ahead: Ahead, visitor: SandboxManager) -> None:
    """One that dies while it waits costs nobody a start; one that is killed later has failed."""
    os.kill(ahead.wait(), signal.SIGKILL)
    wait_until(lambda: "ready ahead failed" in ahead.daemon.log_text(), 10)
    with visitor.start_sandbox("box") as sandbox:
        assert ask(sandbox, "echo fine") == "fine"
    pid = ahead.wait()
    victim = visitor.start_sandbox("victim")
    assert victim.info()["pid"] == pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: victim.info()["status"] == "STOPPED", 10)
    assert "signal 9" in victim.info()["failure"]["reason"]


def test_ended(ahead: Ahead, visitor: SandboxManager) -> None:
    """Destroying one that was warm leaves no process, no directory, and no complaint."""
    ahead.wait()
    visitor.start_sandbox("box").destroy()
    ahead.wait()
    (template,) = visitor.templates.list()
    visitor.templates.delete(template.id)
    wait_until(lambda: not ahead.daemon.vmm_pids(), 20)
    wait_until(lambda: not list((ahead.daemon.state / "vms").iterdir()), 10)
    assert "agent session broke" not in ahead.daemon.log_text()
    assert "failed" not in ahead.daemon.log_text()
