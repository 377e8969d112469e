"""Verbs on the daemon itself: health, info, doctor, events."""

from __future__ import annotations

import json
import time

import click

from .common import as_json, manager, maybe_named, verb
from .output import (
    complain,
    duration_text,
    print_fields,
    print_json,
    print_table,
    say,
    size_text,
)
from .vms import describe_machine


@verb("health", "arrakis health")
@as_json
def health(as_json: bool) -> int:
    """Ask whether the daemon is well; the exit status is 1 if not.

    Then it is degraded, and the reasons are given.
    """
    found = manager().health()
    status = 0 if found.status == "healthy" else 1
    if as_json:
        print_json(found)
        return status
    vms = ", ".join(f"{count} {status}" for status, count in found.vms.items() if count)
    say(f"{found.status}, up {duration_text(found.uptime)}, machines: {vms or 'none'}")
    for reason in found.reasons:
        say(f"{reason.part}: {reason.detail}")
    return status


@verb("info", "arrakis info\narrakis info box")
@maybe_named
@as_json
def info(name: str | None, as_json: bool) -> None:
    """Describe the daemon, or a machine."""
    if name is not None:
        describe_machine(name, as_json)
        return
    found = manager().info()
    if as_json:
        print_json(found)
        return
    print_fields(
        [
            ("Daemon", f"{found.daemon}, pid {found.pid}"),
            ("Address", manager().address),
            ("State", found.state_dir),
            ("VMM", f"{found.vmm}, {found.accelerator}"),
            ("Host", f"{found.vcpus} CPUs, {size_text(found.memory_mib * 2**20)}"),
            (
                "Default shape",
                f"{found.default_vcpus} vCPUs, {found.default_memory_mib} MiB memory, "
                f"{found.default_disk_mib} MiB disk",
            ),
        ]
    )


@verb("doctor", "arrakis doctor\narrakis doctor --fix\narrakis doctor --fix --yes --json")
@click.option("--fix", is_flag=True, help="Remove what a daemon that was killed has left.")
@click.option("--yes", is_flag=True, help="With --fix: do not ask.")
@click.option("--config", type=click.Path(), metavar="FILE", help="With --fix: its settings.")
@click.option("--state", type=click.Path(), metavar="DIR", help="With --fix: its state.")
@as_json
def doctor(fix: bool, yes: bool, config: str | None, state: str | None, as_json: bool) -> int:
    """Check what this host can do, and how to mend what it cannot.

    Works without a daemon, too, and then says how to start it. With --fix, which needs that no
    daemon runs, shows what one that was killed has left, asks, and removes it; with --json it
    only shows, unless --yes is given. Every daemon does the same when it starts. Snapshots,
    templates and suspended machines stay.
    """
    from .doctor import examine, sweep

    if fix:
        return sweep(yes, as_json, config, state)
    checks = examine(manager())
    healthy = all(check.ok for check in checks if check.required)
    if as_json:
        print_json({"healthy": healthy, "checks": checks})
        return 0 if healthy else 1
    print_table(
        ("", "CHECK", "DETAIL"),
        [
            ("ok" if one.ok else "MISSING" if one.required else "absent", one.name, one.detail)
            for one in checks
        ],
    )
    fixes = [check for check in checks if not check.ok and check.fix]
    if fixes:
        say("")
    for check in fixes:
        say(f"{check.name}: {check.fix}")
    if not healthy:
        complain("this host is not ready")
    return 0 if healthy else 1


@verb("events", "arrakis events --json")
@click.option("--json", "as_json", is_flag=True, help="Print each event as JSON on a line.")
def events(as_json: bool) -> None:
    """Print what happens, until interrupted."""
    for event in manager().events():
        if as_json:
            print_json(event, indent=None)
            continue
        moment = time.strftime("%H:%M:%S", time.localtime(event.time))
        data = json.dumps(event.data) if event.data else ""
        say(f"{moment}  {event.kind:<20}  {event.vm or '-':<20}  {data}".rstrip())


VERBS = [doctor, health, info, events]
