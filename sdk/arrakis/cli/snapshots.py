"""Verbs on snapshots."""

from __future__ import annotations

from typing import Any

import click

from .common import as_json, manager, named, named_with_snapshot, sandbox, verb
from .drawing import drawn
from .limits import limited
from .network import connected
from .output import age_text, is_stdout, print_json, print_table, say, size_text
from .progress import Steps
from .vms import report_started


@verb("snapshot", "arrakis snapshot box --snapshot before-upgrade")
@named
@click.option(
    "-i",
    "-o",
    "--snapshot",
    "--id",
    "snapshot_id",
    default="",
    metavar="ID",
    help="Lower-case letters, digits and '-'.  [default: the daemon chooses]",
)
@click.option("--label", default="", metavar="TEXT", help="What it is, in your words.")
@as_json
def snapshot(name: str, snapshot_id: str, label: str, as_json: bool) -> None:
    """Keep a machine as it is now; prints the snapshot's id.

    'arrakis snapshots' and 'arrakis tree' show all there are.
    """
    created = sandbox(name).snapshot(snapshot_id, label=label)
    if as_json:
        print_json(manager().snapshots.info(created))
    else:
        say(created)


@verb(
    "restore",
    "arrakis restore box2 before-upgrade\n"
    "arrakis restore box2 --snapshot before-upgrade --egress none",
)
@named_with_snapshot
@connected
@limited
@as_json
def restore(
    name: str, snapshot: str, network: dict[str, Any], limits: dict[str, Any], as_json: bool
) -> None:
    """Make a new machine NAME from a snapshot."""
    with Steps() as steps:
        restored = manager().restore(name, snapshot, progress=steps, **network, **limits)
    report_started(restored.info(), as_json)


@verb("snapshots", "arrakis snapshots --json")
@as_json
def snapshots(as_json: bool) -> None:
    """List all snapshots, oldest first."""
    found = manager().snapshots.list()
    if as_json:
        print_json(found)
        return
    print_table(
        ("ID", "OF", "PARENT", "MIB", "SIZE", "PAUSE", "CREATED", "LABEL"),
        [
            (
                one.id,
                one.vm,
                one.parent or one.template,
                one.memory_mib,
                size_text(one.bytes),
                f"{one.pause * 1000:.0f} ms",
                age_text(one.created),
                one.label,
            )
            for one in found
        ],
    )


@verb("tree", "arrakis tree --json")
@as_json
def tree(as_json: bool) -> None:
    """Draw who came from whom: templates, snapshots, and the machines at their places."""
    from arrakis.tree import flatten

    found = manager().snapshots.tree()
    if as_json:
        print_json(flatten(found))
        return
    for root in found:
        for line in drawn(root):
            say(line)


@verb("snapshot-delete", "arrakis snapshot-delete before-upgrade")
@click.argument("snapshot_id", metavar="ID")
@click.option("-r", "--recursive", is_flag=True, help="Also all that descend from it.")
@as_json
def snapshot_delete(snapshot_id: str, recursive: bool, as_json: bool) -> None:
    """Delete a snapshot; those on top of it stay whole."""
    manager().snapshots.delete(snapshot_id, recursive=recursive)
    if as_json:
        print_json({"id": snapshot_id, "done": "deleted"})
    else:
        say(f"deleted {snapshot_id}")


@verb("snapshot-diff", "arrakis snapshot diff before-upgrade after-upgrade")
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@as_json
def snapshot_diff(before: str, after: str, as_json: bool) -> None:
    """Show which files and processes are different in B."""
    found = manager().snapshots.diff(before, after)
    if as_json:
        print_json(found)
        return
    signs = {"added": "+", "removed": "-", "changed": "~"}
    for file in found.files:
        size = f"  {size_text(file.size)}" if file.kind == "file" else f"  {file.kind}"
        say(f"{signs[file.change]} {file.path}{size}")
    for process in found.processes:
        say(f"{signs[process.change]} [{process.pid}] {process.command}")
    if not found.complete:
        click.echo("There is more than can be shown.", err=True)


@verb("snapshot-export", "arrakis snapshot export before-upgrade before-upgrade.arrakis")
@click.argument("snapshot_id", metavar="ID")
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
def snapshot_export(snapshot_id: str, file: str) -> None:
    """Write a snapshot and its ancestors into a file, for another host."""
    with Steps() as steps:
        manager().snapshots.export(snapshot_id, file, progress=steps)
    if not is_stdout(file):
        say(f"exported {snapshot_id} to {file}")


@verb("snapshot-import", "arrakis snapshot import before-upgrade.arrakis")
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@as_json
def snapshot_import(file: str, as_json: bool) -> None:
    """Take what was exported; what is here already stays."""
    with Steps() as steps:
        found = manager().snapshots.import_(file, progress=steps)
    if as_json:
        print_json(found)
    else:
        say(f"imported {found.id}: {len(found.new)} new, {len(found.present)} were here")


VERBS = [
    snapshot,
    restore,
    snapshots,
    tree,
    snapshot_diff,
    snapshot_export,
    snapshot_import,
    snapshot_delete,
]
