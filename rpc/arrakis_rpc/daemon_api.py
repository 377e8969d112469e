"""What the daemon can be asked: parameters and results of its operations.

Sizes in MiB or bytes as the name says, durations in seconds, times as Unix times.
"""

from __future__ import annotations

import re
from typing import Any, Generic, Literal, TypeVar

from attrs import Attribute, field, frozen
from attrs.validators import ge, le, max_len, optional

Args = TypeVar("Args")

VmStatus = Literal["CREATED", "RUNNING", "PAUSED", "STOPPED"]

_VM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def vm_name(_: object, attribute: Attribute[str], value: str) -> None:
    """Validate a VM's name: what the Go program accepts, minus anything that is a path."""
    if not _VM_NAME.fullmatch(value) or ".." in value:
        raise ValueError(
            f"{attribute.name} is up to 63 letters, digits, '-', '_' and '.', "
            "and begins with a letter or digit"
        )


def _vm_names(instance: object, attribute: Attribute[Any], value: list[str]) -> None:
    for name in value:
        vm_name(instance, attribute, name)


def store_id(_: object, attribute: Attribute[str], value: str) -> None:
    """Validate the id of a snapshot, a template or an image."""
    if not _ID.fullmatch(value):
        raise ValueError(
            f"{attribute.name} is up to 63 lower-case letters, digits and '-', "
            "and begins with a letter or digit"
        )


def image_name(_: object, attribute: Attribute[str], value: str) -> None:
    """Validate what an image is asked for by: its name, or its digest."""
    if not _ID.fullmatch(value) and not _DIGEST.fullmatch(value):
        raise ValueError(
            f"{attribute.name} is an image's name (up to 63 lower-case letters, digits and '-', "
            "beginning with a letter or digit) or its digest"
        )


def _inside(_: object, attribute: Attribute[str], value: str) -> None:
    if not value or value.startswith("/") or "\0" in value or ".." in value.split("/"):
        raise ValueError(f"{attribute.name} is a relative path that does not leave its directory")


@frozen
class SystemHello:
    """``system.hello``: the first call on every connection."""

    versions: list[int]
    client: str = field(validator=max_len(200))


@frozen
class SystemHelloResult:
    """The version both ends speak, and the daemon's own version."""

    version: int
    daemon: str


@frozen
class SystemHealth:
    """``system.health``: answered from memory, touches no VM."""

    status: Literal["healthy"]
    timestamp: float
    uptime: float
    vms: dict[str, int]


@frozen
class SystemInfo:
    """``system.info``: what this daemon is and uses."""

    daemon: str
    pid: int
    state_dir: str
    vmm: str
    accelerator: str
    vcpus: int
    memory_mib: int
    default_vcpus: int
    default_memory_mib: int
    default_disk_mib: int


@frozen
class Check:
    """One finding of the doctor; ``fix`` is a command that mends it."""

    name: str
    ok: bool
    detail: str
    required: bool = True
    fix: str | None = None


@frozen
class SystemDoctor:
    """``system.doctor``: what this host can do, and what is missing."""

    checks: list[Check]


@frozen
class PortForward:
    """A guest port reachable from the host; ports are text, as in the Go program."""

    host_port: str
    guest_port: str
    description: str = ""


@frozen
class Failure:
    """Why a VM stopped that nobody stopped."""

    reason: str
    console: list[str]


@frozen
class VmInfo:
    """One VM. ``snapshot`` is its place in the tree.

    That is the snapshot that it was restored from, or the last that was taken of it.
    """

    name: str
    status: VmStatus
    image: str
    vcpus: int
    memory_mib: int
    disk_mib: int
    created: float
    snapshot: str | None = None
    pid: int | None = None
    ip: str | None = None
    tap_device_name: str | None = None
    port_forwards: list[PortForward] = field(factory=list)
    failure: Failure | None = None


@frozen
class VmStart:
    """``vm.start``: a new VM, from a template or (``snapshot``) from a snapshot.

    ``image`` is the name or digest of a stored image; ``kernel``, ``initramfs`` and
    ``rootfs`` are paths on the daemon's host that replace the stored ones. None means the
    daemon's default. With ``snapshot`` the shape is the snapshot's, and giving one here is
    refused. ``entry_point`` is a command started in the background once the guest answers.
    """

    name: str = field(validator=vm_name)
    image: str | None = field(default=None, validator=optional(image_name))
    kernel: str | None = None
    initramfs: str | None = None
    rootfs: str | None = None
    snapshot: str | None = field(default=None, validator=optional(store_id))
    entry_point: str | None = None
    vcpus: int | None = field(default=None, validator=optional([ge(1), le(64)]))
    memory_mib: int | None = field(default=None, validator=optional(ge(128)))
    disk_mib: int | None = field(default=None, validator=optional(ge(64)))


@frozen
class VmName:
    """Parameters of every operation on one VM that needs no more than its name."""

    name: str = field(validator=vm_name)


@frozen
class VmList:
    """All VMs, in the order of their creation."""

    vms: list[VmInfo]


@frozen
class VmFork:
    """``vm.fork``: ``count`` siblings of a VM, by one pause; all or none, and all running.

    ``names`` are theirs, else they are made of the VM's name and a counter.
    """

    name: str = field(validator=vm_name)
    count: int = field(default=1, validator=[ge(1), le(64)])
    names: list[str] | None = field(default=None, validator=optional(_vm_names))


@frozen
class SnapshotCreate:
    """``snapshot.create``: of a running or paused VM. Without an ``id`` the daemon chooses one."""

    vm: str = field(validator=vm_name)
    id: str | None = field(default=None, validator=optional(store_id))
    label: str = field(default="", validator=max_len(200))


@frozen
class SnapshotId:
    """Parameters of operations on one snapshot."""

    id: str = field(validator=store_id)


@frozen
class SnapshotDelete:
    """``snapshot.delete``: with ``recursive`` also all that descend from it."""

    id: str = field(validator=store_id)
    recursive: bool = False


@frozen
class SnapshotInfo:
    """One snapshot. ``bytes`` is what it takes on disk by itself, without its ancestors.

    ``parent`` is the snapshot before it, or None where ``template`` is its direct base.
    ``pause`` is for how many seconds the guest stood still.
    """

    id: str
    vm: str
    template: str
    parent: str | None
    label: str
    created: float
    bytes: int
    memory_mib: int
    vcpus: int
    changed_pages: int
    pause: float


@frozen
class SnapshotList:
    """All snapshots, oldest first."""

    snapshots: list[SnapshotInfo]


@frozen
class TemplateBuild:
    """``template.build``: boot a shape once and keep it, so that its starts are restores."""

    image: str | None = field(default=None, validator=optional(image_name))
    vcpus: int | None = field(default=None, validator=optional([ge(1), le(64)]))
    memory_mib: int | None = field(default=None, validator=optional(ge(128)))
    disk_mib: int | None = field(default=None, validator=optional(ge(64)))


@frozen
class TemplateInfo:
    """One template: the snapshot of a freshly booted shape."""

    id: str
    image: str
    image_digest: str
    vcpus: int
    memory_mib: int
    disk_mib: int
    vmm: str
    accelerator: str
    created: float
    boot: float
    bytes: int


@frozen
class TemplateId:
    """Parameters of operations on one template."""

    id: str = field(validator=store_id)


@frozen
class TemplateList:
    """All templates, oldest first."""

    templates: list[TemplateInfo]


@frozen
class ImageBuild:
    """``image.build``: build ``dockerfile`` in a context directory into an image ``name``.

    The context comes as a tar stream on channel ``context``.
    """

    name: str = field(validator=store_id)
    dockerfile: str = field(default="Dockerfile", validator=_inside)
    build_args: dict[str, str] = field(factory=dict)


@frozen
class ImageName:
    """Parameters of operations on one image."""

    name: str = field(validator=image_name)


@frozen
class ImageInfo:
    """One image. ``parent`` is the image its Dockerfile began from."""

    name: str
    digest: str
    bytes: int
    created: float
    parent: str | None


@frozen
class ImageList:
    """All images by name."""

    images: list[ImageInfo]


@frozen
class InGuest(Generic[Args]):
    """An operation of the guest agent, asked of one VM; see `arrakis_rpc.guest_api`."""

    vm: str = field(validator=vm_name)
    args: Args


@frozen
class Event:
    """Something that happened: ``kind`` is for instance ``vm.started`` or ``vm.failed``."""

    kind: str
    time: float
    vm: str | None = None
    data: dict[str, Any] = field(factory=dict)


@frozen
class Progress:
    """``call.progress``: how far a long call is. ``total`` 0 means not known."""

    text: str
    step: int = 0
    total: int = 0
