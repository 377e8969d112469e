"""Verbs on machines: start, stop, list, fork..."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from .common import (
    as_json,
    manager,
    maybe_named,
    named,
    named_with_snapshot,
    sandbox,
    severally_named,
    verb,
)
from .limits import limited, limits_text
from .network import connected, egress_text
from .output import age_text, duration_text, print_fields, print_json, print_table, say
from .progress import Steps

if TYPE_CHECKING:
    from arrakis_rpc.daemon_api import VmInfo


@verb(
    "start",
    "arrakis start -n box --memory 1024 --vcpus 2\n"
    "arrakis start box --allow pypi.org:443 --allow '*.pythonhosted.org:443' -p 8080:8000\n"
    "arrakis start box --ttl 8h --idle-timeout 10m --on-timeout suspend",
)
@named
@click.option("-k", "--kernel", metavar="PATH", help="A kernel on the daemon's host.")
@click.option("-i", "--initramfs", metavar="PATH", help="An initramfs on the daemon's host.")
@click.option("-r", "--rootfs", metavar="PATH", help="A root image (erofs) on the daemon's host.")
@click.option("-e", "--entry-point", metavar="CMD", help="A command to start in the background.")
@click.option("-s", "--snapshot", metavar="ID", help="Restore this snapshot instead.")
@click.option("--image", metavar="IMAGE", help="The image to start.")
@click.option("--vcpus", type=int, metavar="N", help="Number of virtual CPUs.")
@click.option("--memory", "memory_mib", type=int, metavar="MIB", help="Memory in MiB.")
@click.option("--disk", "disk_mib", type=int, metavar="MIB", help="Writable disk in MiB.")
@click.option("--vmm", metavar="NAME", help="The hypervisor: qemu, cloud-hypervisor, firecracker.")
@connected
@limited
@as_json
def start(
    name: str,
    snapshot: str | None,
    network: dict[str, Any],
    limits: dict[str, Any],
    as_json: bool,
    **options: Any,
) -> None:
    """Start a machine; it answers when this returns."""
    given = {key: value for key, value in options.items() if value is not None}
    if snapshot is not None and given:
        raise click.UsageError(
            "a snapshot decides the machine's shape; beside it give only network and limits"
        )
    with Steps() as steps:
        if snapshot is not None:
            started = manager().restore(name, snapshot, progress=steps, **network, **limits)
        else:
            started = manager().start_sandbox(name, progress=steps, **given, **network, **limits)
    report_started(started.info(), as_json)


def report_started(info: dict[str, Any], as_json: bool) -> None:
    """Tell of a machine that has come up."""
    if as_json:
        print_json(info)
    else:
        say(f"started {info['name']}" + (f" at {info['ip']}" if info["ip"] else ""))


@verb("stop", "arrakis stop box\narrakis stop box other")
@severally_named
@as_json
def stop(name: str, as_json: bool) -> None:
    """Shut a machine down; it stays listed."""
    sandbox(name).stop()
    _report(name, "stopped", as_json)


@verb("pause", "arrakis pause box\narrakis pause box other")
@severally_named
@as_json
def pause(name: str, as_json: bool) -> None:
    """Halt a running machine's CPUs; it keeps its memory."""
    sandbox(name).pause()
    _report(name, "paused", as_json)


@verb("suspend", "arrakis suspend box\narrakis suspend box other")
@severally_named
@as_json
def suspend(name: str, as_json: bool) -> None:
    """Keep a machine on disk until it is resumed; it takes no memory meanwhile."""
    sandbox(name).suspend()
    _report(name, "suspended", as_json)


@verb("resume", "arrakis resume box\narrakis resume box other")
@severally_named
@as_json
def resume(name: str, as_json: bool) -> None:
    """Let a paused or suspended machine go on."""
    sandbox(name).resume()
    _report(name, "resumed", as_json)


@verb("destroy", "arrakis destroy box\narrakis destroy box other")
@severally_named
@as_json
def destroy(name: str, as_json: bool) -> None:
    """End a machine and free all it used; its snapshots stay."""
    sandbox(name).destroy()
    _report(name, "destroyed", as_json)


@verb("destroy-all", "arrakis destroy-all")
@as_json
def destroy_all(as_json: bool) -> None:
    """End all machines; their snapshots stay."""
    manager().destroy_all()
    if as_json:
        print_json({"done": "destroyed"})
    else:
        say("destroyed all machines")


def _report(name: str, done: str, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "done": done})
    else:
        say(f"{done} {name}")


@verb("list", "arrakis list\narrakis list -n box --json")
@maybe_named
@as_json
def list_(name: str | None, as_json: bool) -> None:
    """List one machine in full, or all."""
    if name is None:
        list_machines(as_json)
    else:
        describe_machine(name, as_json)


@verb("list-all", "arrakis list-all --json")
@as_json
def list_all(as_json: bool) -> None:
    """List all machines."""
    list_machines(as_json)


def list_machines(as_json: bool) -> None:
    """Print all machines."""
    found = manager().describe_all()
    if as_json:
        print_json(found)
    else:
        print_table(
            ("NAME", "STATUS", "IP", "VCPUS", "MIB", "IMAGE", "SNAPSHOT", "CREATED"),
            [_row(vm) for vm in found],
        )


def _row(vm: VmInfo) -> tuple[object, ...]:
    return (
        vm.name,
        _status(vm.status, vm.failure, vm.unresponsive_since),
        vm.ip or "-",
        vm.vcpus,
        vm.memory_mib,
        vm.image,
        vm.snapshot or "-",
        age_text(vm.created),
    )


def _status(status: str, failure: object, unresponsive_since: float | None) -> str:
    if unresponsive_since is not None:
        return f"{status} (silent for {duration_text(time.time() - unresponsive_since)})"
    return status if failure is None else f"{status} (failed)"


def describe_machine(name: str, as_json: bool) -> None:
    """Print one machine."""
    info = sandbox(name).info()
    if as_json:
        print_json(info)
        return
    failure = info["failure"] or {"reason": None, "console": []}
    print_fields(
        [
            ("Name", info["name"]),
            ("Status", _status(info["status"], None, info["unresponsive_since"])),
            ("IP address", info["ip"]),
            ("Tap device", info["tap_device_name"]),
            ("Egress", egress_text(info["egress"])),
            ("Image", info["image"]),
            ("Snapshot", info["snapshot"]),
            ("vCPUs", info["vcpus"]),
            ("Memory", f"{info['memory_mib']} MiB"),
            ("Disk", f"{info['disk_mib']} MiB"),
            ("Created", age_text(info["created"])),
            ("VMM's pid", info["pid"]),
            ("Limits", limits_text(info["limits"])),
            ("Failure", failure["reason"]),
        ]
    )
    for line in failure["console"]:
        say(f"  | {line}")
    for port in info.get("port_forwards", []):
        what = f": {port['description']}" if port["description"] else ""
        say(f"Port {port['host_port']} -> {port['guest_port']}{what}")


@verb("fork", "arrakis fork box -c 3\narrakis fork box -c 2 --as left --as right")
@named
@click.option("-c", "--count", type=int, metavar="N", help="How many.  [default: 1]")
@click.option("--as", "names", multiple=True, metavar="NAME", help="A sibling's name; repeatable.")
@as_json
def fork(name: str, count: int | None, names: tuple[str, ...], as_json: bool) -> None:
    """Make siblings of a running or paused machine; prints their names."""
    if count is None:
        count = len(names) or 1
    elif names and len(names) != count:
        raise click.UsageError(f"{len(names)} names for {count} siblings")
    siblings = sandbox(name).fork(count, names or None)
    if as_json:
        print_json([sibling.info() for sibling in siblings])
    else:
        for sibling in siblings:
            say(sibling.name)


@verb("rollback", "arrakis rollback box before-upgrade")
@named_with_snapshot
def rollback(name: str, snapshot: str) -> None:
    """Take a machine back to a snapshot; name and address stay.

    What happened in it since is lost, but for other snapshots.
    """
    sandbox(name).rollback(snapshot)
    say(f"{name} is back at {snapshot}")


@verb("rename", "arrakis rename box-fork2 winner\narrakis rename box-fork2 box --replace")
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option("--replace", is_flag=True, help="Take the place of a machine NEW; that is destroyed.")
@as_json
def rename(old: str, new: str, replace: bool, as_json: bool) -> None:
    """Give a machine another name; address and ports stay."""
    sandbox(old).rename(new, replace=replace)
    if as_json:
        print_json({"name": new, "former": old, "done": "renamed"})
    else:
        say(f"{old} is {new} now")


VERBS = [
    start,
    stop,
    pause,
    suspend,
    resume,
    destroy,
    destroy_all,
    list_,
    list_all,
    fork,
    rollback,
    rename,
]
