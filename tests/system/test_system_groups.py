"""What the kernel holds VMMs to, and what becomes of guests that want all there is."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from in_guest import ask
from real_daemon import Daemon, end_daemon, started_daemon, write_config

import arrakisd.host.cgroups
from arrakis import SandboxManager
from arrakisd.host.cgroups import hierarchies

pytestmark = pytest.mark.vm

# With what systemd/arrakisd.service says of control groups.
_AS_THE_UNIT = """
systemd-run --wait --pipe --quiet --unit=try -p Delegate='cpu memory pids' \\
    -p ProtectControlGroups=yes -p ProtectKernelTunables=yes -p PrivateMounts=yes \\
    -p ReadWritePaths=-/sys/fs/cgroup/system.slice/try.service
"""

# Runs in a guest, which has version 2, below a group that systemd has delegated.
_IN_GUEST = """
import os, subprocess, sys
sys.path.insert(0, "/root")
from cgroups import hierarchies, limits, open_groups, sweep

def run(name, wanted, program):
    joining = groups.make(name, wanted)
    shell = "".join(f"echo 0 > {file} && " for file in joining) + 'exec "$@"'
    done = subprocess.run(["sh", "-c", shell, "sh", sys.executable, "-c", program],
                          capture_output=True, text=True)
    groups.remove(name)
    assert not any(os.path.exists(file) for file in joining)
    return done.returncode, done.stdout.strip()

trees = hierarchies()
assert [tree.version for tree in trees] == [2], trees
groups = open_groups("arrakis-test", trees, limits(600 << 20, 200, 0, 0))
assert groups.missing is None, groups.missing
print(run("eats", limits(48 << 20, 100, 0.5, 0), "bytearray(100 << 20)"))
print(run("shows", limits(48 << 20, 100, 0, 0), "print(open('/proc/self/cgroup').read())"))
top = groups.tops[0]
print((top / "memory.max").read_text(), (top / "cpu.weight").read_text(), sweep(top))
"""


def _groups_of(daemon: Daemon, pid: int) -> list[Path]:
    """The groups of a VMM, in each tree in which its daemon has some."""
    paths = [line.split(":", 2)[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    tops = [top for top in daemon.group_tops() if top.exists()]
    (name,) = {Path(path).name for path in paths if any(top.name in path for top in tops)}
    return [top / name for top in tops]


@pytest.fixture(autouse=True)
def controllers() -> None:
    """Skip where this host has no groups for us."""
    if not {"memory", "pids"} <= {name for tree in hierarchies() for name in tree.controllers}:
        pytest.skip("no control groups here")


def test_each_in_its_own(manager: SandboxManager, daemon: Daemon) -> None:
    """Each VMM is in a group of its own, which has room for all of its guest's memory."""
    for name in ("one", "other"):
        info = manager.start_sandbox(name).info()
        groups = _groups_of(daemon, info["pid"])
        assert groups
        for group in groups:
            assert (group / "cgroup.procs").read_text().split() == [str(info["pid"])]
        (limit,) = [
            int(file.read_text())
            for group in groups
            for file in (group / "memory.max", group / "memory.limit_in_bytes")
            if file.exists()
        ]
        assert limit > info["memory_mib"] * 2**20
    checks = {check.name: check for check in manager.doctor().checks}
    assert "memory" in checks["control groups"].detail


def test_the_daemon_goes_first(daemon: Daemon) -> None:
    """All VMMs together weigh less on each processor than the daemon that answers for them."""
    if "cpu" not in {name for tree in hierarchies() for name in tree.controllers}:
        pytest.skip("no control groups for CPU time here")
    weights = [
        int(file.read_text()) / usual
        for top in daemon.group_tops()
        for file, usual in ((top / "cpu.weight", 100), (top / "cpu.shares", 1024))
        if file.exists()
    ]
    assert len(weights) == 1
    assert weights[0] / (os.cpu_count() or 1) <= 0.25


def test_after_a_crash(template_state: Path) -> None:
    """The groups that a killed daemon has left are gone when the next one is there."""
    config = f"--config={write_config(template_state)}"
    with started_daemon(template_state, config) as daemon:
        with SandboxManager(socket=daemon.socket) as manager:
            pid = manager.start_sandbox("lost").info()["pid"]
        left = _groups_of(daemon, pid)
        assert left
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait()
        assert all(group.exists() for group in left)
        with started_daemon(template_state, config) as following:
            assert not any(group.exists() for group in left)
            end_daemon(following, signal.SIGTERM)


def test_version_2(manager: SandboxManager) -> None:
    """In a guest, where systemd has delegated a group of version 2, limits hold as well."""
    with manager.start_sandbox("unified") as sandbox:
        source = Path(arrakisd.host.cgroups.__file__).read_text()
        sandbox.files.write("/root/cgroups.py", source)
        sandbox.files.write("/root/try.py", _IN_GUEST)
        said = ask(sandbox, f"{_AS_THE_UNIT.strip()} python3 /root/try.py 2>&1").splitlines()
    assert said[0] == "(-9, '')"
    assert said[1].endswith("/try.service/arrakis-test/shows')")
    assert said[2:] == [str(600 * 2**20), " 200", " True"]


def test_greedy(manager: SandboxManager) -> None:
    """A guest that fills its disk, breeds and eats its memory harms neither host nor sibling."""
    greedy, sibling = manager.start_sandbox("greedy"), manager.start_sandbox("sibling")
    info = greedy.info()
    room = "$(($(df --output=avail -B1 / | tail -1) - 4096))"
    filled = greedy.run(f"fallocate -l {room} /fill; head -c 9999999 /dev/zero > /rest")
    assert "No space left" in filled.stderr.decode()
    # What it writes is in the host's memory for a while, which is no reason to end it.
    greedy.run("rm /fill /rest; dd if=/dev/zero of=/much bs=1M count=64", check=True)
    greedy.run_cmd("for i in $(seq 300); do sleep 100 & done; tail /dev/zero", blocking=False)
    for number in range(5):
        assert ask(sibling, f"echo {number}") == str(number)
        assert manager.health().status == "healthy"
    resident = int(Path(f"/proc/{info['pid']}/statm").read_text().split()[1]) * 4096
    assert resident < 1.5 * info["memory_mib"] * 2**20
    now = greedy.info()
    assert (now["status"], now["pid"]) == ("RUNNING", info["pid"])
    greedy.destroy()
