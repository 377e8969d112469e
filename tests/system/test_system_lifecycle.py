"""A VM's states from start to end, as its users see them."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from in_guest import Background, ask, counted, over_both, python, start_counter, watching
from real_daemon import Daemon, shortest, wait_until

from arrakis import GuestError, InvalidStateError, NotFoundError, Sandbox, SandboxManager

pytestmark = pytest.mark.vm

TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def status_of(pid: int, field: str) -> str:
    """A line of a process's status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return line.partition(":")[2].strip()
    raise AssertionError(field)


@over_both
def test_whole_life(manager: SandboxManager) -> None:
    """From start over pause, resume, stop to destroy, state and events follow each other."""
    states = []

    def note(sandbox: Sandbox) -> None:
        states.append(sandbox.info()["status"])

    with watching(manager) as watch:
        sandbox = manager.start_sandbox("life")
        note(sandbox)
        for change in (sandbox.pause, sandbox.resume, sandbox.pause, sandbox.resume, sandbox.stop):
            change()
            note(sandbox)
        info = sandbox.info()
        sandbox.destroy()
        kinds = watch.kinds("vm.destroyed", "life")
    assert states == ["RUNNING", "PAUSED", "RUNNING", "PAUSED", "RUNNING", "STOPPED"]
    assert (info["pid"], info["failure"]) == (None, None)
    assert kinds == [
        *("vm.started", "vm.paused", "vm.resumed", "vm.paused", "vm.resumed"),
        *("vm.stopped", "vm.destroyed"),
    ]
    with pytest.raises(NotFoundError, match="life"):
        sandbox.info()


TICKER = "import time\nfor i in range(60): print(i, flush=True); time.sleep(0.05)"


def test_pause(manager: SandboxManager, daemon: Daemon) -> None:
    """A paused guest stands still; over five pauses nothing that it does or writes is lost."""
    with manager.start_sandbox("pauses") as sandbox:
        start_counter(sandbox)
        pid = sandbox.info()["pid"]
        stream = Background(lambda: sandbox.run(["python3", "-S", "-c", TICKER], check=True))
        for _ in range(5):
            time.sleep(0.2)
            sandbox.pause()
            used = cpu_seconds(pid)
            time.sleep(0.4)
            assert cpu_seconds(pid) - used <= 2 / TICK
            with pytest.raises(InvalidStateError) as caught:
                sandbox.run_cmd("true")
            assert (caught.value.state, caught.value.required) == ("PAUSED", "RUNNING")
            sandbox.resume()
        assert stream.wait().text.split() == [str(number) for number in range(60)]
        began = time.monotonic()  # with all the time that the two looks take
        numbers = counted(sandbox)
        assert numbers == list(range(len(numbers)))
        sandbox.pause()
        time.sleep(1)
        sandbox.resume()
        more = len(counted(sandbox)) - len(numbers)
        awake = time.monotonic() - began - 1
        assert more <= (awake + 0.5) / 0.05


def act(*names: str) -> Callable[[Sandbox], None]:
    """Do several things to a VM."""

    def run(sandbox: Sandbox) -> None:
        for name in names:
            getattr(sandbox, name)()

    return run


@pytest.mark.parametrize(
    ("way", "state", "refused"),
    [
        (act(), "RUNNING", ["resume"]),
        (act("pause"), "PAUSED", ["pause"]),
        (act("pause", "stop"), "STOPPED", ["pause", "resume", "stop", "snapshot", "fork"]),
    ],
    ids=["running", "paused", "stopped"],
)
def test_refused(
    manager: SandboxManager, way: Callable[[Sandbox], None], state: str, refused: list[str]
) -> None:
    """What a state does not allow is refused with both states and a hint, and changes nothing."""
    with manager.start_sandbox("refuses") as sandbox:
        way(sandbox)
        for name in refused:
            with pytest.raises(InvalidStateError) as caught:
                getattr(sandbox, name)()
            assert (caught.value.vm, caught.value.state) == ("refuses", state)
            assert caught.value.required
            assert state not in caught.value.required.split(" or ")
            assert caught.value.hint
        if state != "RUNNING":
            for attempt in (
                lambda: sandbox.run_cmd("true"),
                lambda: sandbox.files.read("/etc/hostname"),
                lambda: sandbox.files.write("x", "y"),
            ):
                with pytest.raises(InvalidStateError, match=state):
                    attempt()
        assert sandbox.info()["status"] == state


def test_destroy_in_every_state(manager: SandboxManager, daemon: Daemon) -> None:
    """Whatever state a VM is in, destroying it ends its VMM at once and frees its name."""
    for way in (act(), act("pause"), act("pause", "stop"), act("pause", "resume")):

        def destroy(way: Callable[[Sandbox], None] = way) -> float:
            sandbox = manager.start_sandbox("again")
            way(sandbox)
            began = time.monotonic()
            sandbox.destroy()
            took = time.monotonic() - began
            assert daemon.vmm_pids() == set()
            assert list((daemon.state / "vms").iterdir()) == []
            with pytest.raises(NotFoundError):
                sandbox.destroy()
            return took

        assert shortest(destroy, 2) < 2


def test_destroy_all(manager: SandboxManager, daemon: Daemon) -> None:
    """All VMs are destroyed at once, in whichever states they are."""

    def destroy() -> float:
        sandboxes = [manager.start_sandbox(f"all-{number}") for number in range(4)]
        sandboxes[1].pause()
        sandboxes[2].pause()
        sandboxes[2].stop()
        busy = Background(lambda: sandboxes[3].run("while :; do :; done"))
        wait_until(lambda: sandboxes[3].run(["pgrep", "-f", "while :"]).ok, 10)
        assert [sandbox.name for sandbox in manager.list_all()] == [f"all-{n}" for n in range(4)]
        began = time.monotonic()
        manager.destroy_all()
        took = time.monotonic() - began
        assert manager.list_all() == []
        assert daemon.vmm_pids() == set()
        with pytest.raises(GuestError, match="all-3"):
            busy.wait(5)
        return took

    assert shortest(destroy, 3) < 3
    manager.destroy_all()


def test_guest_powers_off(manager: SandboxManager) -> None:
    """A guest that powers itself off is noticed, and is STOPPED without a failure."""
    with watching(manager) as watch, manager.start_sandbox("leaves") as sandbox:
        sandbox.run_cmd("systemctl poweroff", blocking=False)
        wait_until(lambda: sandbox.info()["status"] == "STOPPED", 20)
        assert sandbox.info()["failure"] is None
        assert watch.kinds("vm.stopped", "leaves") == ["vm.started", "vm.stopped"]


def test_guest_crashes(manager: SandboxManager) -> None:
    """A guest whose kernel panics has failed, and its last console lines say why."""
    with watching(manager) as watch, manager.start_sandbox("panics") as sandbox:
        sandbox.run_cmd("echo c > /proc/sysrq-trigger", blocking=False)
        wait_until(lambda: sandbox.info()["status"] == "STOPPED", 20)
        failure = sandbox.info()["failure"]
        assert any("Kernel panic" in line for line in failure["console"])
        assert "vm.failed" in watch.kinds("vm.failed", "panics")


def test_confinement(manager: SandboxManager) -> None:
    """A VMM runs under a user of its own, behind seccomp, and can gain no privileges."""
    with manager.start_sandbox("confined") as sandbox:
        pid = sandbox.info()["pid"]
        assert status_of(pid, "Seccomp") == "2"
        assert status_of(pid, "NoNewPrivs") == "1"
        assert os.getpgid(pid) == pid
        if os.geteuid() == 0:
            entry = pwd.getpwnam("arrakis-vmm")
            assert status_of(pid, "Uid").split() == [str(entry.pw_uid)] * 4
            assert status_of(pid, "Gid").split() == [str(entry.pw_gid)] * 4
            assert status_of(pid, "Groups") == ""
            assert status_of(pid, "CapEff") == "0" * 16
        links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        opened = [link for link in links if link.startswith("/") and "/dev/" not in link]
        known = ("/vms/", "/images/", "/layers/", "/templates/")
        assert opened
        assert all(any(part in link for part in known) for link in opened), opened


def test_private_files(manager: SandboxManager, daemon: Daemon) -> None:
    """Nobody but the daemon and its VMMs can look into a VM's directory or stored memory."""
    with manager.start_sandbox("private") as sandbox:
        sandbox.snapshot("private")
        for path in (
            *(daemon.state / "vms").iterdir(),
            daemon.state / "snapshots" / "private",
            *(daemon.state / "layers").iterdir(),
            *(daemon.state / "templates").iterdir(),
        ):
            assert path.stat().st_mode & 0o007 == 0, path


def test_console_flood(manager: SandboxManager, daemon: Daemon) -> None:
    """A guest that floods its console makes neither daemon nor disk grow, and goes on working."""
    with manager.start_sandbox("loud") as sandbox:
        before = daemon.memory_mib()
        sandbox.run_cmd("yes $(seq -s- 100) > /dev/ttyS0", blocking=False)
        pid = sandbox.info()["pid"]
        used = cpu_seconds(pid)
        wait_until(lambda: cpu_seconds(pid) - used > 3, 20)
        assert daemon.memory_mib() - before < 16
        files = [path for path in (daemon.state / "vms").rglob("*") if path.is_file()]
        assert sum(path.stat().st_blocks * 512 for path in files) < 8 * 2**20
        assert ask(sandbox, "echo still here") == "still here"


def test_shape(manager: SandboxManager) -> None:
    """The guest has the shape that its description states, and a writable disk of that size."""
    with manager.start_sandbox("shape") as sandbox:
        info = sandbox.info()
        seen = python(
            sandbox,
            "import json, os, shutil\n"
            "print(json.dumps([os.cpu_count(), os.sysconf('SC_PHYS_PAGES') // 256,"
            " shutil.disk_usage('/var').total // 2**20]))",
        )
        assert seen[0] == info["vcpus"]
        assert 0.8 < seen[1] / info["memory_mib"] <= 1
        assert 0.85 < seen[2] / info["disk_mib"] <= 1
        assert info["image"] == "base"
        assert abs(info["created"] - time.time()) < 30
