"""ssh: what is told when it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_harness import Cli

from arrakis_rpc import errors


def test_without_a_client_nothing_is_asked(
    arrakis: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no ssh, the verb says how to get it, and leaves the machine alone."""
    monkeypatch.setenv("PATH", str(tmp_path))
    code, out, err = arrakis("ssh", "box", "true")
    assert (code, out) == (1, "")
    assert err.startswith("error: the program ssh is not installed here\nhint: apt-get install ")
    assert arrakis.asked == []


def test_machine_that_is_paused(
    arrakis: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the daemon refuses is told before ssh is started, and no key stays behind."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    arrakis.serve(file_read=errors.InvalidStateError("box is PAUSED"))
    assert arrakis("ssh", "box") == (4, "", "error: box is PAUSED\n")
    assert [*temporary.iterdir()] == []
