"""What systemd itself says of the units."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"


def test_hardened() -> None:
    """systemd finds that the service exposes no more than 4 of 10."""
    examined = subprocess.run(
        [
            *("systemd-analyze", "security", "--offline=true", "--threshold=40", "--no-pager"),
            UNITS / "arrakisd.service",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert examined.returncode == 0, examined.stdout
    assert "Overall exposure level" in examined.stdout


def test_drop_in_for_a_jailer(tmp_path: Path) -> None:
    """systemd takes the documented drop-in, which lets the service make the devices of a jail."""
    operations = (ROOT / "docs" / "operations.md").read_text()
    found = re.search(r"```ini\n([^`]*CAP_MKNOD[^`]*)```", operations)
    assert found is not None
    units = tmp_path / "etc" / "systemd" / "system"
    drop_in = units / "arrakisd.service.d" / "jailer.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text(found[1])
    shutil.copy(UNITS / "arrakisd.service", units)
    arguments = ["--offline=true", f"--root={tmp_path}", "--no-pager", "arrakisd.service"]
    examined = subprocess.run(
        ["systemd-analyze", "security", *arguments], capture_output=True, text=True, check=True
    )
    assert examined.stderr == ""
    assert "Service may create device nodes" in examined.stdout
    assert {"/dev/kvm", "/dev/net/tun", "/dev/urandom"} <= set(
        re.findall(r"^DeviceAllow=(\S+) rwm$", found[1], re.MULTILINE)
    )
