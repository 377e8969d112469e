"""Templates: what stands on one keeps it, and a deleted one is made again."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_daemon import running_daemon

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
