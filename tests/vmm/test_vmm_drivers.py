"""Which version of a hypervisor does what, and what keeps one from running at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from vmm_harness import VERSIONS, Fake, Rig, ask, make_kernel

from arrakis_rpc.errors import UnsupportedError
from arrakisd.host.net.interface import TapNic
from arrakisd.host.vmm import kvm_probe
from arrakisd.host.vmm.cloud_hypervisor_config import without_memory
from arrakisd.host.vmm.registry import DRIVERS
from arrakisd.settings.config import Config
from arrakisd.settings.network import NetworkConfig

only_cloud_hypervisor = pytest.mark.parametrize("fake", ["cloud-hypervisor"], indirect=True)


@pytest.mark.parametrize(
    ("kind", "printed", "version"),
    [
        ("cloud-hypervisor", "50.0", "50.0"),
        ("cloud-hypervisor", "53.0-12-g1a2b3c4", "53.0"),
        ("cloud-hypervisor", "49.0", None),
        ("firecracker", "1.14.4", "1.14.4"),
        ("firecracker", "1.16.2-dirty", "1.16.2"),
        ("firecracker", "1.12.1", None),
        ("firecracker", "none", None),
    ],
)
def test_versions(tmp_path: Path, kind: str, printed: str, version: str | None) -> None:
    """The version is the number that the program prints; one that is too old is refused."""
    fake = Fake(kind, tmp_path / "bin")
    fake.set(printed)
    if version is not None:
        assert fake.driver().version() == version
        return
    with pytest.raises(UnsupportedError, match=r"too old|does not tell"):
        fake.driver().version()


@pytest.mark.parametrize("kind", VERSIONS)
def test_not_installed(kind: str) -> None:
    """A hypervisor that is not installed is said to be so, with where there is one."""
    setting = f"{kind.replace('-', '_')}_binary"
    with pytest.raises(UnsupportedError, match="no-such-vmm is not installed") as caught:
        DRIVERS[kind](Config(**{setting: "no-such-vmm"})).version()
    assert "/releases" in (caught.value.hint or "")


async def test_host(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps a hypervisor from running is told before the first start, with what to do."""
    device = tmp_path / "kvm"
    monkeypatch.setattr(kvm_probe, "DEVICE", device)
    none, user = NetworkConfig(mode="none"), NetworkConfig(mode="user")
    with pytest.raises(UnsupportedError, match="there is no /dev/kvm") as caught:
        await fake.driver(network=none).choose_accelerator()
    assert "qemu" in (caught.value.hint or "")
    device.touch()
    fake.driver(network=none).check_host()
    with pytest.raises(UnsupportedError, match="cannot emulate"):
        fake.driver(network=none, accelerator="tcg").check_host()
    with pytest.raises(UnsupportedError, match='network of mode "user"') as caught:
        fake.driver(network=user).check_host()
    assert '"none"' in (caught.value.hint or "")
    verdict = await fake.driver(network=none, accelerator="kvm").choose_accelerator()
    assert verdict.accelerator == "kvm"


async def test_probe(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether KVM works is found out by booting a kernel, once, and remembered."""
    device, cache = tmp_path / "kvm", tmp_path / "cache"
    device.touch()
    monkeypatch.setattr(kvm_probe, "DEVICE", device)
    make_kernel(cache)
    driver = fake.driver(network=NetworkConfig(mode="none"), cache_dir=str(cache))
    fake.set(probe="dies")
    with pytest.raises(UnsupportedError, match="a real guest does not boot"):
        await driver.choose_accelerator()
    fake.set(probe="boots")
    with pytest.raises(UnsupportedError, match="a real guest does not boot"):
        await driver.choose_accelerator()
    (cache / f"kvm-{fake.kind}.json").unlink()
    verdict = await driver.choose_accelerator()
    assert (verdict.accelerator, verdict.reason) == ("kvm", "a real guest booted under KVM")


@only_cloud_hypervisor
@pytest.mark.parametrize(
    ("version", "foreign", "maps"),
    [("50.0", False, True), ("53.0", False, True), ("54.0", False, False), ("53.0", True, False)],
)
async def test_memory(rig: Rig, version: str, foreign: bool, maps: bool) -> None:
    """A snapshot's memory is mapped where version and state are known, else it is copied."""
    rig.fake.set(version, foreign_state=foreign)
    template = await rig.make_template()
    async with rig.woken("one", template, f"{1:032x}") as vmm:
        await ask(vmm, "poke 2 22")
        stored, layer, _ = await rig.snapshot("one", 1, vmm, template)
    async with rig.woken("two", stored, layer) as vmm:
        assert await ask(vmm, "peek 1", "peek 2", "peek 3") == ["11", "22", "0"]
        memory = rig.directory("two") / "memory"
        assert (str(memory) in Path(f"/proc/{vmm.pid}/maps").read_text()) is maps


@only_cloud_hypervisor
@pytest.mark.parametrize(("version", "stand"), [("52.0", True), ("53.0", False)])
async def test_clocks(rig: Rig, version: str, stand: bool) -> None:
    """It is known of which version's guests the clocks must be set, whatever they slept."""
    template = await rig.make_template()
    rig.fake.set(version)
    async with rig.woken("one", template, f"{1:032x}") as vmm:
        assert vmm.clocks_stand is stand


@only_cloud_hypervisor
async def test_taps(rig: Rig) -> None:
    """A tap goes along as a descriptor, when a machine boots as well as when it wakes."""
    reading, writing = os.pipe()  # for all that the fake does with it
    template = await rig.make_template(TapNic(writing, "tap0"))
    async with rig.woken("one", template, f"{1:032x}", nic=TapNic(writing, "tap0")) as vmm:
        ours = Path(f"/proc/self/fd/{writing}").readlink()
        assert ours in {fd.readlink() for fd in Path(f"/proc/{vmm.pid}/fd").iterdir()}
    os.close(reading)
    os.close(writing)


@only_cloud_hypervisor
async def test_sandbox(rig: Rig) -> None:
    """The process is told to confine itself to the files of its machine, and runs with seccomp."""
    template = await rig.make_template()
    async with rig.woken("one", template, f"{1:032x}") as vmm:
        arguments = Path(f"/proc/{vmm.pid}/cmdline").read_bytes().split(b"\0")
        assert arguments[arguments.index(b"--seccomp") + 1] == b"true"
        restored = json.loads((rig.directory("one") / "saved" / "config.json").read_text())
    [created] = [call.body for call in rig.fake.calls() if call.name == "PUT /vm.create"]
    for config, name in ((created, "boot"), (restored, "one")):
        assert config["landlock_enable"] is True
        assert {"path": str(rig.directory(name)), "access": "rw"} in config["landlock_rules"]


@pytest.mark.parametrize("state", [b"", b"[]", b"{}", b"[" * 100_000, b'{"snapshots": 1}'])
def test_foreign_state(state: bytes) -> None:
    """A state that does not look as expected is said to be so."""
    assert without_memory(state) is None


def test_offsets() -> None:
    """Mappings of RAM get their offsets in the order of the guest's addresses."""
    mappings = [{"gpa": 2**32, "size": 100}, {"gpa": 0, "size": 50, "file_offset": 7}]
    inner = {"memory_ranges": {"data": [1]}, "guest_ram_mappings": mappings}
    data = {"snapshot_data": {"state": json.dumps(inner)}}
    state = without_memory(json.dumps({"snapshots": {"memory-manager": data}}).encode())
    assert state is not None
    data = json.loads(state)["snapshots"]["memory-manager"]["snapshot_data"]
    memory = json.loads(data["state"])
    assert memory["memory_ranges"] == {"data": []}
    assert [one["file_offset"] for one in memory["guest_ram_mappings"]] == [50, 0]
