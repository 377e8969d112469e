"""What the daemon can be asked: parameters and results of its operations.

Sizes in MiB or bytes as the name says, durations in seconds, times as Unix times.
"""

from __future__ import annotations

import re
from typing import Any, Generic, Literal, TypeVar

from attrs import Attribute, field, frozen
from attrs.validators import ge, le, max_len, optional

from .guest_api import FileKind
from .network_api import Egress, Forward, PortRequest, VmNetwork, port_number

Args = TypeVar("Args")

OnTimeout = Literal["stop", "suspend", "destroy"]
Part = Literal["vmm", "agent", "disk", "firewall", "pool", "store"]
OnUnresponsive = Literal["leave", "restore", "destroy"]
VmStatus = Literal["CREATED", "RUNNING", "PAUSED", "SUSPENDED", "STOPPED"]

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
class Problem:
    """Something that is not as it should be, with which part, and with which VM, if one."""

    part: Part
    detail: str
    vm: str | None = None


@frozen
class SystemHealth:
    """``system.health``: answered from memory, touches no VM. It is degraded for ``reasons``."""

    status: Literal["healthy", "degraded"]
    timestamp: float
    uptime: float
    vms: dict[str, int]
    reasons: list[Problem] = field(factory=list)


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


_seconds = optional([ge(0), le(10**9)])


@frozen
class VmLimits:
    """How long a VM may live, and how long nobody may use it, in seconds.

    ``ttl`` counts from its start, or since it was resumed from disk; ``idle_timeout`` from the
    last call or forwarded connection. 0 is no limit; None the daemon's default, or what there
    was before. ``on_timeout`` is what is done then.
    ``on_unresponsive`` is what is done with a VM whose guest does not answer: "restore" takes it
    back to its last snapshot.
    """

    ttl: float | None = field(default=None, validator=_seconds)
    idle_timeout: float | None = field(default=None, validator=_seconds)
    on_timeout: OnTimeout | None = None
    on_unresponsive: OnUnresponsive | None = None


@frozen
class LimitsInfo:
    """The limits of a VM. ``ends`` is when the first is reached if nobody uses it till then."""

    ttl: float | None
    idle_timeout: float | None
    on_timeout: OnTimeout
    ends: float | None
    on_unresponsive: OnUnresponsive = "leave"


@frozen
class VmInfo:
    """One VM. ``snapshot`` is its place in the tree, where ``template`` is the root.

    That is the snapshot that it was restored from, or the last that was taken of it.
    ``unresponsive_since`` is the Unix time since which a guest that runs has not answered.
    """

    name: str
    status: VmStatus
    image: str
    vcpus: int
    memory_mib: int
    disk_mib: int
    created: float
    template: str = ""
    snapshot: str | None = None
    pid: int | None = None
    ip: str | None = None
    tap_device_name: str | None = None
    egress: Egress | None = None
    port_forwards: list[PortForward] = field(factory=list)
    failure: Failure | None = None
    limits: LimitsInfo | None = None
    unresponsive_since: float | None = None


@frozen
class VmStart:
    """``vm.start``: a new VM, from a template or (``snapshot``) from a snapshot.

    ``image`` is the name or digest of a stored image; ``kernel``, ``initramfs`` and
    ``rootfs`` are paths on the daemon's host that replace the stored ones. None means the
    daemon's default. With ``snapshot`` the shape is the snapshot's, and giving one here is
    refused; its network is what it was, save for what is given here. ``vmm`` is the hypervisor;
    a snapshot can only be woken by the one that saved it. ``entry_point`` is a command started
    in the background once the guest answers.
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
    vmm: str | None = field(default=None, validator=optional(store_id))
    network: VmNetwork = field(factory=VmNetwork)
    limits: VmLimits | None = None


@frozen
class VmSetLimits:
    """``vm.set_limits``: what is given is changed at once, the rest stays."""

    name: str = field(validator=vm_name)
    limits: VmLimits


@frozen
class VmName:
    """Parameters of every operation on one VM that needs no more than its name."""

    name: str = field(validator=vm_name)


@frozen
class Page:
    """Which part of a long list: what follows ``after``, at most ``limit`` entries of it.

    ``after`` is what the page before gave as ``next``; None is for the beginning. A page may
    be shorter than its limit, since all of it has to fit into one frame.
    """

    after: str | None = field(default=None, validator=optional(max_len(100)))
    limit: int = field(default=1000, validator=[ge(1), le(1000)])


@frozen
class PortAdd:
    """``port.add``: one more port of a running VM."""

    vm: str = field(validator=vm_name)
    port: PortRequest


@frozen
class PortRemove:
    """``port.remove``: by the port of the host."""

    vm: str = field(validator=vm_name)
    host_port: int = field(validator=port_number)


@frozen
class PortList:
    """The ports that lead into a VM."""

    ports: list[Forward]


@frozen
class EgressSet:
    """``egress.set``: what a VM may reach from now on, open connections included."""

    vm: str = field(validator=vm_name)
    egress: Egress


@frozen
class VmList:
    """A page of all VMs, by name. ``next`` asks for the page after it; None means the last."""

    vms: list[VmInfo]
    next: str | None = None


@frozen
class VmFork:
    """``vm.fork``: ``count`` siblings of a VM, by one pause; all or none, and all running.

    ``names`` are theirs, else they are made of the VM's name and a counter.
    """

    name: str = field(validator=vm_name)
    count: int = field(default=1, validator=[ge(1), le(64)])
    names: list[str] | None = field(default=None, validator=optional(_vm_names))


@frozen
class VmRollback:
    """``vm.rollback``: to a snapshot that the VM descends from; it keeps name and address."""

    name: str = field(validator=vm_name)
    snapshot: str = field(validator=store_id)


@frozen
class VmRename:
    """``vm.rename``: a VM gets the name ``to``; it keeps its address, ports and policy.

    With ``replace``, a VM that has this name is destroyed for it: the name always is that of
    the one or of the other. Else a name that is taken is refused.
    """

    name: str = field(validator=vm_name)
    to: str = field(validator=vm_name)
    replace: bool = False


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
class SnapshotImported:
    """What came of an archive: the snapshot ``id``, which had ancestors or none.

    ``new`` are the ids of those that were not here, ``present`` of those that were.
    """

    id: str
    new: list[str]
    present: list[str]


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
    """A page of all snapshots, oldest first; ``next`` as in `VmList`."""

    snapshots: list[SnapshotInfo]
    next: str | None = None


@frozen
class SnapshotPair:
    """``snapshot.diff``: two snapshots, or templates, by their ids."""

    before: str = field(validator=store_id)
    after: str = field(validator=store_id)


Change = Literal["added", "removed", "changed"]


@frozen
class FileChange:
    """A file that is different. ``kind`` and ``size`` (in bytes) are its last ones."""

    path: str
    change: Change
    kind: FileKind
    size: int


@frozen
class ProcessChange:
    """A process that runs in only one of them: it came (``added``) or went (``removed``)."""

    pid: int
    change: Change
    command: str


@frozen
class SnapshotDifference:
    """What is different in ``after``: files by path, processes by pid.

    A file is changed when its kind, content, size, mode, owner or target is another one; its
    times do not count. Only the disk is compared, so nothing of /proc, /sys, /dev and /run.
    ``complete`` is false where there is more than fits into an answer.
    """

    files: list[FileChange]
    processes: list[ProcessChange]
    complete: bool


@frozen
class TemplateBuild:
    """``template.build``: boot a shape once and keep it, so that its starts are restores."""

    image: str | None = field(default=None, validator=optional(image_name))
    vcpus: int | None = field(default=None, validator=optional([ge(1), le(64)]))
    memory_mib: int | None = field(default=None, validator=optional(ge(128)))
    disk_mib: int | None = field(default=None, validator=optional(ge(64)))
    vmm: str | None = field(default=None, validator=optional(store_id))


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
class ImagePrune:
    """``image.prune``: gives what was deleted, or with ``dry_run`` what would be.

    An image loses its name when one of that name is built anew, or the name deleted.
    """

    dry_run: bool = False


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
class TokenName:
    """Parameters of operations on one token."""

    name: str = field(validator=store_id)


@frozen
class TokenCreated:
    """A new token. ``token`` is its secret, which the daemon does not keep."""

    name: str
    token: str = field(repr=False)


@frozen
class TokenInfo:
    """One token; ``used`` is when somebody last came with it, to a minute, or None."""

    name: str
    created: float
    used: float | None


@frozen
class TokenList:
    """All tokens by name."""

    tokens: list[TokenInfo]


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
