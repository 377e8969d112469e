"""What the Go program does not have: health, forks, rollbacks, snapshots, ports, egress."""

from __future__ import annotations

from typing import Any

from arrakis_rpc import daemon_api as api
from arrakis_rpc.errors import NotFoundError
from arrakis_rpc.guest_api import Health
from arrakis_rpc.network_api import Forward

from . import models as m
from .json_form import public
from .routes import Ask, Route
from .vm_routes import limits_wanted, port_request, vm_view

_IN_VM = (404, 409, 422)


async def info(ask: Ask) -> Any:
    """Describe the daemon."""
    return public(await ask.call("system.info"), api.SystemInfo)


async def doctor(ask: Ask) -> Any:
    """Tell what this host can do, and what is missing."""
    return public(await ask.call("system.doctor"), api.SystemDoctor)


async def vm_health(ask: Ask) -> Any:
    """Ask the guest in a VM how it is."""
    return public(await ask.call("vm.health", name=ask.name), Health)


async def fork(ask: Ask) -> Any:
    """Make siblings of a VM."""
    body: m.ForkRequest = ask.body
    count = len(body.names) if body.names else body.count
    found = await ask.call("vm.fork", name=ask.name, count=count, names=body.names)
    return {"vms": [vm_view(vm) for vm in found["vms"]]}


async def suspend(ask: Ask) -> Any:
    """Keep a VM on disk."""
    return vm_view(await ask.call("vm.suspend", name=ask.name))


async def set_limits(ask: Ask) -> Any:
    """Change how long a VM may live."""
    wanted = limits_wanted(ask.body)
    return vm_view(await ask.call("vm.set_limits", name=ask.name, limits=wanted))


async def rollback(ask: Ask) -> Any:
    """Take a VM back to a snapshot."""
    body: m.RollbackRequest = ask.body
    return vm_view(await ask.call("vm.rollback", name=ask.name, snapshot=body.snapshotId))


async def rename(ask: Ask) -> Any:
    """Give a VM another name, or that of a VM whose place it takes."""
    body: m.RenameRequest = ask.body
    called = await ask.call("vm.rename", name=ask.name, to=body.name, replace=body.replace)
    return vm_view(called)


async def list_snapshots(ask: Ask) -> Any:
    """Give a page of the snapshots."""
    page = await ask.call("snapshot.list", after=ask.query.after, limit=ask.query.limit)
    return public(page, api.SnapshotList)


async def snapshot_info(ask: Ask) -> Any:
    """Describe one snapshot."""
    return public(await ask.call("snapshot.info", id=ask.path["id"]), api.SnapshotInfo)


async def difference(ask: Ask) -> Any:
    """Tell what is different in another snapshot or template: files and processes."""
    found = await ask.call("snapshot.diff", before=ask.path["id"], after=ask.query.to)
    return public(found, api.SnapshotDifference)


async def delete_snapshot(ask: Ask) -> Any:
    """Delete a snapshot; those on top of it stay whole."""
    chosen = ask.path["id"]
    await ask.call("snapshot.delete", id=chosen, recursive=ask.query.recursive)
    return {"success": True, "message": f"snapshot {chosen} is deleted"}


async def list_ports(ask: Ask) -> Any:
    """Give the ports that lead into a VM."""
    return public(await ask.call("port.list", name=ask.name), api.PortList)


async def add_port(ask: Ask) -> Any:
    """Forward one more port."""
    return public(await ask.call("port.add", vm=ask.name, port=port_request(ask.body)), Forward)


async def remove_port(ask: Ask) -> Any:
    """Forward a port no longer."""
    text = ask.path["hostPort"]
    if not (text.isascii() and text.isdecimal() and len(text) <= 5):
        raise NotFoundError(f"no port {text[:20]!r} of the host leads into VM '{ask.name[:63]}'")
    await ask.call("port.remove", vm=ask.name, host_port=int(text))
    return {"success": True, "message": f"port {text} is closed"}


async def set_egress(ask: Ask) -> Any:
    """Change what a VM may reach."""
    body: m.EgressSpec = ask.body
    await ask.call("egress.set", vm=ask.name, egress={"mode": body.mode, "allow": body.allow})
    return {"success": True, "message": f"VM {ask.name} has egress {body.mode}"}


ROUTES = [
    Route("GET", "/v1/info", info, "What this daemon is and uses", api.SystemInfo),
    Route("GET", "/v1/doctor", doctor, "What this host can do", api.SystemDoctor),
    Route(
        "GET",
        "/v1/vms/{name}/health",
        vm_health,
        "How the guest in a VM is",
        Health,
        fails=(*_IN_VM, 502, 504),
    ),
    Route(
        "POST",
        "/v1/vms/{name}/fork",
        fork,
        "Make siblings of a VM, all or none",
        m.ListAllVMsResponse,
        m.ForkRequest,
        fails=(*_IN_VM, 502, 503, 504),
    ),
    Route(
        "POST",
        "/v1/vms/{name}/suspend",
        suspend,
        "Keep a VM on disk until it is resumed, and end its process",
        m.VM,
        fails=(*_IN_VM, 502, 503, 504),
    ),
    Route(
        "PUT",
        "/v1/vms/{name}/limits",
        set_limits,
        "Change how long a VM may live, or be unused",
        m.VM,
        m.LimitsRequest,
        fails=(404,),
    ),
    Route(
        "POST",
        "/v1/vms/{name}/rollback",
        rollback,
        "Take a VM back to a snapshot that it descends from",
        m.VM,
        m.RollbackRequest,
        fails=(*_IN_VM, 502, 503, 504),
    ),
    Route(
        "POST",
        "/v1/vms/{name}/rename",
        rename,
        "Give a VM another name",
        m.VM,
        m.RenameRequest,
        fails=(*_IN_VM, 502, 504),
    ),
    Route(
        "GET",
        "/v1/snapshots",
        list_snapshots,
        "All snapshots, a page at a time",
        api.SnapshotList,
        query=m.PageQuery,
    ),
    Route(
        "GET", "/v1/snapshots/{id}", snapshot_info, "One snapshot", api.SnapshotInfo, fails=(404,)
    ),
    Route(
        "GET",
        "/v1/snapshots/{id}/diff",
        difference,
        "What is different in another snapshot",
        api.SnapshotDifference,
        query=m.DifferenceQuery,
        fails=(404, 422, 502, 503, 504),
    ),
    Route(
        "DELETE",
        "/v1/snapshots/{id}",
        delete_snapshot,
        "Delete a snapshot; those on top of it stay whole",
        m.VMResponse,
        query=m.DeleteSnapshotQuery,
        fails=(404,),
    ),
    Route(
        "GET",
        "/v1/vms/{name}/ports",
        list_ports,
        "The ports that lead into a VM",
        api.PortList,
        fails=_IN_VM,
    ),
    Route(
        "POST",
        "/v1/vms/{name}/ports",
        add_port,
        "Forward one more port into a VM",
        Forward,
        m.PortSpec,
        fails=(*_IN_VM, 503),
    ),
    Route(
        "DELETE",
        "/v1/vms/{name}/ports/{hostPort}",
        remove_port,
        "Forward a port no longer",
        m.VMResponse,
        fails=_IN_VM,
    ),
    Route(
        "PUT",
        "/v1/vms/{name}/egress",
        set_egress,
        "Change what a VM may reach, from now on",
        m.VMResponse,
        m.EgressSpec,
        fails=_IN_VM,
    ),
]
