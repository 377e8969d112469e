"""What every hypervisor driver offers, and what it is told.

To add a driver, implement `Driver` and `Vmm` in one new file and name it in ``registry``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from attrs import frozen

from ...config import Config
from .channel import Channel


@frozen
class Boot:
    """Boot a kernel; guest RAM is written to the memory file, which becomes a template."""

    kernel: Path
    initramfs: Path
    command_line: str


@frozen
class Restore:
    """Wake a saved guest: RAM is a private copy-on-write mapping of the memory file.

    ``pages`` is a page file with what changed since the memory file was made; see
    `arrakisd.host.memory`.
    """

    device_state: Path
    pages: Path | None


@frozen
class LaunchSpec:
    """All that a VMM process is told. Paths are the host's; ``memory_mib`` in MiB.

    ``directory`` belongs to this VM alone. ``identity`` are the uid and gid of the process.
    """

    name: str
    directory: Path
    vcpus: int
    memory_mib: int
    memory_file: Path
    root_image: Path
    disk: Path
    accelerator: str
    source: Boot | Restore
    identity: tuple[int, int] | None


@frozen
class SnapshotTarget:
    """Where a snapshot's parts go: three new files, and the disk layer the VM goes on with.

    ``next_disk`` is an existing empty layer whose backing file is the present one.
    """

    device_state: Path
    pages: Path
    next_disk: Path


@frozen
class SnapshotFacts:
    """What a snapshot cost: seconds of standstill, and changed pages of 4 KiB."""

    pause: float
    changed_pages: int


@frozen
class VmmEnd:
    """How a VMM process ended: ``orderly`` if the guest powered itself off."""

    orderly: bool
    how: str


@frozen
class Verdict:
    """Which accelerator runs the guests' instructions, and why."""

    accelerator: str
    reason: str


class Vmm(Protocol):
    """One running VMM process with one guest."""

    pid: int

    async def start(self) -> None:
        """Boot or wake the guest, as the launch spec says. Once, right after the launch."""

    async def pause(self) -> None:
        """Halt the vCPUs. Legal while the guest runs."""

    async def resume(self) -> None:
        """Let the vCPUs go on. Legal while the guest is paused."""

    async def save_template(self, device_state: Path) -> None:
        """Halt a booted guest for good and save its device state; RAM is in the memory file."""

    async def snapshot(self, target: SnapshotTarget) -> SnapshotFacts:
        """Save a woken guest, in one pause; it goes on if it ran before."""

    def open_channel(self) -> Channel:
        """Give a byte stream to the guest agent; again after an earlier one was closed.

        It breaks when the guest's end is closed, which is when the agent has died.
        """

    async def wait(self) -> VmmEnd:
        """Wait until the process has ended; give how."""

    def last_words(self) -> list[str]:
        """Give the last lines of the process's own output and of the guest's console."""


class Driver(Protocol):
    """One kind of hypervisor."""

    name: str

    def version(self) -> str:
        """Give the version; raise `UnsupportedError` if it is not installed."""

    async def choose_accelerator(self) -> Verdict:
        """Find out what really runs a guest here; may take seconds the first time."""

    def launch(self, spec: LaunchSpec) -> AbstractAsyncContextManager[Vmm]:
        """Run a VMM process for the length of a block; it is gone when the block ends."""


DriverFactory = Callable[[Config], Driver]
