"""What the hypervisors have in common that are told everything over an HTTP API.

Neither of them can put another layer on top of a running disk, nor save its devices without
the memory. So their guests write to a raw disk, made of the layer and folded into one again,
and a snapshot's pages are taken from a dump of the memory: those that are the process's own and
no longer the file's that it maps, as far as they differ from what is stored.
"""

from __future__ import annotations

import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar

import structlog
import trio

from arrakis_rpc.errors import DeadlineError, UnsupportedError, VmmError

from ...deadlines import deadline, transfer_time
from ..files import remove_tree, room_needed
from ..memory import Area, changed_flags, find_memory
from ..memory_files import patch_memory, save_difference
from ..processes import Child
from .channel import Channel
from .console import Console
from .errands import copy_sparse, fold_disk, unfold_layer
from .http_client import ApiClient, ApiClosedError
from .interface import Boot, LaunchSpec, Saved, SnapshotFacts, SnapshotTarget, VmmEnd
from .vsock_channel import open_channel

API_SOCKET = "api.sock"
VSOCK_SOCKET = "agent.sock"
DISK = "disk.raw"

_DUMP = "dump"
_FROZEN = "frozen.raw"
_MEMORY = "memory"

_ANSWER_DEADLINE = 30.0
_START_DEADLINE = 10.0
_END_DEADLINE = 2.0
_POLL = 0.002

log = structlog.get_logger()


class ApiVmm(ABC):
    """One VMM process with an HTTP API. What is said in which order is its subclass's."""

    title: ClassVar[str]
    ping: ClassVar[str]
    farewell = "poweroff"

    def __init__(self, spec: LaunchSpec, child: Child, directory: Path) -> None:
        self._spec = spec
        self._child = child
        self._directory = directory
        self._api = ApiClient(self.title, directory / API_SOCKET)
        self._channel: Channel | None = None
        self.console = Console()
        self._is_ready = False
        self._running = False
        self._is_lost = False
        self._halted = 0.0
        self._layer = Path()
        self._mapped: Path | None = None
        self.pid = child.pid
        self.clocks_stand = True

    @abstractmethod
    async def _set_running(self, running: bool) -> None:
        """Let the vCPUs go on, or halt them."""

    @abstractmethod
    async def _save(self, device_state: Path, dump: Path, *, whole: bool) -> None:
        """Save a halted guest's devices, and its memory to the file ``dump``.

        Unless ``whole``, no page is missed if it is still the one of the file that is mapped.
        """

    @abstractmethod
    async def _boot(self, boot: Boot) -> None:
        """Boot a kernel, with a disk that is there already."""

    @abstractmethod
    async def _wake(self, device_state: Path, pages: Sequence[Path]) -> Path | None:
        """Wake a saved guest, with a disk that is there already; it stands still.

        Gives the file that its RAM is a private mapping of, if it is one.
        """

    async def wait_ready(self) -> None:
        """Wait until the process answers, and boot what is to be booted."""
        if self._is_ready:
            return
        await self._wait_listening()
        self._is_ready = True
        if self._spec.boot is not None:
            await self._unfold(self._spec.boot.disk)
            await self._boot(self._spec.boot)
            self._running = True

    async def wake(self, saved: Saved) -> float:
        """Wake a saved guest. Once, where nothing was booted; raises `VmmError`.

        Gives when the guest's clocks went on, in Unix time.
        """
        await self.wait_ready()
        await self._unfold(saved.disk)
        self._mapped = await self._wake(saved.device_state, saved.pages)
        return await self.resume()

    async def pause(self) -> float:
        """Halt the vCPUs. Legal while the guest runs.

        Gives when the guest's clocks stopped, in Unix time.
        """
        if self._running:
            await self._set_running(False)
            self._halted = time.time()
            self._running = False
        return self._halted

    async def resume(self) -> float:
        """Let the vCPUs go on. Legal while the guest is paused.

        Gives when the guest's clocks went on, in Unix time.
        """
        await self._set_running(True)
        self._running = True
        return time.time()

    async def snapshot(
        self, target: SnapshotTarget, still: AbstractAsyncContextManager[None]
    ) -> SnapshotFacts:
        """Save a woken guest, in one pause; it goes on if it ran before.

        The pause is in the block ``still``, in which nothing passes between host and guest. Its
        memory is written in the pause, and which pages are its own is asked then. What of
        them is new, and the disk layer, are found out when it goes on already.
        """
        dump, frozen = self._directory / _DUMP, self._directory / _FROZEN
        areas = await trio.to_thread.run_sync(self._find_memory)
        try:
            with room_needed(self._directory):
                async with still:
                    began = trio.current_time()
                    halted, flags = await self._copy(target.device_state, dump, frozen, areas)
                    pause = trio.current_time() - began
                known = (self._spec.memory_file, target.known_pages)
                changed = await trio.to_thread.run_sync(
                    save_difference, *known, dump, target.pages, flags
                )
                await fold_disk(frozen, self._layer, self._spec.identity)
        finally:
            for leftover in (dump, frozen):
                leftover.unlink(missing_ok=True)
        self._layer = target.next_disk
        return SnapshotFacts(pause=pause, changed_pages=changed, halted=halted)

    async def _copy(
        self, device_state: Path, dump: Path, disk: Path, areas: list[Area] | None
    ) -> tuple[float, bytearray | None]:
        """Copy in one pause all that would change.

        Gives when the guest's clocks stopped, and which pages may be its own, if that is known.
        """
        flags: bytearray | None = None
        was_running = self._running
        try:
            halted = await self.pause()
            await self._save(device_state, dump, whole=areas is None)
            if areas is not None:
                flags = await trio.to_thread.run_sync(changed_flags, self.pid, areas)
            await copy_sparse(self._directory / DISK, disk, self._spec.identity)
        finally:
            if was_running and not (self._running or self._is_lost):
                with trio.move_on_after(_ANSWER_DEADLINE, shield=True):
                    await self._resume_or_die()
        return halted, flags

    def _find_memory(self) -> list[Area] | None:
        """Find where RAM is mapped, if it is a mapping and can be found: not on every file system.

        Blocks.
        """
        try:
            if self._mapped is not None:
                return find_memory(self.pid, self._mapped, self._spec.memory_pages)
        except VmmError:
            pass
        return None

    async def _resume_or_die(self) -> None:
        try:
            await self.resume()
        except BaseException:
            self.kill()  # a guest that stands still for good, and says it runs
            raise

    async def _unfold(self, layer: Path) -> None:
        """Make the guest's disk of its layer."""
        self._layer = layer
        await unfold_layer(layer, self._directory / DISK, self._spec.identity)

    async def _fold(self) -> None:
        """Put what the disk of a guest that is halted for good has into its layer."""
        await fold_disk(self._directory / DISK, self._layer, self._spec.identity)

    async def _whole_memory(self, pages: Sequence[Path]) -> Path:
        """Give a file with all of a saved guest's memory: the template's, or one of its own."""
        if not pages:
            return self._spec.memory_file
        memory = self._directory / _MEMORY
        await copy_sparse(self._spec.memory_file, memory, self._spec.identity)
        await trio.to_thread.run_sync(patch_memory, memory, pages)
        return memory

    def open_channel(self) -> Channel:
        """Give a byte stream to the guest agent; again after an earlier one was closed."""
        self._channel = open_channel(self._directory / VSOCK_SOCKET)
        return self._channel

    async def forward_port(self, address: str, host_port: int, guest_port: int) -> None:
        """Raise `UnsupportedError`: it has no network stack of its own."""
        raise UnsupportedError(
            f"{self.title} cannot lead from {address}:{host_port} to port {guest_port} of a guest"
        )

    async def unforward_port(self, address: str, host_port: int) -> None:
        """Raise `UnsupportedError`, too."""
        raise UnsupportedError(f"{self.title} does not lead from {address}:{host_port} anywhere")

    def kill(self) -> None:
        """End the process at once."""
        self._child.kill()

    async def wait(self) -> VmmEnd:
        """Wait until the process has ended; give how."""
        status = await self._child.wait()
        with trio.move_on_after(_END_DEADLINE):
            await self.console.wait_closed()  # its last lines say why
        if status < 0:
            return VmmEnd(orderly=False, how=f"{self.title} was killed by signal {-status}")
        if status == 0:
            return VmmEnd(orderly=True, how="the guest powered itself off")
        return VmmEnd(orderly=False, how=f"{self.title} exited with status {status}")

    def last_words(self) -> list[str]:
        """Give the last lines of the process's own output and of the guest's console."""
        return self.console.last_lines()

    async def _wait_listening(self) -> None:
        """Wait until the API answers; raise `VmmError` if the process ends before."""
        with deadline(_START_DEADLINE, f"the start of {self.title}"):
            while not await self._answers():
                with trio.move_on_after(_POLL):
                    await self._child.wait()
                    raise VmmError(await self._obituary())

    async def _answers(self) -> bool:
        try:
            await self._api.call("GET", self.ping)
        except ApiClosedError:
            return False
        return True

    async def _call(
        self,
        method: str,
        target: str,
        body: object = None,
        *,
        fds: Sequence[int] = (),
        moves_memory: bool = False,
    ) -> Any:
        """Make a call. One that reads or writes all of the guest's memory gets longer."""
        log.debug("VMM call", method=method, target=target, pid=self.pid)
        limit = _ANSWER_DEADLINE + moves_memory * transfer_time(self._spec.memory_mib)
        try:
            with trio.fail_after(limit):
                return await self._api.call(method, target, body, fds=fds)
        except trio.TooSlowError as error:
            self._is_lost = True
            self.kill()  # nobody can tell what it did and what it will still do
            raise DeadlineError(
                f"{self.title} did not answer {method} {target} within {limit:g} s, and was ended"
            ) from error
        except ApiClosedError as error:
            self._is_lost = True
            raise VmmError(f"{error.message}; {await self._obituary()}") from error

    async def _obituary(self) -> str:
        how = f"{self.title} is alive"
        with trio.move_on_after(_END_DEADLINE):
            how = (await self.wait()).how
        return "\n".join([how, *self.last_words()])

    def clean(self) -> None:
        """Remove what a killed process leaves beside its other files."""
        for name in (API_SOCKET, f"{API_SOCKET}.lock", VSOCK_SOCKET, f"{VSOCK_SOCKET}.lock"):
            (self._directory / name).unlink(missing_ok=True)


def read_from(path: Path, most: int) -> bytes:
    """Read a file from a VMM's directory, which it may have filled with anything."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:  # noqa: PTH123 -- a descriptor
        if not stat.S_ISREG(os.fstat(fd).st_mode) or os.fstat(fd).st_size > most:
            raise VmmError(f"{path} is no ordinary file of at most {most} bytes")
        return file.read(most)


def write_new(path: Path, content: bytes) -> None:
    """Write a file into a VMM's directory, where none may be yet."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(path, flags, 0o644), "wb") as file:  # noqa: PTH123 -- a descriptor
        file.write(content)


def make_directory(path: Path, identity: tuple[int, int] | None) -> None:
    """Make a directory of the VMM's own, in place of an earlier one."""
    remove_tree(path)
    path.mkdir(mode=0o700)
    if identity is not None:
        os.chown(path, *identity, follow_symlinks=False)
