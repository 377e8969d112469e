"""The system's ssh, straight to a guest's address, with a key that the configuration names."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from real_daemon import Daemon, namespace_of, running_daemon, write_config

from arrakis import SandboxManager
from arrakisd.guest.identity import read_authorized_keys

pytestmark = pytest.mark.vm


def make_key(path: Path) -> Path:
    """Make a key pair."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True)
    return path


def ssh(daemon: Daemon, key: Path, address: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Log in from the daemon's namespace, as its host would."""
    options = ("BatchMode=yes", "StrictHostKeyChecking=no", f"UserKnownHostsFile={key}.hosts")
    argv = [
        *("ip", "netns", "exec", namespace_of(daemon.state), "ssh", "-i", str(key)),
        *(word for option in options for word in ("-o", option)),
        *(f"elara@{address}", *command),
    ]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_plain_ssh(template_state: Path, tmp_path: Path) -> None:
    """Who has the key logs in as elara, in a start, a restore and a fork; another does not."""
    key, stranger = make_key(tmp_path / "key"), make_key(tmp_path / "stranger")
    config = write_config(template_state, f'ssh_authorized_keys = ["{key}.pub"]')
    with (
        running_daemon(template_state, f"--config={config}") as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        first = manager.start_sandbox("first")
        restored = manager.restore("restored", first.snapshot("kept"))
        (forked,) = restored.fork(1)
        for sandbox in (first, restored, forked):
            address = sandbox.info()["ip"].partition("/")[0]
            said = ssh(daemon, key, address, "whoami; hostname")
            assert said.stdout.split() == ["elara", sandbox.name], said.stderr
        refused = ssh(daemon, stranger, address, "whoami")
        assert refused.returncode == 255
        assert "Permission denied" in refused.stderr
        manager.destroy_all()
        manager.snapshots.delete("kept")


def test_which_keys(tmp_path: Path) -> None:
    """All files that match are read, in order; one that is missing or too large is left out."""
    (tmp_path / "id_b.pub").write_text("b")
    (tmp_path / "id_a.pub").write_text("a\n")
    (tmp_path / "large.pub").write_text("x" * 70_000)
    patterns = [f"{tmp_path}/none", f"{tmp_path}/large.pub", f"{tmp_path}/id_*.pub"]
    assert read_authorized_keys(patterns) == b"a\nb\n"
    assert read_authorized_keys([]) == b""
