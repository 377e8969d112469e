"""Whether another user can reach a file."""

from __future__ import annotations

import os
from pathlib import Path

from arrakisd.host.files import impassable

STRANGER = (12345, 12345)


def test_impassable(tmp_path: Path) -> None:
    """The directory that keeps a user out is found; its owner, and an open one, are not."""
    closed = tmp_path / "closed"
    file = closed / "inner" / "file"
    file.parent.mkdir(parents=True)
    for parent in closed.parents:
        if parent.stat().st_uid == os.geteuid() and parent.is_relative_to("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    closed.chmod(0o711)
    assert impassable(file, STRANGER) is None
    closed.chmod(0o700)
    assert impassable(file, STRANGER) == closed
    assert impassable(file, (os.geteuid(), os.getegid())) is None


def test_missing(tmp_path: Path) -> None:
    """What is not there yet keeps nobody out."""
    tmp_path.chmod(0o755)
    barrier = impassable(tmp_path / "no" / "such" / "file", STRANGER)
    assert barrier is None or not barrier.is_relative_to(tmp_path)
