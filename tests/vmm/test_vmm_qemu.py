"""Which QEMU is taken, what it is told about KVM, and how it is understood where it halts."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import trio
from attrs import evolve

from arrakis_rpc.errors import UnsupportedError
from arrakisd.host.vmm.interface import Boot, LaunchSpec, Saved
from arrakisd.host.vmm.qemu import QemuDriver, QemuVmm
from arrakisd.host.vmm.qemu_arguments import Wires, command_line
from arrakisd.settings.config import Config
from arrakisd.upkeep import doctor

UBUNTU_22_04 = "QEMU emulator version 6.2.0 (Debian 1:6.2+dfsg-2ubuntu6.26)"
DEBIAN_12 = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"
DEBIAN_11 = "QEMU emulator version 5.2.0 (Debian 1:5.2+dfsg-11+deb11u3)"


def program(directory: Path, text: str) -> str:
    """Make a program that passes for QEMU."""
    path = directory / "qemu"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def spec(tmp_path: Path) -> LaunchSpec:
    """A machine that is to wake a guest."""
    memory = tmp_path / "memory"
    with memory.open("wb") as file:
        file.truncate(128 * 2**20)
    (tmp_path / "root").write_bytes(bytes(4096))
    return LaunchSpec(
        directory=tmp_path,
        vcpus=1,
        memory_mib=128,
        disk_mib=64,
        memory_file=memory,
        root_image=tmp_path / "root",
        accelerator="tcg",
        identity=None,
    )


@asynccontextmanager
async def running(spec: LaunchSpec, version: str = "7.2.22") -> AsyncIterator[QemuVmm]:
    """Launch what passes for a QEMU, with a guest that runs."""
    boot = Boot(*(spec.directory / name for name in ("kernel", "initramfs")), "", spec.root_image)
    text = f'case $* in *--version*) echo "version {version}"; exit ;; esac; exec sleep 60'
    driver = QemuDriver(Config(qemu_binary=program(spec.directory, text)))
    async with driver.launch(evolve(spec, boot=boot)) as vmm:
        yield vmm


class Obedient:
    """A QMP client whose QEMU does all that it is told, and says nothing of it."""

    def __init__(self) -> None:
        self.closed = trio.Event()
        self.closed.set()
        self.calls: list[tuple[str, Any]] = []
        self.on_incoming: Callable[[], None] = int

    async def execute(self, command: str, **arguments: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.calls.append((command, arguments))
        if command == "migrate-incoming":
            self.on_incoming()

    async def give_file(self, file: IO[bytes], command: str, **arguments: Any) -> Any:
        await self.execute(command, **arguments)
        return {"fdset-id": 3, "fd": 20}


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        (UBUNTU_22_04, "6.2.0"),
        (DEBIAN_12, "7.2.22"),
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-1)", "10.0.2"),
        ("QEMU emulator version 9.0.50 (v9.0.0-93-g1234)", "9.0.50"),
    ],
)
def test_versions(tmp_path: Path, printed: str, version: str) -> None:
    """The version is the number that QEMU prints, of any distribution that has a new enough one."""
    binary = program(tmp_path, f'echo "{printed}"')
    assert QemuDriver(Config(qemu_binary=binary)).version() == version


@pytest.mark.parametrize(
    "printed", [DEBIAN_11, "QEMU emulator version 6.1.1", "QEMU emulator version 4.2.1"]
)
def test_old_version(tmp_path: Path, printed: str) -> None:
    """One that is too old is refused before anything fails that nobody understands."""
    config = Config(qemu_binary=program(tmp_path, f'echo "{printed}"'))
    number = printed.split()[3]
    with pytest.raises(UnsupportedError, match=f"QEMU {number} is too old: it takes 6.2") as caught:
        QemuDriver(config).version()
    assert "Ubuntu 22.04" in (caught.value.hint or "")
    [check] = [one for one in doctor.examine(config, "qemu") if one.name == "qemu"]
    assert (check.ok, check.required) == (False, True)
    assert "too old" in check.detail
    assert check.fix == caught.value.hint


def test_broken_program(tmp_path: Path) -> None:
    """One that does not run is an error with what it says."""
    binary = program(tmp_path, "echo libslirp.so.0: no such file >&2; exit 127")
    with pytest.raises(UnsupportedError, match=r"does not tell its version: libslirp"):
        QemuDriver(Config(qemu_binary=binary)).version()


@pytest.mark.parametrize(("accelerator", "cpu"), [("kvm", "max,vmx=off,svm=off"), ("tcg", "max")])
def test_processor(spec: LaunchSpec, accelerator: str, cpu: str) -> None:
    """Under KVM a guest has no virtualisation of its own."""
    argv = command_line("qemu", evolve(spec, accelerator=accelerator), Wires(3, 4, 5))
    assert argv[argv.index("-cpu") + 1] == cpu
    assert argv[argv.index("-accel") + 1].split(",")[0] == accelerator


@pytest.mark.vm
async def test_memory(spec: LaunchSpec) -> None:
    """A guest's memory is neither merged with that of others, nor written into a core file."""
    async with QemuDriver(Config()).launch(spec) as vmm:
        await vmm.wait_ready()
        smaps = Path(f"/proc/{vmm.pid}/smaps").read_text()
    described = re.findall(rf" {spec.memory_file}\n(?:\w+:.*\n)*?VmFlags: (.*)\n", smaps)
    assert described
    for flags in described:
        assert "mg" not in flags.split()
        assert "dd" in flags.split()


@pytest.mark.parametrize(("accelerator", "stand"), [("kvm", False), ("tcg", True)])
async def test_clocks(spec: LaunchSpec, accelerator: str, stand: bool) -> None:
    """Under KVM nobody knows which clock a guest goes by, and so whether it stood still."""
    async with running(evolve(spec, accelerator=accelerator)) as vmm:
        assert vmm.clocks_stand is stand


@pytest.mark.parametrize(
    ("version", "command", "uri"),
    [
        ("6.2.0", "getfd", "fd:device-state"),
        ("8.2.2", "getfd", "fd:device-state"),
        ("9.1.0", "add-fd", "file:/dev/fdset/3"),
        ("10.0.2", "add-fd", "file:/dev/fdset/3"),
    ],
)
async def test_device_state(spec: LaunchSpec, version: str, command: str, uri: str) -> None:
    """A QEMU that can, and is to, take a file as such is given the saved state as one."""
    async with running(spec, version) as vmm:
        qmp = Obedient()
        vmm.qmp = qmp  # type: ignore[assignment]
        qmp.on_incoming = lambda: vmm.on_event("RESUME", {}, 1000.0)
        saved = Saved(spec.root_image, [], spec.directory / "disk")
        with trio.fail_after(10):
            assert await vmm.wake(saved) == 1000.0
    assert command in [name for name, _ in qmp.calls]
    assert ("migrate-incoming", {"uri": uri}) in qmp.calls


async def test_halt_that_nobody_asked_for(spec: LaunchSpec) -> None:
    """A guest that QEMU halts for good, since KVM cannot go on with it, is ended and said to be."""
    async with running(spec) as vmm:
        vmm.qmp = Obedient()  # type: ignore[assignment]
        await vmm.pause()
        vmm.on_event("STOP", {}, time.time())
        await vmm.resume()
        vmm.on_event("RESUME", {}, time.time())
        vmm.on_event("STOP", {}, time.time())
        with trio.fail_after(10):
            end = await vmm.wait()
    assert (end.orderly, end.how) == (False, "QEMU halted the guest, which cannot go on")


async def test_halt_that_is_not_told_of(spec: LaunchSpec) -> None:
    """Of a guest that stood still by itself QEMU tells nothing: it is halted when it is told to be.

    Halted again, it has been so since the first time.
    """
    async with running(spec) as vmm:
        vmm.qmp = Obedient()  # type: ignore[assignment]
        before = time.time()
        halted = await vmm.pause()
        assert before <= halted <= time.time()
        assert await vmm.pause() == halted
        vmm.on_event("STOP", {}, before - 1)
        assert await vmm.pause() == before - 1
