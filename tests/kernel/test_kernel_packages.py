import os
from pathlib import Path

import pytest

from arrakis_kernel.packages import Package, find_package

_APT_CACHE = """#!/bin/sh
case $LC_ALL in
C) echo '  Candidate: 6.1.0-1' ;;
*) echo '  Installationskandidat: 6.1.0-1' ;;
esac
"""


def test_package_is_found_in_any_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What apt says is understood whatever language the user has set."""
    program = tmp_path / "apt-cache"
    program.write_text(_APT_CACHE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert find_package("linux-image-6") == Package("linux-image-6", "6.1.0-1")
