"""The build context: the same bytes for the same files, and only those that belong to it."""

from __future__ import annotations

import io
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_daemon import Peer, Script, Server, answering

from arrakis import ImageBuildError, InvalidParamsError, Progress
from arrakis.context import Ignore, tar_context
from arrakis_rpc.connection import CallReceived

Start = Callable[[Script], Server]


def names(context: Path, dockerfile: str = "Dockerfile") -> list[str]:
    data = b"".join(tar_context(str(context), dockerfile))
    return tarfile.open(fileobj=io.BytesIO(data)).getnames()


def make_tree(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(os.fsencode(path))


def test_archive_holds_what_the_directory_holds(tmp_path: Path) -> None:
    """Files, modes, links, long and strange names unpack to what was packed."""
    long = "/".join(["directory" * 8] * 4) + "/file"
    source = tmp_path / "source"
    make_tree(source, "Dockerfile", "run.sh", long, os.fsdecode(b"caf\xe9"))
    (source / "run.sh").chmod(0o755)
    (source / "big").write_bytes(os.urandom(300_000))
    (source / "link").symlink_to("/etc/passwd")
    (source / "empty").mkdir()
    data = b"".join(tar_context(str(source), "Dockerfile"))
    assert len(data) % tarfile.BLOCKSIZE == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(tmp_path / "copy", filter="fully_trusted")
    for path in source.rglob("*"):
        copy = tmp_path / "copy" / path.relative_to(source)
        assert copy.lstat().st_mode == path.lstat().st_mode
        if path.is_symlink():
            assert copy.readlink() == path.readlink()
        elif path.is_file():
            assert copy.read_bytes() == path.read_bytes()


def test_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    """Neither times nor the order of making them change the archive."""
    make_tree(tmp_path / "one", "Dockerfile", "b", "a/c")
    make_tree(tmp_path / "two", "a/c", "b", "Dockerfile")
    os.utime(tmp_path / "two" / "b", (1, 1))
    one, two = (
        b"".join(tar_context(str(tmp_path / tree), "Dockerfile")) for tree in ("one", "two")
    )
    assert one == two


def test_big_files_are_never_in_memory_whole(tmp_path: Path) -> None:
    """Packing takes chunks of memory, however big a file is."""
    with (tmp_path / "big").open("wb") as file:
        file.truncate(64 * 2**20)
    tracemalloc.start()
    total = sum(len(chunk) for chunk in tar_context(str(tmp_path), "Dockerfile"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total > 64 * 2**20
    assert peak < 2 * 2**20


@pytest.mark.parametrize(
    ("patterns", "path", "excluded"),
    [
        (["*.pyc"], "a.pyc", True),
        (["*.pyc"], "sub/a.pyc", False),
        (["**/*.pyc"], "sub/deep/a.pyc", True),
        (["**/*.pyc"], "a.pyc", True),
        (["node_modules"], "node_modules/x/y", True),
        (["node_modules/"], "node_modules", True),
        (["/build"], "build", True),
        (["build"], "src/build", False),
        (["./build/../out"], "out/x", True),
        (["a?c"], "abc", True),
        (["a?c"], "a/c", False),
        (["[ab].txt"], "b.txt", True),
        (["# *.md", "", "*.txt"], "x.md", False),
        (["*", "!src"], "src/main.py", False),
        (["*", "!src", "src/secret"], "src/secret", True),
        (["a.b"], "aXb", False),
    ],
)
def test_dockerignore_patterns(patterns: list[str], path: str, excluded: bool) -> None:
    """The last pattern that matches a path, or a directory above it, decides."""
    assert Ignore(patterns).excludes(path) is excluded


def test_dockerfile_is_never_excluded(tmp_path: Path) -> None:
    """What the build itself needs is sent whatever the patterns say."""
    make_tree(tmp_path, "docker/Dockerfile", "docker/x", "src/main.py", "src/main.pyc", "notes")
    (tmp_path / ".dockerignore").write_text("*\n!src\n**/*.pyc\n")
    assert names(tmp_path, "docker/Dockerfile") == [
        ".dockerignore",
        "docker/Dockerfile",
        "src",
        "src/main.py",
    ]


def test_build_streams_context_and_tells_steps(scripted: Start, tmp_path: Path) -> None:
    """A build sends parameters and context, reports each step and gives the image."""
    make_tree(tmp_path, "Dockerfile", "file")
    received = b""

    def build(peer: Peer, call: CallReceived) -> Any:
        nonlocal received
        assert call.params == {
            "name": "mine",
            "dockerfile": "Dockerfile",
            "build_args": {"A": "1"},
        }
        peer.note(call, "call.progress", text="STEP 1/2", step=1, total=2)
        received = peer.read_all(call)
        return {"name": "mine", "digest": "d", "bytes": 5, "created": 1.0, "parent": "base"}

    seen: list[Progress] = []
    images = scripted(answering(image_build=build)).manager.images
    built = images.build(tmp_path, name="mine", build_args={"A": "1"}, progress=seen.append)
    assert built.parent == "base"
    assert seen == [Progress("STEP 1/2", 1, 2)]
    assert received == b"".join(tar_context(str(tmp_path), "Dockerfile"))


def test_build_that_fails_early_stops_sending(scripted: Start, tmp_path: Path) -> None:
    """A step that fails while the context is under way ends the build with its error."""
    make_tree(tmp_path, "Dockerfile")
    with (tmp_path / "big").open("wb") as file:
        file.truncate(512 * 2**20)
    failed = ImageBuildError("step 1 failed", output="no such package")
    images = scripted(answering(image_build=failed)).manager.images
    with pytest.raises(ImageBuildError, match="step 1") as caught:
        images.build(tmp_path, name="mine")
    assert caught.value.detail["output"] == "no such package"


def test_context_without_a_dockerfile_is_refused_here(scripted: Start, tmp_path: Path) -> None:
    """A directory without its Dockerfile is noticed before anything is sent."""
    server = scripted(answering())
    with pytest.raises(InvalidParamsError, match="there is no Dockerfile"):
        server.manager.images.build(tmp_path, name="mine")
    assert server.connections == 0
