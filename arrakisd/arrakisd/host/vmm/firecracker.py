"""The Firecracker driver: needs KVM.

The process is told names relative to a directory of its VM's own. So what it was saved with, and
cannot be told otherwise when it is woken, is there for every VM under the same name. With a
jailer that directory is all that the process can see.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import ClassVar

import trio

from arrakis_kernel import KernelFiles
from arrakis_rpc.errors import UnsupportedError

from ...settings.config import Config
from ..memory import has_swapped
from ..net.interface import TapNic
from ..net.taps import opened_by_name
from ..processes import Child, owner_mark
from .api_driver import ApiDriver
from .api_vmm import API_SOCKET, DISK, VSOCK_SOCKET, ApiVmm
from .interface import Boot, LaunchSpec
from .kvm_probe import PROBE_COMMAND_LINE
from .vsock_channel import AGENT_ARGUMENT

# Versions that are not used, each from one to before another, and what is wrong with them.
# 1.16.0 cannot be reached by vsock once it is woken (firecracker-microvm/firecracker#5969), and
# neither it nor 1.16.1 once it was paused (#6074). The hole is open only with a PCI bus, as here.
_HOLE = "lets guests write into its process (CVE-2026-5747)"
_UNFIT = (
    ((0,), (1, 13), "is too old"),
    ((1, 13), (1, 14, 4), _HOLE),
    ((1, 15), (1, 15, 1), _HOLE),
    ((1, 16), (1, 16, 2), "loses touch with guests that were paused or saved"),
)
_FIT = "take 1.16.2 or newer, 1.15.1 or newer of 1.15, or 1.14.4 or newer of 1.14"
_ROOT = "root.img"
_KERNEL = "kernel"
_INITRAMFS = "initramfs"
_SAVED_MEMORY = "saved-memory"
_SAVED_STATE = "saved-state"
_NEW_STATE = "new-state"
_NIC = "nic"
_MAC = "02:a2:00:00:00:00"
_GUEST_CID = 3
_CAP_MKNOD = 27


class FirecrackerVmm(ApiVmm):
    """One Firecracker process. Made by `FirecrackerDriver.launch`."""

    title: ClassVar[str] = "Firecracker"
    ping: ClassVar[str] = "/version"
    # On x86 a guest that powers itself off only halts (firecracker-microvm/firecracker#598).
    farewell = "reboot"

    def __init__(self, spec: LaunchSpec, child: Child, directory: Path, *, jailed: bool) -> None:
        super().__init__(spec, child, directory)
        self._jailed = jailed

    async def _boot(self, boot: Boot) -> None:
        await self._call(
            "PUT",
            "/machine-config",
            {"vcpu_count": self._spec.vcpus, "mem_size_mib": self._spec.memory_mib},
        )
        source = {
            "kernel_image_path": self._bring(boot.kernel, _KERNEL),
            "initrd_path": self._bring(boot.initramfs, _INITRAMFS),
            "boot_args": f"{boot.command_line} {AGENT_ARGUMENT}",
        }
        await self._call("PUT", "/boot-source", source)
        self._bring(self._spec.root_image, _ROOT)
        # In this order: the guest has the image on /dev/vda, the disk on /dev/vdb.
        for name, path, is_image in (("root", _ROOT, True), ("disk", DISK, False)):
            drive = {
                "drive_id": name,
                "path_on_host": path,
                "is_root_device": False,
                "is_read_only": is_image,
            }
            await self._call("PUT", f"/drives/{name}", drive)
        if isinstance(nic := self._spec.nic, TapNic):
            card = {"iface_id": _NIC, "host_dev_name": nic.name, "guest_mac": _MAC}
            await self._call("PUT", f"/network-interfaces/{_NIC}", card)
        await self._call("PUT", "/vsock", {"guest_cid": _GUEST_CID, "uds_path": VSOCK_SOCKET})
        await self._call("PUT", "/entropy", {})
        await self._call("PUT", "/actions", {"action_type": "InstanceStart"})

    async def _wake(self, device_state: Path, pages: Sequence[Path]) -> Path | None:
        self._bring(self._spec.root_image, _ROOT)
        memory = await self._whole_memory(pages)
        snapshot = {
            "snapshot_path": self._bring(device_state, _SAVED_STATE),
            "mem_backend": {
                "backend_type": "File",
                "backend_path": self._bring(memory, _SAVED_MEMORY),
            },
            "resume_vm": False,
        }
        if isinstance(nic := self._spec.nic, TapNic):
            snapshot["network_overrides"] = [{"iface_id": _NIC, "host_dev_name": nic.name}]
        await self._call("PUT", "/snapshot/load", snapshot)
        return memory

    async def pause(self) -> float:
        """Halt the vCPUs, if they run. The guest's clocks go on until it is saved.

        Gives the time: until now they have.
        """
        await super().pause()
        self._halted = time.time()
        return self._halted

    async def resume(self) -> float:
        """Let the vCPUs go on. Legal while the guest is paused.

        Gives when its clocks went on: that a guest was paused has not stopped them.
        """
        woken = await super().resume()
        return self._halted or woken

    async def save_template(self, device_state: Path) -> float:
        """Halt a booted guest for good and save its device state and its memory."""
        halted = await self.pause()
        dump = self._directory / _SAVED_MEMORY
        # What the guest has never touched is zero, and need not be written.
        await self._save(device_state, dump, whole=False)
        dump.rename(self._spec.memory_file)
        await self._fold()
        return halted

    def _bring(self, file: Path, name: str) -> str:
        """Put a file where the process finds it, and give the name that it has there."""
        target = self._directory / name
        target.unlink(missing_ok=True)
        if not self._jailed:
            target.symlink_to(file)
            return name
        try:
            os.link(file.resolve(), target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise UnsupportedError(
                f"{file} cannot be linked into the jail {self._directory}, which is on another "
                "file system",
                hint="have state_dir and cache_dir on one file system, or do without "
                "firecracker_jailer",
            ) from error
        return name

    async def _set_running(self, running: bool) -> None:
        await self._call("PATCH", "/vm", {"state": "Resumed" if running else "Paused"})

    async def _save(self, device_state: Path, dump: Path, *, whole: bool) -> None:
        await self._create("Full" if whole else "Diff", dump)
        # It passes over pages that are swapped out when it saves but the present ones.
        if not whole and await trio.to_thread.run_sync(has_swapped, self.pid):
            dump.unlink()
            await self._create("Full", dump)
        (self._directory / _NEW_STATE).rename(device_state)
        if self._channel is not None:
            # It resets the guest's connections then, which the host would find out late.
            self._channel.hang_up()

    async def _create(self, kind: str, dump: Path) -> None:
        snapshot = {
            "snapshot_type": kind,
            "snapshot_path": _NEW_STATE,
            "mem_file_path": dump.name,
        }
        # Even the pages that were used may be all.
        await self._call("PUT", "/snapshot/create", snapshot, moves_memory=True)


class FirecrackerDriver(ApiDriver[FirecrackerVmm]):
    """Runs VMs with the Firecracker binary of this host."""

    name = "firecracker"
    where = "https://github.com/firecracker-microvm/firecracker/releases"
    networks = ("bridge", "none")
    # With a PCI bus its guests need the same drivers as those of the others.
    arguments = ("--api-sock", API_SOCKET, "--enable-pci", "--level", "Warning")

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.firecracker_binary)
        self._jailer = config.firecracker_jailer

    def check_version(self, version: str) -> None:
        """Raise `UnsupportedError` for one that is too old, loses its guests, or lets them out."""
        numbers = tuple(int(part) for part in version.split("."))
        for first, mended, problem in _UNFIT:
            if first <= numbers < mended:
                raise UnsupportedError(f"Firecracker {version} {problem}", hint=_FIT)

    def check_host(self) -> None:
        """Raise `UnsupportedError` for what can be seen at once to be in the way."""
        super().check_host()
        network = self._config.network
        if network.mode == "bridge" and network.namespace is not None:
            raise UnsupportedError(
                "Firecracker opens taps by name, in the daemon's own network namespace",
                hint="leave namespace out of [network]",
            )
        if self._jailer is None:
            return
        if shutil.which(self._jailer) is None:
            raise UnsupportedError(
                f"{self._jailer} is not installed",
                hint=f"get it from {self.where}, then: scripts/setup --with-vmm "
                "jailer=FILE --sha256 SUM; or leave out firecracker_jailer",
            )
        if self._config.vmm_identity() is None:
            raise UnsupportedError(
                "Firecracker's jailer needs a daemon that runs as root, and a user for VMMs",
                hint=f"useradd --system {self._config.vmm_user}; or leave out firecracker_jailer",
            )
        if not _may_make_devices():
            raise UnsupportedError(
                "Firecracker's jailer makes devices, which this daemon has no right to (CAP_MKNOD)",
                hint='give it to the service, as "Settings" in docs/operations.md says; or leave '
                "out firecracker_jailer",
            )

    def kvm_user(self) -> tuple[int, int] | None:
        """Give the uid and gid under which KVM's device is opened; None for the daemon's own."""
        # In a jail there is another one, that the jailer gives to the process.
        return super().kvm_user() if self._jailer is None else None

    @contextmanager
    def probe(self, kernel: KernelFiles) -> Iterator[list[str]]:
        """Give the command line that boots a kernel to see whether it can."""
        source = {
            "kernel_image_path": str(kernel.vmlinux),
            "initrd_path": str(kernel.initramfs),
            "boot_args": PROBE_COMMAND_LINE,
        }
        machine = {"vcpu_count": 1, "mem_size_mib": 256}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"boot-source": source, "machine-config": machine, "drives": []}, file)
            file.flush()
            if user := self.kvm_user():
                os.chown(file.name, *user)
            yield ["--no-api", "--enable-pci", "--config-file", file.name]

    def directory(self, spec: LaunchSpec) -> Path:
        """Give the directory that a process works in: with a jailer, the root that it has."""
        if self._jailer is None:
            return spec.directory
        return spec.directory / self._executable.name / owner_mark() / "root"

    def command(self, spec: LaunchSpec) -> tuple[list[str], tuple[int, int] | None]:
        """Give the command line of a process that is to be called, and as whom to run it."""
        if self._jailer is None or spec.identity is None:
            return super().command(spec)
        uid, gid = spec.identity
        root = self.directory(spec)
        root.mkdir(parents=True)
        os.chown(root, uid, gid)
        jail = ["--chroot-base-dir", str(spec.directory)]
        who = ["--id", owner_mark(), "--uid", str(uid), "--gid", str(gid)]
        what = ["--exec-file", str(self._executable), "--", *self.arguments]
        return [self._jailer, *jail, *who, *what], None

    @property
    def _executable(self) -> Path:
        return Path(shutil.which(self._binary) or self._binary).resolve()

    def ready_host(self, spec: LaunchSpec) -> AbstractContextManager[None]:
        """Let the process open its tap."""
        if not isinstance(nic := spec.nic, TapNic):
            return nullcontext()
        uid = os.geteuid() if spec.identity is None else spec.identity[0]
        return opened_by_name(nic.fd, nic.name, uid)

    def make(self, spec: LaunchSpec, child: Child) -> FirecrackerVmm:
        """Make what drives a process."""
        jailed = self._jailer is not None
        return FirecrackerVmm(spec, child, self.directory(spec), jailed=jailed)


def _may_make_devices() -> bool:
    # Of this thread: another one may act as a VMM's user just now, without rights.
    status = Path("/proc/thread-self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> _CAP_MKNOD & 1)
