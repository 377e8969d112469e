"""How scripts/setup takes a hypervisor that somebody has downloaded."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """A file that passes for a hypervisor."""
    path = tmp_path / "downloaded"
    path.write_text("#!/bin/sh\necho cloud-hypervisor v52.0\n")
    return path


def run(command: str, *arguments: str, place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command, "-", *arguments],
        cwd=ROOT,
        env={**os.environ, "ARRAKIS_VMM_DIR": str(place)},
        capture_output=True,
        text=True,
    )


def provide(*arguments: str, place: Path) -> subprocess.CompletedProcess[str]:
    return run('source scripts/setup; provide_vmm "$@"', *arguments, place=place)


def test_checked_file_is_installed(downloaded: Path, tmp_path: Path) -> None:
    """A file with the given checksum is put where the daemon finds it, and run once."""
    checksum = hashlib.sha256(downloaded.read_bytes()).hexdigest()
    done = provide("cloud-hypervisor", str(downloaded), checksum, place=tmp_path)
    assert done.returncode == 0, done.stderr
    target = tmp_path / "cloud-hypervisor"
    assert done.stdout == f"cloud-hypervisor is in {target}: cloud-hypervisor v52.0\n"
    assert os.access(target, os.X_OK)


@pytest.mark.parametrize(
    ("checksum", "said"),
    [
        ("", "give the checksum of"),
        ("0" * 64, "is not the file that --sha256 stands for"),
        ("no checksum", "give the checksum of"),
    ],
)
def test_other_file_is_refused(downloaded: Path, tmp_path: Path, checksum: str, said: str) -> None:
    """Without its checksum, or with another one, nothing is installed."""
    done = provide("firecracker", str(downloaded), checksum, place=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "firecracker").exists()


def test_where_to_get_one(tmp_path: Path) -> None:
    """Without a file it is told where there is one, and nothing else is done."""
    done = run('scripts/setup --with-vmm "$1"', "firecracker", place=tmp_path)
    assert done.returncode == 0
    assert "https://github.com/firecracker-microvm/firecracker/releases" in done.stdout
    assert "Nothing is downloaded by itself" in done.stdout
    unknown = run('scripts/setup --with-vmm "$1"', "bochs", place=tmp_path)
    assert unknown.returncode == 1
    assert "there is no VMM 'bochs'" in unknown.stderr
    early = run("scripts/setup --sha256 00", place=tmp_path)
    assert "belongs behind --with-vmm" in early.stderr


@pytest.mark.parametrize(
    ("version", "refused"), [("6.2.0", False), ("10.0.2", False), ("6.1.1", True), ("5.2.0", True)]
)
def test_old_qemu(tmp_path: Path, version: str, refused: bool) -> None:
    """A distribution whose QEMU is too old is told of before images are made for it."""
    qemu = tmp_path / "qemu-system-x86_64"
    qemu.write_text(f'#!/bin/sh\necho "QEMU emulator version {version} (Debian 1:1)"\n')
    qemu.chmod(0o755)
    done = run("source scripts/setup; PATH=$1:$PATH; require_qemu", str(tmp_path), place=tmp_path)
    assert done.returncode == refused
    assert (f"QEMU {version} is too old" in done.stderr) is refused
