"""Tools on whole sandboxes: their life, their snapshots, their ports.

The docstring of a tool is what the model is told of it. Names and arguments of the first
group are those of the MCP server for the Go program; what they lack there has a default.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from arrakis import Sandbox
from arrakis.tree import by_descent
from arrakis_rpc.converter import unstructure
from arrakis_rpc.daemon_api import SnapshotInfo

from .jobs import Job
from .results import (
    Difference,
    Forks,
    GuestHealth,
    Health,
    PortForward,
    Ports,
    Removed,
    SnapshotDescription,
    SnapshotDescriptions,
    SnapshotTaken,
    VmDescription,
    VmDescriptions,
)

MOST_CHANGES = 500

VmName = Annotated[str, Field(description="the sandbox's name")]
SnapshotId = Annotated[str, Field(description="a snapshot's id, as snapshot and snapshots give it")]
Port = Annotated[int, Field(ge=1, le=65535)]


def sandbox(job: Job, name: str) -> Sandbox:
    """Give a handle on a sandbox, without asking whether it is there."""
    return Sandbox(job.manager._client, name)


def start_sandbox(
    job: Job,
    name: Annotated[str, Field(description="up to 63 letters, digits, '-', '_' and '.'")],
    image: Annotated[str, Field(description="an image of the daemon; '' is its default")] = "",
    vcpus: Annotated[int, Field(ge=0, le=64, description="0 is the daemon's default")] = 0,
    memory_mib: Annotated[int, Field(ge=0, description="0 is the daemon's default")] = 0,
    disk_mib: Annotated[int, Field(ge=0, description="0 is the daemon's default")] = 0,
    ttl: Annotated[float, Field(ge=0, description="seconds to live; 0: the default")] = 0,
    idle_timeout: Annotated[float, Field(ge=0, description="seconds unused; 0: the default")] = 0,
) -> VmDescription:
    """Start a new, empty Linux machine to work in. It runs and answers when this returns.

    It has root, Python, a disk and usually the internet, and nothing of other sandboxes. The
    first start of an image or shape takes up to a minute, later ones about a second. It lives
    until destroy_vm, or is suspended when its ttl or idle_timeout has passed; update_vm_state
    brings it back then.
    """
    started = job.manager.start_sandbox(
        name,
        image=image or None,
        vcpus=vcpus or None,
        memory_mib=memory_mib or None,
        disk_mib=disk_mib or None,
        ttl=ttl or None,
        idle_timeout=idle_timeout or None,
        progress=job.progress,
    )
    return VmDescription.of(started.info())


def restore_snapshot(
    job: Job,
    vm_name: Annotated[str, Field(description="the new sandbox's name, which must be free")],
    snapshot_id: SnapshotId,
) -> VmDescription:
    """Make a new sandbox from a snapshot: its processes, memory and files as they were then.

    Use it to go back after something went wrong, or to try another way from the same point.
    A snapshot can be restored any number of times. To go back under the same name, destroy
    the sandbox of that name first.
    """
    restored = job.manager.restore(vm_name, snapshot_id, progress=job.progress)
    return VmDescription.of(restored.info())


def snapshot(
    job: Job,
    vm_name: VmName,
    snapshot_id: Annotated[
        str, Field(description="up to 63 lower-case letters, digits and '-'; '' lets it be chosen")
    ] = "",
) -> SnapshotTaken:
    """Keep a running or paused sandbox exactly as it is now, programs that run included.

    Take one before anything risky, and after work that should not be repeated. The sandbox
    goes on, after a pause of well below a second. Go back with restore_snapshot.
    """
    taken = sandbox(job, vm_name).snapshot(snapshot_id)
    return SnapshotTaken(snapshot_id=taken, vm_name=vm_name)


def update_vm_state(
    job: Job,
    vm_name: VmName,
    status: Annotated[
        Literal["paused", "suspended", "running", "resume", "stopped"],
        Field(description="'resume' is another word for 'running'"),
    ],
) -> VmDescription:
    """Pause or suspend a running sandbox, let it go on, or shut one down.

    A paused sandbox keeps its memory and does nothing. A suspended one is on disk until it is
    running again, exactly as it was; use that for one that is not needed for long. A stopped
    one cannot be started again, only described and destroyed; its snapshots stay.
    """
    vm = sandbox(job, vm_name)
    vm.update_state(status)
    return VmDescription.of(vm.info())


def destroy_vm(job: Job, vm_name: VmName) -> Removed:
    """End a sandbox, in any state, and delete all that was in it. Its snapshots stay."""
    sandbox(job, vm_name).destroy()
    return Removed(removed=[vm_name])


def destroy_all_vms(job: Job) -> Removed:
    """End all sandboxes of this daemon, those of other users included. Snapshots stay.

    To end only what you started, use destroy_vm.
    """
    names = [vm.name for vm in job.manager.describe_all()]
    job.manager.destroy_all()
    return Removed(removed=names)


def list_vms(job: Job) -> VmDescriptions:
    """List all sandboxes with their status, address, size and ports."""
    return VmDescriptions(vms=[VmDescription.of(vm) for vm in job.manager.describe_all()])


def vm_info(job: Job, vm_name: VmName) -> VmDescription:
    """Describe a sandbox: status, address, size, ports, and why it stopped if it did."""
    return VmDescription.of(sandbox(job, vm_name).info())


def fork(
    job: Job,
    vm_name: VmName,
    count: Annotated[int, Field(ge=1, le=64, description="how many; all of them or none")] = 1,
    names: Annotated[
        list[str], Field(description="theirs, as many as count; empty lets them be chosen")
    ] = [],  # noqa: B006 -- never changed, and a model reads [] better than null
) -> Forks:
    """Copy a running or paused sandbox into new ones, which go on from this very moment.

    Each has its processes, memory and files, and a name and an address of its own. Use it to
    try several ways at once.
    """
    siblings = sandbox(job, vm_name).fork(len(names) or count, names or None)
    return Forks(names=[sibling.name for sibling in siblings])


def rollback(job: Job, vm_name: VmName, snapshot_id: SnapshotId) -> VmDescription:
    """Take a sandbox back to a snapshot that was taken of it. What happened since is lost.

    Its name, address and ports stay. Use it to undo what went wrong.
    """
    box = sandbox(job, vm_name)
    box.rollback(snapshot_id)
    return VmDescription.of(box.info())


def snapshots(
    job: Job,
    vm_name: Annotated[str, Field(description="only those taken of this sandbox; '' is all")] = "",
) -> SnapshotDescriptions:
    """List stored snapshots, oldest first."""
    found = [one for one in job.manager.snapshots.list() if vm_name in ("", one.vm)]
    return SnapshotDescriptions(snapshots=[_described(one) for one in found])


def snapshot_tree(job: Job) -> SnapshotDescriptions:
    """List all snapshots as a tree: each is followed by those that build on it.

    depth is the number of ancestors. A parent that was deleted is not listed.
    """
    ordered = by_descent(job.manager.snapshots.list())
    return SnapshotDescriptions(snapshots=[_described(one, depth) for depth, one in ordered])


def delete_snapshot(job: Job, snapshot_id: SnapshotId) -> Removed:
    """Delete a stored snapshot. Sandboxes restored from it, and later snapshots, stay whole."""
    job.manager.snapshots.delete(snapshot_id)
    return Removed(removed=[snapshot_id])


def snapshot_diff(
    job: Job,
    before: SnapshotId,
    after: SnapshotId,
) -> Difference:
    """Tell which files and processes are different in the second of two snapshots.

    Use it to see what a command, or another way that was tried, has changed. Either may be a
    template. Nothing of /proc, /sys, /dev and /run is compared. It takes some seconds.
    """
    found = job.manager.snapshots.diff(before, after)
    fields = unstructure(found)
    entries = {name: fields[name][:MOST_CHANGES] for name in ("files", "processes")}
    is_cut = any(len(entries[name]) < len(fields[name]) for name in entries)
    note = "" if found.complete and not is_cut else "There is more than this that is different."
    return Difference.model_validate({**entries, "note": note})


def rename_vm(
    job: Job,
    vm_name: VmName,
    new_name: Annotated[str, Field(description="up to 63 letters, digits, '-', '_' and '.'")],
    replace: Annotated[
        bool, Field(description="destroy the sandbox that has this name, if there is one")
    ] = False,
) -> VmDescription:
    """Give a running or paused sandbox another name. Its address and ports stay.

    With replace it takes the place of another one: so the best of several forks becomes the
    original.
    """
    box = sandbox(job, vm_name)
    box.rename(new_name, replace=replace)
    return VmDescription.of(box.info())


def ports(job: Job, vm_name: VmName) -> Ports:
    """List the ports of a sandbox that can be reached from the daemon's host."""
    found = sandbox(job, vm_name).ports.list()
    return Ports(ports=[PortForward.model_validate(unstructure(one)) for one in found])


def add_port(
    job: Job,
    vm_name: VmName,
    guest_port: Annotated[Port, Field(description="TCP port that a program in it listens on")],
    description: Annotated[str, Field(max_length=100)] = "",
) -> PortForward:
    """Make a server that runs in a sandbox reachable, at 127.0.0.1:host_port of the daemon's host.

    Whether anything listens in the sandbox is not checked; it must listen on 0.0.0.0.
    """
    added = sandbox(job, vm_name).ports.add(guest_port, description=description)
    return PortForward.model_validate(unstructure(added))


def remove_port(
    job: Job,
    vm_name: VmName,
    host_port: Annotated[Port, Field(description="as ports and add_port give it")],
) -> Removed:
    """Forward a port no longer, and cut the connections through it."""
    sandbox(job, vm_name).ports.remove(host_port)
    return Removed(removed=[str(host_port)])


def health(
    job: Job,
    vm_name: Annotated[str, Field(description="also ask this sandbox; '' asks none")] = "",
) -> Health:
    """Ask whether the daemon is well, and how busy one sandbox is: load, memory, processes."""
    found = job.manager.health()
    told = Health(status=found.status, uptime=found.uptime, vms=found.vms)
    if vm_name:
        told.vm = GuestHealth.model_validate(unstructure(sandbox(job, vm_name).health()))
    return told


def _described(info: SnapshotInfo, depth: int = 0) -> SnapshotDescription:
    return SnapshotDescription.model_validate({**unstructure(info), "depth": depth})
