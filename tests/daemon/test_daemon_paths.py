"""Paths under the state directory, and names that would lead out of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arrakis_rpc.errors import InvalidParamsError
from arrakisd.settings.paths import StatePaths

ROOT = Path("/state")
KINDS = ("vm", "snapshot", "template", "layer")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/", "/etc/passwd", "a/../b", "x/", ".hidden", "a\0", "\0"],
)
def test_hostile_names(kind: str, name: str) -> None:
    """No name that is a path, or hidden, gives a path."""
    with pytest.raises(InvalidParamsError, match="cannot be a name"):
        getattr(StatePaths(ROOT), kind)(name)


@given(st.sampled_from(KINDS), st.text())
@example("vm", "...")
@example("vm", "a..b")
def test_any_name(kind: str, name: str) -> None:
    """Whatever is not refused stands directly in its directory."""
    paths = StatePaths(ROOT)
    try:
        path = getattr(paths, kind)(name)
    except InvalidParamsError:
        return
    assert path.parent == getattr(paths, f"{kind}s")
    assert path.name == name
    assert path.parent.parent == ROOT


def test_layers_find_each_other() -> None:
    """A VM's directory and a layer's are equally deep: one relative path leads from both."""
    paths = StatePaths(ROOT)
    below = Path("../../layers/b/disk.qcow2")
    for directory in (paths.vm("v"), paths.layer("a"), paths.scratch / "s"):
        parts = (directory / below).parts
        assert parts[-5:] == ("..", "..", "layers", "b", "disk.qcow2")
        assert directory.parent.parent == ROOT
