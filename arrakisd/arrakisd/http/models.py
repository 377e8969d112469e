"""What HTTP requests and answers hold. Names of fields are those of JSON.

The first part is the Go program's; the second is ours, in its style.
"""

# ruff: noqa: N815 -- these names are those of the JSON

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from attrs import Attribute, field, frozen
from attrs.validators import ge, le, max_len, min_len, optional

from arrakis_rpc import daemon_api as api
from arrakis_rpc.daemon_api import SnapshotInfo
from arrakis_rpc.network_api import Egress, port_number

from .json_form import VM_NAME

_NO_NUL = {"pattern": "^[^\\u0000]*$"}
_ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?"
# Somewhat narrower than what is read: a network has a /32, and ports are no ranges.
_TARGET = (
    rf"^(?:(?:{_BYTE}\.){{3}}{_BYTE}(?:/32)?|(?:\*\.)?{_LABEL}\.{_LABEL}\.[A-Za-z]{{2,20}})"
    r"(?::[1-9][0-9]{0,3})?$"
)
_PATH = {"pattern": "^[^\\u0000]+$", "maxLength": 4096}


def _no_nul(_: object, attribute: Attribute[Any], value: Any) -> None:
    texts = value if isinstance(value, list) else [value]
    texts = [*value, *value.values()] if isinstance(value, dict) else texts
    if any("\0" in text for text in texts):
        raise ValueError(f"{attribute.name} holds a NUL character")


def _path(_: object, attribute: Attribute[Any], value: str) -> None:
    if not 0 < len(value) <= 4096 or "\0" in value:
        raise ValueError(f"{attribute.name} is a path of 1 to 4096 characters other than NUL")


def _vm_names(instance: object, attribute: Attribute[Any], value: list[str]) -> None:
    for name in value:
        api.vm_name(instance, attribute, name)


def _snapshot_id(instance: object, attribute: Attribute[Any], value: str) -> None:
    if value:  # the Go program's clients send empty text for none
        api.vm_name(instance, attribute, value)


_SNAPSHOT_ID = {"pattern": r"^(?:[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,62})?$"}


_NOT_EMPTY: list[Any] = [min_len(1), _no_nul]
_SIBLINGS: list[Any] = [min_len(1), max_len(64), _vm_names]


@frozen
class ErrorDetail:
    """What is wrong, and what can be done."""

    message: str
    hint: str | None = None


@frozen
class ErrorResponse:
    """Every answer that is not the one asked for."""

    error: ErrorDetail


@frozen
class HealthResponse:
    """Whether the daemon is well, ``healthy``, or ``degraded``, and then for which reasons."""

    status: str
    timestamp: str = field(metadata={"schema": {"format": "date-time"}})
    reasons: list[api.Problem] | None = None


@frozen
class PortForward:
    """A guest port that is reachable at the host. Ports are text."""

    hostPort: str
    guestPort: str
    description: str


@frozen
class PortSpec:
    """A guest port to forward; the daemon chooses the port of the host if none is given."""

    guestPort: int = field(validator=port_number)
    hostPort: int | None = field(default=None, validator=optional(port_number))
    description: str = field(default="", validator=max_len(100))
    publish: bool = False


_seconds = optional([ge(0), le(10**9)])


@frozen
class LimitsRequest:
    """How long a VM may live, and be unused, in seconds; 0 is no limit.

    What is not given is the daemon's default, or stays as it is.
    """

    ttl: float | None = field(default=None, validator=_seconds)
    idleTimeout: float | None = field(default=None, validator=_seconds)
    onTimeout: Literal["stop", "suspend", "destroy"] | None = None
    onUnresponsive: Literal["leave", "restore", "destroy"] | None = None


@frozen
class StartVMRequest:
    """A new VM, from an image or a snapshot. Empty text stands for none.

    With ``snapshotId``, ``kernel``, ``initramfs`` and ``rootfs`` are ignored, and an image or a
    shape may not be given. ``vmm`` is the hypervisor; a snapshot's can only be its own.
    """

    vmName: str = field(validator=api.vm_name)
    kernel: str | None = field(
        default=None, validator=optional(_no_nul), metadata={"schema": _NO_NUL}
    )
    initramfs: str | None = field(
        default=None, validator=optional(_no_nul), metadata={"schema": _NO_NUL}
    )
    rootfs: str | None = field(
        default=None, validator=optional(_no_nul), metadata={"schema": _NO_NUL}
    )
    entryPoint: str | None = field(
        default=None, validator=optional(_no_nul), metadata={"schema": _NO_NUL}
    )
    snapshotId: str | None = field(
        default=None, validator=optional(_snapshot_id), metadata={"schema": _SNAPSHOT_ID}
    )
    image: str | None = field(default=None, validator=optional(api.image_name))
    vcpus: int | None = field(default=None, validator=optional([ge(1), le(64)]))
    memoryMib: int | None = field(default=None, validator=optional([ge(128), le(2**24)]))
    diskMib: int | None = field(default=None, validator=optional([ge(64), le(2**24)]))
    vmm: str | None = field(default=None, validator=optional(api.store_id))
    egress: EgressSpec | None = None
    ports: list[PortSpec] | None = field(default=None, validator=optional(max_len(64)))
    limits: LimitsRequest | None = None

    __schema__: ClassVar[dict[str, Any]] = {
        "not": {
            "required": ["snapshotId"],
            "anyOf": [{"required": [name]} for name in ("image", "vcpus", "memoryMib", "diskMib")],
        }
    }

    def __attrs_post_init__(self) -> None:
        shape = (self.image, self.vcpus, self.memoryMib, self.diskMib)
        if self.snapshotId is not None and shape != (None,) * 4:
            raise ValueError("a snapshot brings its own image and shape")


@frozen
class EgressSpec:
    """What connections a VM may open: none, to the internet, or to the targets in ``allow``."""

    mode: Literal["none", "internet", "allow"] = "internet"
    allow: list[str] = field(factory=list, validator=max_len(256))

    __schema__: ClassVar[dict[str, Any]] = {
        "oneOf": [
            {
                "properties": {
                    "mode": {"enum": ["none", "internet"]},
                    "allow": {"type": "array", "maxItems": 0},
                }
            },
            {
                "properties": {
                    "mode": {"enum": ["allow"]},
                    "allow": {
                        "type": "array",
                        "minItems": 1,
                        "maxItems": 256,
                        "items": {"type": "string", "pattern": _TARGET},
                    },
                },
                "required": ["mode", "allow"],
            },
        ]
    }


@frozen
class VM:
    """One VM. Ports are text; ``ip`` has its prefix, and is empty without a network.

    One that is ``suspended`` to disk is PAUSED, for those who know of nothing else.
    """

    vmName: str
    status: Literal["CREATED", "RUNNING", "PAUSED", "STOPPED"]
    ip: str
    tapDeviceName: str
    portForwards: list[PortForward]
    image: str
    vcpus: int
    memoryMib: int
    diskMib: int
    created: float
    snapshotId: str | None = None
    egress: Egress | None = None
    failure: api.Failure | None = None
    suspended: bool = False
    unresponsiveSince: float | None = None
    limits: api.LimitsInfo | None = None


@frozen
class ListAllVMsResponse:
    """All VMs by name."""

    vms: list[VM]


@frozen
class UpdateVMRequest:
    """What is to be done with a VM."""

    status: Literal["stopped", "paused", "resume"]


@frozen
class VMResponse:
    """It is done."""

    success: bool
    message: str


@frozen
class DestroyAllVMsResponse:
    """It is done."""

    success: bool


@frozen
class SnapshotRequest:
    """A snapshot to take. Without an id the daemon chooses one.

    Ids are in lower case: of another case it is changed, and "_" and "." become "-".
    """

    snapshotId: str | None = field(
        default=None, validator=optional(_snapshot_id), metadata={"schema": _SNAPSHOT_ID}
    )
    label: str = field(default="", validator=max_len(200))


@frozen
class VMSnapshotResponse:
    """The id of the snapshot."""

    snapshotId: str


@frozen
class VmCommandRequest:
    """A command for ``bash -c`` in /tmp/server_files."""

    cmd: str = field(validator=_no_nul, metadata={"schema": _NO_NUL})
    blocking: bool = True


@frozen
class VmCommandResponse:
    """What a command wrote, stdout and stderr as they came; ``error`` is empty if all is well."""

    output: str
    error: str


@frozen
class FileContent:
    """A text file. A relative path is below /tmp/server_files."""

    path: str = field(validator=_path, metadata={"schema": _PATH})
    content: str


@frozen
class VmFileUploadRequest:
    """Text files to write."""

    files: list[FileContent]


@frozen
class VmFileUploadResponse:
    """All files are written."""

    error: str = ""


@frozen
class FileResult:
    """A file, or why there is none. What is not UTF-8 is replaced."""

    path: str
    content: str | None = None
    error: str | None = None


@frozen
class VmFileDownloadResponse:
    """The files that were asked for."""

    files: list[FileResult]


@frozen
class DownloadQuery:
    """Paths with commas between them; one that has a comma itself can be had as `file`."""

    paths: str = field(validator=_NOT_EMPTY, metadata={"schema": _NO_NUL})


# Beyond the Go program


@frozen
class RollbackRequest:
    """Which snapshot to take a VM back to."""

    snapshotId: str = field(validator=api.store_id)


@frozen
class RenameRequest:
    """What to call a VM; with ``replace`` also if another one is called so, which is destroyed."""

    name: str = field(validator=api.vm_name)
    replace: bool = False


@frozen
class DifferenceQuery:
    """With which snapshot or template to compare."""

    to: str = field(validator=api.store_id)


@frozen
class ForkRequest:
    """How many siblings of a VM to make, or (``names``) which."""

    count: int | None = field(default=None, validator=optional([ge(1), le(64)]))
    names: list[str] | None = field(
        default=None,
        validator=optional(_SIBLINGS),
        metadata={"schema": {"items": {"type": "string", "pattern": VM_NAME}}},
    )

    __schema__: ClassVar[dict[str, Any]] = {"not": {"required": ["count", "names"]}}

    def __attrs_post_init__(self) -> None:
        if self.count is not None and self.names is not None:
            raise ValueError("give either count or names")


@frozen
class ExecRequest:
    """A command: ``cmd`` for ``bash -c``, or ``argv`` as it is.

    ``timeout`` is in seconds. Output comes as text, in which what is not UTF-8 is replaced, or
    as ``base64``.
    """

    cmd: str | None = field(default=None, validator=optional(_no_nul), metadata={"schema": _NO_NUL})
    argv: list[str] | None = field(
        default=None,
        validator=optional(_NOT_EMPTY),
        metadata={"schema": {"items": {"type": "string"} | _NO_NUL}},
    )
    stdin: str | None = None
    cwd: str | None = field(default=None, validator=optional(_path), metadata={"schema": _PATH})
    env: dict[str, str] = field(
        factory=dict,
        validator=_no_nul,
        metadata={
            "schema": {
                "additionalProperties": {"type": "string"} | _NO_NUL,
                "propertyNames": {"pattern": _ENV_NAME},
            }
        },
    )
    user: str | None = field(
        default=None,
        validator=optional(_NOT_EMPTY),
        metadata={"schema": {"pattern": "^[^\\u0000]+$"}},
    )
    timeout: float | None = field(default=None, validator=optional([ge(0), le(10**9)]))
    mergeOutput: bool = False
    encoding: Literal["text", "base64"] = "text"

    __schema__: ClassVar[dict[str, Any]] = {
        "oneOf": [
            {"required": ["cmd"], "not": {"required": ["argv"]}},
            {"required": ["argv"], "not": {"required": ["cmd"]}},
        ]
    }

    def __attrs_post_init__(self) -> None:
        if (self.argv is None) == (self.cmd is None):
            raise ValueError("give either cmd or argv")
        if not all(re.fullmatch(_ENV_NAME, name) for name in self.env):
            raise ValueError("env has a name that no variable can have")


@frozen
class FileQuery:
    """A file in a VM. A relative path is below /tmp/server_files."""

    path: str = field(validator=_path, metadata={"schema": _PATH})


@frozen
class FileWriteQuery:
    """A file to write, with ``mode`` its permission bits as a whole number."""

    path: str = field(validator=_path, metadata={"schema": _PATH})
    mode: int | None = field(default=None, validator=optional([ge(0), le(0o7777)]))
    append: bool = False


@frozen
class FileRemoveQuery:
    """A file or an empty directory to remove, or with ``recursive`` all that is in it as well."""

    path: str = field(validator=_path, metadata={"schema": _PATH})
    recursive: bool = False


@frozen
class DirectoryQuery:
    """A directory in a VM: the entries whose names follow ``after``, at most ``limit``."""

    path: str = field(validator=_path, metadata={"schema": _PATH})
    after: str | None = field(default=None, validator=optional(max_len(255)))
    limit: int = field(default=1000, validator=[ge(1), le(1000)])


@frozen
class MakeDirectoryQuery:
    """A directory to make; with ``parents`` also those above it, and one that is there is fine."""

    path: str = field(validator=_path, metadata={"schema": _PATH})
    mode: int = field(default=0o755, validator=[ge(0), le(0o7777)])
    parents: bool = False


@frozen
class FileWritten:
    """What was written."""

    path: str
    size: int


@frozen
class TemplateRequest:
    """A shape; what is not given is the daemon's default."""

    image: str | None = field(default=None, validator=optional(api.image_name))
    vcpus: int | None = field(default=None, validator=optional([ge(1), le(64)]))
    memoryMib: int | None = field(default=None, validator=optional([ge(128), le(2**24)]))
    diskMib: int | None = field(default=None, validator=optional([ge(64), le(2**24)]))
    vmm: str | None = field(default=None, validator=optional(api.store_id))


@frozen
class TreePlace:
    """One place in the tree. ``bytes`` is what it takes on disk without those below it.

    ``template`` is the root below it, or itself; ``parent`` the snapshot on which a snapshot
    stands, if it does not stand on the template. ``machines`` are the VMs that stand here.
    """

    kind: Literal["template", "snapshot"]
    id: str
    template: str
    label: str
    created: float
    bytes: int
    machines: list[str]
    parent: str | None = None


@frozen
class Tree:
    """All places: templates, then snapshots, each in order of age."""

    places: list[TreePlace]


@frozen
class PageQuery:
    """What follows ``after``, at most ``limit`` of it."""

    after: str | None = field(default=None, validator=optional(max_len(100)))
    limit: int = field(default=1000, validator=[ge(1), le(1000)])


@frozen
class SnapshotListResponse:
    """Snapshots, oldest first; ``next`` is the ``after`` of the page that follows."""

    snapshots: list[SnapshotInfo]
    next: str | None = None


@frozen
class DeleteSnapshotQuery:
    """With ``recursive`` also all snapshots that descend from it."""

    recursive: bool = False
