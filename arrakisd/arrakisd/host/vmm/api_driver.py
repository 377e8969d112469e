"""What the drivers have in common whose hypervisors have an HTTP API and need KVM."""

from __future__ import annotations

import re
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import structlog
import trio

from arrakis_kernel import KernelFiles, find_kernel
from arrakis_rpc.errors import UnsupportedError

from ...settings.config import Config
from ..net.interface import UserNic
from ..processes import Child, owned, spawn
from .api_vmm import API_SOCKET, VSOCK_SOCKET, ApiVmm
from .http_client import checked_socket_path
from .interface import LaunchSpec, Verdict
from .kvm_probe import DEVICE, device_problem, kvm_problem
from .versions import installed_version

_VERSION = r"^{} v?(\d+\.\d+(?:\.\d+)?)"
_OTHER = 'set vmm = "qemu", which can do without'

V = TypeVar("V", bound=ApiVmm)

log = structlog.get_logger()


class ApiDriver(ABC, Generic[V]):
    """Runs VMs with one binary of this host."""

    name: str
    caveat: str | None = None
    where: ClassVar[str]
    networks: ClassVar[tuple[str, ...]]
    arguments: ClassVar[tuple[str, ...]]

    def __init__(self, config: Config, binary: str) -> None:
        self._config = config
        self._binary = binary
        self._version: str | None = None

    @abstractmethod
    def check_version(self, version: str) -> None:
        """Raise `UnsupportedError` for one that is too old."""

    @abstractmethod
    def probe(self, kernel: KernelFiles) -> AbstractContextManager[list[str]]:
        """Give the command line that boots a kernel to see whether it can."""

    def directory(self, spec: LaunchSpec) -> Path:
        """Give the directory that a process works in."""
        return spec.directory

    def command(self, spec: LaunchSpec) -> tuple[list[str], tuple[int, int] | None]:
        """Give the command line of a process that is to be called, and as whom to run it."""
        return [self._binary, *self.arguments], spec.identity

    def kvm_user(self) -> tuple[int, int] | None:
        """Give the uid and gid under which KVM's device is opened; None for the daemon's own."""
        return self._config.vmm_identity()

    def ready_host(self, spec: LaunchSpec) -> AbstractContextManager[None]:  # noqa: ARG002
        """Have on the host what a process needs beside its files, from before to after it."""
        return nullcontext()

    @abstractmethod
    def make(self, spec: LaunchSpec, child: Child) -> V:
        """Make what drives a process."""

    def version(self) -> str:
        """Give the version; raise `UnsupportedError` if none that fits is installed."""
        if self._version is None:
            hint = (
                f"get it from {self.where}, then: scripts/setup --with-vmm "
                f"{self.name}=FILE --sha256 SUM"
            )
            pattern = _VERSION.format(re.escape(self.name))
            version = installed_version(self._binary, pattern, hint)
            self.check_version(version)
            self._version = version
        return self._version

    def check_host(self) -> None:
        """Raise `UnsupportedError` for what can be seen at once to be in the way."""
        if self._config.accelerator == "tcg":
            raise UnsupportedError(f"{self.name} cannot emulate a processor", hint=_OTHER)
        if problem := device_problem(self.kvm_user()):
            raise UnsupportedError(f"{self.name} needs KVM, and {problem}", hint=_OTHER)
        if (mode := self._config.network.mode) not in self.networks:
            known = " or ".join(f'"{one}"' for one in self.networks)
            raise UnsupportedError(
                f'{self.name} cannot be used with a network of mode "{mode}"',
                hint=f"set mode = {known} in [network]",
            )

    async def choose_accelerator(self) -> Verdict:
        """Give KVM if a real guest boots under it; else raise `UnsupportedError`."""
        self.check_host()
        if self._config.accelerator == "kvm":
            return Verdict("kvm", "set in the configuration")
        cache = Path(self._config.cache_dir)
        kernel = find_kernel(cache)
        problem: str | None = "there is no kernel to try it with"
        if kernel is not None:
            with self.probe(kernel) as arguments:
                argv, memory = [self._binary, *arguments], cache / f"kvm-{self.name}.json"
                user = self.kvm_user()
                problem = await kvm_problem(argv, self.version(), kernel, memory, user)
        if problem is not None:
            raise UnsupportedError(f"{self.name} needs KVM: {problem}", hint=_OTHER)
        return Verdict("kvm", "a real guest booted under KVM")

    @asynccontextmanager
    async def launch(self, spec: LaunchSpec) -> AsyncIterator[V]:
        """Run a process for the length of a block; it is gone when the block ends."""
        if isinstance(spec.nic, UserNic):
            raise UnsupportedError(f"{self.name} has no network stack of its own")
        for name in (API_SOCKET, VSOCK_SOCKET):
            checked_socket_path(self.directory(spec) / name)
        with self.ready_host(spec), ExitStack() as ours, ExitStack() as theirs:
            reading, writing = socket.socketpair()
            ours.enter_context(reading)
            theirs.enter_context(writing)
            argv, identity = self.command(spec)
            child = spawn(
                argv,
                output=writing.fileno(),
                directory=spec.directory,
                identity=identity,
                devices=[DEVICE],
                groups=spec.groups,
            )
            theirs.close()
            log.info("VMM started", vmm=self.name, pid=child.pid)
            vmm = self.make(spec, child)
            try:
                async with owned(child), trio.open_nursery() as nursery:
                    output = trio.SocketStream(trio.socket.from_stdlib_socket(reading))
                    nursery.start_soon(vmm.console.pump, output)
                    yield vmm
                    nursery.cancel_scope.cancel()
            finally:
                vmm.clean()
