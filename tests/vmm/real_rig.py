"""Machines of real hypervisors: the real kernel, the base image, and its agent."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field
from vmm_harness import Stored

from arrakis_kernel import cache_directory, find_kernel
from arrakis_rootfs.store import ImageStore
from arrakis_rpc.errors import GuestError
from arrakis_rpc.guest_api import ExecSpec, Nothing
from arrakis_rpc.resync import FIRST_TOKEN
from arrakisd.guest.agent import GuestAgent
from arrakisd.host.disks import make_blank_disk, make_empty_layer
from arrakisd.host.vmm.interface import (
    Boot,
    Driver,
    LaunchSpec,
    Saved,
    SnapshotFacts,
    SnapshotTarget,
    Vmm,
)
from arrakisd.host.vmm.registry import make_driver
from arrakisd.machines.templates import COMMAND_LINE
from arrakisd.settings.config import Config
from arrakisd.settings.network import NetworkConfig

MEMORY_MIB = 512
DISK_MIB = 256
# Whoever waits for a guest here may be on a machine that does much else.
PATIENCE = 300.0

# Pages are files here: of a file system in memory, and of the disk.
_SHELL = {
    "poke": "echo {1} > /dev/shm/{0}",
    "peek": "exit $(cat /dev/shm/{0} 2>/dev/null || echo 0)",
    "write": "echo {1} > /var/tmp/{0}",
    "read": "exit $(cat /var/tmp/{0} 2>/dev/null || echo 0)",
}


def real_driver(kind: str) -> tuple[Driver, str]:
    """Give a driver, and what runs its guests; raise `ArrakisError` if it can run none."""
    if kind == "qemu":
        return make_driver(kind, Config(accelerator="tcg")), "tcg"
    setting = kind.replace("-", "_")
    binary = os.environ.get(f"ARRAKIS_{setting.upper()}", "none")
    settings = {f"{setting}_binary": binary, "network": NetworkConfig(mode="none")}
    driver = make_driver(kind, Config(**settings))
    driver.version()
    return driver, trio.run(driver.choose_accelerator).accelerator


@define
class RealRig:
    """State directories like the daemon's, in which a real driver's machines live."""

    root: Path
    driver: Driver
    accelerator: str
    layers: int = 0
    agents: dict[int, GuestAgent] = field(factory=dict)

    @classmethod
    def beside(cls, other: RealRig, root: Path) -> RealRig:
        """Make one that has another's template."""
        rig = cls(root, other.driver, other.accelerator)
        rig.prepare()
        rig.memory_file.hardlink_to(other.memory_file)
        layer = rig.layer(1)
        layer.parent.mkdir()
        layer.hardlink_to(other.layer(1))
        rig.layers = 1
        return rig

    @property
    def memory_file(self) -> Path:
        return self.root / "memory"

    def prepare(self) -> None:
        (self.root / "layers").mkdir(parents=True)
        (self.root / "vms").mkdir()

    def layer(self, number: int) -> Path:
        return self.root / "layers" / f"{number:032x}" / "disk.qcow2"

    def freeze(self, layer: Path) -> str:
        """Do with a layer what the store does."""
        self.layers += 1
        target = self.layer(self.layers)
        target.parent.mkdir()
        layer.rename(target)
        return target.parent.name

    def directory(self, name: str) -> Path:
        return self.root / "vms" / name

    def _spec(self, name: str, boot: Boot | None = None) -> LaunchSpec:
        return LaunchSpec(
            directory=self.directory(name),
            vcpus=1,
            memory_mib=MEMORY_MIB,
            disk_mib=DISK_MIB,
            memory_file=self.memory_file,
            root_image=ImageStore(cache_directory() / "images").resolve("base").path,
            accelerator=self.accelerator,
            identity=None,
            boot=boot,
        )

    async def boot_template(self) -> Stored:
        """Boot a guest once, poke into its memory and disk, and save it."""
        kernel = find_kernel(cache_directory())
        assert kernel is not None, "scripts/setup provides one"
        directory = self.directory("boot")
        directory.mkdir()
        disk = directory / "0.qcow2"
        await make_blank_disk(disk, DISK_MIB)
        with self.memory_file.open("wb") as file:
            file.truncate(MEMORY_MIB * 2**20)
        spec = self._spec("boot", Boot(kernel.vmlinux, kernel.initramfs, COMMAND_LINE, disk))
        state = directory / "device-state"
        async with self.driver.launch(spec) as vmm:
            await vmm.wait_ready()
            async with self._session("boot", vmm, FIRST_TOKEN) as agent:
                while not (await agent.call("agent.health", Nothing())).booted:
                    await trio.sleep(0.5)
                await self.ask(vmm, "poke 1 11", "write 5000 55")
                async with agent.quiet():
                    token = agent.resync_token
                    await vmm.save_template(state)
        kept = state.rename(self.root / "template-state")
        self.freeze(disk)
        return Stored(kept, [], token)

    @asynccontextmanager
    async def _session(self, name: str, vmm: Vmm, token: bytes) -> AsyncIterator[GuestAgent]:
        agent = GuestAgent(name, vmm.open_channel, token)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.run, PATIENCE)
            await agent.wait_ready(PATIENCE)
            self.agents[vmm.pid] = agent
            yield agent
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def woken(self, name: str, stored: Stored, below: str) -> AsyncIterator[Vmm]:
        """Wake a saved guest, on a layer of its own."""
        directory = self.directory(name)
        directory.mkdir()
        disk = directory / "0.qcow2"
        await make_empty_layer(disk, below, DISK_MIB)
        async with self.driver.launch(self._spec(name)) as vmm:
            await vmm.wake(Saved(stored.device_state, stored.pages, disk))
            async with self._session(name, vmm, stored.token):
                yield vmm

    async def snapshot(
        self, name: str, number: int, vmm: Vmm, stored: Stored
    ) -> tuple[Stored, str, SnapshotFacts]:
        """Take the n-th snapshot of a guest; give it, its layer's id, and what it cost."""
        directory, agent = self.directory(name), self.agents[vmm.pid]
        pages = self.root / f"{name}-pages{number}"
        layer, next_layer = (directory / f"{n}.qcow2" for n in (number - 1, number))
        await make_empty_layer(next_layer, f"{self.layers + 1:032x}", DISK_MIB)
        target = SnapshotTarget(directory / "device-state", pages, stored.pages, next_layer)
        facts = await vmm.snapshot(target, agent.quiet())
        token = agent.resync_token
        kept = target.device_state.rename(self.root / f"{name}-state{number}")
        return Stored(kept, [*stored.pages, pages], token), self.freeze(layer), facts

    async def ask(self, vmm: Vmm, *lines: str) -> list[str]:
        """Tell or ask a guest of pages of its memory (poke, peek) and of its disk (write, read)."""
        answers = []
        for line in lines:
            verb, *numbers = line.split()
            code = await self._run(self.agents[vmm.pid], _SHELL[verb].format(*numbers))
            answers.append(str(code) if verb in ("peek", "read") else "done")
        return answers

    async def _run(self, agent: GuestAgent, command: str) -> int:
        with trio.fail_after(PATIENCE):
            while True:
                await agent.wait_ready(PATIENCE)
                try:
                    result = await agent.call("exec.run", ExecSpec(shell=command))
                except GuestError:
                    continue  # the session has broken in the middle
                return int(result.exit_code)
