"""Old snapshots that the daemon deletes by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_guest import watching
from real_daemon import running_daemon, wait_until, write_config

from arrakis import SandboxManager

pytestmark = pytest.mark.vm


def test_retention(template_state: Path) -> None:
    """Each machine's oldest go; those with a label, those in use, and all content stay."""
    config = write_config(template_state)
    config.write_text(config.read_text() + "\n[snapshots]\nkeep_last = 2\n")
    with (
        running_daemon(template_state, f"--config={config}") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):

        def there() -> list[str]:
            return [one.id for one in manager.snapshots.list()]

        with watching(manager) as watch, manager.start_sandbox("box") as sandbox:
            sandbox.snapshot("kept", label="the beginning")
            for number in range(2):
                sandbox.files.write(f"/root/{number}", b"")
                sandbox.snapshot(f"step{number}")
            with manager.restore("other", "step0"):
                for number in range(2, 5):
                    sandbox.files.write(f"/root/{number}", b"")
                    sandbox.snapshot(f"step{number}")
                assert there() == ["kept", "step0", "step3", "step4"]
            sandbox.snapshot("step5")
            assert there() == ["kept", "step4", "step5"]
            watch.until("vm.destroyed", "other")
            told = [one["data"] for one in watch.seen if one["kind"] == "snapshot.deleted"]
            assert told == [{"id": f"step{one}", "reason": "keep_last"} for one in (1, 2)]
            sandbox.rollback("step4")
            assert all(sandbox.files.exists(f"/root/{number}") for number in range(5))
        with manager.restore("back", "kept") as back:
            assert not back.files.exists("/root/0")
        for one in there():
            manager.snapshots.delete(one)
        wait_until(lambda: not daemon.stored_files(), 10)
