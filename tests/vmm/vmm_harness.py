"""Fake hypervisors for the drivers, and machines for them to run."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import trio
from attrs import define, frozen

from arrakisd.host.disks import make_blank_disk, make_empty_layer
from arrakisd.host.net.interface import Nic
from arrakisd.host.vmm.api_driver import ApiDriver
from arrakisd.host.vmm.api_vmm import ApiVmm
from arrakisd.host.vmm.interface import Boot, LaunchSpec, Saved, SnapshotFacts, SnapshotTarget, Vmm
from arrakisd.host.vmm.registry import DRIVERS
from arrakisd.settings.config import Config

MEMORY_MIB = 16
DISK_MIB = 64
FAKES = Path(__file__).parents[1] / "fakes"

VERSION_LINES = {
    "cloud-hypervisor": "cloud-hypervisor v{}",
    "firecracker": "Firecracker v{}\n\nSupported snapshot data format versions: v7.0.0",
}
VERSIONS = {"cloud-hypervisor": "52.0", "firecracker": "1.16.2"}


@frozen
class Call:
    """A request that a fake got, and its answer."""

    method: str
    target: str
    body: Any
    status: int
    answer: Any

    @property
    def name(self) -> str:
        return f"{self.method} {self.target.removeprefix('/api/v1')}"


class Fake:
    """A fake hypervisor, installed in a directory of its own."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self._directory = directory
        directory.mkdir()
        self.binary = directory / kind
        self.binary.write_text(
            f'#!/bin/sh\nexec {sys.executable} {FAKES / "run_fake.py"} {kind} {directory} "$@"\n'
        )
        self.binary.chmod(0o755)
        self.defaults: dict[str, Any] = {}
        self.set()

    def set(self, version: str | None = None, **settings: str | bool) -> None:
        """Set how it behaves, replacing what was set before."""
        version = version or VERSIONS[self.kind]
        line = VERSION_LINES[self.kind].format(version)
        content = {"version": version, "version_line": line, **settings}
        new = self._directory / "settings.new"  # one that runs reads them at any time
        new.write_text(json.dumps(content))
        new.rename(self._directory / "settings")

    def calls(self) -> list[Call]:
        """All calls so far."""
        lines = (self._directory / "calls").read_text().splitlines()
        return [Call(*json.loads(line)) for line in lines]

    def driver(self, **settings: Any) -> ApiDriver[ApiVmm]:
        """Make a driver for it."""
        setting = f"{self.kind.replace('-', '_')}_binary"
        # The fakes' Python is often one that only the user of the tests can run.
        chosen = {setting: str(self.binary), "vmm_user": "nobody-else", **self.defaults, **settings}
        return DRIVERS[self.kind](Config(**chosen))


@frozen
class Stored:
    """A saved guest."""

    device_state: Path
    pages: list[Path]
    token: bytes = b""


@define
class Rig:
    """State directories like the daemon's, in which a driver's machines live."""

    root: Path
    fake: Fake
    layers: int = 0
    identity: tuple[int, int] | None = None

    async def ask(self, vmm: Vmm, *lines: str) -> list[str]:
        """Tell or ask a guest of pages of its memory (poke, peek) and of its disk (write, read)."""
        return await ask(vmm, *lines)

    @property
    def memory_file(self) -> Path:
        return self.root / "memory"

    def prepare(self) -> None:
        (self.root / "layers").mkdir()
        (self.root / "vms").mkdir()
        for name in ("kernel", "initramfs", "image"):
            (self.root / name).write_bytes(name.encode())
        with self.memory_file.open("wb") as file:
            file.truncate(MEMORY_MIB * 2**20)

    def _spec(self, name: str, nic: Nic | None, boot: Boot | None = None) -> LaunchSpec:
        return LaunchSpec(
            directory=self.directory(name),
            vcpus=2,
            memory_mib=MEMORY_MIB,
            disk_mib=DISK_MIB,
            memory_file=self.memory_file,
            root_image=self.root / "image",
            accelerator="kvm",
            identity=self.identity,
            nic=nic,
            boot=boot,
        )

    def directory(self, name: str) -> Path:
        return self.root / "vms" / name

    def freeze(self, layer: Path) -> str:
        """Do with a layer what the store does."""
        self.layers += 1
        target = self.root / "layers" / f"{self.layers:032x}" / "disk.qcow2"
        target.parent.mkdir()
        layer.rename(target)
        return target.parent.name

    async def make_template(self, nic: Nic | None = None) -> Stored:
        """Boot a guest once, poke into its memory and disk, and save it."""
        directory = self.directory("boot")
        directory.mkdir()
        disk = directory / "0.qcow2"
        await make_blank_disk(disk, DISK_MIB)
        boot = Boot(self.root / "kernel", self.root / "initramfs", "console=ttyS0", disk)
        async with self.fake.driver().launch(self._spec("boot", nic, boot)) as vmm:
            await vmm.wait_ready()
            assert await ask(vmm, "poke 1 11", "write 5000 55") == ["done", "done"]
            state = directory / "device-state"
            await vmm.save_template(state)
        kept = state.rename(self.root / "template-state")
        self.freeze(disk)
        return Stored(kept, [])

    @asynccontextmanager
    async def woken(
        self,
        name: str,
        stored: Stored,
        below: str,
        driver: ApiDriver[ApiVmm] | None = None,
        nic: Nic | None = None,
    ) -> AsyncIterator[ApiVmm]:
        """Wake a saved guest, on a layer of its own."""
        directory = self.directory(name)
        directory.mkdir()
        disk = directory / "0.qcow2"
        await make_empty_layer(disk, below, DISK_MIB)
        async with (driver or self.fake.driver()).launch(self._spec(name, nic)) as vmm:
            await vmm.wake(Saved(stored.device_state, stored.pages, disk))
            yield vmm

    async def snapshot(
        self, name: str, number: int, vmm: ApiVmm, stored: Stored
    ) -> tuple[Stored, str, SnapshotFacts]:
        """Take the n-th snapshot of a guest; give it, its layer's id, and what it cost."""
        directory = self.directory(name)
        pages = self.root / f"{name}-pages{number}"
        layer, next_layer = (directory / f"{n}.qcow2" for n in (number - 1, number))
        await make_empty_layer(next_layer, f"{self.layers + 1:032x}", DISK_MIB)
        target = SnapshotTarget(directory / "device-state", pages, stored.pages, next_layer)
        facts = await vmm.snapshot(target, nullcontext())
        kept = target.device_state.rename(self.root / f"{name}-state{number}")
        return Stored(kept, [*stored.pages, pages]), self.freeze(layer), facts


def make_kernel(cache: Path) -> None:
    """Put something into a cache that passes for a kernel."""
    directory = cache / "kernels" / ("0" * 64)
    directory.mkdir(parents=True)
    for name in ("vmlinux", "bzImage", "initramfs.cpio"):
        (directory / name).touch()
    files = {path.name: {"sha256": "0" * 64, "size": 0} for path in directory.iterdir()}
    manifest = {"format_version": 1, "version": "1", "files": files}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    (cache / "kernels" / "current").symlink_to(directory.name)


async def ask(vmm: Vmm, *lines: str) -> list[str]:
    """Ask the fake guest by its vsock; give its answers."""
    answers = []
    with trio.fail_after(30):
        async with vmm.open_channel() as channel:
            for line in lines:
                await channel.send_all(f"{line}\n".encode())
                answer = b""
                while not answer.endswith(b"\n"):
                    data = await channel.receive_some()
                    assert data, f"no answer to {line}"
                    answer += data
                answers.append(answer.decode().strip())
    return answers
