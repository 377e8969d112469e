"""The server: which tools and resources there are, and how their failures look."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, get_type_hints

from attrs import frozen
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError, ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel

from arrakis import SandboxManager, __version__
from arrakis_rpc.errors import ArrakisError, NotFoundError
from arrakis_rpc.text import as_unicode

from . import desktop_tools as desktop
from . import guest_tools as guest
from . import machine_tools as machines
from .jobs import Job, Jobs

INSTRUCTIONS = """\
Arrakis runs disposable Linux machines ("sandboxes", "VMs"), each a real machine with a kernel,
root, a disk and a network of its own, that can go back in time. Start one with start_sandbox,
work in it with run_command or exec, upload_file and download_file. Take a snapshot before
anything risky; restore_snapshot gives a new sandbox as it was then, running programs included.
fork copies a running sandbox, to try several ways at once. A sandbox of the image "desktop" has a
screen: see it with screenshot, use it with click, type_text and press_key.
Destroy what you no longer need.
Sizes are in MiB or bytes as the name says, durations in seconds."""


@frozen
class _Kind:
    """What a client may show its user before a tool is called."""

    read_only: bool = False
    destructive: bool = False
    idempotent: bool = False


_READS = _Kind(read_only=True, idempotent=True)
_ADDS = _Kind()
_CHANGES = _Kind(destructive=True)
_REMOVES = _Kind(destructive=True, idempotent=True)

TOOLS: dict[str, tuple[Callable[..., Any], _Kind]] = {
    "start_sandbox": (machines.start_sandbox, _ADDS),
    "restore_snapshot": (machines.restore_snapshot, _ADDS),
    "snapshot": (machines.snapshot, _ADDS),
    "run_command": (guest.run_command, _CHANGES),
    "upload_file": (guest.upload_file, _CHANGES),
    "download_file": (guest.download_file, _READS),
    "destroy_vm": (machines.destroy_vm, _REMOVES),
    "destroy_all_vms": (machines.destroy_all_vms, _REMOVES),
    "update_vm_state": (machines.update_vm_state, _CHANGES),
    "list_vms": (machines.list_vms, _READS),
    "vm_info": (machines.vm_info, _READS),
    "fork": (machines.fork, _ADDS),
    "rollback": (machines.rollback, _CHANGES),
    "snapshots": (machines.snapshots, _READS),
    "snapshot_tree": (machines.snapshot_tree, _READS),
    "delete_snapshot": (machines.delete_snapshot, _REMOVES),
    "exec": (guest.exec_command, _CHANGES),
    "list_files": (guest.list_files, _READS),
    "ports": (machines.ports, _READS),
    "add_port": (machines.add_port, _ADDS),
    "remove_port": (machines.remove_port, _REMOVES),
    "health": (machines.health, _READS),
    "snapshot_diff": (machines.snapshot_diff, _READS),
    "rename_vm": (machines.rename_vm, _CHANGES),
    "screenshot": (desktop.screenshot, _READS),
    "click": (desktop.click, _CHANGES),
    "move_pointer": (desktop.move_pointer, _CHANGES),
    "drag": (desktop.drag, _CHANGES),
    "scroll": (desktop.scroll, _CHANGES),
    "type_text": (desktop.type_text, _CHANGES),
    "press_key": (desktop.press_key, _CHANGES),
}


def build_server(manager: SandboxManager) -> MCPServer[Any]:
    """Make a server whose tools work on a daemon's sandboxes."""
    jobs = Jobs(manager)
    # Not "INFO", which reports each failure of a tool, with what the caller sent.
    server: MCPServer[Any] = MCPServer(
        "arrakis",
        title="Arrakis",
        version=__version__,
        instructions=INSTRUCTIONS,
        log_level="WARNING",
    )
    # It says at INFO what each request was, and the former line changes the root logger only.
    logging.getLogger("mcp").setLevel(logging.WARNING)
    for name, (work, kind) in TOOLS.items():
        server.add_tool(
            _tool(jobs, work),
            name=name,
            description=inspect.getdoc(work),
            annotations=ToolAnnotations(
                read_only_hint=kind.read_only,
                destructive_hint=kind.destructive,
                idempotent_hint=kind.idempotent,
                open_world_hint=False,
            ),
        )
    _add_resources(server, jobs)
    return server


def _add_resources(server: MCPServer[Any], jobs: Jobs) -> None:
    @server.resource("arrakis://vms", mime_type="application/json")
    async def vms() -> str:
        """All sandboxes, by name."""
        return await _resource(jobs, machines.list_vms)

    @server.resource("arrakis://vm/{vm_name}", mime_type="application/json")
    async def vm(vm_name: str) -> str:
        """One sandbox: its status, address, size and ports."""
        return await _resource(jobs, lambda job: machines.vm_info(job, vm_name))


async def _resource(jobs: Jobs, work: Callable[[Job], BaseModel]) -> str:
    try:
        return (await jobs.run(work)).model_dump_json(indent=2)
    except NotFoundError as error:
        raise ResourceNotFoundError(explain(error)) from error
    except ArrakisError as error:
        raise ResourceError(explain(error)) from error


def _tool(jobs: Jobs, work: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Make a tool of a function whose first parameter is a `Job`."""

    async def tool(context: Context[Any, Any], **arguments: Any) -> Any:
        try:
            return await jobs.run(
                lambda job: work(job, **arguments),
                notify=context.report_progress,
                request=context.request_context.request,
            )
        except ArrakisError as error:
            raise ToolError(explain(error)) from error

    # The library makes the tool's schema of these.
    hints = get_type_hints(work, include_extras=True)
    result = hints.pop("return")
    first = inspect.Parameter(
        "context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Context[Any, Any]
    )
    others = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in [*inspect.signature(work).parameters.values()][1:]
    ]
    tool.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [first, *others], return_annotation=result
    )
    tool.__annotations__ = {"context": Context[Any, Any], "return": result}
    tool.__name__ = work.__name__
    return tool


def explain(error: ArrakisError) -> str:
    """Say what went wrong, and what can be done, to somebody who reads only text."""
    lines = [f"{type(error).__name__}: {error.message}"]
    if error.state and error.required:
        lines.append(f"It is {error.state}, and has to be {error.required}.")
    if error.hint:
        lines.append(f"Hint: {error.hint}")
    return as_unicode("\n".join(lines))
