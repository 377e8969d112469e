"""What every hypervisor driver offers, and what it is told.

To add a driver, implement `Driver` and `Vmm` in one new file and name it in ``registry``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from attrs import frozen

from ...settings.config import Config
from ..net.interface import Nic
from .channel import Channel


@frozen
class Boot:
    """Boot a kernel; guest RAM is written to the memory file, which becomes a template.

    ``disk`` is the writable layer, beside the root image.
    """

    kernel: Path
    initramfs: Path
    command_line: str
    disk: Path


@frozen
class Saved:
    """A guest that was saved, on top of the memory file of the VMM that is to wake it.

    ``pages`` are page files, the lowest first, with what changed since the memory file was
    made; see `arrakisd.host.page_files`. ``disk`` is the writable layer that it goes on with.
    """

    device_state: Path
    pages: list[Path]
    disk: Path


@frozen
class LaunchSpec:
    """All that a VMM process is told at first. Paths are the host's; sizes in MiB.

    ``directory`` belongs to this process alone. ``identity`` are its uid and gid, ``groups`` the
    files by which it joins control groups. ``nic`` is
    what the guest's network card leads to; None for a guest without one. Without ``boot`` it
    is to wake a saved guest, any that has this memory file: RAM is a private copy-on-write
    mapping of it. So one that is launched ahead can take whichever comes.
    """

    directory: Path
    vcpus: int
    memory_mib: int
    disk_mib: int
    memory_file: Path
    root_image: Path
    accelerator: str
    identity: tuple[int, int] | None
    groups: Sequence[Path] = ()
    nic: Nic | None = None
    boot: Boot | None = None

    @property
    def memory_pages(self) -> int:
        """How many pages of 4 KiB the guest has."""
        return self.memory_mib * 256


@frozen
class SnapshotTarget:
    """Where a snapshot's parts go: three new files, and the disk layer the VM goes on with.

    ``next_disk`` is an existing empty layer whose backing file is the present one. What is in
    ``known_pages``, page files like those of a `Saved`, need not be in ``pages``.
    """

    device_state: Path
    pages: Path
    known_pages: list[Path]
    next_disk: Path


@frozen
class SnapshotFacts:
    """What a snapshot cost: seconds of standstill, and pages of 4 KiB that were saved.

    ``halted`` is when the guest's clocks stopped, in Unix time.
    """

    pause: float
    changed_pages: int
    halted: float


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
    """One running VMM process with one guest.

    ``clocks_stand`` says that the clocks of a guest that is woken, or goes on, do so from where
    they were when it was halted; False also if that is not certain. ``farewell`` is what a guest
    tells ``systemctl`` to end its process.
    """

    pid: int
    clocks_stand: bool
    farewell: str

    async def wait_ready(self) -> None:
        """Wait until the process answers, and has done what it can do ahead."""

    async def wake(self, saved: Saved) -> float:
        """Wake a saved guest. Once, where nothing was booted; raises `VmmError`.

        Gives when the guest's clocks went on, in Unix time.
        """

    async def pause(self) -> float:
        """Halt the vCPUs. Legal while the guest runs.

        Gives when the guest's clocks stopped, in Unix time.
        """

    async def resume(self) -> float:
        """Let the vCPUs go on. Legal while the guest is paused.

        Gives when the guest's clocks went on, in Unix time.
        """

    async def save_template(self, device_state: Path) -> float:
        """Halt a booted guest for good and save its device state; RAM is in the memory file.

        Gives when the guest's clocks stopped, in Unix time.
        """

    async def snapshot(
        self, target: SnapshotTarget, still: AbstractAsyncContextManager[None]
    ) -> SnapshotFacts:
        """Save a woken guest, in one pause; it goes on if it ran before.

        The pause is in the block ``still``, in which nothing passes between host and guest, and
        nothing is cancelled. It is entered when all is done that can be done ahead.
        """

    def open_channel(self) -> Channel:
        """Give a byte stream to the guest agent; again after an earlier one was closed.

        It breaks when the guest's end is closed, which is when the agent has died.
        """

    async def forward_port(self, address: str, host_port: int, guest_port: int) -> None:
        """Lead from an address of the host into the guest, for a `UserNic`.

        A driver whose hypervisor has no network stack of its own raises `UnsupportedError`.
        """

    async def unforward_port(self, address: str, host_port: int) -> None:
        """Lead from there no longer."""

    async def wait(self) -> VmmEnd:
        """Wait until the process has ended; give how."""

    def kill(self) -> None:
        """End the process at once."""

    def last_words(self) -> list[str]:
        """Give the last lines of the process's own output and of the guest's console."""


class Driver(Protocol):
    """One kind of hypervisor.

    ``caveat`` is what speaks against the version that `version` has found, if anything does.
    """

    name: str
    caveat: str | None

    def version(self) -> str:
        """Give the version; raise `UnsupportedError` if it is not installed."""

    def check_host(self) -> None:
        """Raise `UnsupportedError` for what can be seen at once to be in the way here."""

    async def choose_accelerator(self) -> Verdict:
        """Find out what really runs a guest here; may take seconds the first time."""

    def launch(self, spec: LaunchSpec) -> AbstractAsyncContextManager[Vmm]:
        """Run a VMM process for the length of a block; it is gone when the block ends."""


DriverFactory = Callable[[Config], Driver]
