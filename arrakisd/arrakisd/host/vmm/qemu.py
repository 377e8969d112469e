"""The QEMU driver: works everywhere, with and without hardware virtualisation."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import IO, Any

import structlog
import trio

from arrakis_kernel import find_kernel
from arrakis_rpc.errors import DeadlineError, VmmError

from ...settings.config import Config
from ..files import is_nearly_full, no_room
from ..memory import PageSaver, load_pages
from ..net.interface import TapNic
from ..processes import Child, owned, spawn
from . import qemu_arguments
from .channel import Channel
from .console import Console
from .interface import (
    LaunchSpec,
    Saved,
    SnapshotFacts,
    SnapshotTarget,
    Verdict,
    VmmEnd,
)
from .kvm_probe import DEVICE
from .qemu_probe import choose_accelerator, find_version
from .qmp import QmpClient, QmpClosedError, open_qmp

_ANSWER_DEADLINE = 30.0
_END_DEADLINE = 2.0
_DEVICE_STATE = "device-state"
# From this version on a plain file is not to be given as one end of a connection any more.
_TAKES_FILES = (9, 1)

log = structlog.get_logger()


class QemuDriver:
    """Runs VMs with the QEMU binary of this host."""

    name = "qemu"
    caveat: str | None = None

    def __init__(self, config: Config) -> None:
        self._binary = config.qemu_binary
        self._accelerator = config.accelerator
        self._cache = Path(config.cache_dir)
        self._config = config
        self._version: str | None = None

    def version(self) -> str:
        """Give QEMU's version; raise `UnsupportedError` if none that fits is installed."""
        if self._version is None:
            self._version = find_version(self._binary)
        return self._version

    def check_host(self) -> None:
        """Raise nothing: it works everywhere."""

    async def choose_accelerator(self) -> Verdict:
        """Find out what really runs a guest here; a first probe may take 40 seconds."""
        if self._accelerator != "auto":
            return Verdict(self._accelerator, "set in the configuration")
        memory = self._cache / "accelerator.json"
        kernel = find_kernel(self._cache)
        identity = self._config.vmm_identity()
        return await choose_accelerator(self._binary, self.version(), kernel, memory, identity)

    @asynccontextmanager
    async def launch(self, spec: LaunchSpec) -> AsyncIterator[QemuVmm]:
        """Run a QEMU process for the length of a block; it is gone when the block ends.

        The process is wired up with socket pairs: there are no sockets in the file system
        that somebody else could connect to, or that could be left behind.
        """
        version = self.version()
        with ExitStack() as ours, ExitStack() as theirs:
            pairs = [socket.socketpair() for _ in range(4)]
            qmp, agent, console, said = (ours.enter_context(left) for left, _ in pairs)
            *fds, output = (theirs.enter_context(right).fileno() for _, right in pairs)
            wires = qemu_arguments.Wires(*fds)
            if isinstance(spec.nic, TapNic):
                fds.append(spec.nic.fd)
            child = spawn(
                qemu_arguments.command_line(self._binary, spec, wires),
                output=output,
                pass_fds=fds,
                identity=spec.identity,
                devices=[DEVICE] if spec.accelerator == "kvm" else [],
                groups=spec.groups,
            )
            theirs.close()
            log.info("VMM started", vmm=self.name, pid=child.pid)
            async with owned(child), trio.open_nursery() as nursery:
                vmm = QemuVmm(spec, child, agent, version)
                nursery.start_soon(vmm.console.pump, _stream(console))
                nursery.start_soon(vmm.output.pump, _stream(said))
                async with open_qmp(_stream(qmp), vmm.on_event) as client:
                    vmm.qmp = client
                    yield vmm
                nursery.cancel_scope.cancel()


class QemuVmm:
    """One QEMU process. Made by `QemuDriver.launch`."""

    qmp: QmpClient
    farewell = "poweroff"

    def __init__(self, spec: LaunchSpec, child: Child, agent: socket.socket, version: str) -> None:
        self._spec = spec
        self._version = tuple(int(part) for part in version.split("."))
        self._child = child
        self._agent = agent
        self.console = Console()
        self.output = Console()  # which a guest can make endless
        self._greeting = trio.Lock()
        self._is_ready = False
        # KVM's own clock stops with the guest, the processor's does not. By which of them a guest
        # goes is its kernel's choice.
        self.clocks_stand = spec.accelerator == "tcg"
        self._running = spec.boot is not None
        self._may_halt = False
        self._has_failed = False
        # As QEMU says, not as the daemon hears of it: a busy host would set clocks wrong.
        self._halted = self._woken = 0.0
        self._disk = qemu_arguments.disk_node(0)
        self._layers_added = 0
        self._resumed = trio.Event()
        self._shutdown: str | None = None
        self._channel: Channel | None = None
        self._port_is_open = False
        self._refused = False
        self.pid = child.pid

    async def wait_ready(self) -> None:
        """Wait until the process answers, and has done what it can do ahead."""
        async with self._greeting:
            if self._is_ready:
                return
            await self._execute("qmp_capabilities")
            capabilities = [
                {"capability": name, "state": True} for name in ("x-ignore-shared", "events")
            ]
            await self._execute("migrate-set-capabilities", capabilities=capabilities)
            self._is_ready = True

    async def wake(self, saved: Saved) -> float:
        """Wake a saved guest. Once, where nothing was booted; raises `VmmError`.

        Gives when the guest's clocks went on, in Unix time.
        """
        await self.wait_ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._bring_disk, saved.disk)
            if saved.pages:
                nursery.start_soon(
                    trio.to_thread.run_sync,
                    *(load_pages, self.pid, self._spec.memory_file, self._spec.memory_pages),
                    saved.pages,
                )
        with saved.device_state.open("rb") as state:
            await self._load(state)
        with trio.move_on_after(_ANSWER_DEADLINE):
            await self._resumed.wait()
        if not self._running:
            raise VmmError(f"QEMU did not take the device state; {await self._obituary()}")
        return self._woken

    async def _load(self, state: IO[bytes]) -> None:
        if self._version < _TAKES_FILES:
            given = self.qmp.give_file(state, "getfd", fdname=_DEVICE_STATE)
            await self._answer("getfd", given)
            await self._execute("migrate-incoming", uri=f"fd:{_DEVICE_STATE}")
            return
        files = await self._answer("add-fd", self.qmp.give_file(state, "add-fd"))
        number = files["fdset-id"]
        await self._execute("migrate-incoming", uri=f"file:/dev/fdset/{number}")
        # It has opened its own; this one would keep the file's room when that is deleted.
        await self._execute("remove-fd", **{"fdset-id": number})

    async def _bring_disk(self, disk: Path) -> None:
        await self._execute("blockdev-add", **qemu_arguments.disk_blockdev(0, str(disk)))
        device = {"path": "/machine/peripheral/disk", "property": "drive"}
        await self._execute("qom-set", **device, value=self._disk)

    async def pause(self) -> float:
        """Halt the vCPUs. Legal while the guest runs.

        Gives when the guest's clocks stopped, in Unix time.
        """
        self._may_halt = True
        if self._running:
            self._halted = time.time()  # for one that tells of no halt: a guest that suspended
        await self._execute("stop")
        self._running = False
        return self._halted

    async def resume(self) -> float:
        """Let the vCPUs go on. Legal while the guest is paused.

        Gives when the guest's clocks went on, in Unix time.
        """
        await self._execute("cont")
        self._running = True
        return self._woken

    async def save_template(self, device_state: Path) -> float:
        """Halt a booted guest for good and save its device state; RAM is in the memory file.

        Gives when the guest's clocks stopped. Halting has also written all metadata of the
        disk layer.
        """
        halted = await self.pause()
        await self._save_devices(device_state)
        return halted

    async def snapshot(
        self, target: SnapshotTarget, still: AbstractAsyncContextManager[None]
    ) -> SnapshotFacts:
        """Save a woken guest, in one pause; it goes on if it ran before.

        The pause is in the block ``still``, in which nothing passes between host and guest: QEMU
        moves the bytes of the agent's channel in and out of RAM even while the vCPUs stand.
        """
        known = (self._spec.memory_file, self._spec.memory_pages, target.known_pages)
        with await trio.to_thread.run_sync(PageSaver, self.pid, *known, target.pages) as saver:
            self._layers_added += 1
            node = qemu_arguments.disk_node(self._layers_added)
            layer = qemu_arguments.disk_blockdev(self._layers_added, str(target.next_disk))
            with trio.CancelScope(shield=True):  # or nobody would know whether it is there
                await self._execute("blockdev-add", **layer, backing=None)
            try:
                async with still:
                    return await self._save(target.device_state, saver, node)
            finally:
                if self._disk != node:
                    with trio.move_on_after(_ANSWER_DEADLINE, shield=True):
                        await self._execute("blockdev-del", **{"node-name": node})

    async def _save(self, device_state: Path, saver: PageSaver, node: str) -> SnapshotFacts:
        was_running = self._running
        began = trio.current_time()
        changed = 0

        async def save_memory() -> None:
            nonlocal changed
            changed = await trio.to_thread.run_sync(saver.save)

        try:
            halted = await self.pause()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(save_memory)
                await self._save_devices(device_state)
            await self._switch_disk(node)
        finally:
            with trio.move_on_after(_ANSWER_DEADLINE, shield=True):
                if was_running:
                    await self._resume_or_die()
        pause = trio.current_time() - began
        return SnapshotFacts(pause=pause, changed_pages=changed, halted=halted)

    async def _switch_disk(self, node: str) -> None:
        try:
            await self._execute("blockdev-snapshot", node=self._disk, overlay=node)
        except VmmError:
            raise  # a clear refusal, or the end
        except BaseException:
            self.kill()  # nobody can tell which layer it writes to
            raise
        self._disk = node

    async def _resume_or_die(self) -> None:
        try:
            await self.resume()
        except BaseException:
            self.kill()  # a guest that stands still for good, and says it runs
            raise

    async def _save_devices(self, device_state: Path) -> None:
        try:
            await self._execute("xen-save-devices-state", filename=str(device_state), live=False)
        except VmmError as error:
            if is_nearly_full(device_state.parent):  # QEMU does not say why it could not write
                raise no_room(device_state.parent) from error
            raise

    async def forward_port(self, address: str, host_port: int, guest_port: int) -> None:
        """Lead from an address of the host into the guest, for a `UserNic`."""
        await self._tell_monitor(f"hostfwd_add net tcp:{address}:{host_port}-:{guest_port}")

    async def unforward_port(self, address: str, host_port: int) -> None:
        """Lead from there no longer."""
        await self._tell_monitor(f"hostfwd_remove net tcp:{address}:{host_port}")

    async def _tell_monitor(self, line: str) -> None:
        # QMP has no commands of its own for this.
        await self.wait_ready()
        said = await self._execute("human-monitor-command", **{"command-line": line})
        if said.strip() and not said.startswith("host forwarding rule"):
            raise VmmError(f"QEMU refused {line!r}: {said.strip()}")

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
        with trio.move_on_after(_END_DEADLINE):
            await self.output.wait_closed()  # its last lines say what is wrong
            await self.console.wait_closed()  # its last lines say what the guest saw
            await self.qmp.closed.wait()  # its last event says why
        if self._has_failed:
            return VmmEnd(orderly=False, how="QEMU halted the guest, which cannot go on")
        if status < 0:
            return VmmEnd(orderly=False, how=f"QEMU was killed by signal {-status}")
        if status == 0 and self._shutdown == "guest-shutdown":
            return VmmEnd(orderly=True, how="the guest powered itself off")
        reason = f" ({self._shutdown})" if self._shutdown else ""
        return VmmEnd(orderly=False, how=f"QEMU exited with status {status}{reason}")

    def last_words(self) -> list[str]:
        """Give the last lines of the process's own output and of the guest's console."""
        return [*self.console.last_lines(), *self.output.last_lines()]

    def on_event(self, event: str, data: dict[str, Any], happened: float) -> None:
        """Take an event from QMP."""
        if event == "RESUME":
            self._running, self._woken, self._may_halt = True, happened, False
            self._resumed.set()
        elif event == "STOP":
            self._halted = happened
            if not self._may_halt:  # a processor in a state that KVM cannot go on from, say
                self._has_failed = True
                self.kill()
        elif event == "VSERPORT_CHANGE":
            self._on_port_change(bool(data.get("open")))
        elif event == "SHUTDOWN":
            self._shutdown = str(data.get("reason"))
        elif event == "MIGRATION" and data.get("status") == "failed":
            self._resumed.set()

    def kill(self) -> None:
        """End the process at once."""
        self._child.kill()

    async def _execute(self, command: str, **arguments: Any) -> Any:
        log.debug("VMM command", command=command, pid=self.pid)
        return await self._answer(command, self.qmp.execute(command, **arguments))

    async def _answer(self, command: str, answer: Coroutine[Any, Any, Any]) -> Any:
        """Wait for what QEMU answers, and translate how it fails to."""
        try:
            with trio.fail_after(_ANSWER_DEADLINE):
                return await answer
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
