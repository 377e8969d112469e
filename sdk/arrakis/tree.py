"""The tree of templates, snapshots and machines: who came from whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from attrs import field, frozen

from arrakis_rpc.daemon_api import SnapshotInfo, TemplateInfo, VmInfo


@frozen
class TreeNode:
    """One place in the tree.

    ``bytes`` is what it takes on disk by itself, without its ancestors; ``created`` is in
    Unix time. ``machines`` stand at this place: they were started or restored from it, or it
    is the last snapshot that was taken of them. ``children`` are in order of age.
    """

    kind: Literal["template", "snapshot"]
    id: str
    label: str
    created: float
    bytes: int
    machines: list[VmInfo] = field(factory=list)
    children: list[TreeNode] = field(factory=list)


def by_descent(snapshots: Iterable[SnapshotInfo]) -> Iterator[tuple[int, SnapshotInfo]]:
    """Give each before those on top of it, siblings by age, with how many ancestors it has.

    Only those given count: one whose parent is not among them has none.
    """
    found = sorted(snapshots, key=lambda one: one.created)
    known = {one.id for one in found}
    above: defaultdict[str | None, list[SnapshotInfo]] = defaultdict(list)
    for one in found:
        above[one.parent if one.parent in known else None].append(one)
    # Not by recursion: a snapshot may have more ancestors than Python has frames.
    waiting = [(0, one) for one in reversed(above[None])]
    while waiting:
        depth, one = waiting.pop()
        yield depth, one
        waiting += [(depth + 1, child) for child in reversed(above[one.id])]


def grow(
    templates: Iterable[TemplateInfo], snapshots: Iterable[SnapshotInfo], vms: Iterable[VmInfo]
) -> list[TreeNode]:
    """Make the trees, one for each template, of what a daemon lists."""
    machines: defaultdict[str, list[VmInfo]] = defaultdict(list)
    for vm in vms:
        machines[_place(vm.snapshot, vm.template)].append(vm)
    trees = {
        place: TreeNode("template", one.id, one.image, one.created, one.bytes, machines[place])
        for one in templates
        for place in [_place(None, one.id)]
    }
    places = dict(trees)
    for depth, one in by_descent(snapshots):
        place = _place(one.id, one.template)
        node = TreeNode("snapshot", one.id, one.label, one.created, one.bytes, machines[place])
        places[place] = node
        if below := places.get(_place(one.parent if depth else None, one.template)):
            below.children.append(node)
    return list(trees.values())


def flatten(trees: Iterable[TreeNode]) -> list[dict[str, Any]]:
    """Give all places as plain data without nesting, each before those that descend from it."""
    places: list[dict[str, Any]] = []
    waiting: list[tuple[str | None, TreeNode]] = [(None, tree) for tree in trees]
    while waiting:
        parent, node = waiting.pop(0)
        places.append(
            {
                "kind": node.kind,
                "id": node.id,
                "parent": parent,
                "label": node.label,
                "created": node.created,
                "bytes": node.bytes,
                "machines": [machine.name for machine in node.machines],
            }
        )
        waiting += [(node.id, child) for child in node.children]
    return places


def _place(snapshot: str | None, template: str) -> str:
    # Ids of templates and of snapshots are not distinct.
    return f"t {template}" if snapshot is None else f"s {snapshot}"
