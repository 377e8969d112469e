"""The way in: a daemon, and what it runs and keeps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from types import TracebackType

from arrakis_rpc.connection import CallNotified
from arrakis_rpc.daemon_api import (
    Event,
    SystemDoctor,
    SystemHealth,
    SystemInfo,
    VmInfo,
    VmList,
)
from arrakis_rpc.errors import InvalidParamsError, UnsupportedError

from ._call import Call
from ._client import Client, OnProgress, without_none
from ._wire import understand
from .sandbox import Sandbox
from .stores import Images, Snapshots, Templates


class SandboxManager:
    """A daemon, reached through its Unix socket.

    The socket is the argument, else ``ARRAKIS_SOCKET``, else /run/arrakis/arrakisd.sock.
    Making a manager connects to nothing; every method raises `ConnectionLostError` when
    the daemon is not there. Threads may share a manager. Closing it is good manners, not
    a duty: it only closes connections that are idle.
    """

    def __init__(
        self,
        base_url: str | None = None,
        token: str | None = None,
        *,
        socket: str | os.PathLike[str] | None = None,
    ) -> None:
        if base_url is not None and base_url.startswith(("http://", "https://")):
            raise UnsupportedError(
                "this version reaches a daemon through its Unix socket only",
                hint="run on the daemon's host, with SandboxManager() or socket=PATH",
            )
        if base_url is not None or token is not None:
            raise InvalidParamsError(
                "a base_url begins with http:// or https://, and a token belongs to it",
                hint="for a Unix socket, use SandboxManager(socket=PATH)",
            )
        self._client = Client(socket)

    @property
    def socket(self) -> str:
        """The path of the daemon's socket."""
        return self._client.socket

    # Sandboxes

    def list_all(self) -> list[Sandbox]:
        """Give all sandboxes, in the order of their creation."""
        return [Sandbox(self._client, vm.name) for vm in self.describe_all()]

    def describe_all(self) -> list[VmInfo]:
        """Give what `Sandbox.info` gives of all sandboxes, by one call, as objects."""
        found: VmList = self._client.call("vm.list")
        return found.vms

    def get(self, name: str) -> Sandbox:
        """Give a sandbox by its name. Raises `NotFoundError`."""
        self._client.call("vm.info", {"name": name})
        return Sandbox(self._client, name)

    def destroy_all(self) -> None:
        """End and forget all sandboxes. Their snapshots stay."""
        self._client.call("vm.destroy_all")

    def restore(
        self, vm_name: str, snapshot_id: str, *, progress: OnProgress | None = None
    ) -> Sandbox:
        """Make a new sandbox called ``vm_name`` from a snapshot, running as it was then.

        Raises `NotFoundError` for the snapshot, `AlreadyExistsError` for the name,
        `IntegrityError` when the stored data is damaged, and as `start_sandbox` does.
        """
        self._client.call("vm.start", {"name": vm_name, "snapshot": snapshot_id}, progress=progress)
        return Sandbox(self._client, vm_name)

    def start_sandbox(
        self,
        name: str,
        *,
        image: str | None = None,
        vcpus: int | None = None,
        memory_mib: int | None = None,
        disk_mib: int | None = None,
        kernel: str | None = None,
        initramfs: str | None = None,
        rootfs: str | None = None,
        entry_point: str | None = None,
        progress: OnProgress | None = None,
    ) -> Sandbox:
        """Start a sandbox; it is RUNNING and answers when this returns.

        A name is up to 63 letters, digits, ``-``, ``_`` and ``.``. None takes the daemon's
        default. ``kernel``, ``initramfs`` and ``rootfs`` are paths on the daemon's host.
        ``entry_point`` is a command that is started in the background. The first start of
        a shape boots it, which takes a minute or so: ``progress`` is then called with
        `Progress` (``text``, ``step``, ``total``); whatever it raises ends the start.

        Raises `AlreadyExistsError` for the name, `NotFoundError` for image, kernel or
        rootfs, `ExhaustedError` when memory, disk or addresses do not suffice,
        `VmmError` and `GuestError` when it does not come up. Nothing is left of it then,
        nor when the caller is interrupted.
        """
        params = without_none(
            name=name,
            image=image,
            vcpus=vcpus,
            memory_mib=memory_mib,
            disk_mib=disk_mib,
            kernel=kernel,
            initramfs=initramfs,
            rootfs=rootfs,
            entry_point=entry_point,
        )
        self._client.call("vm.start", params, progress=progress)
        return Sandbox(self._client, name)

    # What the daemon keeps

    @cached_property
    def snapshots(self) -> Snapshots:
        """The daemon's snapshots."""
        return Snapshots(self._client)

    @cached_property
    def images(self) -> Images:
        """The daemon's images."""
        return Images(self._client)

    @cached_property
    def templates(self) -> Templates:
        """The daemon's templates."""
        return Templates(self._client)

    # The daemon itself

    def health(self) -> SystemHealth:
        """Ask whether the daemon is well; ``uptime`` is in seconds."""
        health: SystemHealth = self._client.call("system.health")
        return health

    def info(self) -> SystemInfo:
        """Ask what the daemon is and uses."""
        info: SystemInfo = self._client.call("system.info")
        return info

    def doctor(self) -> SystemDoctor:
        """Ask what the daemon's host can do, and what is missing."""
        doctor: SystemDoctor = self._client.call("system.doctor")
        return doctor

    def events(self) -> Iterator[Event]:
        """Give what happens from now on, until the caller stops or the daemon ends.

        Raises `ConnectionLostError` when the daemon goes away.
        """
        return _events(self._client.open("events.subscribe"))

    def close(self) -> None:
        """Close the idle connections. Processes that run go on, new calls are refused."""
        self._client.close()

    def __enter__(self) -> SandboxManager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _events(call: Call) -> Iterator[Event]:
    try:
        while (item := call.take()) is not None:
            if isinstance(item, CallNotified) and item.method == "event":
                event: Event = understand(item.params, Event)
                yield event
        call.result()
    finally:
        call.close()
