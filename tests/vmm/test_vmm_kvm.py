"""KVM's device, as it is on most hosts: its group's, to which VMMs do not belong by themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from vmm_harness import VERSION_LINES, VERSIONS, make_kernel

from arrakis_rpc.errors import UnsupportedError, VmmError
from arrakisd.host.vmm import api_driver, kvm_probe, qemu
from arrakisd.host.vmm.interface import Driver, LaunchSpec
from arrakisd.host.vmm.registry import make_driver
from arrakisd.settings.config import Config
from arrakisd.settings.network import NetworkConfig
from arrakisd.upkeep import doctor
from arrakisd.wire.peer import domain_error_in

KINDS = ["qemu", "cloud-hypervisor", "firecracker"]
GROUP = 424242
IDENTITY = Config().vmm_identity() or (-1, -1)
EXPECTED = f"{IDENTITY[0]} {IDENTITY[1]} {GROUP}"

# Says its user and groups, and whether it gets at the device; and what a kernel says that boots,
# if they are as expected, and it gets at the configuration that it is given, too.
_PROGRAM = """#!/bin/sh
case $* in *--version*) echo "{version}"; exit ;; esac
for last; do case $last in *.json) cat "$last" >/dev/null || exit ;; esac; done
echo "user $(id -u) $(id -G)"
: <>"{device}" || exit 1
echo opened
[ "$(id -u) $(id -G)" = "{expected}" ] && echo ARRAKIS-PROBE-OK
exit 1
"""

pytestmark = pytest.mark.skipif(
    Config().vmm_identity() is None, reason="needs root, and a user for VMMs"
)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that passes for KVM's device, as a stock Debian has it."""
    device = tmp_path / "kvm"
    device.touch()
    os.chown(device, 0, GROUP)
    device.chmod(0o660)
    for module in (kvm_probe, api_driver, qemu, doctor):
        monkeypatch.setattr(module, "DEVICE", device)
    make_kernel(tmp_path / "cache")
    return device


def driver(kind: str, device: Path, expected: str = EXPECTED, **settings: str) -> Driver:
    """Make a driver for a program that opens the device."""
    directory = device.parent
    binary = directory / kind
    lines = {"qemu": "QEMU emulator version {}", **VERSION_LINES}
    version = lines[kind].format({"qemu": "9.0", **VERSIONS}[kind])
    binary.write_text(_PROGRAM.format(version=version, device=device, expected=expected))
    binary.chmod(0o755)
    chosen = {f"{kind.replace('-', '_')}_binary": str(binary), **settings}
    chosen["cache_dir"] = str(directory / "cache")
    if kind == "qemu":
        chosen["qemu_binary"] = str(binary)
    return make_driver(kind, Config(network=NetworkConfig(mode="none"), **chosen))


async def accelerator(driver: Driver) -> str:
    """Give what a driver finds out that guests run under."""
    try:
        return (await driver.choose_accelerator()).accelerator
    except UnsupportedError:
        return "none"


@pytest.mark.parametrize("kind", KINDS)
async def test_probe_as_vmm(kind: str, device: Path) -> None:
    """Whether a guest boots is tried as the user of VMMs, whom the device's group lets open it."""
    assert await accelerator(driver(kind, device)) == "kvm"


@pytest.mark.parametrize("kind", KINDS)
async def test_memory_of_another_user(kind: str, device: Path) -> None:
    """What came of a try as one user says nothing of another: root may what VMMs may not."""
    assert await accelerator(driver(kind, device, vmm_user="nobody-else")) != "kvm"
    assert await accelerator(driver(kind, device)) == "kvm"
    assert await accelerator(driver(kind, device, vmm_user="nobody-else")) != "kvm"


@pytest.mark.parametrize("kind", KINDS)
async def test_closed_device(kind: str, device: Path) -> None:
    """A device that only root may open is told of in words, and no guest is tried with it."""
    os.chown(device, 0, 0)
    device.chmod(0o600)
    problem = kvm_probe.device_problem(IDENTITY)
    assert problem == (
        f"/dev/kvm cannot be opened by VMMs, which run as user {IDENTITY[0]}: "
        "its group is 0, its mode 600"
    )
    assert kvm_probe.device_problem(None) is None
    if kind == "qemu":
        verdict = await driver(kind, device).choose_accelerator()
        assert (verdict.accelerator, verdict.reason) == ("tcg", problem)
        return
    with pytest.raises(UnsupportedError, match="its group is 0, its mode 600"):
        driver(kind, device).check_host()
    with pytest.raises(UnsupportedError, match="its group is 0, its mode 600"):
        await driver(kind, device).choose_accelerator()


@pytest.mark.parametrize(("speaks", "verdict"), [(True, "kvm"), (False, "tcg")])
async def test_slow_guest(
    speaks: bool, verdict: str, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest that takes long is waited for where its kernel has said something."""
    monkeypatch.setattr(kvm_probe, "_DEADLINE", 2.0)
    qemu_driver = driver("qemu", device)
    said = "[    0.000000] Linux version 6.1.0" if speaks else "qemu: warning: no such feature"
    (device.parent / "qemu").write_text(
        "#!/bin/sh\n"
        'case $* in *--version*) echo "QEMU emulator version 9.0"; exit ;; esac\n'
        f'echo "{said}"; sleep 4; echo ARRAKIS-PROBE-OK; sleep 60\n'
    )
    assert await accelerator(qemu_driver) == verdict


async def test_closed_device_and_a_jailer(device: Path) -> None:
    """Firecracker gets a device of its own from its jailer, and does not open the host's."""
    os.chown(device, 0, 0)
    device.chmod(0o600)
    jailed = driver("firecracker", device, "0 0", firecracker_jailer="true")
    assert await accelerator(jailed) == "kvm"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accelerator", ["kvm", "tcg"])
async def test_launch(kind: str, accelerator: str, device: Path) -> None:
    """A VMM that uses KVM is in the device's group and its own; one that emulates in its own."""
    directory = device.parent / "vm"
    directory.mkdir()
    spec = LaunchSpec(
        directory=directory,
        vcpus=1,
        memory_mib=128,
        disk_mib=64,
        memory_file=directory / "memory",
        root_image=directory / "root",
        accelerator=accelerator,
        identity=IDENTITY,
    )
    emulates = kind == "qemu" and accelerator == "tcg"
    with pytest.RaisesGroup(VmmError, flatten_subgroups=True, allow_unwrapped=True) as caught:
        async with driver(kind, device).launch(spec) as vmm:
            await vmm.wait_ready()
    groups = f"{IDENTITY[0]} {IDENTITY[1]}" if emulates else EXPECTED
    said = str(domain_error_in(caught.value)).splitlines()
    assert f"user {groups}" in said
    assert ("opened" in said) is not emulates


@pytest.mark.parametrize(
    ("group", "mode", "ok"), [(GROUP, 0o660, True), (0, 0o600, False), (GROUP, 0o600, False)]
)
def test_doctor(device: Path, group: int, mode: int, ok: bool) -> None:
    """The doctor says whether VMMs can open the device, and how they could."""
    os.chown(device, 0, group)
    device.chmod(mode)
    [check] = [one for one in doctor.examine(Config(), "qemu") if one.name == "kvm"]
    assert check.ok is ok
    assert (check.fix is None) is ok
    assert ok or "cannot be opened by VMMs" in check.detail
