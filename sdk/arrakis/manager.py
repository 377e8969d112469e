"""The way in: a daemon, and what it runs and keeps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from types import TracebackType

from arrakis_rpc.connection import CallNotified
from arrakis_rpc.daemon_api import (
    Event,
    OnTimeout,
    OnUnresponsive,
    SystemDoctor,
    SystemHealth,
    SystemInfo,
    VmInfo,
    VmList,
)
from arrakis_rpc.network_api import PortRequest

from ._address import UnixAddress, find_address
from ._call import Call
from ._client import Client, OnProgress, without_none
from ._wire import understand
from .network import network_params
from .sandbox import Sandbox
from .stores import Images, Snapshots, Templates, Tokens


class SandboxManager:
    """A daemon, reached through its Unix socket or by HTTP.

    ``base_url`` is like ``http://127.0.0.1:7000`` or ``https://example.com:7000``, and
    ``token`` is what ``arrakis token create`` printed there. Who gives neither that nor a
    ``socket`` gets the daemon that the environment names: ``ARRAKIS_URL``, else
    ``ARRAKIS_SOCKET``, else /run/arrakis/arrakisd.sock. Where no token is given it is the
    password in the URL, else ``ARRAKIS_TOKEN``. With ``https`` the daemon's certificate is
    verified, by the CAs in ``ca_file`` or ``ARRAKIS_CA_FILE`` where one is named, else by those
    of this host. All methods do the same over both.

    Making a manager connects to nothing; every method raises `ConnectionLostError` when
    the daemon is not there, and `AccessDeniedError` where it does not take the token.
    Threads may share a manager. Closing it is good manners, not a duty: it only closes
    connections that are idle.
    """

    def __init__(
        self,
        base_url: str | None = None,
        token: str | None = None,
        *,
        socket: str | os.PathLike[str] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
    ) -> None:
        address = find_address(base_url, token, socket=socket, ca_file=ca_file)
        self._client = Client(address)

    @property
    def address(self) -> str:
        """Where the daemon is: the path of its socket, or its URL, without a token."""
        return str(self._client.address)

    @property
    def socket(self) -> str | None:
        """The path of the daemon's socket; None where it is reached by HTTP."""
        address = self._client.address
        return address.path if isinstance(address, UnixAddress) else None

    # Sandboxes

    def list_all(self) -> list[Sandbox]:
        """Give all sandboxes, by name."""
        return [Sandbox(self._client, vm.name) for vm in self.describe_all()]

    def describe_all(self) -> list[VmInfo]:
        """Give what `Sandbox.info` gives, of all sandboxes, as objects."""
        pages: Iterator[VmList] = self._client.pages("vm.list")
        return [vm for page in pages for vm in page.vms]

    def get(self, name: str) -> Sandbox:
        """Give a sandbox by its name. Raises `NotFoundError`."""
        self._client.call("vm.info", {"name": name})
        return Sandbox(self._client, name)

    def destroy_all(self) -> None:
        """End and forget all sandboxes. Their snapshots stay."""
        self._client.call("vm.destroy_all")

    def restore(
        self,
        vm_name: str,
        snapshot_id: str,
        *,
        egress: str | Sequence[str] | None = None,
        ports: Sequence[int | str | PortRequest] | None = None,
        ttl: float | None = None,
        idle_timeout: float | None = None,
        on_timeout: OnTimeout | None = None,
        on_unresponsive: OnUnresponsive | None = None,
        progress: OnProgress | None = None,
    ) -> Sandbox:
        """Make a new sandbox called ``vm_name`` from a snapshot, running as it was then.

        ``egress`` and ``ports`` are as in `start_sandbox`. None keeps what was in force when
        the snapshot was taken; the host's ports are other ones then. So are ``ttl``,
        ``idle_timeout``, ``on_timeout`` and ``on_unresponsive``, for which None is the daemon's
        default.

        Raises `NotFoundError` for the snapshot, `AlreadyExistsError` for the name,
        `IntegrityError` when the stored data is damaged, and as `start_sandbox` does.
        """
        limits = without_none(
            ttl=ttl,
            idle_timeout=idle_timeout,
            on_timeout=on_timeout,
            on_unresponsive=on_unresponsive,
        )
        params = without_none(
            name=vm_name,
            snapshot=snapshot_id,
            network=network_params(egress, ports),
            limits=limits or None,
        )
        self._client.call("vm.start", params, progress=progress)
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
        vmm: str | None = None,
        entry_point: str | None = None,
        egress: str | Sequence[str] | None = None,
        ports: Sequence[int | str | PortRequest] | None = None,
        ttl: float | None = None,
        idle_timeout: float | None = None,
        on_timeout: OnTimeout | None = None,
        on_unresponsive: OnUnresponsive | None = None,
        progress: OnProgress | None = None,
    ) -> Sandbox:
        """Start a sandbox; it is RUNNING and answers when this returns.

        A name is up to 63 letters, digits, ``-``, ``_`` and ``.``. None takes the daemon's
        default. ``kernel``, ``initramfs`` and ``rootfs`` are paths on the daemon's host; ``vmm`` is
        the hypervisor: ``"qemu"``, ``"cloud-hypervisor"`` or ``"firecracker"``.
        ``entry_point`` is a command that is started in the background. The first start of
        a shape boots it, which takes 10 to 30 s if emulated: ``progress`` is then called with
        `Progress` (``text``, ``step``, ``total``); whatever it raises ends the start.

        ``egress`` is what the sandbox may connect to: ``"none"``, ``"internet"``, or a list
        of targets as `Sandbox.set_egress` takes it. ``ports`` are forwarded to it, in place
        of the daemon's usual ones: a guest port (``8000``), ``"HOST:GUEST"``, or a
        `PortRequest` that has a description, too. See `Ports.add`.

        ``ttl`` is how many seconds it may live, ``idle_timeout`` how many it may be unused. What
        happens then is ``on_timeout``: ``"suspend"``, ``"stop"`` or ``"destroy"``. 0 is no limit.
        ``on_unresponsive`` is what happens when it does not answer any more: ``"leave"``,
        ``"restore"`` or ``"destroy"``. See `Sandbox.set_limits`.

        Raises `AlreadyExistsError` for the name or a host port, `NotFoundError` for image,
        kernel or rootfs, `ExhaustedError` when memory, disk, ports or addresses do not
        suffice, `UnsupportedError` for ports where the daemon has no network and for a
        hypervisor that cannot be used there,
        `VmmError` and `GuestError` when it does not come up. Nothing is left of it then,
        nor when the caller is interrupted.
        """
        limits = without_none(
            ttl=ttl,
            idle_timeout=idle_timeout,
            on_timeout=on_timeout,
            on_unresponsive=on_unresponsive,
        )
        params = without_none(
            name=name,
            image=image,
            vcpus=vcpus,
            memory_mib=memory_mib,
            disk_mib=disk_mib,
            kernel=kernel,
            initramfs=initramfs,
            rootfs=rootfs,
            vmm=vmm,
            entry_point=entry_point,
            network=network_params(egress, ports),
            limits=limits or None,
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

    @cached_property
    def tokens(self) -> Tokens:
        """The tokens of clients that come by HTTP."""
        return Tokens(self._client)

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
