"""What a daemon that was killed has left, and may have been left by somebody worse."""

from __future__ import annotations

from pathlib import Path

import pytest
from deep_tree import deep_tree

from arrakis_rpc.errors import UnsupportedError
from arrakisd.settings.config import Config
from arrakisd.settings.paths import StatePaths
from arrakisd.upkeep import sweep as module
from arrakisd.upkeep.sweep import left_in_the_way, sweep


def test_deep_directory(tmp_path: Path) -> None:
    """A directory that a VMM has made deeper than Python can call itself is removed at a start."""
    paths = StatePaths(tmp_path)
    with deep_tree(paths.vm("hostile")):
        for one in left_in_the_way(paths):
            one.remove()
        assert list(paths.vms.iterdir()) == []


def test_what_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays keeps no daemon from starting; who removes by hand is told, and all else goes."""
    paths = StatePaths(tmp_path)
    stuck, other = paths.vm("stuck"), paths.scratch / "other"
    remove = module.remove_tree
    monkeypatch.setattr(module, "remove_tree", lambda path: path != stuck and remove(path))
    for directory in (stuck, other):
        directory.mkdir(parents=True)
    for one in left_in_the_way(paths):
        one.remove()
    assert (stuck.exists(), other.exists()) == (True, False)
    other.mkdir()
    config = Config(state_dir=str(tmp_path), socket=str(tmp_path / "socket"))
    with pytest.raises(UnsupportedError, match=str(stuck)) as caught:
        sweep(config, remove=True)
    assert caught.value.hint
    assert (stuck.exists(), other.exists()) == (True, False)
