"""Stored files that are not what was stored: a restore refuses, and names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from real_daemon import Daemon, running_daemon

from arrakis import IntegrityError, InvalidStateError, NotFoundError, SandboxManager

pytestmark = pytest.mark.vm


@contextmanager
def flipped(path: Path, position: int) -> Iterator[None]:
    """Flip one bit of a file for the length of a block."""

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(position)
            (byte,) = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 0x10]))

    flip()
    try:
        yield
    finally:
        flip()


@contextmanager
def hidden(path: Path) -> Iterator[None]:
    """Take a file away for the length of a block."""
    away = path.rename(path.with_name(f"{path.name}.away"))
    try:
        yield
    finally:
        away.rename(path)


def data_positions(path: Path) -> list[int]:
    """The beginning, the middle and the end of a file; its size must not be all hole."""
    size = path.stat().st_size
    return sorted({0, size // 2, size - 1})


def parts(state: Path, kind: str, one: str) -> list[Path]:
    """All files that waking something stored reads, but its manifest."""
    directory = state / kind / one
    manifest = json.loads((directory / "manifest.json").read_text())
    return [
        *(directory / name for name in manifest["files"]),
        *(
            state / "layers" / one["id"] / name
            for one in manifest["layers"]
            for name in one["files"]
        ),
        *(path for path in state.glob("templates/*/memory") if kind == "snapshots"),
    ]


@pytest.fixture
def session_image(state_dir: Path) -> Path:
    """The root image from which the session's template was booted."""
    (manifest,) = state_dir.glob("templates/*/manifest.json")
    return Path(json.loads(manifest.read_text())["shape"]["root_image"])


@pytest.fixture
def own(template_state: Path) -> Iterator[tuple[Daemon, SandboxManager]]:
    """A daemon with a state of its own that holds a snapshot of a restored VM."""
    with running_daemon(template_state) as daemon, SandboxManager(socket=daemon.socket) as manager:
        with manager.start_sandbox("first") as source:
            source.files.write("/root/data", b"data" * 10_000)
            source.snapshot("below")
        with manager.restore("second", "below") as source:
            source.files.write("/root/more", b"more" * 10_000)
            source.snapshot("above")
        yield daemon, manager
        manager.destroy_all()


def test_every_file_of_a_snapshot(own: tuple[Daemon, SandboxManager]) -> None:
    """One flipped bit in any part of a snapshot, or a missing part, and it is not woken."""
    daemon, manager = own
    with daemon.leaves_nothing():
        files = parts(daemon.state, "snapshots", "above")
        assert len(files) == 10
        for path in files:
            for damage in (*(flipped(path, at) for at in data_positions(path)), hidden(path)):
                with damage, pytest.raises(IntegrityError, match=path.name) as caught:
                    manager.restore("woken", "above")
                assert str(path) in str(caught.value)
                assert caught.value.hint
                assert manager.list_all() == []
        with manager.restore("woken", "above") as woken:
            assert woken.files.read("/root/more") == b"more" * 10_000


def test_every_file_of_a_template(own: tuple[Daemon, SandboxManager]) -> None:
    """One flipped bit in any part of a template, or a missing part, and no VM starts from it."""
    daemon, manager = own
    (template,) = manager.templates.list()
    with daemon.leaves_nothing():
        files = parts(daemon.state, "templates", template.id)
        assert len(files) == 4
        for path in files:
            for damage in (*(flipped(path, at) for at in data_positions(path)), hidden(path)):
                with damage, pytest.raises(IntegrityError, match=path.name) as caught:
                    manager.start_sandbox("started")
                assert str(path) in str(caught.value)
                assert manager.list_all() == []
        with manager.start_sandbox("started") as started:
            assert started.run_cmd("echo hi")["output"] == "hi\n"


def test_damage_under_a_running_vm(own: tuple[Daemon, SandboxManager]) -> None:
    """A VM that runs is not disturbed by damage to what it came from, nor is its snapshot."""
    daemon, manager = own
    pages = parts(daemon.state, "snapshots", "above")[-2]
    assert pages.name == "pages"
    with manager.restore("running", "above") as running:
        with flipped(pages, pages.stat().st_size // 2):
            with pytest.raises(IntegrityError):
                manager.restore("another", "above")
            assert running.files.read("/root/more") == b"more" * 10_000
            running.snapshot("whole")
        with manager.restore("again", "whole") as again:
            assert again.files.read("/root/more") == b"more" * 10_000


def test_root_image(template_state: Path, session_image: Path) -> None:
    """A root image with one flipped bit, or none at all, is refused by its name; then it is not."""
    image = template_state.parent / "own.erofs"
    shutil.copyfile(session_image, image)
    with running_daemon(template_state) as daemon, SandboxManager(socket=daemon.socket) as manager:
        with manager.start_sandbox("own", rootfs=str(image)) as sandbox:
            sandbox.snapshot("standing")
            for damage in (*(flipped(image, at) for at in data_positions(image)), hidden(image)):
                with damage, pytest.raises(IntegrityError, match=image.name) as caught:
                    manager.restore("woken", "standing")
                assert str(image) in str(caught.value)
                assert caught.value.hint
                assert [one.name for one in manager.list_all()] == ["own"]
            with hidden(image):
                assert sandbox.run_cmd("echo going on")["output"] == "going on\n"
        with manager.restore("woken", "standing") as woken:
            assert woken.run_cmd("echo whole")["output"] == "whole\n"
        manager.snapshots.delete("standing")


def test_damaged_manifests(template_state: Path) -> None:
    """A daemon starts with damaged manifests, reports each, refuses those and serves the rest."""
    with running_daemon(template_state) as daemon, SandboxManager(socket=daemon.socket) as manager:
        with manager.start_sandbox("source") as source:
            for name in ("whole", "flipped", "cut"):
                source.snapshot(name)
        (template,) = manager.templates.list()
    stored = template_state / "snapshots"
    cut = stored / "cut" / "manifest.json"
    text = cut.read_text()
    cut.write_text(text[: len(text) // 2])
    manifest = stored / "flipped" / "manifest.json"
    with (
        flipped(manifest, 50),
        running_daemon(template_state) as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        assert [one.id for one in manager.snapshots.list()] == ["whole"]
        findings = [check for check in manager.doctor().checks if not check.ok]
        for path in (cut, manifest):
            assert any(str(path) in f"{check.name} {check.detail}" for check in findings)
            with pytest.raises(IntegrityError, match=str(path)):
                manager.restore("x", path.parent.name)
        with manager.restore("x", "whole") as sandbox:
            with pytest.raises(IntegrityError, match=str(cut)):
                sandbox.snapshot("cut")
            assert sandbox.run_cmd("echo going on")["output"] == "going on\n"
            manager.snapshots.delete("cut")
            assert not cut.parent.exists()
            sandbox.snapshot("cut")
            with pytest.raises(NotFoundError):
                manager.snapshots.delete("gone")
    with (
        running_daemon(template_state) as daemon,
        SandboxManager(socket=daemon.socket) as manager,
        manager.restore("mended", "flipped") as sandbox,
    ):
        assert sandbox.run_cmd("echo back")["output"] == "back\n"
    with (
        flipped(template_state / "templates" / template.id / "manifest.json", 60),
        running_daemon(template_state) as daemon,
        SandboxManager(socket=daemon.socket) as manager,
    ):
        for attempt in (
            lambda: manager.start_sandbox("x"),
            lambda: manager.restore("x", "whole"),
        ):
            with pytest.raises(IntegrityError, match=template.id) as caught:
                attempt()
            assert caught.value.hint
        assert daemon.vmm_pids() == set()
    (template_state / "templates" / template.id / "manifest.json").write_text("{")
    with running_daemon(template_state) as daemon, SandboxManager(socket=daemon.socket) as manager:
        with pytest.raises(InvalidStateError, match="snapshot 'whole'"):
            manager.templates.delete(template.id)
        for snapshot in manager.snapshots.list():
            manager.snapshots.delete(snapshot.id)
        manager.templates.delete(template.id)
        assert [check for check in manager.doctor().checks if "stored data" in check.name] == []
        for part in ("templates", "snapshots", "layers", "scratch"):
            assert list((template_state / part).iterdir()) == []
