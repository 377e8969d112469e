"""The QEMU driver: works everywhere, with and without hardware virtualisation."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from arrakis_kernel import find_kernel
from arrakis_rpc.errors import DeadlineError, UnsupportedError, VmmError

from ...config import Config
from ..memory import load_pages, save_pages
from ..processes import Child, owned, spawn
from . import qemu_arguments
from .channel import Channel
from .interface import (
    Boot,
    LaunchSpec,
    Restore,
    SnapshotFacts,
    SnapshotTarget,
    Verdict,
    VmmEnd,
)
from .qemu_probe import choose_accelerator
from .qmp import QmpClient, QmpClosedError, open_qmp

_CONSOLE_TAIL = 64 * 1024
_LAST_LINES = 40
_ANSWER_DEADLINE = 30.0
_END_DEADLINE = 2.0


class QemuDriver:
    """Runs VMs with the QEMU binary of this host."""

    name = "qemu"

    def __init__(self, config: Config) -> None:
        self._binary = config.qemu_binary
        self._accelerator = config.accelerator
        self._cache = Path(config.cache_dir)
        self._version: str | None = None

    def version(self) -> str:
        """Give QEMU's version; raise `UnsupportedError` if it is not installed."""
        if self._version is None:
            path = shutil.which(self._binary)
            if path is None:
                raise UnsupportedError(
                    f"{self._binary} is not installed",
                    hint="apt-get install --no-install-recommends qemu-system-x86 qemu-utils",
                )
            printed = subprocess.run([path, "--version"], capture_output=True, check=True)
            words = printed.stdout.decode(errors="replace").split()
            self._version = words[words.index("version") + 1]
        return self._version

    async def choose_accelerator(self) -> Verdict:
        """Find out what really runs a guest here; a first probe may take ten seconds."""
        if self._accelerator != "auto":
            return Verdict(self._accelerator, "set in the configuration")
        memory = self._cache / "accelerator.json"
        kernel = find_kernel(self._cache)
        return await choose_accelerator(self._binary, self.version(), kernel, memory)

    @asynccontextmanager
    async def launch(self, spec: LaunchSpec) -> AsyncIterator[QemuVmm]:
        """Run a QEMU process for the length of a block; it is gone when the block ends.

        The process is wired up with socket pairs: there are no sockets in the file system
        that somebody else could connect to, or that could be left behind.
        """
        with ExitStack() as ours, ExitStack() as theirs:
            pairs = [socket.socketpair() for _ in range(3)]
            qmp, agent, console = (ours.enter_context(left) for left, _ in pairs)
            fds = [theirs.enter_context(right).fileno() for _, right in pairs]
            if isinstance(spec.source, Restore):
                state = theirs.enter_context(spec.source.device_state.open("rb"))
                fds.append(state.fileno())
            wires = qemu_arguments.Wires(*fds)
            child = spawn(
                qemu_arguments.command_line(self._binary, spec, wires),
                output=spec.directory / "vmm.log",
                pass_fds=fds,
                identity=spec.identity,
            )
            theirs.close()
            async with owned(child), trio.open_nursery() as nursery:
                vmm = QemuVmm(spec, child, agent, wires)
                nursery.start_soon(vmm.pump_console, _stream(console))
                async with open_qmp(_stream(qmp), vmm.on_event) as client:
                    vmm.qmp = client
                    yield vmm
                nursery.cancel_scope.cancel()


class QemuVmm:
    """One QEMU process. Made by `QemuDriver.launch`."""

    qmp: QmpClient

    def __init__(
        self,
        spec: LaunchSpec,
        child: Child,
        agent: socket.socket,
        wires: qemu_arguments.Wires,
    ) -> None:
        self._spec = spec
        self._child = child
        self._agent = agent
        self._wires = wires
        self._console = bytearray()
        self._running = isinstance(spec.source, Boot)
        self._disk = qemu_arguments.disk_node(0)
        self._layers_added = 0
        self._resumed = trio.Event()
        self._shutdown: str | None = None
        self._channel: Channel | None = None
        self._port_is_open = False
        self._refused = False
        self.pid = child.pid

    async def start(self) -> None:
        """Boot or wake the guest, as the launch spec says. Once, right after the launch."""
        await self._execute("qmp_capabilities")
        source = self._spec.source
        if isinstance(source, Boot):
            return
        if source.pages is not None:
            await trio.to_thread.run_sync(
                load_pages, self.pid, self._spec.memory_file, source.pages
            )
        capabilities = [
            {"capability": name, "state": True} for name in ("x-ignore-shared", "events")
        ]
        await self._execute("migrate-set-capabilities", capabilities=capabilities)
        await self._execute("migrate-incoming", uri=f"fd:{self._wires.device_state}")
        with trio.move_on_after(_ANSWER_DEADLINE):
            await self._resumed.wait()
        if not self._running:
            raise VmmError(f"QEMU did not take the device state; {await self._obituary()}")

    async def pause(self) -> None:
        """Halt the vCPUs. Legal while the guest runs."""
        await self._execute("stop")
        self._running = False

    async def resume(self) -> None:
        """Let the vCPUs go on. Legal while the guest is paused."""
        await self._execute("cont")
        self._running = True

    async def save_template(self, device_state: Path) -> None:
        """Halt a booted guest for good and save its device state; RAM is in the memory file.

        Halting has also written all metadata of the disk layer.
        """
        await self.pause()
        await self._save_devices(device_state)

    async def snapshot(self, target: SnapshotTarget) -> SnapshotFacts:
        """Save a woken guest, in one pause; it goes on if it ran before.

        The caller must keep the agent's channel quiet meanwhile: QEMU moves its bytes in
        and out of guest RAM even while the vCPUs stand.
        """
        self._layers_added += 1
        node = qemu_arguments.disk_node(self._layers_added)
        layer = qemu_arguments.disk_blockdev(self._layers_added, str(target.next_disk))
        await self._execute("blockdev-add", **layer, backing=None)
        was_running = self._running
        began = trio.current_time()
        changed = 0

        async def save_memory() -> None:
            nonlocal changed
            changed = await trio.to_thread.run_sync(
                save_pages, self.pid, self._spec.memory_file, target.pages
            )

        try:
            await self.pause()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(save_memory)
                await self._save_devices(target.device_state)
            await self._switch_disk(node)
        finally:
            with trio.move_on_after(_ANSWER_DEADLINE, shield=True):
                if was_running:
                    await self._resume_or_die()
                if self._disk != node:
                    await self._execute("blockdev-del", **{"node-name": node})
        return SnapshotFacts(pause=trio.current_time() - began, changed_pages=changed)

    async def _switch_disk(self, node: str) -> None:
        try:
            await self._execute("blockdev-snapshot", node=self._disk, overlay=node)
        except VmmError:
            raise  # a clear refusal, or the end
        except BaseException:
            self._child.kill()  # nobody can tell which layer it writes to
            raise
        self._disk = node

    async def _resume_or_die(self) -> None:
        try:
            await self.resume()
        except BaseException:
            self._child.kill()  # a guest that stands still for good, and says it runs
            raise

    async def _save_devices(self, device_state: Path) -> None:
        await self._execute("xen-save-devices-state", filename=str(device_state), live=False)

    def open_channel(self) -> Channel:
        """Give a byte stream to the guest agent; again after an earlier one was closed.

        It breaks when the guest's end is closed, which is when the agent has died.
        """
        self._channel = Channel(self._agent.dup())
        return self._channel

    def _on_port_change(self, is_open: bool) -> None:
        # QEMU tells of one change a second at most, and then of the last: an opening after
        # an opening stands for a closing between them.
        if self._channel is not None and (not is_open or self._port_is_open):
            self._channel.hang_up()
        self._port_is_open = is_open

    async def wait(self) -> VmmEnd:
        """Wait until the process has ended; give how."""
        status = await self._child.wait()
        if status < 0:
            return VmmEnd(orderly=False, how=f"QEMU was killed by signal {-status}")
        with trio.move_on_after(_END_DEADLINE):
            await self.qmp.closed.wait()  # its last event says why
        if status == 0 and self._shutdown == "guest-shutdown":
            return VmmEnd(orderly=True, how="the guest powered itself off")
        reason = f" ({self._shutdown})" if self._shutdown else ""
        return VmmEnd(orderly=False, how=f"QEMU exited with status {status}{reason}")

    def last_words(self) -> list[str]:
        """Give the last lines of the process's own output and of the guest's console."""
        log = _tail(self._spec.directory / "vmm.log")
        return [
            line
            for text in (self._console, log)
            for line in text.decode(errors="replace").splitlines()[-_LAST_LINES:]
            if line.strip()
        ]

    def on_event(self, event: str, data: dict[str, Any]) -> None:
        """Take an event from QMP."""
        if event == "RESUME":
            self._running = True
            self._resumed.set()
        elif event == "VSERPORT_CHANGE":
            self._on_port_change(bool(data.get("open")))
        elif event == "SHUTDOWN":
            self._shutdown = str(data.get("reason"))
        elif event == "MIGRATION" and data.get("status") == "failed":
            self._resumed.set()

    async def pump_console(self, stream: trio.abc.Stream) -> None:
        """Keep the end of what the guest writes to its console; the rest is let go."""
        try:
            while data := await stream.receive_some(65536):
                self._console += data
                del self._console[:-_CONSOLE_TAIL]
        except trio.BrokenResourceError:
            pass  # QEMU is gone, which others notice

    async def _execute(self, command: str, **arguments: Any) -> Any:
        try:
            with trio.fail_after(_ANSWER_DEADLINE):
                return await self.qmp.execute(command, **arguments)
        except trio.TooSlowError as error:
            raise DeadlineError(f"QEMU did not answer {command}") from error
        except QmpClosedError as error:
            raise VmmError(f"{error.message}; {await self._obituary()}") from error

    async def _obituary(self) -> str:
        how = "QEMU is alive but silent"
        with trio.move_on_after(_END_DEADLINE):
            how = (await self.wait()).how
        return "\n".join([how, *self.last_words()])


def _stream(end: socket.socket) -> trio.SocketStream:
    """Make a trio stream of a connected socket."""
    return trio.SocketStream(trio.socket.from_stdlib_socket(end))


def _tail(path: Path) -> bytes:
    """Give the end of a file in a directory that a VMM may have filled with anything."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return b""
        return os.pread(fd, _CONSOLE_TAIL, max(0, status.st_size - _CONSOLE_TAIL))
    finally:
        os.close(fd)
