"""A tree of snapshots, drawn with lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .output import age_text, size_text

if TYPE_CHECKING:
    from arrakis.tree import TreeNode

_MACHINE = "\N{BLACK CIRCLE}"


def drawn(root: TreeNode) -> Iterator[str]:
    """Give the lines of a tree: machines first, then what descends, oldest first."""
    # Not by recursion: a snapshot may have more ancestors than Python has frames.
    waiting = [("", "", root)]
    while waiting:
        before, branch, node = waiting.pop()
        yield before + branch + _title(node)
        inner = before + {"": "", "├── ": "│   ", "└── ": "    "}[branch]
        last = len(node.children) - 1
        for number, machine in enumerate(node.machines):
            is_last = last < 0 and number == len(node.machines) - 1
            line = f"{_MACHINE} {machine.name}  {machine.status}"
            yield f"{inner}{_branch(is_last)}{line}"
        waiting += [
            (inner, _branch(number == last), child)
            for number, child in reversed(list(enumerate(node.children)))
        ]


def _branch(is_last: bool) -> str:
    return "└── " if is_last else "├── "


def _title(node: TreeNode) -> str:
    name = f"template of {node.label}" if node.kind == "template" else node.id
    note = f"  {node.label}" if node.kind == "snapshot" and node.label else ""
    return f"{name}  {size_text(node.bytes)}, {age_text(node.created)}{note}"
