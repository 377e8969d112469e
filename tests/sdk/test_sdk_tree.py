"""The tree of templates, snapshots and machines."""

from __future__ import annotations

from typing import Any

import pytest

from arrakis.cli.drawing import drawn
from arrakis.tree import flatten, grow
from arrakis_rpc.daemon_api import SnapshotInfo, TemplateInfo, VmInfo


def template(name: str) -> TemplateInfo:
    shape: dict[str, Any] = dict.fromkeys(("vcpus", "memory_mib", "disk_mib", "bytes"), 1)
    texts = dict.fromkeys(("image_digest", "vmm", "accelerator"), "")
    return TemplateInfo(id=name, image="base", created=0.0, boot=1.0, **shape, **texts)


def snapshot(name: str, parent: str | None, created: float = 0.0, root: str = "t") -> SnapshotInfo:
    numbers = dict.fromkeys(("bytes", "memory_mib", "vcpus", "changed_pages"), 1)
    return SnapshotInfo(
        id=name,
        vm="",
        template=root,
        parent=parent,
        label="",
        created=created,
        pause=0.0,
        **numbers,
    )


def machine(name: str, place: str | None, root: str = "t") -> VmInfo:
    numbers = dict.fromkeys(("vcpus", "memory_mib", "disk_mib"), 1)
    return VmInfo(
        name=name,
        status="RUNNING",
        image="base",
        created=0.0,
        template=root,
        snapshot=place,
        **numbers,
    )


def test_who_came_from_whom() -> None:
    """Snapshots and machines stand at their places, siblings in order of age, trees apart."""
    trees = grow(
        [template("t"), template("u")],
        [
            snapshot("younger", "first", 3.0),
            snapshot("older", "first", 2.0),
            snapshot("first", None, 1.0),
            snapshot("t", None, 1.5, root="u"),  # an id that is a template's elsewhere
        ],
        [machine("fresh", None), machine("back", "older"), machine("other", "t", root="u")],
    )
    assert [(one["id"], one["parent"], one["machines"]) for one in flatten(trees)] == [
        ("t", None, ["fresh"]),
        ("u", None, []),
        ("first", "t", []),
        ("t", "u", ["other"]),
        ("older", "first", ["back"]),
        ("younger", "first", []),
    ]


def test_parent_that_is_not_listed() -> None:
    """A snapshot whose parent is deleted while both are listed stands on its template."""
    (tree,) = grow([template("t")], [snapshot("orphan", "gone"), snapshot("child", "orphan")], [])
    found = [(one["id"], one["parent"]) for one in flatten([tree])]
    assert found == [("t", None), ("orphan", "t"), ("child", "orphan")]


def test_long_chain() -> None:
    """A chain that is deeper than Python's stack is grown, flattened and drawn."""
    chain = [snapshot(f"s{n}", f"s{n - 1}" if n else None, float(n)) for n in range(5000)]
    (tree,) = grow([template("t")], chain, [])
    assert len(flatten([tree])) == len(list(drawn(tree))) == 5001


def test_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines lead from each to what descends from it, and end at the last."""
    monkeypatch.setattr("arrakis.cli.drawing.age_text", lambda _: "now")
    (tree,) = grow(
        [template("t")],
        [snapshot("a", None, 1.0), snapshot("b", "a", 2.0), snapshot("c", None, 3.0)],
        [machine("top", None), machine("end", "c")],
    )
    assert list(drawn(tree)) == [
        "template of base  1 B, now",
        "├── ● top  RUNNING",
        "├── a  1 B, now",
        "│   └── b  1 B, now",
        "└── c  1 B, now",
        "    └── ● end  RUNNING",
    ]
