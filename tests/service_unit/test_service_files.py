"""What systemd itself says of the units."""

from __future__ import annotations

import subprocess
from pathlib import Path

UNITS = Path(__file__).parents[2] / "systemd"


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
