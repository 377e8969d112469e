"""VMs, commands and text files, as the Go program has them."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from typing import Any

from arrakis_rpc import daemon_api as api
from arrakis_rpc.errors import FileOperationError, InvalidParamsError

from . import models as m
from .json_form import public
from .local_call import pieces_of
from .routes import Ask, Route

_MOST_OUTPUT = 16 * 2**20
_IN_VM = (404, 409, 502, 504)
_START = (404, 409, 422, 502, 503, 504)


async def health(ask: Ask) -> Any:
    """Say whether the daemon is well."""
    found = await ask.call("system.health")
    moment = datetime.fromtimestamp(found["timestamp"], UTC)
    told = {"status": found["status"], "timestamp": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}
    reasons = [public(reason, api.Problem) for reason in found["reasons"]]
    return {**told, "reasons": reasons} if reasons else told  # as the Go program, if all is well


async def list_vms(ask: Ask) -> Any:
    """Give all VMs, of all pages."""
    return {"vms": [vm_view(vm) for vm in await ask.all_of("vm.list", "vms")]}


async def start_vm(ask: Ask) -> Any:
    """Start a VM from an image or a snapshot."""
    body: m.StartVMRequest = ask.body
    params: dict[str, Any] = {
        "name": body.vmName,
        "entry_point": body.entryPoint or None,
        "vmm": body.vmm,
    }
    if body.snapshotId:
        params["snapshot"] = stored_id(body.snapshotId)
    else:
        params |= {
            "kernel": body.kernel or None,
            "initramfs": body.initramfs or None,
            "rootfs": body.rootfs or None,
            "image": body.image,
            "vcpus": body.vcpus,
            "memory_mib": body.memoryMib,
            "disk_mib": body.diskMib,
        }
    network: dict[str, Any] = {}
    if body.egress is not None:
        network["egress"] = {"mode": body.egress.mode, "allow": body.egress.allow}
    if body.ports is not None:
        network["ports"] = [port_request(port) for port in body.ports]
    limits = limits_wanted(body.limits) if body.limits else None
    return vm_view(await ask.call("vm.start", **params, network=network, limits=limits))


async def destroy_all(ask: Ask) -> Any:
    """End and forget all VMs."""
    await ask.call("vm.destroy_all")
    return {"success": True}


async def vm_info(ask: Ask) -> Any:
    """Describe one VM."""
    return vm_view(await ask.call("vm.info", name=ask.name))


_CHANGES = {"stopped": "vm.stop", "paused": "vm.pause", "resume": "vm.resume"}


async def update_vm(ask: Ask) -> Any:
    """Stop, pause or resume a VM."""
    found = await ask.call(_CHANGES[ask.body.status], name=ask.name)
    return {"success": True, "message": f"VM {ask.name} is {found['status']}"}


async def destroy_vm(ask: Ask) -> Any:
    """End and forget one VM."""
    await ask.call("vm.destroy", name=ask.name)
    return {"success": True, "message": f"VM {ask.name} is destroyed"}


async def take_snapshot(ask: Ask) -> Any:
    """Keep a VM as it is now."""
    chosen = stored_id(ask.body.snapshotId) if ask.body.snapshotId else None
    found = await ask.call("snapshot.create", vm=ask.name, id=chosen, label=ask.body.label)
    return {"snapshotId": found["id"]}


async def run_cmd(ask: Ask) -> Any:
    """Run a command with ``bash -c``, and give its output."""
    body: m.VmCommandRequest = ask.body
    if not body.blocking:
        await ask.in_guest("exec.run", {"shell": body.cmd, "background": True}).result()
        return {"output": f"Command '{body.cmd}' started in background", "error": ""}
    call = ask.in_guest("exec.run", {"shell": body.cmd, "merge_output": True})
    output = bytearray()
    while (data := await call.data()) is not None:
        output += data
        if len(output) > _MOST_OUTPUT:
            call.cancel()
            del output[_MOST_OUTPUT:]
            most = f"more than {_MOST_OUTPUT // 2**20} MiB of output, so it was killed"
            return {"output": output.decode(errors="replace"), "error": most}
    return {"output": output.decode(errors="replace"), "error": ending(call.answer)}


async def upload_files(ask: Ask) -> Any:
    """Write text files, up to the first that fails."""
    await ask.call("vm.info", name=ask.name)  # which there must be, even for no file at all
    for file in ask.body.files:
        source = pieces_of(file.content.encode())
        await ask.in_guest("file.write", {"path": file.path}, "data", source).result()
    return {}


async def download_files(ask: Ask) -> Any:
    """Read text files. A path that is none is an error of its file, a name that is none is not."""
    await ask.call("vm.info", name=ask.name)
    room, found = _MOST_OUTPUT, []
    for path in ask.query.paths.split(","):
        try:
            content = await _read(ask, path, room)
        except (FileOperationError, InvalidParamsError) as error:
            found.append({"path": path, "error": error.message})
        else:
            room -= len(content)
            found.append({"path": path, "content": content.decode(errors="replace")})
    return {"files": found}


async def _read(ask: Ask, path: str, room: int) -> bytes:
    content = bytearray()
    call = ask.in_guest("file.read", {"path": path})
    while (data := await call.data()) is not None:
        content += data
        if len(content) > room:
            call.cancel()
            most = f"more than {_MOST_OUTPUT // 2**20} MiB in all"
            raise FileOperationError(f"{most}; /v1/vms/{ask.name}/file gives files of any size")
    return bytes(content)


def vm_view(vm: dict[str, Any]) -> dict[str, Any]:
    """Give a VM in the terms of the Go program, and what else there is to say of it."""
    suspended = vm["status"] == "SUSPENDED"
    view = {
        "vmName": vm["name"],
        "status": "PAUSED" if suspended else vm["status"],
        "ip": vm["ip"] or "",
        "tapDeviceName": vm["tap_device_name"] or "",
        "portForwards": [public(port, api.PortForward) for port in vm["port_forwards"]],
        "image": vm["image"],
        "vcpus": vm["vcpus"],
        "memoryMib": vm["memory_mib"],
        "diskMib": vm["disk_mib"],
        "created": vm["created"],
        "snapshotId": vm["snapshot"],
        "egress": vm["egress"],
        "failure": vm["failure"],
        "suspended": suspended,
        "unresponsiveSince": vm["unresponsive_since"],
        "limits": public(vm["limits"], api.LimitsInfo) if vm["limits"] else None,
    }
    return {key: value for key, value in view.items() if value is not None}


def port_request(port: m.PortSpec) -> dict[str, Any]:
    """Give a port to forward in the terms of the protocol."""
    return {
        "guest_port": port.guestPort,
        "host_port": port.hostPort,
        "description": port.description,
        "publish": port.publish,
    }


def limits_wanted(limits: m.LimitsRequest) -> dict[str, Any]:
    """Give limits in the terms of the protocol."""
    return {
        "ttl": limits.ttl,
        "idle_timeout": limits.idleTimeout,
        "on_timeout": limits.onTimeout,
        "on_unresponsive": limits.onUnresponsive,
    }


def stored_id(given: str) -> str:
    """Give the id under which a snapshot is kept; the Go program's may have capitals."""
    return given.lower().replace("_", "-").replace(".", "-")


def ending(result: dict[str, Any]) -> str:
    """Say how a command ended, in the words of the Go program; nothing if it ended well."""
    number = result["signal"]
    if number is None:
        return f"exit status {result['exit_code']}" if result["exit_code"] else ""
    try:
        name = signal.strsignal(number) or ""
    except ValueError:
        name = ""
    return f"signal: {name.lower() or number}"


ROUTES = [
    Route("GET", "/v1/health", health, "Whether the daemon is well", m.HealthResponse),
    Route("GET", "/v1/vms", list_vms, "All VMs", m.ListAllVMsResponse),
    Route("POST", "/v1/vms", start_vm, "Start a VM", m.VM, m.StartVMRequest, fails=_START),
    Route("DELETE", "/v1/vms", destroy_all, "Destroy all VMs", m.DestroyAllVMsResponse),
    Route("GET", "/v1/vms/{name}", vm_info, "One VM", m.VM, fails=(404,)),
    Route(
        "PATCH",
        "/v1/vms/{name}",
        update_vm,
        "Stop, pause or resume a VM",
        m.VMResponse,
        m.UpdateVMRequest,
        fails=_IN_VM,
    ),
    Route("DELETE", "/v1/vms/{name}", destroy_vm, "Destroy a VM", m.VMResponse, fails=(404,)),
    Route(
        "POST",
        "/v1/vms/{name}/snapshots",
        take_snapshot,
        "Take a snapshot of a VM",
        m.VMSnapshotResponse,
        m.SnapshotRequest,
        fails=(*_IN_VM, 503),
    ),
    Route(
        "POST",
        "/v1/vms/{name}/cmd",
        run_cmd,
        "Run a command and wait for it, or (not blocking) start it",
        m.VmCommandResponse,
        m.VmCommandRequest,
        fails=_IN_VM,
    ),
    Route(
        "POST",
        "/v1/vms/{name}/files",
        upload_files,
        "Write text files",
        m.VmFileUploadResponse,
        m.VmFileUploadRequest,
        fails=(403, *_IN_VM, 422, 507),
    ),
    Route(
        "GET",
        "/v1/vms/{name}/files",
        download_files,
        "Read text files",
        m.VmFileDownloadResponse,
        query=m.DownloadQuery,
        fails=_IN_VM,
    ),
]
