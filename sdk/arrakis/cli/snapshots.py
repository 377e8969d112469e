"""Verbs on snapshots."""

from __future__ import annotations

import click

from .common import as_json, manager, named, sandbox, verb
from .output import age_text, print_json, print_table, say, size_text
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
    """Keep a machine as it is now; prints the snapshot's id."""
    created = sandbox(name).snapshot(snapshot_id, label=label)
    if as_json:
        print_json(manager().snapshots.info(created))
    else:
        say(created)


@verb("restore", "arrakis restore box2 --snapshot before-upgrade")
@named
@click.option("-i", "--snapshot", "--id", "snapshot_id", required=True, metavar="ID")
@as_json
def restore(name: str, snapshot_id: str, as_json: bool) -> None:
    """Make a new machine NAME from a snapshot."""
    with Steps() as steps:
        restored = manager().restore(name, snapshot_id, progress=steps)
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


VERBS = [snapshot, restore, snapshots, snapshot_delete]
