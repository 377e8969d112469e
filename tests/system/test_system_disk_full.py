"""A full disk, of the host or of a guest: what failed is said, and nothing is left of it."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from in_guest import ask
from real_daemon import copy_templates, files_below, passable_directory, running_daemon

from arrakis import ExhaustedError, FileOperationError, SandboxManager

pytestmark = pytest.mark.vm

_SIZE = 3 * 2**30


@pytest.fixture
def small_state(state_dir: Path) -> Iterator[Path]:
    """A state directory on a file system of its own, with a copy of the session's template."""
    with passable_directory() as directory:
        mount("-t", "tmpfs", "-o", f"size={_SIZE},mode=711", "tmpfs", directory)
        try:
            copy_templates(state_dir, directory / "state")
            yield directory / "state"
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True)


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


@contextmanager
def filled(state: Path, left: int) -> Iterator[None]:
    """Leave so many bytes on a state's file system for the length of a block.

    It shrinks instead of being written full, which would take seconds.
    """
    status = os.statvfs(state)
    used = (status.f_blocks - status.f_bfree) * status.f_frsize
    mount("-o", f"remount,size={used + left}", state.parent)
    try:
        yield
    finally:
        mount("-o", f"remount,size={_SIZE}", state.parent)


def test_snapshot(small_state: Path) -> None:
    """A snapshot for which there is no room fails wherever it gets to; its VM goes on."""
    parts = ("vms", "scratch", "snapshots", "layers")
    with running_daemon(small_state) as daemon, SandboxManager(socket=daemon.socket) as manager:
        sandbox = manager.start_sandbox("full")
        sandbox.files.write("/dev/shm/data", os.urandom(12 * 2**20))
        sandbox.files.write("/root/data", os.urandom(4 * 2**20))
        ask(sandbox, "sync")
        before = files_below(small_state, "layers")
        for left in (0, 64, 240, 300, 500, 700, 1000, 4000, 13_000):
            with filled(small_state, left * 1024), pytest.raises(ExhaustedError) as caught:
                sandbox.snapshot("never")
            assert str(small_state) in str(caught.value)
            assert caught.value.hint
            assert manager.snapshots.list() == []
            assert files_below(small_state, "scratch", "snapshots") == set()
            assert ask(sandbox, "echo going on") == "going on"
        with filled(small_state, 0):  # the guest uses memory that it never has before
            assert ask(sandbox, "head -c 60M /dev/zero | tail -c 50M | wc -c") == "52428800"
        sandbox.snapshot("there")
        with manager.restore("again", "there") as again:
            compare = "sha256sum /dev/shm/data /root/data"
            assert ask(again, compare) == ask(sandbox, compare)
        manager.destroy_all()
        manager.snapshots.delete("there")
        assert files_below(small_state, *parts) == before


def test_template(small_state: Path) -> None:
    """A guest that cannot boot for want of room says so, and leaves nothing."""
    before = files_below(small_state, "scratch", "templates", "layers")
    with running_daemon(small_state) as daemon, SandboxManager(socket=daemon.socket) as manager:
        for left in (0, 1, 40):
            with filled(small_state, left * 2**20), pytest.raises(ExhaustedError) as caught:
                manager.start_sandbox("other", memory_mib=640)
            assert str(small_state) in str(caught.value)
            assert caught.value.hint
            assert manager.list_all() == []
            assert files_below(small_state, "scratch", "templates", "layers") == before


def test_upload(manager: SandboxManager) -> None:
    """A file that does not fit into a guest is refused by its path, and is not there in part."""
    with manager.start_sandbox("full") as sandbox:
        free = int(ask(sandbox, "df --output=avail -B1 /root | tail -n1"))
        sandbox.files.write("/root/kept", "before")
        ask(sandbox, f"fallocate -l {free - 4 * 2**20} /root/filler")
        listed = ask(sandbox, "find /root /tmp -xdev | sort")
        for path in ("/root/kept", "/root/new"):
            with pytest.raises(FileOperationError, match=path) as caught:
                sandbox.files.write(path, os.urandom(9 * 2**20))
            assert caught.value.detail["errno"] == errno.ENOSPC
        assert ask(sandbox, "find /root /tmp -xdev | sort") == listed
        assert sandbox.files.read_text("/root/kept") == "before"
        sandbox.files.remove("/root/filler")
        data = os.urandom(9 * 2**20)
        sandbox.files.write("/root/new", data)
        assert sandbox.files.read("/root/new") == data


def stored_images(state: Path) -> set[str]:
    """What there is of images; who uses which is noted beside them."""
    notes = ("images/names", "images/users")
    return {path for path in files_below(state, "images") if not path.startswith(notes)}


def test_image_build(small_state: Path, tmp_path: Path) -> None:
    """A build for which there is no room fails in its context or its result, and leaves nothing."""
    (tmp_path / "Dockerfile").write_text("FROM base\nCOPY data /data\n")
    (tmp_path / "data").write_bytes(os.urandom(8 * 2**20))
    with running_daemon(small_state) as daemon, SandboxManager(socket=daemon.socket) as manager:
        for left in (1, 12, 100):
            with filled(small_state, left * 2**20), pytest.raises(ExhaustedError) as caught:
                manager.images.build(tmp_path, name="large")
            assert str(small_state) in str(caught.value)
            assert caught.value.hint
            assert files_below(small_state, "scratch") == set()
            assert stored_images(small_state) == set()
            assert "large" not in [image.name for image in manager.images.list()]
        manager.images.build(tmp_path, name="large")
        assert "large" in [image.name for image in manager.images.list()]
        manager.images.delete("large")
        assert stored_images(small_state) == set()
