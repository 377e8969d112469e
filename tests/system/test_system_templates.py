"""Templates: what stands on one keeps it, and a deleted one is made again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from in_guest import Background
from real_daemon import files_below, running_daemon, wait_until

from arrakis import InvalidStateError, SandboxManager

pytestmark = pytest.mark.vm


def test_delete(template_state: Path) -> None:
    """A template in use stays; with its last user gone it can be deleted, files and all."""
    with running_daemon(template_state) as daemon, SandboxManager(socket=daemon.socket) as manager:
        (template,) = manager.templates.list()
        with manager.start_sandbox("user") as sandbox:
            with pytest.raises(InvalidStateError, match="VM 'user'"):
                manager.templates.delete(template.id)
            sandbox.snapshot("kept")
        with pytest.raises(InvalidStateError, match="snapshot 'kept'"):
            manager.templates.delete(template.id)
        manager.snapshots.delete("kept")
        manager.templates.delete(template.id)
        assert manager.templates.list() == []
        for part in ("templates", "layers", "scratch"):
            assert list((daemon.state / part).iterdir()) == []


def test_build_that_its_first_caller_cancels(manager: SandboxManager, state_dir: Path) -> None:
    """Who waits for somebody else's build makes it himself when that is cancelled; all get it."""
    before = {template.id for template in manager.templates.list()}
    shape = {"memory_mib": 320}
    first = manager._client.open("template.build", shape)
    assert first.take(30) is not None  # it tells that it boots
    waiting = [Background(lambda: manager.templates.build(**shape)) for _ in range(2)]
    start = Background(lambda: manager.start_sandbox("waits", **shape))
    wait_until(lambda: files_below(state_dir, "scratch"), 10)
    time.sleep(3)  # in the middle of its boot
    assert not any(one.error or one.result for one in (*waiting, start))
    first.cancel()
    built = [one.wait(90).id for one in waiting]
    assert start.wait(90).run_cmd("echo up")["output"] == "up\n"
    assert {template.id for template in manager.templates.list()} - before == set(built)
    assert len(set(built)) == 1
    assert files_below(state_dir, "scratch") == set()
    manager.destroy_all()
    manager.templates.delete(built[0])
