"""Fixtures: each fake hypervisor in turn, and a rig to run its machines in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from real_daemon import passable_directory, processes_naming
from vmm_harness import VERSIONS, Fake, Rig


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory with a short name, as that of a socket has 107 characters at most."""
    with passable_directory() as directory:
        yield directory


@pytest.fixture(params=VERSIONS)
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> Fake:
    """A fake hypervisor of each kind."""
    return Fake(request.param, tmp_path / "bin")


@pytest.fixture
def rig(fake: Fake, tmp_path: Path) -> Iterator[Rig]:
    """A state directory; in the end no process, socket or lock is left in it."""
    rig = Rig(tmp_path, fake)
    rig.prepare()
    yield rig
    assert processes_naming(tmp_path) == set()
    left = {path.name for path in (tmp_path / "vms").rglob("*")}
    assert not {name for name in left if name.endswith((".sock", ".lock"))}
    assert not left & {"dump", "frozen.raw"}
