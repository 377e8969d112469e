"""The cloud-hypervisor driver: needs KVM.

A template is booted with RAM that is its memory file; a guest that is woken has a private
copy-on-write mapping of it, or of a copy with its own pages. Versions that are not known to
wake guests like that get all memory copied.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import structlog

from arrakis_kernel import KernelFiles

from ...settings.config import Config
from ..net.interface import TapNic
from ..processes import Child
from . import cloud_hypervisor_config as chv
from .api_driver import ApiDriver
from .api_vmm import (
    API_SOCKET,
    DISK,
    VSOCK_SOCKET,
    ApiVmm,
    make_directory,
    read_from,
    write_new,
)
from .interface import Boot, LaunchSpec
from .kvm_probe import PROBE_COMMAND_LINE
from .vsock_channel import AGENT_ARGUMENT

_SAVED = "saved"
_CONFIG = "config.json"
_STATE = "state.json"
_RANGES = "memory-ranges"
_LARGEST_STATE = 64 * 2**20

log = structlog.get_logger()


class CloudHypervisorVmm(ApiVmm):
    """One cloud-hypervisor process. Made by `CloudHypervisorDriver.launch`."""

    title: ClassVar[str] = "cloud-hypervisor"
    ping: ClassVar[str] = "/api/v1/vmm.ping"

    def __init__(self, spec: LaunchSpec, child: Child, version: str) -> None:
        super().__init__(spec, child, spec.directory)
        self._maps_memory = chv.maps_memory(version)
        self.clocks_stand = chv.clocks_stand(version)

    async def _boot(self, boot: Boot) -> None:
        if self._maps_memory:
            memory = chv.zoned_memory(self._spec.memory_mib, self._spec.memory_file, shared=True)
        else:
            memory = chv.plain_memory(self._spec.memory_mib)
        payload = {
            "kernel": str(boot.kernel),
            "initramfs": str(boot.initramfs),
            "cmdline": f"{boot.command_line} {AGENT_ARGUMENT}",
        }
        await self._put("vm.create", self._config(payload, memory))
        if isinstance(nic := self._spec.nic, TapNic):
            await self._put("vm.add-net", chv.new_nic(), fds=[nic.fd])
        await self._put("vm.boot")

    async def _wake(self, device_state: Path, pages: Sequence[Path]) -> Path | None:
        file = await self._whole_memory(pages)
        state, memory, is_mapped = self._restored_memory(device_state.read_bytes(), pages, file)
        # Of a guest that is woken no kernel is read, but one must be named, and be there.
        config = self._config({"kernel": str(self._spec.root_image)}, memory, file)
        saved = self._directory / _SAVED
        request: dict[str, Any] = {"source_url": f"file://{saved}", "prefault": False}
        fds = []
        if isinstance(nic := self._spec.nic, TapNic):
            config["net"] = [chv.saved_nic()]
            request["net_fds"] = chv.sent_taps()
            fds = [nic.fd]
        make_directory(saved, self._spec.identity)
        write_new(saved / _CONFIG, json.dumps(config).encode())
        write_new(saved / _STATE, state)
        if not is_mapped:
            (saved / _RANGES).symlink_to(file)
        await self._put("vm.restore", request, fds=fds, moves_memory=not is_mapped)
        return file if is_mapped else None

    def _restored_memory(
        self, state: bytes, pages: Sequence[Path], file: Path
    ) -> tuple[bytes, dict[str, Any], bool]:
        """Give the state to restore, its RAM, and whether that is a mapping of the file."""
        size = self._spec.memory_mib
        if not self._maps_memory:
            return state, chv.plain_memory(size), False
        # A template's state says already that its memory is in a file.
        mapped = chv.without_memory(state) if pages else state
        if mapped is not None:
            return mapped, chv.zoned_memory(size, file, shared=False), True
        log.warning("all memory of a guest is copied: its state has an unknown form", pid=self.pid)
        return state, chv.zoned_memory(size, None, shared=False), False

    async def save_template(self, device_state: Path) -> float:
        """Halt a booted guest for good and save its device state; RAM is in the memory file."""
        halted = await self.pause()
        dump = self._directory / _RANGES
        await self._save(device_state, dump, whole=True)
        if not self._maps_memory:
            dump.rename(self._spec.memory_file)
        await self._fold()
        return halted

    async def _set_running(self, running: bool) -> None:
        await self._put("vm.resume" if running else "vm.pause")

    async def _save(self, device_state: Path, dump: Path, *, whole: bool) -> None:  # noqa: ARG002
        # It always writes all of the memory that is not a file itself.
        saved = self._directory / _SAVED
        make_directory(saved, self._spec.identity)
        await self._put("vm.snapshot", {"destination_url": f"file://{saved}"}, moves_memory=True)
        device_state.unlink(missing_ok=True)
        write_new(device_state, read_from(saved / _STATE, _LARGEST_STATE))
        with suppress(FileNotFoundError):  # there is none of RAM that is a file itself
            (saved / _RANGES).rename(dump)

    def _config(
        self, payload: dict[str, str], memory: dict[str, Any], readable: Path | None = None
    ) -> dict[str, Any]:
        return chv.vm_config(
            self._spec,
            payload,
            disk=self._directory / DISK,
            vsock=self._directory / VSOCK_SOCKET,
            memory=memory,
            readable=readable,
        )

    async def _put(
        self,
        action: str,
        body: object = None,
        *,
        fds: Sequence[int] = (),
        moves_memory: bool = False,
    ) -> None:
        await self._call("PUT", f"/api/v1/{action}", body, fds=fds, moves_memory=moves_memory)


class CloudHypervisorDriver(ApiDriver[CloudHypervisorVmm]):
    """Runs VMs with the cloud-hypervisor binary of this host."""

    name = "cloud-hypervisor"
    where = "https://github.com/cloud-hypervisor/cloud-hypervisor/releases"
    networks = ("bridge", "none")
    arguments = ("--api-socket", API_SOCKET, "--seccomp", "true")

    def __init__(self, config: Config) -> None:
        super().__init__(config, config.cloud_hypervisor_binary)

    def check_version(self, version: str) -> None:
        """Raise `UnsupportedError` for one that is too old; warn of one that is not good."""
        is_known = chv.maps_memory(version)
        self.caveat = chv.caveat(version)
        if self.caveat is not None:
            log.warning("an unsafe cloud-hypervisor", version=version, reason=self.caveat)
        if not is_known:
            log.warning(
                "nobody has looked at this version of cloud-hypervisor yet: "
                "all memory of its guests is copied",
                version=version,
                last_known=chv.LAST_KNOWN,
            )

    @contextmanager
    def probe(self, kernel: KernelFiles) -> Iterator[list[str]]:
        """Give the command line that boots a kernel to see whether it can."""
        yield [
            *("--kernel", str(kernel.vmlinux), "--initramfs", str(kernel.initramfs)),
            *("--cmdline", PROBE_COMMAND_LINE, "--memory", "size=256M"),
            *("--serial", "tty", "--console", "off", "--seccomp", "true"),
        ]

    def make(self, spec: LaunchSpec, child: Child) -> CloudHypervisorVmm:
        """Make what drives a process."""
        return CloudHypervisorVmm(spec, child, self.version())
