"""How many machines and snapshots there may be, how much on disk, and how much memory."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from in_guest import Background, watching
from real_daemon import Daemon, running_daemon, wait_until, write_config

from arrakis import ExhaustedError, SandboxManager

pytestmark = pytest.mark.vm


def test_quotas(template_state: Path) -> None:
    """What is too much is refused before anything is done, and not what comes beside it."""
    config = write_config(template_state)

    def limit(settings: str) -> None:
        config.write_text(f"{settled}\n[limits]\n{settings}\n")

    settled = config.read_text()
    limit("vms = 2\nsnapshots = 1")
    with (
        running_daemon(template_state, f"--config={config}") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        starts = [
            Background(lambda name=name: manager.start_sandbox(name)) for name in ("a", "b", "c")
        ]
        refused = []
        for start in starts:
            try:
                start.wait()
            except ExhaustedError as error:
                refused.append(error)
        assert len(refused) == 1
        assert "2 of the 2 VMs" in refused[0].message
        assert refused[0].hint == "destroy one, or raise vms in [limits]"
        first, second = manager.list_all()
        with pytest.raises(ExhaustedError, match="2 of the 2 VMs"):
            first.fork(1)
        first.rename("renamed")  # is no new one
        second.stop()  # and this is none any more
        third = manager.start_sandbox("third")

        third.snapshot("kept")
        with pytest.raises(ExhaustedError, match="1 of the 1 snapshots"):
            third.snapshot("more")
        with daemon.leaves_nothing():
            limit("disk_mib = 10")
            daemon.process.send_signal(signal.SIGHUP)
            wait_until(lambda: "settings were read again" in daemon.log_text(), 10)
            for refuse in (lambda: third.snapshot("more"), lambda: manager.start_sandbox("more")):
                with pytest.raises(ExhaustedError, match="of the 10 MiB that may be used"):
                    refuse()
        assert third.run("echo fine").text == "fine\n"
        third.suspend()
        manager.destroy_all()
        manager.snapshots.delete("kept")


def test_room(template_state: Path) -> None:
    """Who finds no room is told and waits; what was made ready gives way."""
    config = write_config(template_state, warm=1)
    limits = "[limits]\nmemory_mib = 2200\nmemory_overcommit = 1.0\n"
    config.write_text(f"{config.read_text()}\n{limits}")
    with (
        running_daemon(template_state, f"--config={config}") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        first = manager.start_sandbox("first")
        snapshot = first.snapshot()
        wait_until(lambda: _warm(daemon) == 1 and len(daemon.vmm_pids()) == 2, 60)
        second = manager.restore("second", snapshot)  # has no use for what is ready
        wait_until(lambda: len(daemon.vmm_pids()) == 2, 10)
        assert "gives way" in daemon.log_text()

        with pytest.raises(ExhaustedError, match="all VMs together may have 2200 MiB"):
            first.fork(3)
        first.suspend()
        manager.start_sandbox("third")
        with watching(manager) as watch:
            resumed = Background(first.resume)
            told = watch.until("vm.waiting", "first")[-1]["data"]
        assert told == {"needed_mib": 1088, "free_mib": 2200 - 2 * 1088}
        second.destroy()
        resumed.wait()
        assert [one.info()["status"] for one in (first, manager.get("third"))] == ["RUNNING"] * 2
        manager.destroy_all()
        manager.snapshots.delete(snapshot)


def _warm(daemon: Daemon) -> int:
    log = daemon.log_text()
    return log.count("guest woken ahead") - log.count("warm guest taken")
