"""What only Firecracker needs: taps that it opens by name, its jailer, and what it saves."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
from vmm_harness import FAKES, Fake, Rig, ask

from arrakis_rpc.errors import UnsupportedError, VmmError
from arrakisd import deadlines
from arrakisd.host.net import taps
from arrakisd.host.net.bridge import make_bridge, remove_bridge
from arrakisd.host.net.interface import TapNic
from arrakisd.host.net.namespace import Namespace
from arrakisd.host.net.taps import open_tap
from arrakisd.host.processes import end_orphan, find_orphans, owned, owner_mark, spawn
from arrakisd.host.vmm import api_vmm, firecracker, kvm_probe
from arrakisd.settings.network import NetworkConfig

pytestmark = pytest.mark.parametrize("fake", ["firecracker"], indirect=True)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make taps and jails")


def snapshots(rig: Rig) -> list[str]:
    """Which kinds of snapshots the fake was asked for."""
    calls = rig.fake.calls()
    return [one.body["snapshot_type"] for one in calls if one.name == "PUT /snapshot/create"]


@pytest.mark.parametrize(("swapped", "kinds"), [(False, ["Diff"]), (True, ["Diff", "Full"])])
async def test_diff(
    rig: Rig, swapped: bool, kinds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a guest the pages that it uses are saved; all of them where some were swapped out."""
    monkeypatch.setattr(firecracker, "has_swapped", lambda _: swapped)
    template = await rig.make_template()
    async with rig.woken("one", template, f"{1:032x}") as vmm:
        await ask(vmm, "poke 2 22", "poke 1 0")
        stored, layer, facts = await rig.snapshot("one", 1, vmm, template)
        assert facts.changed_pages == 2
    assert snapshots(rig) == kinds * 2
    async with rig.woken("two", stored, layer) as vmm:
        assert await ask(vmm, "peek 0", "peek 1", "peek 2") == [str(ord("k")), "0", "22"]


async def test_clocks(rig: Rig) -> None:
    """A pause does not stop a guest's clocks; those of a copy go on from when it was saved."""
    template = await rig.make_template()
    async with rig.woken("one", template, f"{1:032x}") as vmm:
        paused = await vmm.pause()
        assert await vmm.resume() == paused
        await vmm.pause()
        before = time.time()
        _, _, facts = await rig.snapshot("one", 1, vmm, template)
        assert facts.halted >= before


async def test_failed_wake(rig: Rig) -> None:
    """Of a process that gives up because it cannot wake its guest, the reason is told."""
    template = await rig.make_template()
    (rig.root / "image").unlink()
    reason = pytest.RaisesExc(VmmError, match=r"refused PUT /snapshot/load: root\.img cannot be")
    with pytest.RaisesGroup(reason, flatten_subgroups=True, allow_unwrapped=True):
        async with rig.woken("one", template, f"{1:032x}"):
            pass


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("1.12.1", "too old"),
        ("1.13.0", "CVE-2026-5747"),
        ("1.14.3", "CVE-2026-5747"),
        ("1.14.4", None),
        ("1.14.9", None),
        ("1.15.0", "CVE-2026-5747"),
        ("1.15.1", None),
        ("1.16.0", "loses touch"),
        ("1.16.1", "loses touch"),
        ("1.16.2", None),
        ("1.17.0", None),
    ],
)
def test_unfit_versions(fake: Fake, version: str, problem: str | None) -> None:
    """Versions that let guests out, or lose them, are refused, with which to take instead."""
    fake.set(version)
    if problem is None:
        assert fake.driver().version() == version
        return
    with pytest.raises(UnsupportedError, match=problem) as caught:
        fake.driver().version()
    assert caught.value.hint is not None
    for good in ("1.16.2", "1.15.1", "1.14.4"):
        assert good in caught.value.hint


async def test_slow_snapshot(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """To write memory takes as long as it takes, and then more than other things."""
    template = await rig.make_template()
    rig.fake.set(writes_for="3")
    monkeypatch.setattr(api_vmm, "_ANSWER_DEADLINE", 2.0)
    monkeypatch.setattr(deadlines, "_SLOWEST_DISK", 1)
    async with rig.woken("one", template, f"{1:032x}") as vmm:
        await rig.snapshot("one", 1, vmm, template)


@needs_root
async def test_taps(rig: Rig) -> None:
    """It opens a tap by name, another one when it wakes; both are gone when they are let go."""
    pair = [open_tap("arkfake%d") for _ in range(2)]
    nics = [TapNic(tap.fd, tap.name) for tap in pair]
    template = await rig.make_template(nics[0])
    async with rig.woken("one", template, f"{1:032x}", nic=nics[1]) as vmm:
        assert await ask(vmm, "peek 1") == ["11"]
    cards = [one.body for one in rig.fake.calls() if one.name.startswith("PUT /network-interfaces")]
    assert [card["host_dev_name"] for card in cards] == [pair[0].name]
    loads = [one.body for one in rig.fake.calls() if one.name == "PUT /snapshot/load"]
    override = {"iface_id": "nic", "host_dev_name": pair[1].name}
    assert [load["network_overrides"] for load in loads] == [[override]]
    for tap in pair:
        assert Path("/sys/class/net", tap.name).exists()
        tap.close()
        assert not Path("/sys/class/net", tap.name).exists()


@needs_root
@pytest.mark.usefixtures("fake")
def test_taps_of_a_killed_daemon() -> None:
    """Taps that a VMM has opened by name, and a killed daemon has left, go with its bridge."""
    name = f"arkleft{os.getpid() % 10000}"
    address = NetworkConfig().interface

    def leave_and_remove() -> tuple[set[str], set[str]]:
        make_bridge(name, address, "a daemon")
        for number in range(2):
            tap = open_tap(f"{name}-{number}")
            fcntl.ioctl(tap.fd, taps._TUNSETPERSIST, 1)
            tap.close()
        left = {link for _, link in socket.if_nameindex()}
        remove_bridge(name, "a daemon")
        return left, {link for _, link in socket.if_nameindex()}

    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        left, removed = Namespace(name).run_here(leave_and_remove)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
    assert left - removed == {name, f"{name}-0", f"{name}-1"}


@needs_root
async def test_jail(rig: Rig, tmp_path: Path) -> None:
    """With a jailer the whole life of a machine is in its jail, as the user it is given to."""
    jailer = tmp_path / "jailer"
    jailer.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKES / "run_jailer.py"} "$@"\n')
    jailer.chmod(0o755)
    rig.fake.defaults["firecracker_jailer"] = str(jailer)
    rig.identity = (0, 0)
    template = await rig.make_template()
    async with rig.woken("one", template, f"{1:032x}") as vmm:
        arguments = Path(f"/proc/{vmm.pid}/cmdline").read_bytes().split(b"\0")
        assert arguments[arguments.index(b"--id") + 1] == owner_mark().encode()
        root = rig.directory("one") / "firecracker" / owner_mark() / "root"
        assert Path(f"/proc/{vmm.pid}/cwd").readlink() == root
        assert await ask(vmm, "peek 1", "poke 2 22", "write 6000 66") == ["11", "done", "done"]
        stored, layer, facts = await rig.snapshot("one", 1, vmm, template)
        assert facts.changed_pages == 1
    async with rig.woken("two", stored, layer) as vmm:
        assert await ask(vmm, "peek 1", "peek 2", "read 6000") == ["11", "22", "66"]
    names = {Path(str(value)) for call in rig.fake.calls() for value in (call.body or {}).values()}
    assert not [name for name in names if name.is_absolute()]


async def test_no_jailer(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A jailer that is not there, or a namespace it could not be in, is told before a start."""
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(kvm_probe, "DEVICE", tmp_path / "kvm")
    with pytest.raises(UnsupportedError, match="no-such-jailer is not installed"):
        fake.driver(firecracker_jailer="no-such-jailer").check_host()
    with pytest.raises(UnsupportedError, match="taps by name"):
        fake.driver(network=NetworkConfig(namespace="elsewhere")).check_host()
    nobody = {"firecracker_jailer": "true", "vmm_user": "no-such-user"}
    with pytest.raises(UnsupportedError, match="runs as root"):
        fake.driver(**nobody).check_host()


_CHECK = """
import sys
from pathlib import Path
from arrakis_rpc.errors import UnsupportedError, VmmError
from arrakisd.host.vmm import kvm_probe
from arrakisd.host.vmm.registry import make_driver
from arrakisd.settings.config import Config
from arrakisd.settings.network import NetworkConfig
kvm_probe.DEVICE = Path(sys.argv[1])
settings = {"vmm_user": "root", "network": NetworkConfig(mode="none")}
try:
    make_driver("firecracker", Config(firecracker_jailer="true", **settings)).check_host()
except UnsupportedError as error:
    print(error.message, error.hint)
"""


@needs_root
@pytest.mark.usefixtures("fake")
def test_no_right_to_make_devices(tmp_path: Path) -> None:
    """A daemon that may not make devices is told so, with what to do, before a jailer fails."""
    device = tmp_path / "kvm"
    device.touch()

    def check(*prefix: str) -> str:
        argv = [*prefix, sys.executable, "-c", _CHECK, device]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

    assert check() == ""
    said = check("setpriv", "--bounding-set=-mknod", "--")
    assert "CAP_MKNOD" in said
    assert "docs/operations.md" in said


@pytest.mark.usefixtures("fake")
async def test_orphans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed daemon has left in a jail, without its environment, is found by its name."""
    monkeypatch.setenv("ARRAKIS_CHILD_OF", str(tmp_path))
    # A shell would be there twice in the moment before its child is another program.
    argv = ["env", "-i", sys.executable, "-c", "import time; time.sleep(1000)", owner_mark()]
    async with owned(spawn(argv, output=tmp_path / "log")) as child:
        cmdline = Path(f"/proc/{child.pid}/cmdline")
        with trio.fail_after(30):
            while not cmdline.read_bytes().startswith(os.fsencode(sys.executable)):  # noqa: ASYNC110 -- an exec
                await trio.sleep(0.01)
        assert await trio.to_thread.run_sync(find_orphans, str(tmp_path)) == [child.pid]
        assert await trio.to_thread.run_sync(end_orphan, child.pid, str(tmp_path))
        assert await child.wait() == -signal.SIGKILL
