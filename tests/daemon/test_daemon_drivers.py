"""What every hypervisor driver offers, and how the QEMU one fails."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from attrs import evolve
from real_daemon import processes_naming

from arrakis_rpc.errors import ArrakisError, NotFoundError, UnsupportedError, VmmError
from arrakisd.host.disks import make_blank_disk
from arrakisd.host.vmm.cloud_hypervisor import CloudHypervisorVmm
from arrakisd.host.vmm.firecracker import FirecrackerVmm
from arrakisd.host.vmm.interface import Boot, Driver, LaunchSpec, Saved, Vmm
from arrakisd.host.vmm.qemu import QemuDriver, QemuVmm
from arrakisd.host.vmm.registry import DRIVERS, make_driver
from arrakisd.settings.config import Config
from arrakisd.wire.peer import domain_error_in

VMM_CLASSES = {
    "qemu": QemuVmm,
    "cloud-hypervisor": CloudHypervisorVmm,
    "firecracker": FirecrackerVmm,
}


def offered(protocol: type) -> dict[str, inspect.Signature]:
    """Give the methods of an interface with their parameters."""
    return {
        name: inspect.signature(member)
        for name, member in vars(protocol).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


@pytest.fixture
async def spec(tmp_path: Path) -> LaunchSpec:
    """A machine that comes up as far as its monitor, with nothing sensible on it."""
    directory = tmp_path / "vm"
    directory.mkdir()
    await make_blank_disk(directory / "disk.qcow2", 64)
    for name, size in (("memory", 2**27), ("root", 2**20), ("state", 4096), ("kernel", 4096)):
        with (directory / name).open("wb") as file:
            file.truncate(size)
    return LaunchSpec(
        directory=directory,
        vcpus=1,
        memory_mib=128,
        disk_mib=64,
        memory_file=directory / "memory",
        root_image=directory / "root",
        accelerator="tcg",
        identity=None,
    )


@pytest.fixture
def saved(spec: LaunchSpec) -> Saved:
    """A guest that no VMM can wake, on a disk that is fine."""
    return Saved(spec.directory / "state", None, spec.directory / "disk.qcow2")


@pytest.mark.parametrize("name", DRIVERS)
def test_interface(name: str) -> None:
    """Every driver, and what it launches, has all methods of the interface as they are there."""
    driver = DRIVERS[name](Config())
    assert driver.name == name
    for protocol, offer in ((Driver, type(driver)), (Vmm, VMM_CLASSES[name])):
        for method, signature in offered(protocol).items():
            there = inspect.signature(getattr(offer, method))
            assert list(there.parameters) == list(signature.parameters), method
            assert inspect.iscoroutinefunction(
                getattr(protocol, method)
            ) == inspect.iscoroutinefunction(getattr(offer, method)), method


def test_registry() -> None:
    """A driver is made by its name; another name is refused with those there are."""
    for name in DRIVERS:
        assert make_driver(name, Config()).name == name
    with pytest.raises(NotFoundError, match="bochs") as caught:
        make_driver("bochs", Config())
    assert "qemu" in (caught.value.hint or "")


def test_missing_binary() -> None:
    """A hypervisor that is not installed is said to be so, with the command that installs it."""
    with pytest.raises(UnsupportedError, match="no-such-qemu") as caught:
        QemuDriver(Config(qemu_binary="no-such-qemu")).version()
    assert "apt-get install" in (caught.value.hint or "")


def test_version() -> None:
    """The version is the number that QEMU prints."""
    version = QemuDriver(Config()).version()
    assert all(part.isdecimal() for part in version.split("."))


async def test_launch(spec: LaunchSpec) -> None:
    """A launched VMM talks, has a channel, and is gone with its block, as are its files' users."""
    async with QemuDriver(Config()).launch(spec) as vmm:
        assert isinstance(vmm, QemuVmm)
        await vmm.wait_ready()
        await vmm.wait_ready()
        # Not before: while a process becomes another program, it names nothing.
        assert processes_naming(spec.directory) == {vmm.pid}
        async with vmm.open_channel(), vmm.open_channel():
            pass
    assert processes_naming(spec.directory) == set()


@pytest.mark.parametrize("broken", ["root_image", "memory_file", "kernel", "vcpus"])
async def test_broken_launch(spec: LaunchSpec, broken: str, tmp_path: Path) -> None:
    """A VMM that cannot start is an error with its last words, and leaves no process."""
    missing = tmp_path / "missing"
    if broken == "kernel":
        disk = spec.directory / "disk.qcow2"
        spec = evolve(spec, boot=Boot(missing, missing, "quiet", disk))
    elif broken == "vcpus":
        spec = evolve(spec, vcpus=10_000)
    else:
        spec = evolve(spec, **{broken: missing / "file"})
    with pytest.RaisesGroup(VmmError, flatten_subgroups=True, allow_unwrapped=True) as caught:
        async with QemuDriver(Config()).launch(spec) as vmm:
            await vmm.wait_ready()
    error = domain_error_in(caught.value)
    assert isinstance(error, ArrakisError)
    assert "QEMU exited with status 1" in str(error)
    assert "CPUs" in str(error) if broken == "vcpus" else "missing" in str(error)
    assert processes_naming(spec.directory) == set()


async def test_endless_output(spec: LaunchSpec, tmp_path: Path) -> None:
    """Of what QEMU says itself the end is kept, and nothing of it fills the host's disk."""
    binary = tmp_path / "qemu"
    binary.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exec echo version 7.2\n"
        "yes virtio error | head -n 300000 >&2; echo last >&2; exit 1\n"
    )
    binary.chmod(0o755)
    before = set(spec.directory.iterdir())
    with pytest.RaisesGroup(VmmError, flatten_subgroups=True, allow_unwrapped=True) as caught:
        async with QemuDriver(Config(qemu_binary=str(binary))).launch(spec) as vmm:
            await vmm.wait_ready()
    error = domain_error_in(caught.value)
    assert isinstance(error, VmmError)
    *_, former, last = error.message.splitlines()
    assert (former, last) == ("virtio error", "last")
    assert len(error.message) < 64 * 1024
    assert set(spec.directory.iterdir()) == before


async def test_missing_disk(spec: LaunchSpec, saved: Saved) -> None:
    """A disk that is not there is an error that names it."""
    with pytest.RaisesGroup(VmmError, flatten_subgroups=True, allow_unwrapped=True) as caught:
        async with QemuDriver(Config()).launch(spec) as vmm:
            await vmm.wake(evolve(saved, disk=spec.directory / "missing"))
    assert "missing" in str(domain_error_in(caught.value))


async def test_broken_state(spec: LaunchSpec, saved: Saved) -> None:
    """Device state that is none is an error with QEMU's last words."""
    with pytest.RaisesGroup(VmmError, flatten_subgroups=True, allow_unwrapped=True) as caught:
        async with QemuDriver(Config()).launch(spec) as vmm:
            await vmm.wake(saved)
    assert "device state" in str(domain_error_in(caught.value))
