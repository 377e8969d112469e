"""What the tools give: their output schemas, for the model to know what to expect."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from arrakis_rpc.converter import unstructure
from arrakis_rpc.text import as_unicode


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return as_unicode(value)
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return value


class _Result(BaseModel):
    """What a tool gives. Of whatever it is made, all of its text can be encoded."""

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, value: Any) -> Any:
        return _encodable(value)


class PortForward(_Result):
    """A port of the sandbox that is reachable from the daemon's host."""

    guest_port: int = Field(description="TCP port in the sandbox")
    host_port: int = Field(description="TCP port at 127.0.0.1 of the daemon's host")
    description: str


class VmDescription(_Result):
    """A sandbox."""

    name: str
    status: Literal["CREATED", "RUNNING", "PAUSED", "SUSPENDED", "STOPPED"]
    ip: str | None = Field(None, description="its IPv4 address with the prefix")
    image: str
    vcpus: int
    memory_mib: int
    disk_mib: int
    created: float = Field(description="Unix time")
    snapshot: str | None = Field(
        None, description="the snapshot it was restored from, or the last that was taken of it"
    )
    port_forwards: list[PortForward] = Field(default_factory=list)
    egress: dict[str, Any] | None = Field(None, description="what it may connect to")
    failure: dict[str, Any] | None = Field(
        None, description="why it stopped, if nobody stopped it, and its last console lines"
    )

    @classmethod
    def of(cls, info: Any) -> VmDescription:
        """Make it of what the SDK gives, an object or a mapping."""
        return cls.model_validate(unstructure(info))


class VmDescriptions(_Result):
    """All sandboxes, by name."""

    vms: list[VmDescription]


class SnapshotTaken(_Result):
    """A snapshot that now exists."""

    snapshot_id: str = Field(description="what restore_snapshot takes")
    vm_name: str


class SnapshotDescription(_Result):
    """A stored snapshot."""

    id: str
    vm: str = Field(description="the sandbox it was taken of, which may be gone")
    parent: str | None = Field(description="the snapshot it builds on")
    label: str
    created: float = Field(description="Unix time")
    bytes: int = Field(description="size on disk, without its ancestors")
    depth: int = Field(0, description="number of ancestors; in snapshot_tree only")


class SnapshotDescriptions(_Result):
    """Snapshots."""

    snapshots: list[SnapshotDescription]


class CommandOutput(_Result):
    """What a command said, and how it ended."""

    output: str = Field(description="stdout and stderr, in order")
    error: str = Field(description="empty, or 'exit status N', or 'signal: NAME'")
    omitted_bytes: int = Field(0, description="bytes left out of the middle of a long output")


class Execution(_Result):
    """What a command said, and how it ended."""

    stdout: str
    stderr: str
    exit_code: int | None = Field(description="null if a signal ended it")
    signal: int | None
    timed_out: bool = Field(description="whether it was killed because its time was up")
    duration: float = Field(description="seconds")
    omitted_bytes: int = Field(0, description="bytes left out of the middle of long streams")


class FileWritten(_Result):
    """A file that was written, whole."""

    path: str
    size: int = Field(description="bytes")


class FileContent(_Result):
    """A file, or a part of it."""

    path: str
    content: str
    encoding: Literal["utf-8", "base64"] = Field(description="how content stands for bytes")
    offset: int = Field(description="where content begins in the file, in bytes")
    size: int = Field(description="how many bytes content stands for")
    next_offset: int | None = Field(
        None, description="there is more: call again with this offset. null at the end"
    )


class FileEntry(_Result):
    """A directory entry."""

    name: str
    kind: Literal["file", "directory", "symlink", "other"]
    size: int = Field(description="bytes")
    mode: str = Field(description="permission bits, octal")
    mtime: float = Field(description="Unix time")
    target: str | None = Field(None, description="where a symlink points")


class Listing(_Result):
    """A directory."""

    path: str
    entries: list[FileEntry]
    note: str = Field("", description="says so when entries are left out")


class Forks(_Result):
    """New sandboxes, all running."""

    names: list[str]


class Ports(_Result):
    """The forwarded ports of a sandbox."""

    ports: list[PortForward]


class Acted(_Result):
    """What was done on a desktop."""

    vm_name: str
    done: str


class FileChange(_Result):
    """A file that is different."""

    path: str
    change: Literal["added", "removed", "changed"]
    kind: Literal["file", "directory", "symlink", "other"]
    size: int = Field(description="bytes")


class ProcessChange(_Result):
    """A process that came or went."""

    pid: int
    change: Literal["added", "removed", "changed"]
    command: str


class Difference(_Result):
    """What is different in one snapshot from another."""

    files: list[FileChange]
    processes: list[ProcessChange]
    note: str = Field("", description="says so when something is left out")


class Removed(_Result):
    """What no longer exists."""

    removed: list[str]


class GuestHealth(_Result):
    """How a sandbox is, by its own account."""

    booted: bool
    uptime: float = Field(description="seconds")
    load: float = Field(description="over the last minute")
    memory_total: int = Field(description="bytes")
    memory_available: int = Field(description="bytes")
    processes: int


class Health(_Result):
    """How the daemon is, and one sandbox if one was named."""

    status: str
    uptime: float = Field(description="of the daemon, in seconds")
    vms: dict[str, int] = Field(description="number of sandboxes by status")
    vm: GuestHealth | None = None
