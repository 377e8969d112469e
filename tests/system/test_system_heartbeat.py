"""Guests that do not answer any more: that it is told, and what becomes of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from in_guest import ask, watching
from real_daemon import running_daemon, wait_until, write_config

from arrakis import NotFoundError, Sandbox, SandboxManager

pytestmark = pytest.mark.vm

# Of a busy host, guests that are well may be silent for seconds.
QUICK = "[health]\ninterval = 0.5\ntimeout = 8"


@contextmanager
def quick(state: Path) -> Iterator[SandboxManager]:
    """A daemon that soon notices who does not answer."""
    config = write_config(state, network=QUICK)
    with (
        running_daemon(state, f"--config={config}") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        yield manager


def is_silent(sandbox: Sandbox) -> bool:
    return sandbox.info()["unresponsive_since"] is not None


def reasons(manager: SandboxManager) -> set[tuple[str, str | None]]:
    """Why the daemon says that it is not well."""
    found = manager.health()
    assert (found.status == "degraded") == bool(found.reasons)
    return {(one.part, one.vm) for one in found.reasons}


def stop_vmm(sandbox: Sandbox) -> int:
    pid = int(sandbox.info()["pid"])
    os.kill(pid, signal.SIGSTOP)
    return pid


def test_vmm_that_stands_still(template_state: Path) -> None:
    """A VM whose VMM stands is told of; it is left, taken back to its snapshot, or destroyed."""
    with quick(template_state) as manager, watching(manager) as watch:
        left = manager.start_sandbox("left", on_unresponsive="restore")  # but it has no snapshot
        restored = manager.start_sandbox("restored")
        doomed = manager.start_sandbox("doomed", on_unresponsive="destroy")
        restored.set_limits(on_unresponsive="restore")
        assert restored.info()["limits"]["on_unresponsive"] == "restore"
        ask(restored, "echo before > /root/value")
        restored.snapshot("kept")
        ask(restored, "echo after > /root/value")
        address = restored.info()["ip"]
        stopped = [stop_vmm(one) for one in (left, restored, doomed)]

        wait_until(lambda: is_silent(left), 30)
        told = watch.until("vm.unresponsive", "left")[-1]
        assert told["data"] == {"action": "leave", "reason": "it has no snapshot to go back to"}
        assert left.info()["status"] == "RUNNING"
        assert ("agent", "left") in reasons(manager)
        assert left.info()["pid"] == stopped[0]
        os.kill(stopped[0], signal.SIGCONT)
        wait_until(lambda: not is_silent(left), 30)
        assert ask(left, "echo fine") == "fine"

        wait_until(lambda: restored.info()["pid"] not in (None, stopped[1]), 30)
        wait_until(lambda: not is_silent(restored), 30)
        assert ask(restored, "cat /root/value") == "before"
        assert restored.info()["ip"] == address

        with pytest.raises(NotFoundError):
            wait_until(lambda: not doomed.info(), 30)
        manager.destroy_all()
        manager.snapshots.delete("kept")


def test_agent_that_hangs(template_state: Path) -> None:
    """A guest whose agent hangs is told of until it answers again; one that is paused is not."""
    stop = "kill -STOP $(systemctl show -p MainPID --value arrakis-agent)"
    with quick(template_state) as manager, watching(manager) as watch:
        hung, paused = manager.start_sandbox("hung"), manager.start_sandbox("paused")
        paused.pause()
        hung.run_cmd(f"sleep 0.2; {stop}; sleep 30; {stop.replace('STOP', 'CONT')}", blocking=False)
        wait_until(lambda: is_silent(hung), 30)
        assert watch.until("vm.unresponsive", "hung")
        assert not is_silent(paused)
        wait_until(lambda: not is_silent(hung), 60)
        assert watch.until("vm.responsive", "hung")
        assert ask(hung, "echo fine") == "fine"
        manager.destroy_all()


def test_health(template_state: Path) -> None:
    """The daemon is well until a VMM dies or its bridge is gone, and says so everywhere."""
    config = write_config(template_state)
    with (
        running_daemon(template_state, f"--config={config}") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        assert reasons(manager) == set()
        broken = manager.start_sandbox("broken")
        os.kill(int(broken.info()["pid"]), signal.SIGKILL)
        wait_until(lambda: reasons(manager) == {("vmm", "broken")}, 10)
        assert any(one.name == "vmm now" and not one.ok for one in manager.doctor().checks)
        broken.destroy()
        assert reasons(manager) == set()
        daemon.inside("ip", "link", "delete", "arrakis0")
        wait_until(lambda: reasons(manager) == {("firewall", None)}, 10)
